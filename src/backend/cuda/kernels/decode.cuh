// Attention of few rows (decode) over the paged f16 cache: positions in splits (flash decoding), products on tensor cores. A block
// takes a row, a split, and query heads of one kv head, which are mma's eight columns: scores [positions, heads] = keys *
// queries, results [dims, heads] = values, transposed, * weights. Its warps take 16 positions by turns, through buffers of their
// own: they meet only where their results do, and copies stay in flight.
#pragma once
#include "attention.cuh"
#include "flash.cuh"

#define DECODE_WARPS 8
#define DECODE_ROWS 16                                 // positions that a warp takes at once: mma's rows
#define DECODE_BUFFERS 12288                           // bytes of a warp; of 8 warps 96 KiB: two blocks at once on a multiprocessor

// An 8x8 matrix of f16, transposed: a lane's pair of row lane / 4 becomes one of column lane / 4 (movmatrix, PTX ISA).
static __device__ __forceinline__ unsigned decode_transpose(unsigned x) {
#ifdef __CUDACC__
  unsigned y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
#else
  unsigned lane = threadIdx.x % WARP, shift = lane / 4 % 2 * 16, from = lane % 4 * 8 + lane / 8;
  unsigned first = __shfl_sync(ALL_LANES, x, from), second = __shfl_sync(ALL_LANES, x, from + 4);
  return (first >> shift & 0xffff) | (second >> shift & 0xffff) << 16;
#endif
}

// A lane's part of what a warp copies: `chunk` of every STEP-th row of DECODE_ROWS.
template <int WIDTH> struct DecodeCopy {
  static constexpr int CHUNKS = WIDTH / 8, STEP = WARP / CHUNKS;
  const __half *from;   // in page 0
  unsigned page, step;  // values to the next page, and to the next row of the lane
  unsigned span;        // positions of the split, 0 where the chunk is beyond the dimensions
  static __device__ __forceinline__ int row() { return threadIdx.x % WARP / CHUNKS; }

  // first: the warp's first position in its pages.
  __device__ __forceinline__ void begin(const void *cache, int dim, int stride, int kv_heads, int kv_head, int first, int span) {
    int chunk = threadIdx.x % CHUNKS, row_stride = kv_heads * stride;
    from = (const __half *)cache + (first + row()) * (size_t)row_stride + kv_head * stride + chunk * 8;
    page = PAGE * row_stride;
    step = STEP * row_stride;
    this->span = chunk * 8 < dim ? span : 0;
  }

  // ahead: of the first row after the split's first position.
  __device__ __forceinline__ void operator()(char *to, unsigned number, int ahead) const {
    const __half *at = from + (size_t)number * page;
    unsigned place = flash_at<WIDTH>(row(), threadIdx.x % CHUNKS);
#pragma unroll
    for (int i = 0; i < DECODE_ROWS; i += STEP) {
      copy_async(to + (place ^ i % 8 * 16) + i * WIDTH * 2, at, (unsigned)(ahead + row() + i) < span);
      at += step;
    }
  }
};

// What a warp has of 8 * N heads. Of scores, results and sums a lane has rows lane / 4 and 8 further, heads lane % 4 * 2 and the
// next of each eight.
template <int WIDTH, int N> struct DecodeWarp {
  static constexpr int PITCH = WIDTH + 4;  // of the heads in shared memory: rows and heads are in different banks
  unsigned query[WIDTH / 16][N][2];
  float acc[WIDTH / 16][N][4], most[N][2], sum[N][4];  // of a sum, 0 and 1 count

  __device__ __forceinline__ void begin(const float *from, int dim, int present, float scale) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < N; n++) {
      const float *head = from + min(n * 8 + lane / 4, present - 1) * dim + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < WIDTH / 8; i++) {
        float2 x = i * 8 < dim ? *(const float2 *)(head + i * 8) : make_float2(0.0f, 0.0f);
        query[i / 2][n][i % 2] = flash_pair(x.x * scale, x.y * scale);
      }
#pragma unroll
      for (int i = 0; i < WIDTH / 16; i++)
        for (int j = 0; j < 4; j++) acc[i][n][j] = 0.0f;
      for (int j = 0; j < 4; j++) sum[n][j] = 0.0f;
      most[n][0] = most[n][1] = FLASH_NONE;
    }
  }

  // Scores become weights, as seen from the greatest score so far (arXiv:1805.02867), where mma wants its second matrix.
  __device__ __forceinline__ void weigh(float (&s)[4], unsigned (&weight)[2], int n) {
    float next[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      next[h] = fmaxf(most[n][h], fmaxf(s[h], s[2 + h]));
#pragma unroll
      for (int step = 4; step < WARP; step *= 2) next[h] = fmaxf(next[h], __shfl_xor_sync(ALL_LANES, next[h], step));
      float kept = flash_exp2(most[n][h] - next[h]);
      most[n][h] = next[h];
      sum[n][h] *= kept;
#pragma unroll
      for (int i = 0; i < WIDTH / 16; i++) acc[i][n][h] *= kept, acc[i][n][2 + h] *= kept;
    }
    weight[0] = decode_transpose(flash_pair(flash_exp2(s[0] - next[0]), flash_exp2(s[1] - next[1])));
    weight[1] = decode_transpose(flash_pair(flash_exp2(s[2] - next[0]), flash_exp2(s[3] - next[1])));
  }

  // Of DECODE_ROWS positions; in two sums, which halves the latency.
  __device__ __forceinline__ void score(float (&s)[2][N][4], const char *keys) {
    int lane = threadIdx.x % WARP;
    unsigned at = flash_at<WIDTH>(lane % 16, lane / 16);
#pragma unroll
    for (int i = 0; i < WIDTH / 16; i++) {
      unsigned key[4];
      load_matrices(key, keys + (at ^ i * 32), false);
#pragma unroll
      for (int n = 0; n < N; n++) mma_f16(s[i % 2][n], key, query[i][n]);
    }
  }

  // ahead: of the first position after the split's first, span: positions of the split.
  __device__ __forceinline__ void weigh(float (&s)[2][N][4], unsigned (&weight)[N][2], int ahead, unsigned span) {
    const unsigned ones[4] = {0x3c003c00, 0x3c003c00, 0x3c003c00, 0x3c003c00};
    ahead += threadIdx.x % WARP / 4;
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
      for (int j = 0; j < 4; j++) s[0][n][j] = (unsigned)(ahead + j / 2 * 8) < span ? s[0][n][j] + s[1][n][j] : -INFINITY;
      weigh(s[0][n], weight[n], n);
      mma_f16(sum[n], ones, weight[n]);
    }
  }

  __device__ __forceinline__ void add(const unsigned (&weight)[N][2], const char *values) {
    int lane = threadIdx.x % WARP;
    unsigned at = flash_at<WIDTH>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int i = 0; i < WIDTH / 16; i++) {
      unsigned value[4];
      load_matrices(value, values + (at ^ i * 32), true);
#pragma unroll
      for (int n = 0; n < N; n++) mma_f16(acc[i][n], value, weight[n]);
    }
  }

  // [8 * N, PITCH], then of each head the greatest score and the sum of the weights.
  __device__ __forceinline__ void store(float *to) const {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < N; n++) {
      int head = n * 8 + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < WIDTH / 16; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) to[(head + j % 2) * PITCH + i * 16 + j / 2 * 8 + lane / 4] = acc[i][n][j];
      if (lane < 4) *(float4 *)(to + 8 * N * PITCH + head * 2) = make_float4(most[n][0], sum[n][0], most[n][1], sum[n][1]);
    }
  }
};

static __device__ __forceinline__ void decode_add(float4 &x, float factor, float4 y) {
  x.x += factor * y.x;
  x.y += factor * y.y;
  x.z += factor * y.z;
  x.w += factor * y.w;
}

// partial, of the same size as attend's: values [rows, heads, splits, value_dim], then greatest scores (as powers of two) and sums
// [rows, heads, splits, 2].
struct DecodePartial {
  float *values;
  float2 *weights;
  __device__ __forceinline__ DecodePartial(const Attend &p, const Place &place, int head, int split) {
    size_t at = ((size_t)place.z * p.heads + head) * p.splits + split;
    values = p.partial + at * p.value_dim;
    weights = (float2 *)(p.partial + (size_t)place.depth * p.heads * p.splits * p.value_dim) + at;
  }
};

// What each split's values count, [heads, MOST_SPLITS]; a head for each warp.
template <int WARPS>
static __device__ void decode_factors(const Attend &p, const Place &place, float *to, const float *sinks, int first_head, int present,
                                      int first, int count) {
  int lane = threadIdx.x % WARP;
  for (int g = threadIdx.x / WARP; g < present; g += WARPS) {
    const float2 *weights = DecodePartial(p, place, first_head + g, first).weights;
    float2 part[MOST_SPLITS / WARP];
    float sink = sinks[g], most = sink, sum = 0.0f;
#pragma unroll
    for (int k = 0; k < MOST_SPLITS / WARP; k++) {
      part[k] = k * WARP + lane < count ? __ldcg(weights + k * WARP + lane) : make_float2(FLASH_NONE, 0.0f);
      most = fmaxf(most, part[k].x);
    }
    most = warp_max(most);
#pragma unroll
    for (int k = 0; k < MOST_SPLITS / WARP; k++) {
      part[k].x = flash_exp2(part[k].x - most);
      sum += part[k].x * part[k].y;
    }
    float factor = __fdividef(1.0f, warp_sum(sum) + flash_exp2(sink - most));
#pragma unroll
    for (int k = 0; k < MOST_SPLITS / WARP; k++)
      if (k * WARP + lane < count) to[g * MOST_SPLITS + k * WARP + lane] = part[k].x * factor;
  }
}

// Brings a row's splits together, eight heads at a time. A thread has four dimensions of every SLICES-th split, through buffers
// that only it knows.
template <int WIDTH, int N, int WARPS>
static __device__ void decode_merge(const Attend &p, const Place &place, float *to, const float *sinks, int first_head, int present,
                                    int first, int count) {
  DYNAMIC_SHARED(shared);
  constexpr int THREADS = WARPS * WARP, COLUMNS = WIDTH / 4, SLICES = THREADS / COLUMNS, DEPTH = 8;
  int column = threadIdx.x % COLUMNS, slice = threadIdx.x / COLUMNS;
  float4 *buffers = (float4 *)shared + threadIdx.x;          // [DEPTH, threads]
  float4 *sums = (float4 *)shared + DEPTH * THREADS;  // [8 heads, threads]
  float *factors = (float *)(sums + 8 * THREADS);     // [heads, MOST_SPLITS]
  static_assert((DEPTH + 8) * THREADS * 16 + 8 * N * MOST_SPLITS * 4 <= WARPS * DECODE_BUFFERS, "shared memory");

  const float *from = DecodePartial(p, place, first_head, first).values + column * 4;
  bool counts = column * 4 < p.value_dim;
  int split = slice, begun = 0, all = (count + SLICES - 1) / SLICES * present;  // split: the next that is copied
  auto copy = [&] {
    if (begun < all && split < count) copy_async(buffers + begun % DEPTH * THREADS, from + (size_t)split * p.value_dim, counts);
    commit_copies();
    begun++;
    split += SLICES;
    if (split - slice < count) return;
    split = slice;
    from += (size_t)p.splits * p.value_dim;
  };
  for (int i = 0; i < DEPTH - 1; i++) copy();
  decode_factors<WARPS>(p, place, factors, sinks, first_head, present, first, count);
  meet<WARPS * WARP>();

  int done = 0;
  for (int g = 0; g < present; g++) {
    float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int i = slice; i - slice < count; i += SLICES, done++) {
      copy();
      wait_for_copies<DEPTH - 1>();
      if (i < count) decode_add(x, factors[g * MOST_SPLITS + i], buffers[done % DEPTH * THREADS]);
    }
    sums[g % 8 * THREADS + threadIdx.x] = x;
    if (g % 8 < 7 && g + 1 < present) continue;
    meet<WARPS * WARP>();
    for (int h = slice; h <= g % 8; h += SLICES) {
      x = sums[h * THREADS + column];
#pragma unroll
      for (int i = 1; i < SLICES; i++) decode_add(x, 1.0f, sums[h * THREADS + i * COLUMNS + column]);
      if (counts) *(float4 *)(to + (size_t)(g / 8 * 8 + h) * p.value_dim + column * 4) = x;
    }
    meet<WARPS * WARP>();
  }
}

// Brings the warps together: a head's results if the row has one split, else its part of them.
template <int WIDTH, int N, int WARPS>
static __device__ __forceinline__ void decode_store(const Attend &p, const Place &place, float *to, const float *sinks, int first_head,
                                                    int present, bool whole) {
  DYNAMIC_SHARED(shared);
  constexpr int COLUMNS = WIDTH / 4, SLICES = WARPS * WARP / COLUMNS, PITCH = DecodeWarp<WIDTH, N>::PITCH;
  int column = threadIdx.x % COLUMNS;
  for (int g = threadIdx.x / COLUMNS; g < present; g += SLICES) {
    float sink = whole ? sinks[g] : -INFINITY, most = sink;
    float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    auto weight = [&](int w) { return *(const float2 *)(shared + w * DECODE_BUFFERS + (8 * N * PITCH + g * 2) * 4); };
#pragma unroll
    for (int w = 0; w < WARPS; w++) most = fmaxf(most, weight(w).x);
    float sum = flash_exp2(sink - most);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      float factor = flash_exp2(weight(w).x - most);
      sum += weight(w).y * factor;
      decode_add(x, factor, *(const float4 *)(shared + w * DECODE_BUFFERS + (g * PITCH + column * 4) * 4));
    }
    DecodePartial partial(p, place, first_head + g, place.x);
    if (!whole && column == 0) *partial.weights = make_float2(most, sum);
    if (column * 4 >= p.value_dim) continue;
    float factor = whole ? __fdividef(1.0f, sum) : 1.0f;
    float4 *at = (float4 *)(whole ? to + (size_t)g * p.value_dim : partial.values) + column;
    *at = make_float4(x.x * factor, x.y * factor, x.z * factor, x.w * factor);
  }
}

// Whether all other splits of the row and its heads have arrived.
template <int THREADS> static __device__ __forceinline__ bool decode_is_last(unsigned *arrived, int splits) {
  __shared__ bool is_last;
  meet<THREADS>();
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = (int)atomicAdd(arrived, 1u) == splits - 1;
    if (is_last) *arrived = 0;
    __threadfence();
  }
  meet<THREADS>();
  return is_last;
}

// A warp's positions of from .. to.
template <int WIDTH, int N, int WARPS>
static __device__ __forceinline__ void decode_warp(const Attend &p, const unsigned *table, const float *query, int kv_head,
                                                   int present, int from, int to) {
  DYNAMIC_SHARED(shared);
  // keys and values of LOOK turns ahead are copied; they have slots by turns, of which one is free where keys are begun
  constexpr int TURN = WARPS * DECODE_ROWS;  // positions to the warp's next ones: whole pages
  constexpr int SLOT = DECODE_ROWS * WIDTH * 2, LOOK = (DECODE_BUFFERS / SLOT - 1) / 2, SLOTS = 2 * LOOK + 1;
  int at = (from / DECODE_ROWS + threadIdx.x / WARP) * DECODE_ROWS;
  char *slots = shared + threadIdx.x / WARP * DECODE_BUFFERS;
  DecodeCopy<WIDTH> keys, values;
  keys.begin(p.keys, p.key_dim, p.key_dim, p.kv_heads, kv_head, at % PAGE, to - from);
  values.begin(p.values, p.value_dim, p.value_width, p.kv_heads, kv_head, at % PAGE, to - from);
  auto number = [&](int at) { return at < to ? table[at / PAGE] : 0; };
  auto copy = [&](const DecodeCopy<WIDTH> &part, char *slot, int at, unsigned number) {
    if (at < to) part(slot, number, at - from);
    commit_copies();
  };
  unsigned numbers[LOOK + 1];
#pragma unroll
  for (int i = 0; i <= LOOK; i++) numbers[i] = number(at + i * TURN);
#pragma unroll
  for (int i = 0; i < LOOK; i++) {
    copy(keys, slots + 2 * i * SLOT, at + i * TURN, numbers[i]);
    copy(values, slots + (2 * i + 1) * SLOT, at + i * TURN, numbers[i]);
  }
  DecodeWarp<WIDTH, N> warp;
  warp.begin(query, p.key_dim, present, p.scale * FLASH_LOG2E);

  unsigned next = numbers[LOOK];
  char *spare = slots + 2 * LOOK * SLOT, *key = slots;
  auto after = [&](char *slot) { return slot + SLOT < slots + SLOTS * SLOT ? slot + SLOT : slots; };
  for (; at < to; at += TURN) {
    float s[2][N][4] = {};
    unsigned weight[N][2];
    copy(keys, spare, at + LOOK * TURN, next);
    wait_for_copies<2 * LOOK>();
    __syncwarp();
    warp.score(s, key);
    __syncwarp();
    copy(values, key, at + LOOK * TURN, next);
    next = number(at + (LOOK + 1) * TURN);
    warp.weigh(s, weight, at - from, to - from);
    spare = after(key);
    wait_for_copies<2 * LOOK>();
    __syncwarp();
    warp.add(weight, spare);
    __syncwarp();
    key = after(spare);
  }
  warp.store((float *)slots);
}

template <int WIDTH, int N, int WARPS, class Turn>
static __device__ __forceinline__ void decode(const Attend &p, const Place &place, Turn &turn) {
  __shared__ float sinks[8 * N];  // as powers of two
  int group = p.heads / p.kv_heads, tiles = (group + 8 * N - 1) / (8 * N);
  int kv_head = place.y / tiles, first_head = kv_head * group + place.y % tiles * 8 * N;
  int present = min(8 * N, (kv_head + 1) * group - first_head), row = p.first_row + place.z;
  float sink = p.sinks && (int)threadIdx.x < present ? p.sinks[first_head + threadIdx.x] : -INFINITY;
  turn.wait();
  if (threadIdx.x >= WARPS * WARP) return;
  int position = p.rows.places[2 * row + 1], start = p.window > 0 ? max(position + 1 - p.window, 0) : 0;
  int from = max(place.x * p.split_len, start), end = min((place.x + 1) * p.split_len, position + 1);
  if (from >= end) return;
  size_t head = (size_t)row * p.heads + first_head;
  float *to = p.to + head * p.value_dim;
  const unsigned *table = p.rows.tables + p.rows.places[2 * row];
  decode_warp<WIDTH, N, WARPS>(p, table, p.query + head * p.key_dim, kv_head, present, from, end);
  if (threadIdx.x < 8 * N) sinks[threadIdx.x] = p.sinks ? fmaxf(sink * FLASH_LOG2E, FLASH_NONE) : -INFINITY;
  meet<WARPS * WARP>();
  int first = start / p.split_len, splits = position / p.split_len - first + 1;
  decode_store<WIDTH, N, WARPS>(p, place, to, sinks, first_head, present, splits == 1);
  unsigned *arrived = p.arrived + (size_t)place.z * p.kv_heads * tiles + place.y;
  if (splits > 1 && decode_is_last<WARPS * WARP>(arrived, splits)) decode_merge<WIDTH, N, WARPS>(p, place, to, sinks, first_head, present, first, splits);
}

#define DECODE(NAME, WIDTH, N, BLOCKS)                      \
  KERNEL(NAME, Attend, DECODE_WARPS * WARP, BLOCKS) {       \
    let_next_start();                                       \
    Launched turn;                                          \
    decode<WIDTH, N, DECODE_WARPS>(p, PLACE_OF_BLOCK, turn); \
  }

// 16 heads of 128 dimensions need the registers of two blocks.
DECODE(decode_64_8, 64, 1, 2)
DECODE(decode_64_16, 64, 2, 2)
DECODE(decode_128_8, 128, 1, 2)
DECODE(decode_128_16, 128, 2, 1)
