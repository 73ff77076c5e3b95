// Attention of few rows over the pages of the cache: each row reads them for itself.
#pragma once
#include "elements.cuh"

#define PAGE 64
#define ATTEND_THREADS 128
#define ATTEND_WARPS (ATTEND_THREADS / WARP)

// query [rows, heads * key_dim]; keys [slots, kv_heads * key_dim]; value_width: numbers from one head's value to the next (the
// key's where a value is a part of it). A split is split_len positions. partial [rows, heads, splits, 2 + value_dim]: greatest
// score, sum of the weights, weighted values. arrived [rows, tiles of heads]: zeros, before and after.
// Grid: splits, tiles of query heads, rows from first_row on.
struct Attend {
  const float *query;
  const void *keys, *values;
  Rows rows;
  const float *sinks;
  float *partial, *to;
  unsigned *arrived;
  int heads, kv_heads, key_dim, value_dim, value_width, window, splits, split_len, first_row;
  float scale;
};

static __device__ __forceinline__ float2 pair_of(const __half *p, size_t pair) { return __half22float2(((const __half2 *)p)[pair]); }
static __device__ __forceinline__ float2 pair_of(const float *p, size_t pair) { return ((const float2 *)p)[pair]; }

#define MOST_SPLITS 256

// Brings the splits first .. last of some heads together, a head for each warp. A sink is a score that takes its share and gives
// nothing.
template <int VALUE_PAIRS>
static __device__ void merge_splits(const Attend &p, int row, int first_head, int heads, int first, int last) {
  __shared__ float factors[ATTEND_WARPS][MOST_SPLITS];
  size_t stride = 2 + p.value_dim;
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  for (int head = first_head + warp; head < first_head + heads; head += ATTEND_WARPS) {
    const float *parts = p.partial + ((size_t)blockIdx.z * p.heads + head) * p.splits * stride;
    float sink = p.sinks ? p.sinks[head] : -INFINITY, most = sink, sum = 0.0f;
    for (int i = first + lane; i <= last; i += WARP) most = fmaxf(most, __ldcg(parts + i * stride));
    most = warp_max(most);
    for (int i = first + lane; i <= last; i += WARP) {
      float factor = expf(__ldcg(parts + i * stride) - most);
      factors[warp][i - first] = factor;
      sum += __ldcg(parts + i * stride + 1) * factor;
    }
    sum = warp_sum(sum) + expf(sink - most);
    __syncwarp();
    float2 x[VALUE_PAIRS];
    for (int k = 0; k < VALUE_PAIRS; k++) x[k] = make_float2(0.0f, 0.0f);
#pragma unroll 4
    for (int i = first; i <= last; i++) {
      const float2 *values = (const float2 *)(parts + i * stride + 2);
      float factor = factors[warp][i - first];
      for (int k = 0; k < VALUE_PAIRS; k++) {
        if (2 * (lane + WARP * k) >= p.value_dim) continue;
        float2 v = __ldcg(values + lane + WARP * k);
        x[k].x += factor * v.x;
        x[k].y += factor * v.y;
      }
    }
    float2 *to = (float2 *)(p.to + ((size_t)row * p.heads + head) * p.value_dim);
    for (int k = 0; k < VALUE_PAIRS; k++)
      if (2 * (lane + WARP * k) < p.value_dim) to[lane + WARP * k] = make_float2(x[k].x / sum, x[k].y / sum);
    __syncwarp();
  }
}

// Warps take positions by turns, a lane holds pairs of dimensions: lane, lane + 32, ... Softmax online (arXiv:1805.02867).
template <class T, int G, int KEY_PAIRS, int VALUE_PAIRS> static __device__ void attend(const Attend &p) {
  int group = p.heads / p.kv_heads, tiles = (group + G - 1) / G;
  int kv_head = blockIdx.y / tiles, first_head = kv_head * group + blockIdx.y % tiles * G;
  int present = min(G, (kv_head + 1) * group - first_head), row = p.first_row + blockIdx.z;
  const unsigned *table = p.rows.tables + p.rows.places[2 * row];
  int position = p.rows.places[2 * row + 1], start = p.window > 0 ? max(position + 1 - p.window, 0) : 0;
  int first_split = start / p.split_len, last_split = position / p.split_len, split = blockIdx.x;
  if (split < first_split || split > last_split) return;
  int from = max(split * p.split_len, start), to = min((split + 1) * p.split_len, position + 1);
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;

  float query[G][2 * KEY_PAIRS], most[G], sum[G], acc[G][2 * VALUE_PAIRS];
  for (int g = 0; g < G; g++) {
    most[g] = -INFINITY;
    sum[g] = 0.0f;
    const float *head = p.query + ((size_t)row * p.heads + first_head + min(g, present - 1)) * p.key_dim;
    for (int i = 0; i < KEY_PAIRS; i++) {
      int d = 2 * (lane + WARP * i);
      query[g][2 * i] = d < p.key_dim ? head[d] * p.scale : 0.0f;
      query[g][2 * i + 1] = d < p.key_dim ? head[d + 1] * p.scale : 0.0f;
    }
    for (int i = 0; i < 2 * VALUE_PAIRS; i++) acc[g][i] = 0.0f;
  }
  for (int at = from + warp; at < to; at += ATTEND_WARPS) {
    size_t slot = (size_t)table[at / PAGE] * PAGE + at % PAGE;
    const T *key = (const T *)p.keys + (slot * p.kv_heads + kv_head) * p.key_dim;
    const T *value = (const T *)p.values + (slot * p.kv_heads + kv_head) * p.value_width;
    float2 k[KEY_PAIRS], v[VALUE_PAIRS];
    for (int i = 0; i < KEY_PAIRS; i++) {
      int pair = lane + WARP * i;
      k[i] = 2 * pair < p.key_dim ? pair_of(key, pair) : make_float2(0.0f, 0.0f);
    }
    for (int i = 0; i < VALUE_PAIRS; i++) {
      int pair = lane + WARP * i;
      v[i] = 2 * pair < p.value_dim ? pair_of(value, pair) : make_float2(0.0f, 0.0f);
    }
    for (int g = 0; g < G; g++) {
      float dot = 0.0f;
      for (int i = 0; i < KEY_PAIRS; i++) dot += query[g][2 * i] * k[i].x + query[g][2 * i + 1] * k[i].y;
      float score = warp_sum(dot), next = fmaxf(most[g], score);
      float kept = expf(most[g] - next), weight = expf(score - next);
      most[g] = next;
      sum[g] = sum[g] * kept + weight;
      for (int i = 0; i < VALUE_PAIRS; i++) {
        acc[g][2 * i] = acc[g][2 * i] * kept + weight * v[i].x;
        acc[g][2 * i + 1] = acc[g][2 * i + 1] * kept + weight * v[i].y;
      }
    }
  }

  // the warps' parts, head by head
  __shared__ float most_of[ATTEND_WARPS], sum_of[ATTEND_WARPS], acc_of[ATTEND_WARPS][2 * WARP * VALUE_PAIRS];
  for (int g = 0; g < present; g++) {
    if (lane == 0) {
      most_of[warp] = most[g];
      sum_of[warp] = sum[g];
    }
    for (int i = 0; i < VALUE_PAIRS; i++) {
      acc_of[warp][2 * (lane + WARP * i)] = acc[g][2 * i];
      acc_of[warp][2 * (lane + WARP * i) + 1] = acc[g][2 * i + 1];
    }
    __syncthreads();
    float *out = p.partial + (((size_t)blockIdx.z * p.heads + first_head + g) * p.splits + split) * (2 + p.value_dim);
    float all = -INFINITY, total = 0.0f, factor[ATTEND_WARPS];
    for (int w = 0; w < ATTEND_WARPS; w++) all = fmaxf(all, most_of[w]);
    for (int w = 0; w < ATTEND_WARPS; w++) {
      factor[w] = expf(most_of[w] - all);
      total += sum_of[w] * factor[w];
    }
    if (threadIdx.x == 0) {
      out[0] = all;
      out[1] = total;
    }
    for (int d = threadIdx.x; d < p.value_dim; d += ATTEND_THREADS) {
      float x = 0.0f;
      for (int w = 0; w < ATTEND_WARPS; w++) x += acc_of[w][d] * factor[w];
      out[2 + d] = x;
    }
    __syncthreads();
  }

  // the last of the splits to come brings all together
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned *arrived = p.arrived + (size_t)blockIdx.z * gridDim.y + blockIdx.y;
    is_last = (int)atomicAdd(arrived, 1u) == last_split - first_split;
    if (is_last) *arrived = 0;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  merge_splits<VALUE_PAIRS>(p, row, first_head, present, first_split, last_split);
}

#define ATTEND(NAME, T, G, KEY_PAIRS, VALUE_PAIRS) \
  KERNEL(NAME, Attend, ATTEND_THREADS, 1) {        \
    let_next_start();                              \
    wait_for_previous();                           \
    attend<T, G, KEY_PAIRS, VALUE_PAIRS>(p);       \
  }

ATTEND(attend_f16_1_128, __half, 1, 2, 2)
ATTEND(attend_f16_4_128, __half, 4, 2, 2)
ATTEND(attend_f16_2_576, __half, 2, 9, 8)
ATTEND(attend_f32_1_128, float, 1, 2, 2)
ATTEND(attend_f32_4_128, float, 4, 2, 2)
ATTEND(attend_f32_2_576, float, 2, 9, 8)
