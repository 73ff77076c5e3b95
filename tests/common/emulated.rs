//! The CUDA kernels' text, compiled as C++ (tests/cuda), as a driver: memory of the process stands for a GPU's.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::mem::MaybeUninit;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use half::f16;
use pensive::backend::cuda::driver::{Driver, Graph, Launch, Product};
use pensive::backend::cuda::params::Address;
use pensive::backend::{Device, Limits};
use pensive::{Error, Result};

type Emulate =
    unsafe extern "C" fn(*const c_char, *const c_uint, c_uint, c_uint, *const c_void, usize) -> c_int;

/// The kernels, or none (with a printed reason) where there is no C++ compiler. They run one at a time.
static KERNELS: LazyLock<Option<Mutex<Emulate>>> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap().keep();
    let library = folder.join("kernels.so");
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-shared", "-fPIC", "-I"])
        .arg(root.join("tests/cuda"))
        .arg("-I")
        .arg(root.join("src/backend/cuda/kernels"))
        .arg("-o")
        .arg(&library)
        .arg(root.join("tests/cuda/main.cpp"))
        .output();
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
        Err(e) => {
            eprintln!("skipped: {}: {e}", compiler.display());
            return None;
        }
    }
    let name = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: the library was just made; `emulate` has this signature there.
    let function = unsafe {
        let handle = libc::dlopen(name.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null(), "{}", library.display());
        let symbol = libc::dlsym(handle, c"emulate".as_ptr());
        assert!(!symbol.is_null());
        std::mem::transmute::<*mut c_void, Emulate>(symbol)
    };
    std::fs::remove_dir_all(folder).unwrap();
    Some(Mutex::new(function))
});

/// Shared memory that a block of every GPU since compute capability 8 may have, and what kernels declare of it.
const SHARED: usize = 99 << 10;
const MUCH_SHARED: usize = 227 << 10;
const ROW_PRODUCTS: usize = 4480;
const PROGRAMS: usize = 10 << 10;
const OTHERS: usize = 128;

/// Blocks in a grid's second and third dimension.
const MOST_GRID: usize = 65_535;

/// Memory, a multiple of 16 bytes, aligned as a GPU's.
#[repr(align(256))]
#[derive(Clone)]
struct Line([u8; 256]);

/// What is queued or recorded.
#[derive(Clone)]
enum Work {
    Kernel(Launch, Vec<u8>),
    Product(Product),
}

/// The driver.
pub struct Emulated {
    memory: RefCell<Vec<(Address, Box<[Line]>)>>,
    host: RefCell<Vec<u32>>,
    recorded: RefCell<Option<Vec<Work>>>,
    graphs: RefCell<Vec<Vec<Work>>>,
    /// Graphs that were run.
    pub runs: Arc<AtomicUsize>,
    /// Allocations for which there is memory.
    pub room: Arc<AtomicUsize>,
    /// Programs that were run.
    pub programs: Arc<AtomicUsize>,
    shared: usize,
    multiprocessors: usize,
}

impl Emulated {
    /// None where there is no C++ compiler.
    pub fn new() -> Option<Self> {
        KERNELS.as_ref().map(|_| Emulated {
            memory: RefCell::default(),
            host: RefCell::default(),
            recorded: RefCell::default(),
            graphs: RefCell::default(),
            runs: Arc::default(),
            room: Arc::new(usize::MAX.into()),
            programs: Arc::default(),
            shared: SHARED,
            multiprocessors: 3,
        })
    }

    /// One with the shared memory of compute capability 9, which is enough for steps as programs, and with multiprocessors enough to
    /// share out a row's positions.
    pub fn like_hopper() -> Option<Self> {
        Emulated::new().map(|driver| Emulated { shared: MUCH_SHARED, multiprocessors: 12, ..driver })
    }

    /// Records are of launches alone.
    fn assert_not_recording(&self) {
        assert!(self.recorded.borrow().is_none(), "only launches are recorded");
    }

    fn work(&self, work: Work) {
        if let Some(recorded) = self.recorded.borrow_mut().as_mut() {
            recorded.push(work);
            return;
        }
        self.run(&work);
    }

    fn run(&self, work: &Work) {
        match work {
            Work::Kernel(launch, params) => {
                let name = CString::new(launch.kernel).unwrap();
                let grid = launch.grid.map(|n| n as c_uint);
                // 16-byte aligned, as structures of parameters are
                let mut aligned = vec![0u128; params.len().div_ceil(16)];
                // SAFETY: there is so much room.
                unsafe {
                    std::ptr::copy_nonoverlapping(params.as_ptr(), aligned.as_mut_ptr().cast(), params.len())
                };
                let emulate = KERNELS.as_ref().unwrap().lock().unwrap_or_else(|e| e.into_inner());
                let (threads, shared) = (launch.threads as c_uint, launch.shared as c_uint);
                // SAFETY: the backend gives kernels their parameters; the memory is this driver's.
                let code = unsafe {
                    emulate(
                        name.as_ptr(),
                        grid.as_ptr(),
                        threads,
                        shared,
                        aligned.as_ptr().cast(),
                        params.len(),
                    )
                };
                assert_eq!(
                    code, 0,
                    "{}: 1: no such kernel, 2: its parameters have another size",
                    launch.kernel
                );
            }
            Work::Product(product) => multiply(product),
        }
    }
}

/// Plainly.
fn multiply(product: &Product) {
    let &Product { matrix, x, y, rows, columns, count } = product;
    // SAFETY: the backend reserved memory of these sizes.
    let (matrix, x, y) = unsafe {
        (
            std::slice::from_raw_parts(matrix as *const f16, rows * columns),
            std::slice::from_raw_parts(x as *const f16, count * columns),
            std::slice::from_raw_parts_mut(y as *mut f32, count * rows),
        )
    };
    for (x, y) in x.chunks_exact(columns).zip(y.chunks_exact_mut(rows)) {
        for (row, y) in matrix.chunks_exact(columns).zip(y) {
            *y = row.iter().zip(x).map(|(a, b)| a.to_f32() * b.to_f32()).sum();
        }
    }
}

impl Driver for Emulated {
    fn device(&self) -> Device {
        Device { kind: "emulated".into(), name: "CUDA in C++".into(), threads: 1 }
    }

    fn limits(&self) -> Result<Limits> {
        Ok(Limits { read_bandwidth: 1e9, int8_rate: 1e9 })
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn shared_memory(&self) -> usize {
        self.shared
    }

    fn runs_programs(&self) -> bool {
        true
    }

    fn alloc(&self, bytes: usize) -> Result<Address> {
        self.assert_not_recording();
        let taken = self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| match room {
            usize::MAX => Some(room),
            _ => room.checked_sub(1),
        });
        taken.map_err(|_| Error::Memory("the emulated memory is full".into()))?;
        let memory = vec![Line([0; 256]); bytes.div_ceil(256).max(1)].into_boxed_slice();
        let address = memory.as_ptr() as Address;
        self.memory.borrow_mut().push((address, memory));
        Ok(address)
    }

    fn free(&self, memory: Address) -> Result<()> {
        self.assert_not_recording();
        let mut all = self.memory.borrow_mut();
        let i = all.iter().position(|(address, _)| *address == memory).expect("memory of this driver");
        all.swap_remove(i);
        Ok(())
    }

    fn upload(&self, to: Address, bytes: &[u8]) -> Result<()> {
        self.assert_not_recording();
        // SAFETY: the backend writes to its memory.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    fn download(&self, from: Address, bytes: usize) -> Result<*mut u8> {
        self.assert_not_recording();
        let mut host = self.host.borrow_mut();
        host.resize(bytes.div_ceil(4), 0);
        // SAFETY: the backend reads its memory.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, host.as_mut_ptr().cast(), bytes) };
        Ok(host.as_mut_ptr().cast())
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()> {
        self.assert_not_recording();
        // SAFETY: the backend copies within its memory.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, launch: Launch, params: &[MaybeUninit<u8>]) -> Result<()> {
        let declared = match launch.kernel {
            "row_product" => ROW_PRODUCTS,
            "run_program" => PROGRAMS,
            _ => OTHERS,
        };
        assert!(launch.shared + declared <= self.shared, "{launch:?}: too much shared memory");
        assert!(launch.grid[1..].iter().all(|n| (1..=MOST_GRID).contains(n)), "{launch:?}: no such grid");
        if launch.kernel == "run_program" {
            self.programs.fetch_add(1, Ordering::Relaxed);
        }
        let mut bytes = vec![0; params.len()];
        // SAFETY: bytes are copied as they are, padding included.
        unsafe { std::ptr::copy_nonoverlapping(params.as_ptr().cast(), bytes.as_mut_ptr(), bytes.len()) };
        self.work(Work::Kernel(launch, bytes));
        Ok(())
    }

    unsafe fn product(&self, product: Product) -> Result<()> {
        self.work(Work::Product(product));
        Ok(())
    }

    fn begin_graph(&self) -> Result<()> {
        assert!(self.recorded.borrow_mut().replace(Vec::new()).is_none());
        Ok(())
    }

    fn end_graph(&self) -> Result<Graph> {
        let recorded = self.recorded.borrow_mut().take().expect("a record was begun");
        self.graphs.borrow_mut().push(recorded);
        Ok(Graph(self.graphs.borrow().len() - 1))
    }

    fn run_graph(&self, graph: Graph) -> Result<()> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let work = self.graphs.borrow()[graph.0].clone();
        work.iter().for_each(|work| self.run(work));
        Ok(())
    }

    fn drop_graphs(&self) {
        self.graphs.borrow_mut().clear();
    }
}
