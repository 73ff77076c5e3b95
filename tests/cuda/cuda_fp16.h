// CUDA in C++, as far as pensive's kernels go: so that their text runs where no GPU is. Included in place of NVIDIA's header.
// The threads of a block are fibers that take turns where they wait for each other; blocks run one by one, the last first: a GPU
// promises no order.
#pragma once
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <ucontext.h>
#include <vector>

#define __device__
#define __forceinline__ inline
#define __align__(N) alignas(N)
#define __shared__ static
using std::max;
using std::min;

struct dim3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

inline float2 make_float2(float x, float y) { return {x, y}; }
struct alignas(16) int4 { int x, y, z, w; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __expf(float x) { return std::exp(x); }
inline int __float2int_rn(float x) { return (int)std::nearbyint(x); }
inline float __int_as_float(int x) { float y; std::memcpy(&y, &x, 4); return y; }
inline int __float_as_int(float x) { int y; std::memcpy(&y, &x, 4); return y; }

struct __half { uint16_t bits; };
struct alignas(4) __half2 { __half x, y; };

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
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half(x), __float2half(y)}; }
inline __half2 __float2half2_rn(float x) { return __floats2half2_rn(x, x); }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  float2 x = __half22float2(a), y = __half22float2(b), z = __half22float2(c);
  return __floats2half2_rn(x.x * y.x + z.x, x.y * y.y + z.y);
}
inline __half2 __hsub2(__half2 a, __half2 b) {
  float2 x = __half22float2(a), y = __half22float2(b);
  return __floats2half2_rn(x.x - y.x, x.y - y.y);
}

// Four int8 products, added up.
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
  return c;
}
// Four bytes of eight, by number.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned which) {
  uint64_t both = (uint64_t)y << 32 | x;
  unsigned made = 0;
  for (int i = 0; i < 4; i++) made |= (unsigned)(both >> 8 * (which >> 4 * i & 7) & 0xff) << 8 * i;
  return made;
}

template <class T> inline T __ldg(const T *p) { return *p; }
template <class T> inline T __ldcg(const T *p) { return *p; }
inline void __threadfence() {}
inline unsigned atomicAdd(unsigned *p, unsigned x) { unsigned before = *p; *p += x; return before; }
inline float atomicAdd(float *p, float x) { float before = *p; *p += x; return before; }

namespace emulation {

struct Fiber {
  ucontext_t context;
  jmp_buf at;
  char *stack = nullptr;
  bool begun, done;
};

const size_t STACK = 128 << 10, EXCHANGED = 128;
static jmp_buf scheduler;
static std::vector<Fiber> fibers;
static size_t current;
static const std::function<void()> *body;
// Of the block and of each warp: how many wait, and how often all have met.
struct Meeting { unsigned waiting = 0, met = 0; };
static Meeting block, first;
static std::vector<Meeting> warps;
struct alignas(16) Slot { char bytes[EXCHANGED]; };
static std::vector<Slot> slots;
static std::vector<char> dynamic;

inline char *dynamic_shared() { return (char *)(((uintptr_t)dynamic.data() + 127) & ~(uintptr_t)127); }

inline void yield() {
  if (!_setjmp(fibers[current].at)) _longjmp(scheduler, 1);
}

// Waits until `all` threads have come.
inline void meet(Meeting &meeting, unsigned all) {
  unsigned before = meeting.met;
  if (++meeting.waiting == all) {
    meeting.waiting = 0;
    meeting.met++;
  }
  while (meeting.met == before) yield();
}

// What each thread of the warp brings.
template <class T> struct Brought {
  const T &operator[](unsigned lane) const { return *(const T *)slots[threadIdx.x / 32 * 32 + lane].bytes; }
};
// All threads of a warp bring something, and each makes its own of it.
template <class T, class R> inline R exchange(const T &mine, const std::function<R(const Brought<T> &, unsigned)> &make) {
  static_assert(sizeof(T) <= EXCHANGED, "what a thread brings");
  Meeting &warp = warps[threadIdx.x / 32];
  std::memcpy(slots[threadIdx.x].bytes, &mine, sizeof(T));
  meet(warp, 32);
  R made = make(Brought<T>(), threadIdx.x % 32);
  meet(warp, 32);
  return made;
}

inline void run_fiber() {
  (*body)();
  fibers[current].done = true;
  _longjmp(scheduler, 1);
}

inline void resume(Fiber &fiber) {
  if (_setjmp(scheduler)) return;
  if (fiber.begun) _longjmp(fiber.at, 1);
  fiber.begun = true;
  setcontext(&fiber.context);
}

inline void run_block(dim3 index, unsigned threads) {
  block = first = {};
  warps.assign((threads + 31) / 32, {});
  for (unsigned i = 0; i < threads; i++) {
    Fiber &fiber = fibers[i];
    fiber.begun = fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  for (bool going = true; going;) {
    going = false;
    for (current = 0; current < threads; current++) {
      if (fibers[current].done) continue;
      threadIdx = {(unsigned)current, 0, 0};
      blockIdx = index;
      resume(fibers[current]);
      going |= !fibers[current].done;
    }
  }
}

// Runs a kernel on a grid. All threads of a warp are there at each exchange, and all of a block at each barrier, or none.
inline void launch(dim3 grid, unsigned threads, unsigned shared, const std::function<void()> &kernel) {
  gridDim = grid;
  blockDim = {threads, 1, 1};
  body = &kernel;
  if (fibers.size() < threads) fibers.resize(threads);
  for (Fiber &fiber : fibers)
    if (!fiber.stack) fiber.stack = (char *)std::malloc(STACK);
  slots.resize(std::max<size_t>(slots.size(), threads + 32));
  dynamic.assign(shared + 128, (char)0x7f);
  for (unsigned z = grid.z; z-- > 0;)
    for (unsigned y = grid.y; y-- > 0;)
      for (unsigned x = grid.x; x-- > 0;) run_block({x, y, z}, threads);
}

struct Call {
  void (*run)(const void *);
  size_t params_bytes;
};
inline std::map<std::string, Call> &kernels() {
  static std::map<std::string, Call> all;
  return all;
}
struct Registered {
  Registered(const char *name, Call call) { kernels()[name] = call; }
};

}  // namespace emulation

// A kernel of one structure of parameters.
#define KERNEL(NAME, PARAMS, THREADS, BLOCKS)                                                                                          \
  static void NAME(const PARAMS &p);                                                                                                   \
  static emulation::Registered NAME##_is_registered(#NAME, {[](const void *params) { NAME(*(const PARAMS *)params); }, sizeof(PARAMS)});                \
  static void NAME(const PARAMS &p)
#define DYNAMIC_SHARED(NAME) char *NAME = emulation::dynamic_shared()

inline void __syncthreads() { emulation::meet(emulation::block, blockDim.x); }
template <int THREADS> inline void meet() { emulation::meet(emulation::first, THREADS); }
inline void __syncwarp() { emulation::meet(emulation::warps[threadIdx.x / 32], 32); }

template <class T> inline T __shfl_xor_sync(unsigned, T x, int mask) {
  return emulation::exchange<T, T>(x, [=](const emulation::Brought<T> &all, unsigned lane) { return all[lane ^ mask]; });
}
template <class T> inline T __shfl_sync(unsigned, T x, int from) {
  return emulation::exchange<T, T>(x, [=](const emulation::Brought<T> &all, unsigned) { return all[from & 31]; });
}
inline unsigned __ballot_sync(unsigned, bool mine) {
  return emulation::exchange<bool, unsigned>(mine, [](const emulation::Brought<bool> &all, unsigned) {
    unsigned lanes = 0;
    for (unsigned lane = 0; lane < 32; lane++) lanes |= (unsigned)all[lane] << lane;
    return lanes;
  });
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }

// d = a * b + d for a [16, 16] row by row, b [16, 8] column by column, both f16: the fragments of mma.m16n8k16 (PTX ISA).
inline void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  struct Mine { unsigned a[4], b[2]; } mine;
  std::memcpy(mine.a, a, 16);
  std::memcpy(mine.b, b, 8);
  struct Sums { float x[4]; };
  auto value = [](unsigned pair, unsigned which) { return __half2float({(uint16_t)(pair >> 16 * which)}); };
  Sums sums = emulation::exchange<Mine, Sums>(mine, [&](const emulation::Brought<Mine> &all, unsigned lane) {
    Sums sums;
    for (unsigned i = 0; i < 4; i++) {
      unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = 0.0f;
      for (unsigned k = 0; k < 16; k++) {
        // a: registers 0 and 2 are rows 0 to 7, 1 and 3 rows 8 to 15; 2 and 3 are columns 8 to 15
        const Mine &of_a = all[row % 8 * 4 + k % 8 / 2], &of_b = all[column * 4 + k % 8 / 2];
        sum += value(of_a.a[row / 8 + k / 8 * 2], k % 2) * value(of_b.b[k / 8], k % 2);
      }
      sums.x[i] = sum;
    }
    return sums;
  });
  for (int i = 0; i < 4; i++) d[i] += sums.x[i];
}

// Four 8x8 matrices of f16 from shared memory: lane i brings the address of a row, matrix i / 8, row i % 8 (ldmatrix, PTX ISA).
inline void load_matrices(unsigned (&to)[4], const void *row, bool transposed) {
  struct Made { unsigned x[4]; };
  Made made = emulation::exchange<const void *, Made>(row, [&](const emulation::Brought<const void *> &all, unsigned lane) {
    Made made;
    for (unsigned m = 0; m < 4; m++) {
      auto at = [&](unsigned r, unsigned c) { return (unsigned)((const uint16_t *)all[m * 8 + r])[c]; };
      unsigned i = lane / 4, j = lane % 4 * 2;
      made.x[m] = transposed ? at(j, i) | at(j + 1, i) << 16 : at(i, j) | at(i, j + 1) << 16;
    }
    return made;
  });
  std::memcpy(to, made.x, 16);
}

// Copies 16 bytes to shared memory, or zeros there; on a GPU without waiting.
inline void copy_async(void *to, const void *from, bool present) {
  if (present) std::memcpy(to, from, 16);
  else std::memset(to, 0, 16);
}
inline void commit_copies() {}
template <int PENDING> inline void wait_for_copies() {}
inline int kept(int x) { return x; }
inline void wait_for_previous() {}
inline void let_next_start() {}
