// pensive's own CUDA kernels: where candle's operations would cost a token most. Each is short and plain; what it computes is
// said by the Rust text of the same operation (ops.rs), and tests/cuda_kernels.rs runs this text, compiled as C++, against it.
// Matrices are row-major and f32; the KV cache is f16.

#include <cuda_fp16.h>

#define WARP 32
#define ALL_LANES 0xffffffffu

static __device__ float warp_sum(float x) {
  for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
}

// The sum over a block of up to 1024 threads, for all of them.
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

// A block per row: both = [sum + y, rms_norm(sum + y) * weight], each [rows, width].
extern "C" __global__ void add_rms_norm(const float *sum, const float *y, const float *weight, float *both, int rows, int width,
                                        float epsilon) {
  size_t at = (size_t)blockIdx.x * width;
  float *total = both + at, *normed = both + (size_t)rows * width + at;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    float x = sum[at + i] + y[at + i];
    total[i] = x;
    squares += x * x;
  }
  float factor = rsqrtf(block_sum(squares) / width + epsilon);
  for (int i = threadIdx.x; i < width; i += blockDim.x) normed[i] = total[i] * factor * weight[i];
}

// A thread per value: to = silu(gate) * up.
extern "C" __global__ void swiglu(const float *gate, const float *up, float *to, int len) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < len) to[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

// A block per head and row: norms the head's first `normed` values (none if 0), rotates `pairs` pairs from value `from` on, takes
// off the center if there is one. cos and sin are [rows, pairs]; center is [heads * dim]. A head is at most 1024 wide.
extern "C" __global__ void rotate_heads(const float *x, const float *cos, const float *sin, const float *norm, const float *center,
                                        float *to, int dim, int normed, float epsilon, int from, int pairs, int interleaved,
                                        int centered) {
  __shared__ float head[1024];
  size_t at = ((size_t)blockIdx.y * gridDim.x + blockIdx.x) * dim;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < dim; i += blockDim.x) {
    head[i] = x[at + i];
    if (i < normed) squares += head[i] * head[i];
  }
  if (normed > 0) {
    float factor = rsqrtf(block_sum(squares) / normed + epsilon);
    for (int i = threadIdx.x; i < normed; i += blockDim.x) head[i] = head[i] * factor * norm[i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < pairs; i += blockDim.x) {
    int first = from + (interleaved ? 2 * i : i), second = from + (interleaved ? 2 * i + 1 : i + pairs);
    float c = cos[(size_t)blockIdx.y * pairs + i], s = sin[(size_t)blockIdx.y * pairs + i];
    float a = head[first], b = head[second];
    head[first] = a * c - b * s;
    head[second] = a * s + b * c;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < dim; i += blockDim.x) to[at + i] = head[i] - (centered ? center[blockIdx.x * dim + i] : 0.0f);
}

// A block per row: the first `width` values of x's rows ([rows, stride]) go to their slots of the cache ([slots, width]).
extern "C" __global__ void append(__half *cache, const float *x, const unsigned *slots, int stride, int width) {
  __half *to = cache + (size_t)slots[blockIdx.x] * width;
  for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] = __float2half(x[(size_t)blockIdx.x * stride + i]);
}

// Attention over the pages, in splits of SPLIT positions that `merge_splits` brings together (flash decoding; softmax online,
// arXiv:1805.02867). A block per split, per G query heads that share a kv head, per row; its warps take positions by turns, a
// lane holds pairs of dimensions: lane, lane + 32, ...
#define SPLIT 128
#define PAGE 64
#define WARPS 4

struct Shape {
  int heads, kv_heads, key_dim, value_dim, value_width, window, splits;
  float scale;
};

// q [rows, heads * key_dim]; value_width: numbers from one head's value to the next, the key's where it is a part of it; rows: for each the place of its sequence's block table in `tables`, and its position.
// partial [rows, heads, splits, 2 + value_dim]: greatest score, sum of the weights, weighted values; untouched where a row sees
// nothing of a split.
template <int G, int KEY_PAIRS, int VALUE_PAIRS>
static __device__ void attend(const float *q, const __half *keys, const __half *values, const unsigned *rows, const unsigned *tables,
                              float *partial, Shape s) {
  int group = s.heads / s.kv_heads, tiles = (group + G - 1) / G;
  int kv_head = blockIdx.y / tiles, first_head = kv_head * group + blockIdx.y % tiles * G;
  int present = min(G, (kv_head + 1) * group - first_head);
  const unsigned *table = tables + rows[2 * blockIdx.z];
  int position = rows[2 * blockIdx.z + 1];
  int from = max((int)blockIdx.x * SPLIT, s.window > 0 ? position + 1 - s.window : 0);
  int to = min((int)(blockIdx.x + 1) * SPLIT, position + 1);
  if (from >= to) return;
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;

  float query[G][2 * KEY_PAIRS], most[G], sum[G], acc[G][2 * VALUE_PAIRS];
  for (int g = 0; g < G; g++) {
    most[g] = -INFINITY;
    sum[g] = 0.0f;
    const float *head = q + ((size_t)blockIdx.z * s.heads + first_head + min(g, present - 1)) * s.key_dim;
    for (int i = 0; i < KEY_PAIRS; i++) {
      int d = 2 * (lane + WARP * i);
      query[g][2 * i] = d < s.key_dim ? head[d] * s.scale : 0.0f;
      query[g][2 * i + 1] = d < s.key_dim ? head[d + 1] * s.scale : 0.0f;
    }
    for (int i = 0; i < 2 * VALUE_PAIRS; i++) acc[g][i] = 0.0f;
  }
  for (int p = from + warp; p < to; p += WARPS) {
    size_t slot = (size_t)table[p / PAGE] * PAGE + p % PAGE;
    const __half2 *key = (const __half2 *)(keys + (slot * s.kv_heads + kv_head) * s.key_dim);
    const __half2 *value = (const __half2 *)(values + (slot * s.kv_heads + kv_head) * s.value_width);
    float2 k[KEY_PAIRS], v[VALUE_PAIRS];
    for (int i = 0; i < KEY_PAIRS; i++) {
      int pair = lane + WARP * i;
      k[i] = 2 * pair < s.key_dim ? __half22float2(key[pair]) : make_float2(0.0f, 0.0f);
    }
    for (int i = 0; i < VALUE_PAIRS; i++) {
      int pair = lane + WARP * i;
      v[i] = 2 * pair < s.value_dim ? __half22float2(value[pair]) : make_float2(0.0f, 0.0f);
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
  __shared__ float most_of[WARPS], sum_of[WARPS], acc_of[WARPS][2 * WARP * VALUE_PAIRS];
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
    float *out = partial + (((size_t)blockIdx.z * s.heads + first_head + g) * s.splits + blockIdx.x) * (2 + s.value_dim);
    float all = -INFINITY, total = 0.0f, factor[WARPS];
    for (int w = 0; w < WARPS; w++) all = fmaxf(all, most_of[w]);
    for (int w = 0; w < WARPS; w++) {
      factor[w] = expf(most_of[w] - all);
      total += sum_of[w] * factor[w];
    }
    if (threadIdx.x == 0) {
      out[0] = all;
      out[1] = total;
    }
    for (int d = threadIdx.x; d < s.value_dim; d += WARPS * WARP) {
      float x = 0.0f;
      for (int w = 0; w < WARPS; w++) x += acc_of[w][d] * factor[w];
      out[2 + d] = x;
    }
    __syncthreads();
  }
}

#define ATTEND(NAME, G, KEY_PAIRS, VALUE_PAIRS)                                                                                        \
  extern "C" __global__ void NAME(const float *q, const __half *keys, const __half *values, const unsigned *rows,                      \
                                  const unsigned *tables, float *partial, int heads, int kv_heads, int key_dim, int value_dim,         \
                                  int value_width, int window, int splits, float scale) {                                              \
    Shape s = {heads, kv_heads, key_dim, value_dim, value_width, window, splits, scale};                                               \
    attend<G, KEY_PAIRS, VALUE_PAIRS>(q, keys, values, rows, tables, partial, s);                                                      \
  }

ATTEND(attend_1_64, 1, 1, 1)
ATTEND(attend_4_64, 4, 1, 1)
ATTEND(attend_8_64, 8, 1, 1)
ATTEND(attend_1_128, 1, 2, 2)
ATTEND(attend_4_128, 4, 2, 2)
ATTEND(attend_8_128, 8, 2, 2)
ATTEND(attend_2_576, 2, 9, 8)

// A block per head and row: brings the splits together. A sink is a score that takes its share and gives nothing.
extern "C" __global__ void merge_splits(const float *partial, const unsigned *rows, const float *sinks, float *to, int heads,
                                        int value_dim, int window, int splits, int has_sinks) {
  int position = rows[2 * blockIdx.y + 1];
  int first = window > 0 ? max(position + 1 - window, 0) / SPLIT : 0, last = position / SPLIT;
  size_t head = (size_t)blockIdx.y * heads + blockIdx.x, stride = 2 + value_dim;
  const float *parts = partial + head * splits * stride;
  float sink = has_sinks ? sinks[blockIdx.x] : -INFINITY, most = sink, sum = 0.0f;
  for (int i = first; i <= last; i++) most = fmaxf(most, parts[i * stride]);
  for (int i = first; i <= last; i++) sum += parts[i * stride + 1] * expf(parts[i * stride] - most);
  sum += expf(sink - most);
  for (int d = threadIdx.x; d < value_dim; d += blockDim.x) {
    float x = 0.0f;
    for (int i = first; i <= last; i++) x += parts[i * stride + 2 + d] * expf(parts[i * stride] - most);
    to[head * value_dim + d] = x / sum;
  }
}
