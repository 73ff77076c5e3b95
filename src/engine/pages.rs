//! Which KV pages are free: owners are counted, and no page costs an allocation.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::PAGE_LEN;
use crate::{Error, Result};

/// The ids of a fixed number of pages.
#[derive(Debug)]
pub(super) struct PagePool(Arc<Mutex<Pages>>);

/// One owner of a page; the page is free again when the last owner is dropped.
#[derive(Debug)]
pub(super) struct Page {
    id: u32,
    pages: Arc<Mutex<Pages>>,
}

#[derive(Debug)]
struct Pages {
    /// The lowest id is taken first, so that memory is touched from the front and a sequence's pages lie side by side.
    free: BinaryHeap<Reverse<u32>>,
    /// By page.
    owners: Vec<u32>,
}

fn lock(pages: &Mutex<Pages>) -> MutexGuard<'_, Pages> {
    pages.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PagePool {
    pub fn new(pages: usize) -> Self {
        let free = (0..pages as u32).map(Reverse).collect();
        PagePool(Arc::new(Mutex::new(Pages { free, owners: vec![0; pages] })))
    }

    /// How many pages nobody owns.
    pub fn free(&self) -> usize {
        lock(&self.0).free.len()
    }

    /// Whether a page is one of these.
    pub fn has(&self, page: &Page) -> bool {
        Arc::ptr_eq(&self.0, &page.pages)
    }

    pub fn take(&self) -> Result<Page> {
        let mut pages = lock(&self.0);
        let Reverse(id) = pages.free.pop().ok_or_else(|| {
            Error::Memory(format!(
                "the KV cache of {} tokens is full: end another conversation with this model, or load it with a larger context",
                pages.owners.len() * PAGE_LEN
            ))
        })?;
        pages.owners[id as usize] = 1;
        Ok(Page { id, pages: self.0.clone() })
    }
}

impl Page {
    pub fn id(&self) -> u32 {
        self.id
    }

    pub fn is_shared(&self) -> bool {
        lock(&self.pages).owners[self.id as usize] > 1
    }
}

impl Clone for Page {
    fn clone(&self) -> Page {
        lock(&self.pages).owners[self.id as usize] += 1;
        Page { id: self.id, pages: self.pages.clone() }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let mut pages = lock(&self.pages);
        let owners = &mut pages.owners[self.id as usize];
        *owners -= 1;
        if *owners == 0 {
            pages.free.push(Reverse(self.id));
        }
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

    #[test]
    fn the_lowest_free_page_is_taken_first() {
        let pool = PagePool::new(4);
        let mut pages: Vec<_> = (0..4).map(|_| pool.take().unwrap()).collect();
        pages.remove(1);
        pages.remove(2);
        pages.remove(0);
        assert_eq!(
            [(); 3].map(|()| pool.take().map(|page| (page.id(), pages.push(page)).0).unwrap()),
            [0, 1, 3]
        );
    }

    #[test]
    fn a_page_belongs_to_one_pool() {
        let (pool, other) = (PagePool::new(1), PagePool::new(1));
        let page = pool.take().unwrap();
        assert!(pool.has(&page) && !other.has(&page));
    }
}
