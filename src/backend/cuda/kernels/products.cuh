// Products of quantized matrices: with one row at memory's speed (int8, a scale for each 16 activations), with many rows on
// tensor cores (f16).
#pragma once
#include "blocks.cuh"

#define MOST_MATRICES 3
#define NO_ACTIVATION 0
#define SWIGLU 1

// What stands between gate and up: nothing, SwiGLU, or (any other kind) gpt-oss's.
struct Activation {
  int kind;
  float alpha, limit;
};

// What is multiplied: x, or with `weight` its root-mean-square norm, or with `up` activation(x, up), which `row_product` does not
// take. `made`, if not null, gets it.
struct Source {
  const float *x, *weight, *up;
  float *made;
  float epsilon;
  Activation activation;
  int columns;
  int share;  // so many results of one row follow each other (experts): row = result / share
};

// to = matrix * x + bias; sum += to where it is not null. Blocks of the grid from `first` on do it; each has `share` rows, the
// first `more` of them one more.
struct Target {
  Blocks matrix;
  const float *bias;
  float *to, *sum;
  int first, share, more, pad;
};

// silu(g) * u, or gpt-oss's clamped one.
static __device__ __forceinline__ float gated(float g, float u, const Activation &a) {
  if (a.kind == SWIGLU) return __fdividef(g, 1.0f + __expf(-g)) * u;
  g = fminf(g, a.limit);
  u = fminf(fmaxf(u, -a.limit), a.limit) + 1.0f;
  return __fdividef(g, 1.0f + __expf(-a.alpha * g)) * u;
}

static __device__ __forceinline__ float4 four(const float *p) { return *(const float4 *)p; }

// The factor of a row's norm, for all threads of the block; 1 where there is none.
static __device__ float norm_factor(const Source &s, const float *x) {
  if (!s.weight) return 1.0f;
  float squares = 0.0f;
#pragma unroll 1
  for (int i = 4 * threadIdx.x; i < s.columns; i += 4 * blockDim.x) {
    float4 v = four(x + i);
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  return rsqrtf(block_sum(squares) / s.columns + s.epsilon);
}

// Four values of what is multiplied, from column i on.
static __device__ __forceinline__ float4 source_values(const Source &s, const float *x, const float *up, float factor, int i) {
  float4 v = four(x + i);
  if (s.weight) {
    float4 w = four(s.weight + i);
    v = make_float4(v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z, v.w * factor * w.w);
  } else if (s.activation.kind != NO_ACTIVATION) {
    float4 u = four(up + i);
    v = make_float4(gated(v.x, u.x, s.activation), gated(v.y, u.y, s.activation), gated(v.z, u.z, s.activation), gated(v.w, u.w, s.activation));
  }
  return v;
}

// ---- one row ----

#define ROW_THREADS 512
#define ROW_WARPS (ROW_THREADS / WARP)

// x of the source becomes activation(x, up), where no pair did it. A thread per value.
struct Activate {
  float *x;
  const float *up;
  Activation activation;
  int len;
};

#define ACTIVATE_THREADS 256
template <class Turn> static __device__ __forceinline__ void activate_block(const Activate &p, const Place &place, Turn &turn) {
  turn.wait();
  int i = place.x * ACTIVATE_THREADS + threadIdx.x;
  if (threadIdx.x < ACTIVATE_THREADS && i < p.len) p.x[i] = gated(p.x[i], p.up[i], p.activation);
}

KERNEL(activate, Activate, ACTIVATE_THREADS, 4) {
  let_next_start();
  Launched turn;
  activate_block(p, PLACE_OF_BLOCK, turn);
}

// A result for each blockIdx.y: of row y / share with matrix ids[y] (0 without), at to + y * rows of the matrix.
// `pair`: the first two are gate and up; what comes out, where the first's result would go, is activation(gate, up). Their formats
// are the same, and a block has half of ROW_THREADS rows at most.
struct RowProduct {
  Source source;
  Target targets[MOST_MATRICES];
  const int *ids;
  int count;
  Activation pair;
};

// The row as int8, and for each 16 of them scale and scale * sum, in the order in which a format's lanes take them, so that no two
// want the same bank: a step is a unit for each lane. Shared memory: steps * ROW_STEP * 1.5 bytes; zeros behind the row.
#define ROW_STEP (64 * WARP)
struct Quantized {
  signed char *codes;  // [steps][run][lane][16]
  float2 *scales;      // [steps][pair of runs][lane][2]
};

// The nearest whole number of one below 2^22, as the low bits: what is added takes the place of the fraction.
static __device__ __forceinline__ unsigned whole(float x, float factor) {
  return (unsigned)__float_as_int(x * factor + 12582912.0f);
}

// Four values to their place; four lanes share 16.
static __device__ __forceinline__ void quantize_four(float4 v, signed char *code, float2 *scale) {
  float most = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
  most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
  most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
  most = fmaxf(most, 1e-30f);
  float inverse = __fdividef(127.0f, most);
  unsigned low = __byte_perm(whole(v.x, inverse), whole(v.y, inverse), 0x0040);
  unsigned high = __byte_perm(whole(v.z, inverse), whole(v.w, inverse), 0x0040);
  int codes = (int)__byte_perm(low, high, 0x5410), sum = __dp4a(codes, 0x01010101, 0);
  sum += __shfl_xor_sync(ALL_LANES, sum, 1);
  sum += __shfl_xor_sync(ALL_LANES, sum, 2);
  *(int *)code = codes;
  float x_scale = most * (1.0f / 127.0f);
  if (threadIdx.x % 4 == 0) *scale = make_float2(x_scale, x_scale * sum);
}

// Makes the row int8 (without the norm's factor), and returns the factor that results are to be multiplied by. Loads of four steps
// are under way at once.
template <int F, int WARPS>
static __device__ __forceinline__ float quantize_row(const Source &s, const Place &block, int steps, const Quantized &to, float *of_warps) {
  const int AT_ONCE = 4, TURN = 4 * WARPS * WARP;  // values that the block takes at once
  int row = block.y / s.share, end = steps * ROW_STEP;
  const float *x = s.x + (size_t)row * s.columns;
  float squares = 0.0f;
#pragma unroll 1
  for (int first = 4 * threadIdx.x; first - 4 * (int)threadIdx.x < end; first += AT_ONCE * TURN) {
    float4 v[AT_ONCE], u[AT_ONCE];
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) {
      int i = first + j * TURN;
      bool present = i < s.columns;
      v[j] = present ? four(x + i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      u[j] = present && s.weight ? four(s.weight + i) : make_float4(1.0f, 1.0f, 1.0f, 1.0f);
    }
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) {
      // a step's values: their group's first unit, unit * 4 + run, and which of the 16
      int i = first + j * TURN, step = i / ROW_STEP, in_step = i % ROW_STEP;
      if (i - 4 * (int)(threadIdx.x % WARP) >= end) break;
      int group = in_step / Group<F>::VALUES, place = Of<F>::place(in_step % Group<F>::VALUES / 16);
      int lane = group * Of<F>::UNITS + place / 4, run = place % 4;
      squares += v[j].x * v[j].x + v[j].y * v[j].y + v[j].z * v[j].z + v[j].w * v[j].w;
      float4 scaled = make_float4(v[j].x * u[j].x, v[j].y * u[j].y, v[j].z * u[j].z, v[j].w * u[j].w);
      quantize_four(scaled, to.codes + step * ROW_STEP + (run * WARP + lane) * 16 + in_step % 16,
                    to.scales + step * (ROW_STEP / 16) + (run / 2 * WARP + lane) * 2 + run % 2);
    }
  }
  squares = warp_sum(squares);
  if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = squares;
  __syncthreads();
  float all = 0.0f;
#pragma unroll
  for (int i = 0; i < WARPS; i++) all += of_warps[i];
  // what is no number must not be lost: maxima do not see it
  if (!s.weight) return 1.0f + (all - all);
  float factor = rsqrtf(__fdividef(all, (float)s.columns) + s.epsilon);
  if (s.made && block.x == 0 && block.y % s.share == 0)
    for (int i = threadIdx.x; i < s.columns; i += WARPS * WARP) s.made[(size_t)row * s.columns + i] = x[i] * factor * s.weight[i];
  return factor;
}

template <int F> static __device__ __forceinline__ float dot(const typename Of<F>::Raw &raw, int lane, int unit, int step, const Quantized &x) {
  const int4 *codes = (const int4 *)(x.codes + step * ROW_STEP) + lane;
  const float4 *scales = (const float4 *)(x.scales + step * (ROW_STEP / 16)) + lane;
  float2 s[4];
  Of<F>::scales(raw, unit, s);
  float sum = 0.0f;
#pragma unroll
  for (int r = 0; r < 4; r++) {
    unsigned q[4];
    Of<F>::codes(raw, unit, r, q);
    int4 c = codes[r * WARP];
    float4 both = scales[r / 2 * WARP];
    float2 of_x = r % 2 ? make_float2(both.z, both.w) : make_float2(both.x, both.y);
    int products = __dp4a((int)q[0], c.x, 0);
    products = __dp4a((int)q[1], c.y, products);
    products = __dp4a((int)q[2], c.z, products);
    products = __dp4a((int)q[3], c.w, products);
    sum += s[r].x * of_x.x * products;
    sum -= s[r].y * of_x.y;
  }
  return sum;
}

// Where a block's results go: rows first .. first + count of the target's. What they are added to is brought beforehand. Those of a
// pair go to `sums`: rows of the one matrix, then of the other.
struct Results {
  const Target *target;
  float *biases, *sums;  // of the block's rows, shared; only if count is ROW_THREADS at most
  int result, matrix, first, count;
  bool pair;
  float factor;
};

template <int WARPS> static __device__ __forceinline__ void bring(const Results &r) {
  const Target &t = *r.target;
  if (r.pair || r.count > ROW_THREADS) return;
  for (int i = threadIdx.x; i < r.count; i += WARPS * WARP) {
    if (t.bias) r.biases[i] = t.bias[(size_t)r.matrix * t.matrix.rows + r.first + i];
    if (t.sum) r.sums[i] = t.sum[(size_t)r.result * t.matrix.rows + r.first + i];
  }
}

static __device__ __forceinline__ void put(const Results &r, int row, float value) {
  const Target &t = *r.target;
  if (r.pair) {
    r.sums[row] = value * r.factor;
    return;
  }
  bool brought = r.count <= ROW_THREADS;
  size_t at = (size_t)r.result * t.matrix.rows + r.first + row;
  float y = value * r.factor;
  if (t.bias) y += brought ? r.biases[row] : t.bias[(size_t)r.matrix * t.matrix.rows + r.first + row];
  if (t.to) t.to[at] = y;
  if (t.sum) t.sum[at] = (brought ? r.sums[row] : t.sum[at]) + y;
}

// Of each warp: lanes' sums of its last rows, [32][33] so that columns are in different banks.
#define SUMS_STRIDE (WARP + 1)
#define SUMS_BYTES (ROW_WARPS * WARP * SUMS_STRIDE * 4)

// Parts of rows that several warps have; each warp has two at most.
struct Parts {
  float sums[2 * ROW_WARPS];
  int rows[2 * ROW_WARPS];
};

// Small shared memory of a block.
struct RowShared {
  Parts parts;
  float biases[ROW_THREADS], sums[ROW_THREADS], squares[ROW_WARPS];
};
static_assert(sizeof(RowShared) <= 4480, "ROW_OWN of products.rs");
static __device__ __forceinline__ RowShared &row_shared() {
  __shared__ RowShared shared;
  return shared;
}

// A lane adds up each of a warp's last rows. Of these the first may have been begun by another warp, the last may be ended by one.
static __device__ __forceinline__ void finish_rows(const Results &to, const float *sums, Parts &parts, int base, int count,
                                                   bool begun_before, bool ends_after) {
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  __syncwarp();
  float total[4] = {};
#pragma unroll
  for (int j = 0; j < WARP; j++) total[j % 4] += sums[lane * SUMS_STRIDE + j];
  total[0] += total[1];
  total[2] += total[3];
  total[0] += total[2];
  __syncwarp();
  if (lane >= count) return;
  bool is_first = begun_before && lane == 0, is_last = ends_after && lane == count - 1;
  if (!is_first && !is_last) return put(to, base + lane, total[0]);
  int slot = 2 * warp + !is_first;
  parts.rows[slot] = base + lane;
  parts.sums[slot] = total[0];
}

// The parts of a row are added up in order, by the first's thread.
template <int WARPS> static __device__ __forceinline__ void add_parts(const Results &to, const Parts &parts) {
  int i = threadIdx.x;
  if (i >= 2 * WARPS || parts.rows[i] < 0) return;
  int before = i - 1, mine = parts.rows[i];
#pragma unroll 1
  while (before >= 0 && parts.rows[before] < 0) before--;
  if (before >= 0 && parts.rows[before] == mine) return;
  float total = parts.sums[i];
#pragma unroll 1
  for (i++; i < 2 * WARPS && (parts.rows[i] < 0 || parts.rows[i] == mine); i++)
    if (parts.rows[i] == mine) total += parts.sums[i];
  put(to, mine, total);
}

// activation(gate, up) of the block's rows.
template <int WARPS> static __device__ __forceinline__ void put_pairs(const RowProduct &p, const Results &r) {
  __syncthreads();
  for (int i = threadIdx.x; i < r.count; i += WARPS * WARP) {
    size_t row = r.first + i, rows = p.targets[0].matrix.rows, bias = r.matrix * rows + row;
    float gate = r.sums[i] + (p.targets[0].bias ? p.targets[0].bias[bias] : 0.0f);
    float up = r.sums[r.count + i] + (p.targets[1].bias ? p.targets[1].bias[bias] : 0.0f);
    p.targets[0].to[r.result * rows + row] = gated(gate, up, p.pair);
  }
}

// A block has some rows of a matrix (of both of a pair), cut into steps; its warps have as many steps each, in order.
template <int F, int DEPTH, int WARPS, class Turn>
static __device__ __forceinline__ void multiply_row(const RowProduct &p, const Place &place, Turn &turn, const Target &t, const Quantized &x,
                                                    float *all_sums, RowShared &shared) {
  typedef typename Of<F>::Raw Raw;
  const int UNITS = Of<F>::UNITS, IN_FLIGHT = DEPTH;
  int matrix = p.ids ? p.ids[place.y] : 0, block = place.x - t.first;
  int units = (t.matrix.columns + 63) / 64, steps = (units + WARP - 1) / WARP, row_blocks = t.matrix.columns / Of<F>::BLOCK;
  bool pair = p.pair.kind != NO_ACTIVATION;
  int first_row = block * t.share + min(block, t.more), rows = t.share + (block < t.more);
  int warp = threadIdx.x / WARP, lane = kept(threadIdx.x % WARP), all = (pair ? 2 * rows : rows) * steps;
  int task = all * warp / WARPS, left = all * (warp + 1) / WARPS - task;
  // a division that is exact for numbers of steps below 2^22
  int row = (int)__fdividef(task + 0.5f, (float)steps), step = task - row * steps, unit = lane % UNITS;
  // blocks to this lane's unit; behind the row's end the first lane's again, where x is zero
  int lane_block = lane / UNITS * Group<F>::BLOCKS, last_block = (steps - 1) * WARP + lane < units ? lane_block : 0;
  const int STEP_BLOCKS = WARP / UNITS * Group<F>::BLOCKS;
  size_t start = matrix * (size_t)t.matrix.blocks + (size_t)first_row * row_blocks;
  size_t at = start + (size_t)(row < rows ? row : row - rows) * row_blocks + (size_t)step * STEP_BLOCKS;
  // steps that are loaded before the other matrix of a pair is
  int load_step = step, to_load = left, of_first = pair ? rows * steps - task : left;
  const Blocks *from = of_first > 0 ? &t.matrix : &p.targets[1].matrix;
  auto load = [&]() {
    bool last = load_step == steps - 1;
    Raw raw = Of<F>::load(*from, at + (last ? last_block : lane_block), unit);
    at += last ? row_blocks - (steps - 1) * STEP_BLOCKS : STEP_BLOCKS;
    load_step = last ? 0 : load_step + 1;
    to_load--;
    if (--of_first == 0 && pair) from = &p.targets[1].matrix, at = start;
    return raw;
  };
  Raw ring[IN_FLIGHT] = {};  // else what is undefined is kept in registers through a program
#pragma unroll
  for (int i = 0; i < IN_FLIGHT; i++)
    if (to_load > 0) ring[i] = load();
  if (lane < 2) shared.parts.rows[2 * warp + lane] = -1;
  if (!p.ids) turn.wait();
  Results to = {&t, shared.biases, shared.sums, place.y, matrix, first_row, rows, pair, 1.0f};
  bring<WARPS>(to);
  to.factor = quantize_row<F, WARPS>(p.source, place, steps, x, shared.squares);

  float *sums = all_sums + warp * WARP * SUMS_STRIDE, sum = 0.0f;
  int base = row, count = 0;
  bool begun_before = step > 0, ends_after = false;
#pragma unroll 1
  while (left > 0) {
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++) {
      if (left <= 0) break;
      sum += dot<F>(ring[i], lane, unit, step, x);
      if (to_load > 0) ring[i] = load();
      left--;
      step++;
      if (step < steps && left > 0) continue;
      sums[count * SUMS_STRIDE + lane] = sum;
      sum = 0.0f;
      count++;
      ends_after = step < steps;
      step = 0;
    }
    // once in the text, as instructions must be fetched too
    if (count <= WARP - IN_FLIGHT && left > 0) continue;
    finish_rows(to, sums, shared.parts, base, count, begun_before, ends_after);
    base += count;
    begun_before = false;
    count = 0;
  }
  __syncthreads();
  add_parts<WARPS>(to, shared.parts);
  if (pair) put_pairs<WARPS>(p, to);
}

static __device__ __forceinline__ const Target &target_of_block(const Target *targets, int count, int block) {
  int i = 0;
  while (i + 1 < count && block >= targets[i + 1].first) i++;
  return targets[i];
}

static __device__ __forceinline__ const Target &row_target(const RowProduct &p, const Place &place) {
  return target_of_block(p.targets, p.pair.kind == NO_ACTIVATION ? p.count : 1, place.x);
}

template <int F, int DEPTH, int WARPS, class Turn>
static __device__ __forceinline__ void row_product_block(const RowProduct &p, const Place &place, Turn &turn) {
  DYNAMIC_SHARED(memory);
  RowShared &shared = row_shared();
  if (p.ids) turn.wait();
  int padded = (p.source.columns + ROW_STEP - 1) / ROW_STEP * ROW_STEP;
  Quantized x = {(signed char *)memory + SUMS_BYTES, (float2 *)(memory + SUMS_BYTES + padded)};
  multiply_row<F, DEPTH, WARPS>(p, place, turn, row_target(p, place), x, (float *)memory, shared);
}

template <int F> static __device__ __forceinline__ void row_product_of(const RowProduct &p) {
  Launched turn;
  row_product_block<F, Of<F>::IN_FLIGHT, ROW_WARPS>(p, PLACE_OF_BLOCK, turn);
}

KERNEL(row_product, RowProduct, ROW_THREADS, 1) {
  let_next_start();
  FOR_FORMAT(row_target(p, PLACE_OF_BLOCK).matrix.format, row_product_of, p)
}

// ---- many rows ----

// The rows as f16, each divided by a power of two so that its greatest value is below 2; scales are these powers. A block per row.
struct Prepare {
  Source source;
  __half *to;
  float *scales;
};

KERNEL(prepare_rows, Prepare, 256, 4) {
  let_next_start();
  wait_for_previous();
  const Source &s = p.source;
  size_t at = (size_t)blockIdx.x * s.columns;
  const float *x = s.x + at, *up = s.up + at;
  float factor = norm_factor(s, x), most = 0.0f;
  for (int i = 4 * threadIdx.x; i < s.columns; i += 4 * blockDim.x) {
    float4 v = source_values(s, x, up, factor, i);
    if (s.made) *(float4 *)(s.made + at + i) = v;
    most = fmaxf(most, fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
  }
  __shared__ float of_warps[WARP];
  most = warp_max(most);
  if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = most;
  __syncthreads();
  most = 0.0f;
  for (int i = 0; i < (int)blockDim.x / WARP; i++) most = fmaxf(most, of_warps[i]);
  // the exponent alone: 2^e <= most < 2^(e + 1); between 2^-100 and 2^100, so that the inverse is a number
  int bits = min(max(__float_as_int(most) & 0x7f800000, 27 << 23), 227 << 23);
  float scale = __int_as_float(bits), inverse = __int_as_float((254 << 23) - bits);
  if (threadIdx.x == 0) p.scales[blockIdx.x] = scale;
  for (int i = 4 * threadIdx.x; i < s.columns; i += 4 * blockDim.x) {
    float4 v = source_values(s, x, up, factor, i);
    __half2 pair[2] = {__floats2half2_rn(v.x * inverse, v.y * inverse), __floats2half2_rn(v.z * inverse, v.w * inverse)};
    *(uint2 *)(p.to + at + i) = *(const uint2 *)pair;
  }
}

#define MANY_THREADS 256  // at most
#define MANY_ROWS 32      // of the matrix, for a block

// Targets' blocks are for MANY_ROWS rows each; blockIdx.y counts tiles of 8 * N rows of x, or with `order` matrices: of matrix m
// are results order[offsets[m] .. offsets[m + 1]], each of row result / share.
struct ManyProduct {
  const __half *x;      // [rows, columns]
  const float *scales;  // [rows]
  Target targets[MOST_MATRICES];
  const int *order, *offsets;
  int rows, columns, count, share;
};

// What a block multiplies: places first .. end in `order`, or rows without one; more than a tile's are left for the next.
struct Tile {
  int matrix, first, end;
};

static __device__ __forceinline__ int result_at(const ManyProduct &p, int place) { return p.order ? p.order[place] : place; }
static __device__ __forceinline__ int row_of(const ManyProduct &p, int result) { return p.order ? result / p.share : result; }

static __device__ __forceinline__ __half2 as_half2(unsigned bits) { return *(const __half2 *)&bits; }
static __device__ __forceinline__ unsigned as_bits(__half2 pair) { return *(const unsigned *)&pair; }

// Four codes as f16, scaled: the two pairs. A byte behind 0x64 is 1024 + the byte.
template <int OFFSET>
static __device__ __forceinline__ void widen(unsigned codes, __half2 scale, __half2 minus, unsigned (&to)[2]) {
  if (OFFSET) codes ^= 0x80808080u;
  const __half2 base = __float2half2_rn(1024.0f + OFFSET);
  to[0] = as_bits(__hfma2(__hsub2(as_half2(__byte_perm(codes, 0x64646464u, 0x4140)), base), scale, minus));
  to[1] = as_bits(__hfma2(__hsub2(as_half2(__byte_perm(codes, 0x64646464u, 0x4342)), base), scale, minus));
}

// The block's warps share the columns: each takes four units at once, one for each lane of a row. Which columns a fragment's places
// stand for does not matter as long as they are the same for both operands, so that a lane uses what it has loaded.
template <int F, int N>
static __device__ __forceinline__ void multiply_tile(const ManyProduct &p, const Target &t, const Tile &tile, float *sums) {
  typedef typename Of<F>::Raw Raw;
  const int UNITS = Of<F>::UNITS;
  int units = (p.columns + 63) / 64, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, row_blocks = p.columns / Of<F>::BLOCK;
  int warps = blockDim.x / WARP, first_row = ((int)blockIdx.x - t.first) * MANY_ROWS, rows_before = tile.matrix * t.matrix.rows;
  float acc[2][N][4];
  for (int m = 0; m < 2; m++)
    for (int n = 0; n < N; n++)
      for (int i = 0; i < 4; i++) acc[m][n][i] = 0.0f;

  auto load = [&](int step, Raw (&raw)[4]) {
    int unit = min(step * 4 + lane % 4, units - 1);
    for (int i = 0; i < 4; i++) {
      int row = rows_before + min(first_row + 8 * i + lane / 4, t.matrix.rows - 1);
      raw[i] = Of<F>::load(t.matrix, (size_t)row * row_blocks + unit / UNITS * Group<F>::BLOCKS, unit % UNITS);
    }
  };
  int steps = (units + 3) / 4;
  Raw raw[4];
  if (warp < steps) load(warp, raw);
  wait_for_previous();
  // this lane's rows of x; behind the last it is that again, whose products go nowhere
  unsigned x_row[N];
  for (int n = 0; n < N; n++) x_row[n] = row_of(p, result_at(p, min(tile.first + 8 * n + lane / 4, tile.end - 1))) * p.columns;
#pragma unroll 1
  for (int step = warp; step < steps; step += warps) {
    int unit = step * 4 + lane % 4, of_group = unit % UNITS, column = unit / UNITS * Group<F>::VALUES;
    float2 scale[4][4];
    for (int i = 0; i < 4; i++) Of<F>::scales(raw[i], of_group, scale[i]);
#pragma unroll
    for (int r = 0; r < 4; r++) {
      // [row][pair of four columns]
      unsigned a[4][8];
      for (int i = 0; i < 4; i++) {
        unsigned codes[4];
        Of<F>::codes(raw[i], of_group, r, codes);
        __half2 s = __float2half2_rn(scale[i][r].x), m = __float2half2_rn(-scale[i][r].y);
        for (int j = 0; j < 4; j++) {
          unsigned pair[2];
          widen<Of<F>::OFFSET>(codes[j], s, m, pair);
          a[i][2 * j] = pair[0], a[i][2 * j + 1] = pair[1];
        }
      }
      int at = column + Of<F>::run(of_group, r);
      bool present = at < p.columns;
      for (int n = 0; n < N; n++) {
        uint4 x[2] = {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)};
        if (present) {
          const uint4 *from = (const uint4 *)(p.x + x_row[n] + at);
          x[0] = from[0], x[1] = from[1];
        }
        for (int j = 0; j < 4; j++) {
          unsigned b[2] = {words(x[j / 2])[j % 2 * 2], words(x[j / 2])[j % 2 * 2 + 1]};
          for (int m = 0; m < 2; m++) {
            unsigned fragment[4] = {a[2 * m][2 * j], a[2 * m + 1][2 * j], a[2 * m][2 * j + 1], a[2 * m + 1][2 * j + 1]};
            mma_f16(acc[m][n], fragment, b);
          }
        }
      }
    }
    if (step + warps < steps) load(step + warps, raw);
  }

  // [warp][row][token], added up in the order of warps
  const int TOKENS = 8 * N;
  for (int m = 0; m < 2; m++)
    for (int n = 0; n < N; n++)
      for (int i = 0; i < 4; i++) {
        int row = 16 * m + lane / 4 + i / 2 * 8, token = 8 * n + lane % 4 * 2 + i % 2;
        sums[(warp * MANY_ROWS + row) * TOKENS + token] = acc[m][n][i];
      }
  __syncthreads();
  for (int i = threadIdx.x; i < MANY_ROWS * TOKENS; i += blockDim.x) {
    int row = first_row + i % MANY_ROWS, place = tile.first + i / MANY_ROWS;
    if (row >= t.matrix.rows || place >= tile.end) continue;
    float y = 0.0f;
    for (int w = 0; w < warps; w++) y += sums[(w * MANY_ROWS + i % MANY_ROWS) * TOKENS + i / MANY_ROWS];
    int result = result_at(p, place);
    y = y * p.scales[row_of(p, result)] + (t.bias ? t.bias[rows_before + row] : 0.0f);
    size_t at = (size_t)result * t.matrix.rows + row;
    if (t.to) t.to[at] = y;
    if (t.sum) t.sum[at] += y;
  }
}

// A tile, or all tiles of a matrix.
template <int F, int N>
static __device__ void multiply_tiles(const ManyProduct &p, const Target &t, float *sums) {
  const int TOKENS = 8 * N;
  Tile tile = {0, (int)blockIdx.y * TOKENS, min(((int)blockIdx.y + 1) * TOKENS, p.rows)};
  if (p.order) {
    wait_for_previous();
    tile = {(int)blockIdx.y, p.offsets[blockIdx.y], p.offsets[blockIdx.y + 1]};
  }
#pragma unroll 1
  for (; tile.first < tile.end; tile.first += TOKENS) {
    multiply_tile<F, N>(p, t, tile, sums);
    __syncthreads();  // sums are read
  }
}

template <int F> static __device__ __forceinline__ void tiles_8(const ManyProduct &p, const Target &t, float *s) { multiply_tiles<F, 1>(p, t, s); }
template <int F> static __device__ __forceinline__ void tiles_16(const ManyProduct &p, const Target &t, float *s) { multiply_tiles<F, 2>(p, t, s); }
template <int F> static __device__ __forceinline__ void tiles_32(const ManyProduct &p, const Target &t, float *s) { multiply_tiles<F, 4>(p, t, s); }

// Shared memory: warps * MANY_ROWS * rows of the tile * 4 bytes.
#define MANY(NAME, TILE)                                              \
  KERNEL(NAME, ManyProduct, MANY_THREADS, 1) {                        \
    DYNAMIC_SHARED(shared);                                           \
    let_next_start();                                                 \
    const Target &t = target_of_block(p.targets, p.count, blockIdx.x); \
    FOR_FORMAT(t.matrix.format, TILE, p, t, (float *)shared)          \
  }
MANY(many_product_8, tiles_8)
MANY(many_product_16, tiles_16)
MANY(many_product_32, tiles_32)

// ---- whole matrices ----

// Rows first .. first + rows of a matrix as f16, [rows, columns]: a thread per unit, blocks of 256.
struct Dequantize {
  Blocks matrix;
  __half *to;
  int first, rows;
};

template <int F> static __device__ __forceinline__ void dequantize_unit(const Dequantize &p, int row, int unit) {
  int row_blocks = p.matrix.columns / Of<F>::BLOCK, of_group = unit % Of<F>::UNITS, group = unit / Of<F>::UNITS;
  size_t at = (size_t)(p.first + row) * row_blocks + group * Group<F>::BLOCKS;
  typename Of<F>::Raw raw = Of<F>::load(p.matrix, at, of_group);
  float2 scale[4];
  Of<F>::scales(raw, of_group, scale);
#pragma unroll
  for (int r = 0; r < 4; r++) {
    unsigned q[4];
    Of<F>::codes(raw, of_group, r, q);
    __half2 pairs[8];
    for (int j = 0; j < 4; j++)
      for (int k = 0; k < 2; k++) {
        unsigned pair = q[j] >> 16 * k;
        float a = Of<F>::OFFSET ? (float)(signed char)pair : (float)(pair & 255);
        float b = Of<F>::OFFSET ? (float)(signed char)(pair >> 8) : (float)(pair >> 8 & 255);
        pairs[2 * j + k] = __floats2half2_rn(scale[r].x * a - scale[r].y, scale[r].x * b - scale[r].y);
      }
    int column = group * Group<F>::VALUES + Of<F>::run(of_group, r);
    if (column >= p.matrix.columns) continue;
    uint4 *to = (uint4 *)(p.to + (size_t)row * p.matrix.columns + column);
    to[0] = ((const uint4 *)pairs)[0];
    to[1] = ((const uint4 *)pairs)[1];
  }
}

KERNEL(dequantize, Dequantize, 256, 4) {
  let_next_start();
  wait_for_previous();
  int units = (p.matrix.columns + 63) / 64;
  size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
  int row = (int)(i / units), unit = (int)(i % units);
  if (row >= p.rows) return;
  FOR_FORMAT(p.matrix.format, dequantize_unit, p, row, unit)
}

// y * scale of its row + bias, and added to the residual stream: what follows a product of f16 matrices. A block per 256 columns
// and row.
struct Finish {
  const float *y;  // [rows, columns]
  const float *scales, *bias;
  float *to, *sum;
  int columns, stride;  // of `y`; of a row of `to` and `sum`
};

KERNEL(finish_product, Finish, 256, 4) {
  let_next_start();
  wait_for_previous();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.columns) return;
  float y = p.y[(size_t)blockIdx.y * p.columns + i] * p.scales[blockIdx.y] + (p.bias ? p.bias[i] : 0.0f);
  size_t at = (size_t)blockIdx.y * p.stride + i;
  if (p.to) p.to[at] = y;
  if (p.sum) p.sum[at] += y;
}

// ---- matrices of plain numbers ----

#define DENSE_F32 0
#define DENSE_F16 1
#define DENSE_BF16 2
#define DENSE_ROWS 4  // rows of x that a block takes, at most

static __device__ __forceinline__ float bf16(unsigned bits) { return __int_as_float((int)(bits << 16)); }

// Warps take rows of the matrix by turns. With ids a result for each blockIdx.y, as in RowProduct; without, blockIdx.y counts tiles
// of `tile` rows.
struct DenseProduct {
  Source source;
  const void *matrix;
  const float *bias;
  float *to, *sum;
  const int *ids;
  int type, rows, count;  // of the matrix; of x
  int tile, staged;       // whether shared memory has room for what is multiplied; else `tile` is 1
};

static __device__ __forceinline__ float dense_value(const void *matrix, int type, size_t i) {
  if (type == DENSE_F32) return ((const float *)matrix)[i];
  unsigned bits = ((const unsigned short *)matrix)[i];
  return type == DENSE_BF16 ? bf16(bits) : half_of(bits);
}

static __device__ __forceinline__ float4 dense_values(const void *matrix, int type, size_t i) {
  if (type == DENSE_F32) return four((const float *)matrix + i);
  uint2 bits = *(const uint2 *)((const unsigned short *)matrix + i);
  if (type == DENSE_BF16) return make_float4(bf16(bits.x & 0xffff), bf16(bits.x >> 16), bf16(bits.y & 0xffff), bf16(bits.y >> 16));
  return make_float4(half_of(bits.x), half_of(bits.x >> 16), half_of(bits.y), half_of(bits.y >> 16));
}

// One value of what is multiplied.
static __device__ __forceinline__ float source_value(const Source &s, const float *x, const float *up, float factor, int i) {
  if (s.weight) return x[i] * factor * s.weight[i];
  return s.activation.kind != NO_ACTIVATION ? gated(x[i], up[i], s.activation) : x[i];
}

// What a block of `dense_product` multiplies: rows of x, of which the first is `x` (and `up`), and the first's norm.
struct DenseTile {
  const float *staged, *x, *up;
  float factor;
  int present, index, first_result;
};

// The products of the tile's rows with rows of the matrix; only one where nothing is staged.
template <bool STAGED> static __device__ __forceinline__ void multiply_dense(const DenseProduct &p, const DenseTile &t) {
  const int ROWS = STAGED ? DENSE_ROWS : 1;
  const Source &s = p.source;
  int warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
  for (int row = blockIdx.x * warps + threadIdx.x / WARP; row < p.rows; row += gridDim.x * warps) {
    size_t at = ((size_t)t.index * p.rows + row) * s.columns;
    float sums[ROWS] = {};
    if (s.columns % 4 == 0) {
      for (int i = 4 * lane; i < s.columns; i += 4 * WARP) {
        float4 w = dense_values(p.matrix, p.type, at + i);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          if (r >= t.present) break;
          float4 x = STAGED ? four(t.staged + r * s.columns + i) : source_values(s, t.x, t.up, t.factor, i);
          sums[r] += w.x * x.x + w.y * x.y + w.z * x.z + w.w * x.w;
        }
      }
    } else {
      for (int i = lane; i < s.columns; i += WARP) {
        float w = dense_value(p.matrix, p.type, at + i);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          if (r >= t.present) break;
          sums[r] += w * (STAGED ? t.staged[r * s.columns + i] : source_value(s, t.x, t.up, t.factor, i));
        }
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      float y = warp_sum(sums[r]) + (p.bias ? p.bias[(size_t)t.index * p.rows + row] : 0.0f);
      if (lane != 0 || r >= t.present) continue;
      size_t to = (size_t)(t.first_result + r) * p.rows + row;
      if (p.to) p.to[to] = y;
      if (p.sum) p.sum[to] += y;
    }
  }
}

// Shared memory: `tile` * columns floats, or none.
KERNEL(dense_product, DenseProduct, 256, 2) {
  DYNAMIC_SHARED(shared);
  let_next_start();
  wait_for_previous();
  float *rows = (float *)shared;
  const Source &s = p.source;
  int first = p.ids ? blockIdx.y / s.share : blockIdx.y * p.tile, present = p.ids ? 1 : min(p.tile, p.count - first);
  int index = p.ids ? p.ids[blockIdx.y] : 0, first_result = p.ids ? blockIdx.y : first;
  float factor = 1.0f;
  for (int r = 0; r < present; r++) {
    size_t at = (size_t)(first + r) * s.columns;
    float squares = 0.0f;
    for (int i = threadIdx.x; s.weight && i < s.columns; i += blockDim.x) squares += s.x[at + i] * s.x[at + i];
    if (s.weight) factor = rsqrtf(block_sum(squares) / s.columns + s.epsilon);
    for (int i = threadIdx.x; i < s.columns; i += blockDim.x) {
      float v = source_value(s, s.x + at, s.up + at, factor, i);
      if (p.staged) rows[r * s.columns + i] = v;
      if (s.made && blockIdx.x == 0) s.made[at + i] = v;
    }
  }
  __syncthreads();
  DenseTile tile = {rows, s.x + (size_t)first * s.columns, s.up + (size_t)first * s.columns, factor, present, index, first_result};
  if (p.staged) multiply_dense<true>(p, tile);
  else multiply_dense<false>(p, tile);
}

// ---- loading ----

// Of each block of a file the bytes from `offset` on go to a plane. A thread per byte.
struct SplitPlane {
  const unsigned char *from;
  unsigned char *to;
  int block_bytes, offset, len, pad;
  unsigned long long bytes;  // of the plane
};

KERNEL(split_plane, SplitPlane, 256, 8) {
  unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < p.bytes) p.to[i] = p.from[i / p.len * p.block_bytes + p.offset + i % p.len];
}
