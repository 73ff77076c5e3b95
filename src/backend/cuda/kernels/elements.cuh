// What is done value by value between products and attention.
#pragma once
#include "common.cuh"

// Heads of a row: the norm of each one's first `normed` values (none: 0), rotation of pairs from value `from` on, center taken off.
struct Heads {
  float *x;
  const float *norm, *center;
  void *cache;  // not null: the row goes there too, in its slot
  int count, dim, normed, from;
  float epsilon;
  int pad;
};

// A row's first `width` values go to its slot of the cache.
struct Copied {
  const float *x;
  void *cache;
  int stride, width;
};

// The step's rows: for each where the block table of its sequence begins in `tables`, and its position; its slot in the cache.
struct Rows {
  const unsigned *places, *slots, *tables;
  const float *angles;  // of each row the cosines of its pairs, then the sines
};

#define MOST_HEAD 1024

// Grid: heads of both kinds, then a block for each 256 values copied; rows.
struct Rotate {
  Heads heads[2];
  Copied copied[2];
  Rows rows;
  int pairs, interleaved, f32_cache, pad;
};

static __device__ __forceinline__ void to_cache(void *cache, size_t at, float x, int f32) {
  if (f32) ((float *)cache)[at] = x;
  else ((__half *)cache)[at] = __float2half(x);
}

static __device__ void rotate_head(const Rotate &p, const Heads &h, size_t row, int index) {
  __shared__ float head[MOST_HEAD];
  size_t width = (size_t)h.count * h.dim, at = row * width + (size_t)index * h.dim;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < h.dim; i += blockDim.x) {
    head[i] = h.x[at + i];
    if (i < h.normed) squares += head[i] * head[i];
  }
  if (h.normed > 0) {
    float factor = rsqrtf(__fdividef(block_sum(squares), (float)h.normed) + h.epsilon);
    for (int i = threadIdx.x; i < h.normed; i += blockDim.x) head[i] = head[i] * factor * h.norm[i];
  }
  __syncthreads();
  const float *angles = p.rows.angles + row * 2 * p.pairs;
  for (int i = threadIdx.x; i < p.pairs; i += blockDim.x) {
    int first = h.from + (p.interleaved ? 2 * i : i), second = h.from + (p.interleaved ? 2 * i + 1 : i + p.pairs);
    float c = angles[i], s = angles[p.pairs + i], a = head[first], b = head[second];
    head[first] = a * c - b * s;
    head[second] = a * s + b * c;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < h.dim; i += blockDim.x) {
    float x = head[i] - (h.center ? h.center[index * h.dim + i] : 0.0f);
    h.x[at + i] = x;
    if (h.cache) to_cache(h.cache, p.rows.slots[row] * width + (size_t)index * h.dim + i, x, p.f32_cache);
  }
}

template <class Turn> static __device__ __forceinline__ void rotate_block(const Rotate &p, const Place &place, Turn &turn) {
  turn.wait();
  int block = place.x;
  for (int i = 0; i < 2; i++) {
    if (block < p.heads[i].count) return rotate_head(p, p.heads[i], place.y, block);
    block -= p.heads[i].count;
  }
  for (int i = 0; i < 2; i++) {
    const Copied &c = p.copied[i];
    int blocks = (c.width + 255) / 256;
    for (int j = block * 256 + threadIdx.x; block < blocks && j < min(c.width, (block + 1) * 256); j += blockDim.x)
      to_cache(c.cache, p.rows.slots[place.y] * (size_t)c.width + j, c.x[(size_t)place.y * c.stride + j], p.f32_cache);
    if (block < blocks) return;
    block -= blocks;
  }
}

KERNEL(rotate, Rotate, 128, 8) {
  let_next_start();
  Launched turn;
  rotate_block(p, PLACE_OF_BLOCK, turn);
}

// x = its norm; sum += x. A block per row.
struct AddNorm {
  float *x, *sum;
  const float *weight;
  float epsilon;
  int width;
};

template <class Turn> static __device__ __forceinline__ void add_norm_block(const AddNorm &p, const Place &place, Turn &turn) {
  turn.wait();
  size_t at = (size_t)place.x * p.width;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < p.width; i += blockDim.x) squares += p.x[at + i] * p.x[at + i];
  float factor = rsqrtf(__fdividef(block_sum(squares), (float)p.width) + p.epsilon);
  for (int i = threadIdx.x; i < p.width; i += blockDim.x) {
    float x = p.x[at + i] * factor * p.weight[i];
    p.x[at + i] = x;
    p.sum[at + i] += x;
  }
}

KERNEL(add_norm, AddNorm, 256, 4) {
  let_next_start();
  Launched turn;
  add_norm_block(p, PLACE_OF_BLOCK, turn);
}

// to[i] = from[wanted[i]]. A block per row.
struct Gather {
  const float *from;
  float *to;
  const unsigned *wanted;
  int width, pad;
};

template <class Turn> static __device__ __forceinline__ void gather_block(const Gather &p, const Place &place, Turn &turn) {
  turn.wait();
  for (int i = threadIdx.x; i < p.width; i += blockDim.x)
    p.to[(size_t)place.x * p.width + i] = p.from[(size_t)p.wanted[place.x] * p.width + i];
}

KERNEL(gather, Gather, 256, 4) {
  let_next_start();
  Launched turn;
  gather_block(p, PLACE_OF_BLOCK, turn);
}

// Matrix h [height, columns] times head h; what stands behind in a head is copied. Grid: heads, tiles of BY_HEAD_ROWS rows.
#define BY_HEAD_ROWS 8
struct ByHead {
  const float *from;
  const void *matrices;
  float *to;
  int f32, heads, height, columns, from_dim, rows;  // f32: else f16
};

// Shared memory: BY_HEAD_ROWS * columns floats.
KERNEL(by_head, ByHead, 256, 2) {
  DYNAMIC_SHARED(memory);
  let_next_start();
  wait_for_previous();
  float *x = (float *)memory;
  int head = blockIdx.x, first = blockIdx.y * BY_HEAD_ROWS, present = min(BY_HEAD_ROWS, p.rows - first);
  int rest = p.from_dim - p.columns, to_dim = p.height + rest;
  for (int r = 0; r < BY_HEAD_ROWS; r++) {
    const float *from = p.from + ((size_t)(first + min(r, present - 1)) * p.heads + head) * p.from_dim;
    float *to = p.to + ((size_t)(first + min(r, present - 1)) * p.heads + head) * to_dim;
    for (int i = threadIdx.x; i < p.columns; i += blockDim.x) x[r * p.columns + i] = from[i];
    for (int i = threadIdx.x; r < present && i < rest; i += blockDim.x) to[p.height + i] = from[p.columns + i];
  }
  __syncthreads();
  int lane = threadIdx.x % WARP;
  for (int row = threadIdx.x / WARP; row < p.height; row += blockDim.x / WARP) {
    size_t at = ((size_t)head * p.height + row) * p.columns;
    float sums[BY_HEAD_ROWS] = {};
    for (int i = lane; i < p.columns; i += WARP) {
      float w = p.f32 ? ((const float *)p.matrices)[at + i] : __half2float(((const __half *)p.matrices)[at + i]);
      for (int r = 0; r < BY_HEAD_ROWS; r++) sums[r] += w * x[r * p.columns + i];
    }
    for (int r = 0; r < BY_HEAD_ROWS; r++) {
      float y = warp_sum(sums[r]);
      if (lane == 0 && r < present) p.to[((size_t)(first + r) * p.heads + head) * to_dim + row] = y;
    }
  }
}

// ---- experts ----

#define GATE_SOFTMAX 0
#define GATE_SIGMOID 1
#define GATE_SOFTMAX_OF_CHOSEN 2
#define MOST_EXPERTS 1024
#define MOST_USED 32

// Chooses experts and their weights as backend/cpu/routing.rs does. A warp per row. ids and weights [rows, used], ascending.
struct Route {
  const float *scores, *correction;
  int *ids;
  float *weights;
  int experts, used, gate, groups, groups_used, normalize;
  float scale;
};

// The place of the greatest of values that lanes have by turns, the first of equals.
static __device__ int place_of_most(const float *values, int len) {
  int lane = threadIdx.x % WARP, best = -1;
  float most = -INFINITY;
  for (int i = lane; i < len; i += WARP)
    if (best < 0 || values[i] > most || most != most) best = i, most = values[i];
  for (int step = WARP / 2; step > 0; step /= 2) {
    float other = __shfl_xor_sync(ALL_LANES, most, step);
    int place = __shfl_xor_sync(ALL_LANES, best, step);
    bool better = place >= 0 && (best < 0 || other > most || (most != most && other == other) || (other == most && place < best));
    if (better) best = place, most = other;
  }
  return best < 0 ? 0 : best;
}

static __device__ void leave_best_groups(float *choice, const Route &p) {
  __shared__ float of_group[MOST_EXPERTS];
  int lane = threadIdx.x % WARP, len = p.experts / p.groups;
  for (int g = lane; g < p.groups; g += WARP) {
    float best = -INFINITY, second = -INFINITY;
    for (int i = 0; i < len; i++) {
      float x = choice[g * len + i];
      if (x > best) second = best, best = x;
      else if (x > second) second = x;
    }
    of_group[g] = best + fmaxf(second, -3.402823466e38f);
  }
  __syncwarp();
  for (int g = lane; g < p.groups; g += WARP) {
    int better = 0;
    for (int i = 0; i < p.groups; i++) better += of_group[i] > of_group[g] || (of_group[i] == of_group[g] && i < g);
    for (int i = 0; better >= p.groups_used && i < len; i++) choice[g * len + i] = -INFINITY;
  }
  __syncwarp();
}

KERNEL(route, Route, 32, 16) {
  let_next_start();
  wait_for_previous();
  __shared__ float gates[MOST_EXPERTS], choice[MOST_EXPERTS];
  __shared__ int chosen[MOST_USED];
  int lane = threadIdx.x, row = blockIdx.x;
  const float *scores = p.scores + (size_t)row * p.experts;
  float most = -INFINITY, sum = 0.0f;
  for (int i = lane; i < p.experts; i += WARP) most = fmaxf(most, scores[i]);
  most = warp_max(most);
  for (int i = lane; i < p.experts; i += WARP) {
    float x = scores[i];
    if (p.gate == GATE_SOFTMAX) x = expf(x - most), sum += x;
    if (p.gate == GATE_SIGMOID) x = 1.0f / (1.0f + expf(-x));
    gates[i] = x;
  }
  sum = warp_sum(sum);
  for (int i = lane; i < p.experts; i += WARP) {
    if (p.gate == GATE_SOFTMAX) gates[i] /= sum;
    choice[i] = gates[i] + (p.correction ? p.correction[i] : 0.0f);
  }
  __syncwarp();
  if (p.groups_used < p.groups) leave_best_groups(choice, p);
  for (int k = 0; k < p.used; k++) {
    int best = place_of_most(choice, p.experts);
    if (lane == 0) chosen[k] = best, choice[best] = -INFINITY;
    __syncwarp();
  }
  // of lane k: the k-th chosen, and how many of the chosen stand before it
  int mine = lane < p.used ? chosen[lane] : 0, before = 0;
  for (int k = 0; k < p.used; k++) before += chosen[k] < mine || (chosen[k] == mine && k < lane);
  float weight = lane < p.used ? gates[mine] : 0.0f;
  if (p.gate == GATE_SOFTMAX_OF_CHOSEN) {
    float top = warp_max(lane < p.used ? weight : -INFINITY);
    weight = lane < p.used ? expf(weight - top) : 0.0f;
    weight /= warp_sum(weight);
  }
  float all = warp_sum(weight);
  weight *= p.normalize ? p.scale / (all + 1e-20f) : p.scale;
  if (lane < p.used) {
    p.ids[(size_t)row * p.used + before] = mine;
    p.weights[(size_t)row * p.used + before] = weight;
  }
}

// Orders results by expert: order[offsets[e] .. offsets[e + 1]] are those of expert e, ascending. A block for each expert, which
// counts those of experts before it by itself. Each of its warps has a stretch of the results.
#define GROUP_THREADS 256
struct GroupResults {
  const int *ids;
  int *offsets, *order;
  int results;
};

KERNEL(group_results, GroupResults, GROUP_THREADS, 4) {
  let_next_start();
  wait_for_previous();
  const int WARPS = GROUP_THREADS / WARP;
  __shared__ int of_earlier[WARPS], of_mine[WARPS];
  int expert = blockIdx.x, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  int stretch = (p.results + WARPS - 1) / WARPS, first = warp * stretch, end = min(first + stretch, p.results);
  int earlier = 0, mine = 0;
  for (int i = first + lane; i < end; i += WARP) earlier += p.ids[i] < expert, mine += p.ids[i] == expert;
  earlier = warp_sum(earlier), mine = warp_sum(mine);
  if (lane == 0) of_earlier[warp] = earlier, of_mine[warp] = mine;
  __syncthreads();
  int at = 0;
  for (int w = 0; w < WARPS; w++) at += of_earlier[w];
  if (threadIdx.x == 0) p.offsets[expert] = at;
  if (threadIdx.x == 0 && expert + 1 == (int)gridDim.x) p.offsets[expert + 1] = p.results;
  for (int w = 0; w < warp; w++) at += of_mine[w];
  for (int i = first; i < end; i += WARP) {
    bool is_mine = i + lane < end && p.ids[i + lane] == expert;
    unsigned lanes = __ballot_sync(ALL_LANES, is_mine);
    if (is_mine) p.order[at + __popc(lanes & ((1u << lane) - 1))] = i + lane;
    at += __popc(lanes);
  }
}

// sum[row] += weight * y of each of its experts, in order. Grid: blocks of 256 columns, rows.
struct Combine {
  const float *y, *weights;
  float *sum;
  int used, width;
};

KERNEL(combine, Combine, 256, 4) {
  let_next_start();
  wait_for_previous();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.width) return;
  size_t row = blockIdx.y;
  float sum = p.sum[row * p.width + i];
  for (int k = 0; k < p.used; k++) sum += p.weights[row * p.used + k] * p.y[(row * p.used + k) * p.width + i];
  p.sum[row * p.width + i] = sum;
}
