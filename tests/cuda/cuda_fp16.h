// CUDA in C++, as far as src/backend/candle/kernels/kernels.cu goes: so that its text runs where no GPU is. Included in place of
// NVIDIA's header. The threads of a block are fibers that take turns where they wait for each other; blocks run one by one.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
using std::max;
using std::min;

struct dim3 { unsigned x, y, z; };
struct float2 { float x, y; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

struct __half { uint16_t bits; };
struct __half2 { __half x, y; };

inline float __half2float(__half h) {
  uint32_t sign = (h.bits & 0x8000u) << 16, exponent = h.bits >> 10 & 31, fraction = h.bits & 0x3ffu, bits;
  if (exponent == 0) {
    float value = std::ldexp((float)fraction, -24);
    return sign ? -value : value;
  }
  bits = exponent == 31 ? sign | 0x7f800000u | fraction << 13 : sign | (exponent + 112) << 23 | fraction << 13;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }

// Rounds to the nearest, of two the even one.
inline __half __float2half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint16_t sign = bits >> 16 & 0x8000u;
  float size = std::fabs(x);
  if (!(size < 65520.0f)) return {(uint16_t)(sign | (size != size ? 0x7e00u : 0x7c00u))};
  if (size < 6.103515625e-05f) return {(uint16_t)(sign | (uint16_t)std::nearbyint(std::ldexp(size, 24)))};
  uint32_t rest = bits & 0x7fffffffu, odd = rest >> 13 & 1;
  return {(uint16_t)(sign | ((rest + 0xfffu + odd) >> 13) - (112u << 10))};
}

namespace emulation {

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 index;
  bool done = false;
};

const size_t STACK = 256 << 10;
static ucontext_t scheduler;
static std::vector<Fiber> fibers;
static size_t current;
static const std::function<void()> *body;
// Of the block and of each warp: how many wait, and how often all have met.
struct Meeting { unsigned waiting = 0, met = 0; };
static Meeting block;
static std::vector<Meeting> warps;
static std::vector<float> exchanged;

inline void yield() { swapcontext(&fibers[current].context, &scheduler); }

// Waits until `all` threads have come.
inline void meet(Meeting &meeting, unsigned all) {
  unsigned before = meeting.met;
  if (++meeting.waiting == all) {
    meeting.waiting = 0;
    meeting.met++;
  }
  while (meeting.met == before) yield();
}

inline void run_fiber() {
  (*body)();
  fibers[current].done = true;
  yield();
}

// Runs a kernel on a grid. All threads of a warp are there at each exchange, and all of a block at each barrier, or none.
inline void launch(dim3 grid, unsigned threads, const std::function<void()> &kernel) {
  gridDim = grid;
  blockDim = {threads, 1, 1};
  body = &kernel;
  fibers = std::vector<Fiber>(threads);
  for (Fiber &fiber : fibers) fiber.stack = std::make_unique<char[]>(STACK);
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        block = {};
        warps.assign(threads / 32, {});
        exchanged.assign(threads, 0.0f);
        for (unsigned i = 0; i < threads; i++) {
          Fiber &fiber = fibers[i];
          fiber.done = false;
          fiber.index = {i, 0, 0};
          getcontext(&fiber.context);
          fiber.context.uc_stack.ss_sp = fiber.stack.get();
          fiber.context.uc_stack.ss_size = STACK;
          fiber.context.uc_link = &scheduler;
          makecontext(&fiber.context, run_fiber, 0);
        }
        for (bool going = true; going;) {
          going = false;
          for (current = 0; current < threads; current++) {
            if (fibers[current].done) continue;
            threadIdx = fibers[current].index;
            blockIdx = {x, y, z};
            swapcontext(&scheduler, &fibers[current].context);
            going |= !fibers[current].done;
          }
        }
      }
}

}  // namespace emulation

inline void __syncthreads() { emulation::meet(emulation::block, blockDim.x); }

inline float __shfl_xor_sync(unsigned, float x, int mask) {
  unsigned thread = threadIdx.x;
  emulation::Meeting &warp = emulation::warps[thread / 32];
  emulation::exchanged[thread] = x;
  emulation::meet(warp, 32);
  float other = emulation::exchanged[thread ^ mask];
  emulation::meet(warp, 32);
  return other;
}
