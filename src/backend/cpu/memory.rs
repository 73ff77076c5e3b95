//! Memory that is reserved at once and committed as it is used, and pointers that threads share.

use memmap2::{MmapMut, MmapOptions};

use crate::{Error, Result};

/// Zeroed memory, aligned to a page of the system; each page is committed when it is first written.
#[derive(Debug)]
pub struct Memory {
    map: MmapMut,
    start: Shared<u8>,
}

impl Memory {
    /// Reserves `bytes` for what `purpose` names.
    ///
    /// # Errors
    /// The system refuses so much.
    pub fn new(bytes: usize, purpose: &str) -> Result<Self> {
        let mut options = MmapOptions::new();
        options.len(bytes.max(1));
        #[cfg(unix)]
        options.no_reserve_swap();
        let mut map = options.map_anon().map_err(|e| {
            Error::Memory(format!("cannot reserve {bytes} bytes for {purpose}: {e}; lower --context"))
        })?;
        let start = Shared(map.as_mut_ptr());
        Ok(Memory { map, start })
    }

    /// Asks for huge pages, which are committed 2 MiB at a time and save address translations. Only advice.
    pub fn prefer_huge_pages(&self) {
        #[cfg(target_os = "linux")]
        let _ = self.map.advise(memmap2::Advice::HugePage);
    }

    /// Room for `len` f32.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn floats(len: usize, purpose: &str) -> Result<Self> {
        Self::new(len * size_of::<f32>(), purpose)
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// The beginning, for threads that write disjoint parts.
    pub fn shared<T>(&self) -> Shared<T> {
        Shared(self.start.0.cast())
    }

    /// The first `len` f32.
    pub fn as_floats(&self, len: usize) -> &[f32] {
        assert!(len * size_of::<f32>() <= self.map.len());
        // SAFETY: in bounds, aligned to a system page, and any bits are an f32.
        unsafe { std::slice::from_raw_parts(self.start.0.cast(), len) }
    }

    /// The first `len` f32, to be changed.
    pub fn as_floats_mut(&mut self, len: usize) -> &mut [f32] {
        assert!(len * size_of::<f32>() <= self.map.len());
        // SAFETY: in bounds, aligned to a system page, and any bits are an f32; borrowed as the memory is.
        unsafe { std::slice::from_raw_parts_mut(self.start.0.cast(), len) }
    }
}

/// A pointer that the threads of a job share; each touches only its own elements.
#[derive(Debug)]
pub struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}

// SAFETY: a pointer is only a number; who follows it promises that no other thread writes there.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// A slice's elements.
    pub fn of(slice: &mut [T]) -> Self {
        Shared(slice.as_mut_ptr())
    }

    /// From a pointer that threads use on disjoint parts.
    pub fn from(pointer: *mut T) -> Self {
        Shared(pointer)
    }

    /// Element `index`.
    ///
    /// # Safety
    /// It lies in the memory that the pointer was made of.
    pub unsafe fn at(self, index: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(index) }
    }
}
