// What kernels are made of. tests/cuda has the same for C++, where the kernels' text is tried without a GPU.
#pragma once
#include <cuda_fp16.h>
#include <cstdint>

#define WARP 32
#define ALL_LANES 0xffffffffu

#ifdef __CUDACC__

// A kernel of one structure of parameters: at most so many threads to a block, and at least so many blocks at once on a
// multiprocessor.
#define KERNEL(NAME, PARAMS, THREADS, BLOCKS) \
  extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) NAME(const __grid_constant__ PARAMS p)

#define DYNAMIC_SHARED(NAME) extern __shared__ __align__(128) char NAME[]

// d = a * b + d for a [16, 16] row by row, b [16, 8] column by column, both f16 (mma.m16n8k16, PTX ISA).
static __device__ __forceinline__ void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8x8 matrices of f16 from shared memory: lane i brings the address of a row, matrix i / 8, row i % 8 (ldmatrix, PTX ISA).
static __device__ __forceinline__ void load_matrices(unsigned (&to)[4], const void *row, bool transposed) {
  unsigned at = (unsigned)__cvta_generic_to_shared(row);
  if (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(at) : "memory");
}

// A barrier of a block's first THREADS threads.
template <int THREADS> static __device__ __forceinline__ void meet() {
  asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory");
}

// A number that stays in a register: looking the thread's number up anew takes long.
static __device__ __forceinline__ int kept(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// Begins to copy 16 bytes to shared memory; zeros where nothing is present.
static __device__ __forceinline__ void copy_async(void *to, const void *from, bool present) {
  unsigned at = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(present ? 16 : 0) : "memory");
}
static __device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> static __device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Until here a kernel may only read what no kernel before it writes: weights.
static __device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel may start, where there is room.
static __device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

#endif

// Which block of a launch, and the launch's blocks in the third dimension.
struct Place {
  int x, y, z, depth;
};

// When a block of a launch may read what was written before.
struct Launched {
  __device__ __forceinline__ void wait() const { wait_for_previous(); }
};
#define PLACE_OF_BLOCK Place{(int)blockIdx.x, (int)blockIdx.y, (int)blockIdx.z, (int)gridDim.z}

template <class T> static __device__ __forceinline__ T warp_sum(T x) {
  for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
}

static __device__ __forceinline__ float warp_max(float x) {
  for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
  return x;
}

// The sum over a block of up to 1024 threads, whole warps, for all of them.
static __device__ float block_sum(float x) {
  __shared__ float of_warps[WARP];
  x = warp_sum(x);
  if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = x;
  __syncthreads();
  x = threadIdx.x % WARP < blockDim.x / WARP ? of_warps[threadIdx.x % WARP] : 0.0f;
  x = warp_sum(x);
  __syncthreads();
  return x;
}
