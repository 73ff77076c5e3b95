//! Memory of the device that grows when more is needed.

use super::driver::Driver;
use super::params::Address;
use crate::Result;

/// Memory, none at first.
#[derive(Debug, Default)]
pub struct Memory {
    /// Where it is.
    pub at: Address,
    bytes: usize,
}

impl Memory {
    /// Whether it is so large.
    pub fn holds(&self, bytes: usize) -> bool {
        bytes <= self.bytes
    }

    /// Gives it back.
    pub fn free(&mut self, driver: &dyn Driver) -> Result<()> {
        match std::mem::take(self) {
            Memory { bytes: 0, .. } => Ok(()),
            Memory { at, .. } => driver.free(at),
        }
    }

    /// Makes it so large, at least; what was in it is lost if it grows. Whether it has moved.
    pub fn reserve(&mut self, driver: &dyn Driver, bytes: usize) -> Result<bool> {
        if self.holds(bytes) {
            return Ok(false);
        }
        if self.bytes > 0 {
            driver.free(self.at)?;
            self.bytes = 0;
        }
        self.at = driver.alloc(bytes)?;
        self.bytes = bytes;
        Ok(true)
    }
}
