//! Which KV pages are free: reference counting by `Arc`.

use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::PAGE_LEN;
use crate::{Error, Result};

/// The ids of a fixed number of pages.
#[derive(Debug)]
pub(super) struct PagePool {
    free: Arc<Mutex<Vec<u32>>>,
    pages: usize,
}

/// One owner of a page; the page is free again when the last owner is dropped.
#[derive(Clone, Debug)]
pub(super) struct Page(Arc<Held>);

#[derive(Debug)]
struct Held {
    id: u32,
    free: Arc<Mutex<Vec<u32>>>,
}

impl PagePool {
    pub fn new(pages: usize) -> Self {
        // the lowest id is taken first, so that memory is touched from the front
        let free = (0..pages as u32).rev().collect();
        PagePool { free: Arc::new(Mutex::new(free)), pages }
    }

    /// How many pages nobody owns.
    pub fn free(&self) -> usize {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub fn take(&self) -> Result<Page> {
        let id = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop().ok_or_else(|| {
            Error::Memory(format!(
                "the KV cache of {} tokens is full: end another conversation with this model, or load it with a larger context",
                self.pages * PAGE_LEN
            ))
        })?;
        Ok(Page(Arc::new(Held { id, free: self.free.clone() })))
    }
}

impl Page {
    pub fn id(&self) -> u32 {
        self.0.id
    }

    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_free_again_when_its_last_owner_is_gone() {
        let pool = PagePool::new(1);
        let page = pool.take().unwrap();
        let second = page.clone();
        assert!(page.is_shared());
        drop(page);
        assert!(pool.take().is_err());
        assert!(!second.is_shared());
        drop(second);
        assert_eq!(pool.take().unwrap().id(), 0);
    }
}
