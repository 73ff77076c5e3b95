//! A step of one row as one launch (`run_program`): what would be launches is listed, and blocks go through the list together.

use std::mem::MaybeUninit;

use super::attention::DECODE_SHARED;
use super::driver::{Driver, Launch};
use super::params::{self, Address, Params};
use super::planes::layout;
use super::weights::Held;
use super::{CudaBackend, Weight};
use crate::Result;
use crate::backend::KvType;
use crate::quant::BlockType;

/// Threads of `run_program`, and bytes of shared memory that it declares.
const THREADS: usize = 384;
const OWN: usize = 10 << 10;

/// Bytes of an instruction, and where its parameters are in it.
const INSTRUCTION: usize = 512;
const PARAMS: usize = 16;

/// What would be launches, as instructions.
#[derive(Default)]
pub(super) struct List {
    launches: Vec<(Launch, Vec<u8>)>,
}

/// A list on the device.
#[derive(Clone, Copy)]
pub(super) struct Program {
    at: Address,
    count: usize,
    shared: usize,
}

/// An operation's number (`enum Operation` of program.cuh), and the shared memory that it needs.
fn operation(launch: &Launch) -> Option<(u32, usize)> {
    match launch.kernel {
        "row_product" => Some((0, launch.shared)),
        "rotate" => Some((1, 0)),
        "decode_64_8" => Some((2, launch.shared)),
        "decode_128_8" => Some((3, launch.shared)),
        "add_norm" => Some((4, 0)),
        "gather" => Some((5, 0)),
        "activate" => Some((6, 0)),
        _ => None,
    }
}

impl List {
    pub fn push(&mut self, launch: Launch, params: &[MaybeUninit<u8>]) {
        let mut bytes = vec![0; params.len()];
        // SAFETY: instructions' parameters have no padding: all bytes are initialized.
        unsafe { std::ptr::copy_nonoverlapping(params.as_ptr().cast(), bytes.as_mut_ptr(), bytes.len()) };
        self.launches.push((launch, bytes));
    }

    pub fn is_empty(&self) -> bool {
        self.launches.is_empty()
    }

    /// Brings the list to the device, and leaves it empty.
    pub fn store(&mut self, driver: &dyn Driver) -> Result<Program> {
        let mut bytes = Vec::with_capacity(self.launches.len() * INSTRUCTION);
        let (count, mut shared) = (self.launches.len(), 0);
        for (launch, params) in self.launches.drain(..) {
            let (number, needs) = operation(&launch).expect("only these are listed");
            shared = shared.max(needs);
            let start = bytes.len();
            bytes.extend(number.to_le_bytes());
            bytes.extend(launch.grid.iter().flat_map(|&n| (n as u32).to_le_bytes()));
            assert!(params.len() <= INSTRUCTION - PARAMS, "{}: parameters", launch.kernel);
            bytes.extend(params);
            bytes.resize(start + INSTRUCTION, 0);
        }
        let at = driver.alloc(bytes.len())?;
        driver.upload(at, &bytes)?;
        Ok(Program { at, count, shared })
    }
}

impl CudaBackend {
    /// Whether steps of one row are programs: the kernel knows the formats, and the device has room for attention's buffers.
    pub(super) fn can_program(&self, kv_type: KvType) -> bool {
        let known = [BlockType::Q4_K, BlockType::Q6_K].map(|kind| layout(kind).map(|(format, _)| format));
        let knows = |weight: &Weight| match weight {
            Weight::Matrix(Held::Blocks(matrix)) => known.contains(&Some(matrix.format)),
            Weight::Matrix(Held::Dense(_)) => false,
            Weight::Table(_) => true,
        };
        let room = self.driver.shared_memory().saturating_sub(OWN);
        let usual = |dim: usize| dim <= 128 && dim.is_multiple_of(8);
        self.driver.runs_programs()
            && DECODE_SHARED <= room
            && self.stacks.is_empty()
            && self.weights.iter().all(knows)
            && kv_type == KvType::F16
            && self.shapes.iter().all(|kv| usual(kv.key_dim) && usual(kv.value_dim) && !kv.value_in_key)
    }

    /// Whether a launch can be an instruction.
    pub(super) fn fits_program(&self, launch: &Launch) -> bool {
        operation(launch).is_some_and(|(_, shared)| shared + OWN <= self.driver.shared_memory())
    }

    /// Runs a list that is on the device.
    pub(super) fn run_program(&mut self, program: Program) -> Result<()> {
        let arrived = self.scratch.program.at;
        let blocks = self.driver.multiprocessors();
        let Program { at, count, shared } = program;
        let p = params::Program { instructions: at, arrived, count: count as u32, before: self.arrived };
        let launch = Launch { kernel: "run_program", grid: [blocks, 1, 1], threads: THREADS, shared };
        // SAFETY: instructions hold the parameters of their kernels, with addresses of this driver.
        unsafe { self.driver.launch(launch, p.bytes()) }?;
        self.arrived = self.arrived.wrapping_add((count * blocks) as u32);
        Ok(())
    }

    /// Runs what is listed so far, once.
    pub(super) fn run_list(&mut self, mut list: List) -> Result<()> {
        if list.is_empty() {
            return Ok(());
        }
        let program = list.store(&*self.driver)?;
        self.run_program(program)?;
        self.driver.free(program.at)
    }

    /// Queues what is listed, launch by launch.
    pub(super) fn launch_list(&mut self, list: List) -> Result<()> {
        for (launch, params) in list.launches {
            // SAFETY: these are the kernel's parameters; bytes may be looked at as bytes that may be uninitialized.
            unsafe {
                let params = std::slice::from_raw_parts(params.as_ptr().cast(), params.len());
                self.driver.launch(launch, params)?;
            }
        }
        Ok(())
    }

    /// Frees a program's memory.
    pub(super) fn drop_program(&self, program: Program) {
        // what fails here fails again where it matters
        let _ = self.driver.free(program.at);
    }
}
