//! NVIDIA's driver.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt::Debug;
use std::mem::MaybeUninit;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::cublas::{CudaBlas, result as blas, sys as blas_sys};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaGraph, CudaStream, result, sys};

use super::driver::{Driver, Graph, Launch, Product};
use super::params::Address;
use crate::backend::candle::Accelerator;
use crate::backend::{Device, Limits};
use crate::{Error, Result};

/// Compiled by build.rs: machine code for the GPU that was named, and text for later ones.
static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// The compute capability that they were compiled for: 90 is 9.0.
const COMPILED_FOR: u32 = leading_number(env!("PENSIVE_CUDA_CAPABILITY"));

/// Of "90a" 90.
const fn leading_number(text: &str) -> u32 {
    let (bytes, mut i, mut number) = (text.as_bytes(), 0, 0);
    while i < bytes.len() && bytes[i].is_ascii_digit() {
        number = 10 * number + (bytes[i] - b'0') as u32;
        i += 1;
    }
    number
}

/// Bytes of host memory that wait for their copy.
const STAGED: usize = 16 << 20;

/// Shared memory that a launch gives without asking: with what the kernel has itself a block gets 48 KiB.
const USUAL_SHARED: usize = 32 << 10;

/// A GPU.
pub struct CudaDriver {
    accelerator: Accelerator,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    blas: CudaBlas,
    module: sys::CUmodule,
    /// Kernels that were used, and the shared memory that they were allowed.
    kernels: RefCell<HashMap<&'static str, (sys::CUfunction, usize)>>,
    memory: RefCell<Vec<Address>>,
    /// For copies to the device: memory, and how much of it waits.
    staged: RefCell<(HostMemory, usize)>,
    fetched: RefCell<HostMemory>,
    graphs: RefCell<Vec<CudaGraph>>,
    multiprocessors: usize,
    shared_memory: usize,
    /// Whether a kernel may begin while the one before ends (compute capability 9).
    overlaps: bool,
    /// Whether blocks of a launch may wait for each other.
    cooperates: bool,
}

/// Memory of the host that the device copies from and to by itself; none at first.
struct HostMemory {
    at: *mut c_void,
    bytes: usize,
}

// SAFETY: the pointers are the driver's handles and memory, which any one thread at a time may use; `context` is made current
// before each use.
unsafe impl Send for CudaDriver {}

impl CudaDriver {
    /// On a GPU that was opened.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(accelerator: Accelerator) -> Result<Self> {
        let candle = accelerator.cuda_device().map_err(|e| accelerator.error(&e))?;
        let stream = candle.cuda_stream();
        let context = stream.context().clone();
        let named = |error: &dyn Debug| accelerator.error(&candle_core::Error::Msg(format!("{error:?}")));
        context.bind_to_thread().map_err(|e| named(&e))?;
        let blas = CudaBlas::new(stream.clone()).map_err(|e| named(&e))?;
        // SAFETY: the image is what NVIDIA's compiler made.
        let module = unsafe { result::module::load_data(KERNELS.as_ptr().cast()) }.map_err(|e| named(&e))?;
        let attribute = |which| context.attribute(which).map_err(|e| named(&e));
        let multiprocessors =
            attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let shared_memory =
            attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
                as usize;
        // kernels compiled for less do not wait for the one before
        let overlaps = COMPILED_FOR >= 90
            && attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? >= 9;
        // to compare the two ways
        let cooperates = std::env::var_os("PENSIVE_GPU_STEPS").is_none_or(|steps| steps != "graph")
            && attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH)? > 0;
        let none = || HostMemory { at: std::ptr::null_mut(), bytes: 0 };
        Ok(CudaDriver {
            accelerator,
            context,
            stream,
            blas,
            module,
            kernels: RefCell::default(),
            memory: RefCell::default(),
            staged: RefCell::new((none(), 0)),
            fetched: RefCell::new(none()),
            graphs: RefCell::default(),
            multiprocessors,
            shared_memory,
            overlaps,
            cooperates,
        })
    }

    /// Says a driver's error in pensive's words.
    fn check<T, E: Debug>(&self, result: std::result::Result<T, E>) -> Result<T> {
        result.map_err(|error| self.accelerator.error(&candle_core::Error::Msg(format!("{error:?}"))))
    }

    /// Makes the device's context this thread's.
    fn enter(&self) -> Result<()> {
        self.check(self.context.bind_to_thread())
    }

    fn queue(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: the stream lives as long as self.
        self.check(unsafe { result::stream::synchronize(self.queue()) })
    }

    /// The kernel's handle, with so much shared memory allowed.
    fn kernel(&self, name: &'static str, shared: usize) -> Result<sys::CUfunction> {
        let mut kernels = self.kernels.borrow_mut();
        let (function, allowed) = match kernels.get(name) {
            Some(known) => *known,
            None => {
                let c_name = CString::new(name).expect("names have no zeros");
                // SAFETY: the module was loaded and lives as long as self.
                let function = unsafe { result::module::get_function(self.module, c_name) };
                (self.check(function)?, USUAL_SHARED)
            }
        };
        if shared > allowed {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of this module.
            self.check(unsafe {
                result::function::set_function_attribute(function, attribute, shared as i32)
            })?;
        }
        kernels.insert(name, (function, allowed.max(shared)));
        Ok(function)
    }

    /// Makes host memory at least so large.
    fn reserve(&self, memory: &mut HostMemory, bytes: usize) -> Result<()> {
        if bytes <= memory.bytes {
            return Ok(());
        }
        self.wait()?;
        // SAFETY: nothing uses the memory any more: the queue is empty.
        unsafe {
            if memory.bytes > 0 {
                memory.bytes = 0;
                self.check(result::free_host(memory.at))?;
            }
            memory.at = self.check(result::malloc_host(bytes, 0))?;
        }
        memory.bytes = bytes;
        Ok(())
    }
}

impl Drop for CudaDriver {
    fn drop(&mut self) {
        if self.enter().is_err() || self.wait().is_err() {
            return; // the driver is gone, and its memory with it
        }
        self.graphs.borrow_mut().clear();
        // SAFETY: the queue is empty, and what is freed was allocated by self and is not used again.
        unsafe {
            for &memory in self.memory.borrow().iter() {
                let _ = result::free_sync(memory);
            }
            for memory in [&self.staged.borrow().0, &*self.fetched.borrow()] {
                if memory.bytes > 0 {
                    let _ = result::free_host(memory.at);
                }
            }
            let _ = result::module::unload(self.module);
        }
    }
}

impl Driver for CudaDriver {
    fn device(&self) -> Device {
        self.accelerator.describe()
    }

    fn limits(&self) -> Result<Limits> {
        self.accelerator.limits()
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn shared_memory(&self) -> usize {
        self.shared_memory
    }

    fn runs_programs(&self) -> bool {
        self.cooperates
    }

    fn alloc(&self, bytes: usize) -> Result<Address> {
        self.enter()?;
        // SAFETY: the memory is freed by `free` or with self; zeros are written to all of it.
        let memory = unsafe {
            let memory = self.check(result::malloc_sync(bytes.max(1)))?;
            self.memory.borrow_mut().push(memory);
            self.check(result::memset_d8_async(memory, 0, bytes, self.queue()))?;
            memory
        };
        Ok(memory)
    }

    fn free(&self, memory: Address) -> Result<()> {
        self.enter()?;
        self.wait()?;
        self.memory.borrow_mut().retain(|&known| known != memory);
        // SAFETY: the queue is empty, and callers use the memory no more.
        self.check(unsafe { result::free_sync(memory) })
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        let mut staged = self.staged.borrow_mut();
        let (memory, used) = &mut *staged;
        self.reserve(memory, STAGED)?;
        let mut to = to;
        for part in bytes.chunks(STAGED) {
            if *used + part.len() > STAGED {
                self.wait()?;
                *used = 0;
            }
            // SAFETY: there is so much room in the staging memory, which is not reused before the queue was waited for.
            unsafe {
                let at = memory.at.cast::<u8>().add(*used);
                std::ptr::copy_nonoverlapping(part.as_ptr(), at, part.len());
                let from = std::slice::from_raw_parts(at, part.len());
                self.check(result::memcpy_htod_async(to, from, self.queue()))?;
            }
            // parts begin at multiples of 16
            *used = (*used + part.len()).next_multiple_of(16);
            to += part.len() as Address;
        }
        Ok(())
    }

    fn download(&self, from: Address, bytes: usize) -> Result<*mut u8> {
        self.enter()?;
        let mut fetched = self.fetched.borrow_mut();
        self.reserve(&mut fetched, bytes.next_power_of_two())?;
        let at = fetched.at.cast::<u8>();
        // SAFETY: there is so much room, and the copy is waited for.
        unsafe {
            let to = std::slice::from_raw_parts_mut(at, bytes);
            self.check(result::memcpy_dtoh_async(to, from, self.queue()))?;
        }
        self.wait()?;
        self.staged.borrow_mut().1 = 0;
        Ok(at)
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: callers copy within their memory.
        self.check(unsafe { result::memcpy_dtod_async(to, from, bytes, self.queue()) })
    }

    unsafe fn launch(&self, launch: Launch, params: &[MaybeUninit<u8>]) -> Result<()> {
        self.enter()?;
        let function = self.kernel(launch.kernel, launch.shared)?;
        // the next kernel of the queue may begin while this one ends: kernels wait for what they need themselves
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        // a program's blocks wait for each other, and not for what is before
        let together = launch.kernel == "run_program";
        if together {
            early.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
            early.value = sys::CUlaunchAttributeValue { cooperative: 1 };
        }
        let [x, y, z] = launch.grid.map(|n| n as u32);
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared as u32,
            hStream: self.queue(),
            attrs: &raw mut early,
            numAttrs: u32::from(self.overlaps || together),
        };
        let mut arguments = [params.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the driver copies the parameters before it returns; callers give those of the kernel.
        self.check(unsafe {
            sys::cuLaunchKernelEx(&raw const config, function, arguments.as_mut_ptr(), std::ptr::null_mut())
                .result()
        })
    }

    unsafe fn product(&self, product: Product) -> Result<()> {
        self.enter()?;
        let Product { matrix, x, y, rows, columns, count } = product;
        let (one, zero) = (1.0f32, 0.0f32);
        let half = blas_sys::cudaDataType::CUDA_R_16F;
        // column by column as the library sees it: y [rows, count] = matrixᵀ [rows, columns] * x [columns, count]
        // SAFETY: callers give memory of these sizes.
        self.check(unsafe {
            blas::gemm_ex(
                *self.blas.handle(),
                blas_sys::cublasOperation_t::CUBLAS_OP_T,
                blas_sys::cublasOperation_t::CUBLAS_OP_N,
                rows as i32,
                count as i32,
                columns as i32,
                (&raw const one).cast(),
                matrix as *const c_void,
                half,
                columns as i32,
                x as *const c_void,
                half,
                columns as i32,
                (&raw const zero).cast(),
                y as *mut c_void,
                blas_sys::cudaDataType::CUDA_R_32F,
                rows as i32,
                blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        })
    }

    fn begin_graph(&self) -> Result<()> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.check(self.stream.begin_capture(mode))
    }

    fn end_graph(&self) -> Result<Graph> {
        // SAFETY: 0 says: no flags.
        let none = unsafe { std::mem::zeroed() };
        let graph = self.check(self.stream.end_capture(none))?;
        let nothing =
            || Error::Device { device: self.accelerator.label(), what: "nothing was recorded".into() };
        let mut graphs = self.graphs.borrow_mut();
        graphs.push(graph.ok_or_else(nothing)?);
        Ok(Graph(graphs.len() - 1))
    }

    fn run_graph(&self, graph: Graph) -> Result<()> {
        self.check(self.graphs.borrow()[graph.0].launch())
    }

    fn drop_graphs(&self) {
        if self.enter().is_ok() && self.wait().is_ok() {
            self.graphs.borrow_mut().clear();
        }
    }
}
