// A step of one row as one launch: as many blocks as run at once go through a list of operations together. The next operation's
// weights are on their way before the one before is done everywhere. For matrices of Q4_K and Q6_K.
#pragma once
#include "decode.cuh"
#include "products.cuh"

#define PROGRAM_WARPS 12  // with 16 registers spill; attention's buffers take of the first-level cache what loads under way need
#define PROGRAM_THREADS (PROGRAM_WARPS * WARP)

enum Operation { ROW_PRODUCT, ROTATE, DECODE_64, DECODE_128, ADD_NORM, GATHER, ACTIVATE };

// What would be a launch: its kernel, its grid, and its parameters.
#define OPERATION_PARAMS 496
struct Instruction {
  int operation, grid[3];
  __align__(16) unsigned char params[OPERATION_PARAMS];
};
static_assert(sizeof(Instruction) == 512 && sizeof(RowProduct) <= OPERATION_PARAMS && sizeof(Attend) <= OPERATION_PARAMS &&
                  sizeof(Rotate) <= OPERATION_PARAMS,
              "params.rs");

// `arrived` counts the operations that blocks have done; it is `before` when the launch begins.
struct Program {
  const Instruction *instructions;
  unsigned *arrived;
  unsigned count, before;
};

// The parameters, seen by the compiler for each operation anew: else it reads those of all ahead, which takes registers.
template <class T> static __device__ __forceinline__ const T &params_of(const Instruction &it) {
#ifdef __CUDACC__
  size_t at = __cvta_generic_to_shared(it.params);
  asm volatile("" : "+l"(at));
  return *(const T *)__cvta_shared_to_generic(at);
#else
  return *(const T *)it.params;
#endif
}

// A block's part of an operation. `turn.wait()`: until all blocks have done theirs of the one before.
template <class Turn> static __device__ __forceinline__ void operate(const Instruction &it, const Place &place, Turn &turn) {
  switch (it.operation) {
    case ROW_PRODUCT:
      // the other formats' text costs 3%, even where it is not run
      if (row_target(*(const RowProduct *)it.params, place).matrix.format == Q4_K)
        row_product_block<Q4_K, 4, PROGRAM_WARPS>(params_of<RowProduct>(it), place, turn);
      else
        row_product_block<Q6_K, 3, PROGRAM_WARPS>(params_of<RowProduct>(it), place, turn);
      break;
    case ROTATE: rotate_block(params_of<Rotate>(it), place, turn); break;
    case DECODE_64: decode<64, 1, DECODE_WARPS>(params_of<Attend>(it), place, turn); break;
    case DECODE_128: decode<128, 1, DECODE_WARPS>(params_of<Attend>(it), place, turn); break;
    case ADD_NORM: add_norm_block(params_of<AddNorm>(it), place, turn); break;
    case GATHER: gather_block(params_of<Gather>(it), place, turn); break;
    default: activate_block(params_of<Activate>(it), place, turn);
  }
}

#ifdef __CUDACC__

// The wait in a program. What is read behind it is not in the first-level cache any more (PTX ISA, memory consistency model).
struct InStep {
  const unsigned *arrived;
  unsigned wanted;
  __device__ __forceinline__ void wait() const {
    if (threadIdx.x == 0) {
      unsigned now;
      do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(arrived) : "memory");
      while ((int)(now - wanted) < 0);
    }
    __syncthreads();
  }
};

static __device__ __forceinline__ void fetch_instruction(Instruction *to, const Instruction *from) {
  if (threadIdx.x < sizeof(Instruction) / 16) copy_async((char *)to + 16 * threadIdx.x, (const char *)from + 16 * threadIdx.x, true);
  commit_copies();
}

KERNEL(run_program, Program, PROGRAM_THREADS, 1) {
  __shared__ Instruction slots[2];
  fetch_instruction(slots, p.instructions);
  wait_for_copies<0>();
  __syncthreads();
  for (unsigned i = 0; i < p.count; i++) {
    if (i + 1 < p.count) fetch_instruction(slots + (i + 1) % 2, p.instructions + i + 1);
    const Instruction &it = slots[i % 2];
    InStep turn = {p.arrived, p.before + i * gridDim.x};
    int plane = it.grid[0] * it.grid[1], all = plane * it.grid[2];
    for (int block = blockIdx.x; block < all; block += gridDim.x) {
      operate(it, Place{block % it.grid[0], block % plane / it.grid[0], block / plane, it.grid[2]}, turn);
      if (block + gridDim.x < all) __syncthreads();
    }
    // who has nothing to do waits too: what has arrived is of the operations before
    if ((int)blockIdx.x >= all) turn.wait();
    wait_for_copies<0>();
    __syncthreads();
    if (threadIdx.x == PROGRAM_THREADS - 1) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(p.arrived) : "memory");
  }
}

#endif
