//! Memory that is reserved at once and committed as it is used, and pointers that threads share.

use std::sync::Arc;

use memmap2::{MmapMut, MmapOptions};

use crate::{Error, Result};

const CACHE_LINE: usize = 64;

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Zeroed memory, aligned to a page of the system, or a cache line in an [`Arena`]; each page is committed when it is first
/// written.
#[derive(Debug)]
pub struct Memory {
    map: Arc<MmapMut>,
    start: Shared<u8>,
    len: usize,
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
        let mut map = options
            .map_anon()
            .map_err(|e| Error::Memory(format!("cannot reserve {bytes} bytes for {purpose}: {e}")))?;
        let (start, len) = (Shared(map.as_mut_ptr()), map.len());
        Ok(Memory { map: Arc::new(map), start, len })
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
        self.len
    }

    /// The beginning, for threads that write disjoint parts.
    pub fn shared<T>(&self) -> Shared<T> {
        Shared(self.start.0.cast())
    }

    /// The first `len` f32.
    pub fn as_floats(&self, len: usize) -> &[f32] {
        assert!(len * size_of::<f32>() <= self.len);
        // SAFETY: in bounds, aligned to a cache line at least, and any bits are an f32.
        unsafe { std::slice::from_raw_parts(self.start.0.cast(), len) }
    }

    /// All of it, as f32.
    pub fn values(&self) -> &[f32] {
        self.as_floats(self.len / size_of::<f32>())
    }

    /// The first `len` f32, to be changed.
    pub fn as_floats_mut(&mut self, len: usize) -> &mut [f32] {
        assert!(len * size_of::<f32>() <= self.len);
        // SAFETY: in bounds, aligned to a cache line at least, and any bits are an f32; borrowed as the memory is.
        unsafe { std::slice::from_raw_parts_mut(self.start.0.cast(), len) }
    }
}

/// Where what a model keeps for good lies together, in huge pages.
///
/// A step reads all of it, and to look up where a page lies costs most where the caches are full of weights: on a virtual
/// machine 1.6 µs on average for one of 4 KiB. With mappings of their own the matrices of a 1.5B had 20 to 40 MB in such
/// pages, at their ends, and the vectors some 200; decode was 2 to 7% slower.
#[derive(Debug)]
pub struct Arena {
    /// Bytes that are reserved at a time; what is not used of them is never committed.
    reserve: usize,
    reserved: Option<Memory>,
    /// Bytes of it that are taken.
    taken: usize,
}

impl Arena {
    /// An arena that reserves at least so many bytes at a time.
    pub const fn new(reserve: usize) -> Self {
        Arena { reserve, reserved: None, taken: 0 }
    }

    /// Takes `bytes` for what `purpose` names, from the beginning of a cache line on. They stay reserved as long as anything does
    /// that was taken beside them.
    ///
    /// # Errors
    /// As [`Memory::new`].
    pub fn take(&mut self, bytes: usize, purpose: &str) -> Result<Memory> {
        let is_room = |memory: &Memory, taken: usize| bytes <= memory.len - taken;
        let memory = match self.reserved.take() {
            Some(memory) if is_room(&memory, self.taken) => memory,
            _ => self.reserve(bytes.max(self.reserve), purpose)?,
        };
        // SAFETY: there is room for it.
        let start = Shared(unsafe { memory.start.at(self.taken) });
        let part = Memory { map: memory.map.clone(), start, len: bytes };
        self.taken = (self.taken + bytes).next_multiple_of(CACHE_LINE).min(memory.len);
        self.reserved = Some(memory);
        Ok(part)
    }

    /// Reserves whole huge pages.
    fn reserve(&mut self, bytes: usize, purpose: &str) -> Result<Memory> {
        let mut memory = Memory::new(bytes.next_multiple_of(HUGE_PAGE) + HUGE_PAGE, purpose)?;
        memory.prefer_huge_pages();
        let before = memory.start.0.align_offset(HUGE_PAGE);
        // SAFETY: one huge page more than is needed was reserved.
        memory.start = Shared(unsafe { memory.start.at(before) });
        memory.len -= HUGE_PAGE;
        self.taken = 0;
        Ok(memory)
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

#[cfg(test)]
mod tests {
    use super::*;

    const RESERVE: usize = 2 * HUGE_PAGE;

    #[test]
    fn parts_of_an_arena_lie_side_by_side_from_cache_lines_on() {
        let mut arena = Arena::new(RESERVE);
        let parts = [100, 64, 0, 1].map(|bytes| arena.take(bytes, "a test").unwrap());
        let start = parts[0].start.0 as usize;
        assert!(start.is_multiple_of(HUGE_PAGE), "from a huge page on");
        assert_eq!(parts.each_ref().map(|part| part.start.0 as usize - start), [0, 128, 192, 192]);
        assert_eq!(parts.each_ref().map(Memory::len), [100, 64, 0, 1]);
    }

    #[test]
    fn what_an_arena_has_no_room_for_is_reserved_anew() {
        let mut arena = Arena::new(RESERVE);
        let parts = [RESERVE - 64, 64, 64, RESERVE + 1].map(|bytes| arena.take(bytes, "a test").unwrap());
        let share = |a: usize, b: usize| Arc::ptr_eq(&parts[a].map, &parts[b].map);
        assert!(share(0, 1) && !share(1, 2) && !share(2, 3));
        for part in &parts {
            // SAFETY: the part's last byte, which nobody else uses.
            unsafe { *part.shared::<u8>().at(part.len() - 1) = 1 };
        }
    }

    #[test]
    fn a_part_outlives_its_arena() {
        let mut arena = Arena::new(RESERVE);
        let mut part = arena.take(4 * size_of::<f32>(), "a test").unwrap();
        let _beside = arena.take(64, "a test").unwrap();
        drop(arena);
        part.as_floats_mut(4).copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(part.values(), [1.0, 2.0, 3.0, 4.0]);
    }
}
