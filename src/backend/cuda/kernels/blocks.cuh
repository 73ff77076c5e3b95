// Block formats (as in llama.cpp's gguf: src/quant has their description). On the device a matrix's blocks are split into planes,
// so that each part stands at aligned addresses: planes.rs says what goes where. A lane takes a "unit" at once: four runs of 16
// consecutive values, out of a group of 256 values (four units) or of two blocks of 32 (one unit). Of a run,
// value = scale.x * code - scale.y; codes are bytes, four to a word.
#pragma once
#include "common.cuh"

enum Format { Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K };

// A matrix, or several of one shape, one after the other.
struct Blocks {
  const unsigned char *planes[4];
  unsigned long long blocks;  // of one matrix
  int format, rows, columns, matrices;
};

#ifdef __CUDACC__
// Weights are read once: they do not displace others from the first-level cache.
static __device__ __forceinline__ uint4 load16(const unsigned char *p) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(p));
  return x;
}
#else
static inline uint4 load16(const unsigned char *p) { return *(const uint4 *)p; }
#endif
static __device__ __forceinline__ unsigned load4(const unsigned char *p) { return __ldg((const unsigned *)p); }
static __device__ __forceinline__ unsigned load2(const unsigned char *p) { return __ldg((const unsigned short *)p); }
static __device__ __forceinline__ float half_of(unsigned bits) {
  unsigned short low = (unsigned short)bits;
  return __half2float(*(const __half *)&low);
}
static __device__ __forceinline__ const unsigned *words(const uint4 &x) { return (const unsigned *)&x; }

// Bits 4w .. 4w + 3 at the lowest places of four bytes.
static __device__ __forceinline__ unsigned spread(unsigned bits, int w) {
  return ((bits >> 4 * w & 15) * 0x00204081u) & 0x01010101u;
}

template <int F> struct Of;

// What units are made of:
// UNITS to a group; OFFSET: codes are signed, and as bytes are more by so much; IN_FLIGHT: units that a lane loads ahead.
// load(m, block, unit): block is the group's, or the first of two. scales and codes take it apart.
// run(unit, r): where in the group a run begins. place(i): of the group's i-th 16 values, unit * 4 + r.

// 64 values, one after the other.
struct InOrder {
  static __device__ __forceinline__ int run(int unit, int r) { return 64 * unit + 16 * r; }
  static __device__ __forceinline__ int place(int i) { return i; }
};

// Two blocks of 32 values: runs are the low and the high nibbles.
template <int D_BYTES, bool HIGH> struct Nibbles : InOrder {
  static const int BLOCK = 32, UNITS = 1, OFFSET = 0, IN_FLIGHT = 3;
  struct Raw { uint4 q[2]; unsigned high[2], d[2]; };
  static __device__ __forceinline__ Raw load(const Blocks &m, size_t block, int) {
    Raw raw;
    for (int i = 0; i < 2; i++) {
      raw.q[i] = load16(m.planes[0] + (block + i) * 16);
      if (HIGH) raw.high[i] = load4(m.planes[1] + (block + i) * 4);
      const unsigned char *d = m.planes[HIGH ? 2 : 1] + (block + i) * D_BYTES;
      raw.d[i] = D_BYTES == 4 ? load4(d) : load2(d);
    }
    return raw;
  }
  static __device__ __forceinline__ void codes(const Raw &raw, int, int r, unsigned (&q)[4]) {
    for (int i = 0; i < 4; i++) {
      q[i] = words(raw.q[r / 2])[i] >> 4 * (r % 2) & 0x0f0f0f0fu;
      if (HIGH) q[i] |= spread(raw.high[r / 2], 4 * (r % 2) + i) << 4;
    }
  }
};

template <> struct Of<Q4_0> : Nibbles<2, false> {
  static __device__ __forceinline__ void scales(const Raw &raw, int, float2 (&s)[4]) {
    for (int r = 0; r < 4; r++) s[r] = make_float2(half_of(raw.d[r / 2]), 8.0f * half_of(raw.d[r / 2]));
  }
};
template <> struct Of<Q4_1> : Nibbles<4, false> {
  static __device__ __forceinline__ void scales(const Raw &raw, int, float2 (&s)[4]) {
    for (int r = 0; r < 4; r++) s[r] = make_float2(half_of(raw.d[r / 2]), -half_of(raw.d[r / 2] >> 16));
  }
};
template <> struct Of<Q5_0> : Nibbles<2, true> {
  static __device__ __forceinline__ void scales(const Raw &raw, int, float2 (&s)[4]) {
    for (int r = 0; r < 4; r++) s[r] = make_float2(half_of(raw.d[r / 2]), 16.0f * half_of(raw.d[r / 2]));
  }
};
template <> struct Of<Q5_1> : Nibbles<4, true> {
  static __device__ __forceinline__ void scales(const Raw &raw, int, float2 (&s)[4]) {
    for (int r = 0; r < 4; r++) s[r] = make_float2(half_of(raw.d[r / 2]), -half_of(raw.d[r / 2] >> 16));
  }
};

template <> struct Of<Q8_0> : InOrder {
  static const int BLOCK = 32, UNITS = 1, OFFSET = 128, IN_FLIGHT = 3;
  struct Raw { uint4 q[4]; unsigned d[2]; };
  static __device__ __forceinline__ Raw load(const Blocks &m, size_t block, int) {
    Raw raw;
    for (int r = 0; r < 4; r++) raw.q[r] = load16(m.planes[0] + block * 32 + 16 * r);
    for (int i = 0; i < 2; i++) raw.d[i] = load2(m.planes[1] + (block + i) * 2);
    return raw;
  }
  static __device__ __forceinline__ void codes(const Raw &raw, int, int r, unsigned (&q)[4]) {
    for (int i = 0; i < 4; i++) q[i] = words(raw.q[r])[i];
  }
  static __device__ __forceinline__ void scales(const Raw &raw, int, float2 (&s)[4]) {
    for (int r = 0; r < 4; r++) s[r] = make_float2(half_of(raw.d[r / 2]), 0.0f);
  }
};

// 16 bytes of four 2-bit codes: value 128 * half + 32 * j + l has bits 2j of byte 32 * half + l. Run r has j = r.
struct Pairs {
  static const int BLOCK = 256, UNITS = 4, OFFSET = 0;
  static __device__ __forceinline__ int half(int unit) { return unit / 2; }
  static __device__ __forceinline__ int k(int unit) { return unit % 2; }
  static __device__ __forceinline__ int run(int unit, int r) { return 128 * half(unit) + 32 * r + 16 * k(unit); }
  static __device__ __forceinline__ int place(int i) { return (i / 8 * 2 + i % 2) * 4 + i / 2 % 4; }
};

template <> struct Of<Q2_K> : Pairs {
  static const int IN_FLIGHT = 3;
  struct Raw { uint4 q; uint2 scales; unsigned dm; };
  static __device__ __forceinline__ Raw load(const Blocks &m, size_t block, int unit) {
    const unsigned char *s = m.planes[0] + block * 16 + 8 * half(unit);
    return {load16(m.planes[1] + block * 64 + 16 * unit), make_uint2(load4(s), load4(s + 4)), load4(m.planes[2] + block * 4)};
  }
  static __device__ __forceinline__ void codes(const Raw &raw, int, int r, unsigned (&q)[4]) {
    for (int i = 0; i < 4; i++) q[i] = words(raw.q)[i] >> 2 * r & 0x03030303u;
  }
  static __device__ __forceinline__ void scales(const Raw &raw, int unit, float2 (&s)[4]) {
    float d = half_of(raw.dm), dmin = half_of(raw.dm >> 16);
    for (int r = 0; r < 4; r++) {
      unsigned both = (r < 2 ? raw.scales.x : raw.scales.y) >> 16 * (r % 2) >> 8 * k(unit);
      s[r] = make_float2(d * (int)(both & 15), dmin * (int)(both >> 4 & 15));
    }
  }
};

template <> struct Of<Q3_K> : Pairs {
  static const int IN_FLIGHT = 3;
  struct Raw { uint4 high, q; unsigned scales[3], d; };
  static __device__ __forceinline__ Raw load(const Blocks &m, size_t block, int unit) {
    const unsigned char *s = m.planes[2] + block * 12;
    return {load16(m.planes[0] + block * 32 + 16 * k(unit)), load16(m.planes[1] + block * 64 + 16 * unit),
            {load4(s), load4(s + 4), load4(s + 8)}, load2(m.planes[3] + block * 2)};
  }
  static __device__ __forceinline__ void codes(const Raw &raw, int unit, int r, unsigned (&q)[4]) {
    for (int i = 0; i < 4; i++) {
      unsigned high = words(raw.high)[i] >> 4 * half(unit) >> r & 0x01010101u;
      q[i] = (words(raw.q)[i] >> 2 * r & 0x03030303u) | high << 2;
    }
  }
  // of the 6 bits of scale 8 * half + 2 * r + k four stand with those of scale 2 * r + k, two with those of every fourth
  static __device__ __forceinline__ void scales(const Raw &raw, int unit, float2 (&s)[4]) {
    float d = half_of(raw.d);
    for (int r = 0; r < 4; r++) {
      int byte = 8 * (2 * (r % 2) + k(unit));
      unsigned low = (r < 2 ? raw.scales[0] : raw.scales[1]) >> byte >> 4 * half(unit) & 15;
      unsigned top = raw.scales[2] >> byte >> 4 * half(unit) + 2 * (r / 2) & 3;
      float x = d * ((int)(low | top << 4) - 32);
      s[r] = make_float2(x, 4.0f * x);
    }
  }
};

// Scales and minima of two sub-blocks of 32, 2c and 2c + 1, out of 12 bytes of 6-bit numbers.
static __device__ __forceinline__ void six_bits(const uint4 &head, int c, float2 (&scale)[4]) {
  float d = half_of(head.x), dmin = half_of(head.x >> 16);
  int at = 16 * (c % 2);
  unsigned a = head.y >> at, b = head.z >> at, e = head.w >> at;
  unsigned s = c < 2 ? a & 0x3f3fu : (e & 0x0f0fu) | (a >> 2 & 0x3030u);
  unsigned m = c < 2 ? b & 0x3f3fu : (e >> 4 & 0x0f0fu) | (b >> 2 & 0x3030u);
  scale[0] = scale[1] = make_float2(d * (int)(s & 255), dmin * (int)(m & 255));
  scale[2] = scale[3] = make_float2(d * (int)(s >> 8), dmin * (int)(m >> 8));
}

template <> struct Of<Q4_K> : InOrder {
  static const int BLOCK = 256, UNITS = 4, OFFSET = 0, IN_FLIGHT = 3;
  struct Raw { uint4 head, q[2]; };
  static __device__ __forceinline__ Raw load(const Blocks &m, size_t block, int unit) {
    const unsigned char *b = m.planes[0] + block * 144, *q = b + 16 + 32 * unit;
    return {load16(b), {load16(q), load16(q + 16)}};
  }
  static __device__ __forceinline__ void codes(const Raw &raw, int, int r, unsigned (&q)[4]) {
    for (int i = 0; i < 4; i++) q[i] = words(raw.q[r % 2])[i] >> 4 * (r / 2) & 0x0f0f0f0fu;
  }
  static __device__ __forceinline__ void scales(const Raw &raw, int unit, float2 (&s)[4]) { six_bits(raw.head, unit, s); }
};

template <> struct Of<Q5_K> : InOrder {
  static const int BLOCK = 256, UNITS = 4, OFFSET = 0, IN_FLIGHT = 3;
  struct Raw { uint4 head, high[2], q[2]; };
  static __device__ __forceinline__ Raw load(const Blocks &m, size_t block, int unit) {
    const unsigned char *b = m.planes[0] + block * 176, *q = b + 48 + 32 * unit;
    return {load16(b), {load16(b + 16), load16(b + 32)}, {load16(q), load16(q + 16)}};
  }
  static __device__ __forceinline__ void codes(const Raw &raw, int unit, int r, unsigned (&q)[4]) {
    for (int i = 0; i < 4; i++) {
      unsigned high = words(raw.high[r % 2])[i] >> 2 * unit >> r / 2 & 0x01010101u;
      q[i] = (words(raw.q[r % 2])[i] >> 4 * (r / 2) & 0x0f0f0f0fu) | high << 4;
    }
  }
  static __device__ __forceinline__ void scales(const Raw &raw, int unit, float2 (&s)[4]) { six_bits(raw.head, unit, s); }
};

// A unit has quarters unit % 2 and unit % 2 + 2 of a half: 32 bytes of two nibbles, and two bits of 32 bytes. Run r is of quarter
// unit % 2 + r / 2 * 2, its values r % 2 * 16 and on.
template <> struct Of<Q6_K> {
  static const int BLOCK = 256, UNITS = 4, OFFSET = 0, IN_FLIGHT = 3;
  struct Raw { uint4 q[2], high[2]; unsigned scales[2], d; };
  static __device__ __forceinline__ Raw load(const Blocks &m, size_t block, int unit) {
    const unsigned char *q = m.planes[0] + block * 128 + 32 * unit, *h = m.planes[1] + block * 64 + 32 * (unit / 2);
    const unsigned char *s = m.planes[2] + block * 16 + 8 * (unit / 2) + 2 * (unit % 2);
    return {{load16(q), load16(q + 16)}, {load16(h), load16(h + 16)}, {load2(s), load2(s + 4)}, load2(m.planes[3] + block * 2)};
  }
  static __device__ __forceinline__ int run(int unit, int r) {
    return 128 * (unit / 2) + 32 * (unit % 2 + r / 2 * 2) + 16 * (r % 2);
  }
  static __device__ __forceinline__ int place(int i) { return (i / 8 * 2 + i / 2 % 2) * 4 + i / 4 % 2 * 2 + i % 2; }
  static __device__ __forceinline__ void codes(const Raw &raw, int unit, int r, unsigned (&q)[4]) {
    for (int i = 0; i < 4; i++) {
      // the bits of quarter unit % 2 + r / 2 * 2, four places up
      unsigned high = words(raw.high[r % 2])[i] >> 2 * (unit % 2);
      high = (r < 2 ? high << 4 : high) & 0x30303030u;
      q[i] = (words(raw.q[r % 2])[i] >> 4 * (r / 2) & 0x0f0f0f0fu) | high;
    }
  }
  static __device__ __forceinline__ void scales(const Raw &raw, int, float2 (&s)[4]) {
    float d = half_of(raw.d);
    for (int r = 0; r < 4; r++) {
      float x = d * (int)(signed char)(raw.scales[r / 2] >> 8 * (r % 2));
      s[r] = make_float2(x, 32.0f * x);
    }
  }
};

// Blocks of a group: one of 256 values, or two of 32.
template <int F> struct Group {
  static const int VALUES = 64 * Of<F>::UNITS, BLOCKS = VALUES / Of<F>::BLOCK;
};

// Calls WHAT<F>(...) for a format that is known when it runs.
#define FOR_FORMAT(FORMAT, WHAT, ...)                \
  switch (FORMAT) {                                  \
    case Q4_0: WHAT<Q4_0>(__VA_ARGS__); break;       \
    case Q4_1: WHAT<Q4_1>(__VA_ARGS__); break;       \
    case Q5_0: WHAT<Q5_0>(__VA_ARGS__); break;       \
    case Q5_1: WHAT<Q5_1>(__VA_ARGS__); break;       \
    case Q8_0: WHAT<Q8_0>(__VA_ARGS__); break;       \
    case Q2_K: WHAT<Q2_K>(__VA_ARGS__); break;       \
    case Q3_K: WHAT<Q3_K>(__VA_ARGS__); break;       \
    case Q4_K: WHAT<Q4_K>(__VA_ARGS__); break;       \
    case Q5_K: WHAT<Q5_K>(__VA_ARGS__); break;       \
    default: WHAT<Q6_K>(__VA_ARGS__);                \
  }
