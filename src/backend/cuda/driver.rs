//! What the backend asks of a GPU's driver. In tests a library of the kernels compiled as C++ stands in for it.

use std::mem::MaybeUninit;

use super::params::Address;
use crate::Result;
use crate::backend::{Device, Limits};

/// A kernel, and how many threads it is run by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Its name.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [usize; 3],
    /// Threads of each block.
    pub threads: usize,
    /// Bytes of shared memory that the launch gives.
    pub shared: usize,
}

/// `y = x * matrixᵀ` of f16 numbers, y in f32.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// [rows, columns]
    pub matrix: Address,
    /// [count, columns]
    pub x: Address,
    /// [count, rows]
    pub y: Address,
    /// Of the matrix.
    pub rows: usize,
    /// Of the matrix.
    pub columns: usize,
    /// Rows of x.
    pub count: usize,
}

/// A recorded sequence of launches.
#[derive(Clone, Copy, Debug)]
pub struct Graph(pub usize);

/// One GPU: its memory, and a queue in which everything is done in order.
pub trait Driver: Send {
    /// What it is.
    fn device(&self) -> Device;

    /// What it can do at most.
    ///
    /// # Errors
    /// What the driver says.
    fn limits(&self) -> Result<Limits>;

    /// Multiprocessors: blocks that run at once are a small multiple of it.
    fn multiprocessors(&self) -> usize;

    /// Bytes of shared memory that a block may have, what its kernel declares included.
    fn shared_memory(&self) -> usize;

    /// Whether a launch of a block for each multiprocessor runs all of them at once (`run_program`).
    fn runs_programs(&self) -> bool;

    /// Memory, full of zeros; freed with the driver if not before.
    ///
    /// # Errors
    /// Out of memory.
    fn alloc(&self, bytes: usize) -> Result<Address>;

    /// Frees what [`alloc`](Driver::alloc) gave, when all that was queued is done.
    ///
    /// # Errors
    /// What failed in the queue.
    fn free(&self, memory: Address) -> Result<()>;

    /// Queues a copy to the device; the bytes may change afterwards.
    ///
    /// # Errors
    /// What the driver says.
    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()>;

    /// Waits for the queue, and copies from the device. What comes is valid until the next call.
    ///
    /// # Errors
    /// What failed in the queue.
    fn download(&self, from: Address, bytes: usize) -> Result<*mut u8>;

    /// Queues a copy on the device.
    ///
    /// # Errors
    /// What the driver says.
    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()>;

    /// Queues a kernel.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// The parameters are those of the kernel, their addresses this driver's, and the grid covers what they say.
    unsafe fn launch(&self, launch: Launch, params: &[MaybeUninit<u8>]) -> Result<()>;

    /// Queues a product of f16 matrices.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// The addresses are this driver's, and have that much memory.
    unsafe fn product(&self, product: Product) -> Result<()>;

    /// From here on launches are recorded instead of done.
    ///
    /// # Errors
    /// What the driver says.
    fn begin_graph(&self) -> Result<()>;

    /// Ends the record.
    ///
    /// # Errors
    /// What the driver says.
    fn end_graph(&self) -> Result<Graph>;

    /// Queues what was recorded.
    ///
    /// # Errors
    /// What the driver says.
    fn run_graph(&self, graph: Graph) -> Result<()>;

    /// Forgets all records.
    fn drop_graphs(&self);
}
