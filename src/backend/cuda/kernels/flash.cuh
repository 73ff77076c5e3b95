// Attention of many rows (prefill) over the paged f16 cache: flash attention (arXiv:2205.14135, 2307.08691) on tensor cores.
// A block takes a tile of rows and a head through the pages that the tile sees. Each of its warps has 16 or 32 of the rows:
// with 32, what ldmatrix brings serves two mma, and shared memory keeps up with the tensor cores.
#pragma once
#include "common.cuh"
#include <cstring>

#define FLASH_PAGE 64      // positions
#define FLASH_ROWS 128     // of a tile, at most; tiles of up to 64 rows take half the time, for where there are few blocks
#define FLASH_THREADS 128
// Bytes: the queries of a tile and twice a page's keys and values. 48 KiB for flash_64, 96 KiB for flash_128.
#define FLASH_SHARED(WIDTH) ((FLASH_ROWS + 4 * FLASH_PAGE) * (WIDTH) * 2)

struct Flash {
  const float *query;      // [rows, heads * key_dim]
  const __half *keys;      // [slots, kv_heads * key_dim]
  const __half *values;    // [slots, kv_heads * value_dim]
  const unsigned *rows;    // of each row: where its sequence's block table begins in `tables`, and its position
  const unsigned *tables;  // page numbers: page i of a sequence has positions 64 i to 64 i + 63
  const unsigned *tiles;   // of each tile: its first row, and how many it has; of one sequence, of consecutive positions
  const float *sinks;      // [heads], or null: a score that takes its share and gives nothing
  float *to;               // [rows, heads * value_dim]
  int heads, kv_heads, key_dim, value_dim, window;  // window: how many positions a row sees, its own the last; 0: all
  float scale;
};

const float FLASH_LOG2E = 1.44269504f, FLASH_NONE = -1e30f;

// 2 ** x, 0 for what would be subnormal.
static __device__ __forceinline__ float flash_exp2(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

static __device__ __forceinline__ unsigned flash_pair(float x, float y) {
  __half2 pair = __floats2half2_rn(x, y);
  unsigned bits;
  memcpy(&bits, &pair, 4);
  return bits;
}

// Where eight values are in a tile [rows, WIDTH] of f16, in bytes: chunks change places by the row, so that those of one column
// and eight rows are in all banks. Two chunks further is `^ 32`.
template <int WIDTH> static __device__ __forceinline__ unsigned flash_at(unsigned row, unsigned chunk) {
  return row * WIDTH * 2 + (chunk ^ row % 8) * 16;
}

// Begins to copy [FLASH_PAGE, dim] of `from`'s rows, `stride` apart; zeros beyond dim and from row `present` on, where anything
// may be.
template <int WIDTH>
static __device__ __forceinline__ void flash_copy(char *to, const __half *from, int stride, int dim, int present) {
  constexpr int CHUNKS = WIDTH / 8, STEP = FLASH_THREADS / CHUNKS;
  int chunk = threadIdx.x % CHUNKS, row = threadIdx.x / CHUNKS;
  if (chunk * 8 >= dim) present = 0;
  from += row * stride + chunk * 8;
  to += flash_at<WIDTH>(row, chunk);
#pragma unroll
  for (int i = 0; i < FLASH_PAGE; i += STEP) {
    copy_async(to + i * WIDTH * 2, from, row + i < present);
    from += STEP * stride;
  }
}

// The tile's queries as f16, times what makes scores powers of two; zeros beyond its rows and dimensions.
template <int WIDTH, int ROWS>
static __device__ __forceinline__ void flash_queries(char *to, const float *from, int stride, int dim, int count, float scale) {
  constexpr int CHUNKS = WIDTH / 8, STEP = FLASH_THREADS / CHUNKS;
  int chunk = threadIdx.x % CHUNKS, row = threadIdx.x / CHUNKS;
#pragma unroll 4
  for (int i = 0; i < ROWS; i += STEP, row += STEP) {
    uint4 eight = make_uint4(0, 0, 0, 0);
    if (row < count && chunk * 8 < dim) {
      const float4 *at = (const float4 *)(from + (size_t)row * stride + chunk * 8);
      float4 x = at[0], y = at[1];
      eight = make_uint4(flash_pair(x.x * scale, x.y * scale), flash_pair(x.z * scale, x.w * scale),
                         flash_pair(y.x * scale, y.y * scale), flash_pair(y.z * scale, y.w * scale));
    }
    *(uint4 *)(to + flash_at<WIDTH>(row, chunk)) = eight;
  }
}

// What a warp has of its 16 * M rows; a lane's are lane / 4 and 8 further of each 16, two columns of each eight.
template <int WIDTH, int M> struct FlashWarp {
  static constexpr bool HELD = M == 1;  // whether queries stay in registers
  float acc[M][WIDTH / 8][4], most[M][2], sum[M][4];  // of a sum, 0 and 2 count
  unsigned query[HELD ? WIDTH / 16 : 1][M][4];

  __device__ __forceinline__ void load_query(const char *queries, int lane, int k) {
    unsigned at = flash_at<WIDTH>(lane % 16, lane / 16) ^ k * 32;
#pragma unroll
    for (int m = 0; m < M; m++) load_matrices(query[HELD ? k : 0][m], queries + at + m * 16 * WIDTH * 2, false);
  }

  __device__ __forceinline__ void begin(const char *queries, int lane) {
#pragma unroll
    for (int m = 0; m < M; m++) {
      for (int i = 0; i < WIDTH / 8; i++)
        for (int j = 0; j < 4; j++) acc[m][i][j] = 0.0f;
      for (int h = 0; h < 2; h++) most[m][h] = FLASH_NONE;
      for (int j = 0; j < 4; j++) sum[m][j] = 0.0f;
    }
#pragma unroll
    for (int k = 0; HELD && k < WIDTH / 16; k++) load_query(queries, lane, k);
  }

  __device__ __forceinline__ void score(float (&s)[M][8][4], const char *queries, const char *keys, int lane) {
    unsigned at = flash_at<WIDTH>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int m = 0; m < M; m++)
      for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++) s[m][i][j] = 0.0f;
#pragma unroll
    for (int k = 0; k < WIDTH / 16; k++) {
      if (!HELD) load_query(queries, lane, k);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        unsigned key[4];
        load_matrices(key, keys + (at ^ k * 32) + i * 16 * WIDTH * 2, false);
        unsigned first[2] = {key[0], key[1]}, second[2] = {key[2], key[3]};
#pragma unroll
        for (int m = 0; m < M; m++) {
          mma_f16(s[m][2 * i], query[HELD ? k : 0][m], first);
          mma_f16(s[m][2 * i + 1], query[HELD ? k : 0][m], second);
        }
      }
    }
  }

  // Takes away what rows may not see. `ahead`: of the lane's first row before its first column; span: how far back rows see.
  __device__ __forceinline__ void mask(float (&s)[M][8][4], int ahead, unsigned span) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
          if ((unsigned)(ahead + m * 16 + j / 2 * 8 - i * 8 - j % 2) >= span) s[m][i][j] = -INFINITY;
  }

  // Scores become weights, as seen from the greatest score so far (arXiv:1805.02867), where mma wants its first matrix: of each
  // 16 keys one.
  __device__ __forceinline__ void weigh(float (&s)[M][8][4], unsigned (&weight)[M][4][4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float next = most[m][h];
#pragma unroll
        for (int i = 0; i < 8; i++) next = fmaxf(next, fmaxf(s[m][i][2 * h], s[m][i][2 * h + 1]));
        next = fmaxf(next, __shfl_xor_sync(ALL_LANES, next, 1));
        next = fmaxf(next, __shfl_xor_sync(ALL_LANES, next, 2));
        float kept = flash_exp2(most[m][h] - next);
        most[m][h] = next;
        sum[m][2 * h] *= kept;
#pragma unroll
        for (int i = 0; i < WIDTH / 8; i++) acc[m][i][2 * h] *= kept, acc[m][i][2 * h + 1] *= kept;
#pragma unroll
        for (int i = 0; i < 8; i++) {
          float x = flash_exp2(s[m][i][2 * h] - next), y = flash_exp2(s[m][i][2 * h + 1] - next);
          weight[m][i / 2][i % 2 * 2 + h] = flash_pair(x, y);
        }
      }
    }
  }

  // Weights times values, and their sum: times ones, which costs fewer instructions and registers than to add them up.
  __device__ __forceinline__ void add(const unsigned (&weight)[M][4][4], const char *values, int lane) {
    unsigned at = flash_at<WIDTH>(lane % 16, lane / 16);
    const unsigned ones[2] = {0x3c003c00, 0x3c003c00};
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
      for (int m = 0; m < M; m++) mma_f16(sum[m], weight[m][k], ones);
#pragma unroll
    for (int i = 0; i < WIDTH / 16; i++)
#pragma unroll
      for (int k = 0; k < 4; k++) {
        unsigned value[4];
        load_matrices(value, values + (at ^ i * 32) + k * 16 * WIDTH * 2, true);
        unsigned first[2] = {value[0], value[1]}, second[2] = {value[2], value[3]};
#pragma unroll
        for (int m = 0; m < M; m++) {
          mma_f16(acc[m][2 * i], weight[m][k], first);
          mma_f16(acc[m][2 * i + 1], weight[m][k], second);
        }
      }
  }

  // to: the warp's first row, `stride` to the next.
  __device__ __forceinline__ void store(float *to, int stride, int dim, int count, float sink, int lane) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float next = fmaxf(most[m][h], sink), kept = flash_exp2(most[m][h] - next);
        float factor = kept / (sum[m][2 * h] * kept + flash_exp2(sink - next));
        int row = m * 16 + h * 8 + lane / 4;
        float2 *at = (float2 *)(to + (size_t)row * stride) + lane % 4;
#pragma unroll
        for (int i = 0; i < WIDTH / 8; i++)
          if (row < count && i * 8 < dim) at[i * 4] = make_float2(acc[m][i][2 * h] * factor, acc[m][i][2 * h + 1] * factor);
      }
  }
};

// What is known of a tile, in shared memory: registers are few. `at` counts rows and heads.
struct FlashTile {
  unsigned table, at, kv_head;
  int position, end;
};

// A tile of up to 64 * M rows.
template <int WIDTH, int M> static __device__ __forceinline__ void flash_tile(const Flash &p, const FlashTile &tile) {
  DYNAMIC_SHARED(shared);
  constexpr int PAGE_BYTES = FLASH_PAGE * WIDTH * 2;
  int lane = threadIdx.x % WARP, from_row = threadIdx.x / WARP * 16 * M, span = p.window > 0 ? p.window : 0x7fffffff;
  int page = max(tile.position + 1 - span, 0) / FLASH_PAGE;
  char *queries = shared + from_row * WIDTH * 2, *pages = shared + FLASH_ROWS * WIDTH * 2;  // pages: by turns

  auto copy = [&](int page) {
    char *keys = pages + (page & 1) * 2 * PAGE_BYTES;
    size_t slot = p.tables[tile.table + page] * FLASH_PAGE * p.kv_heads + tile.kv_head;  // of the head; less than 2 ** 32
    int present = tile.end - page * FLASH_PAGE;
    flash_copy<WIDTH>(keys, p.keys + slot * p.key_dim, p.kv_heads * p.key_dim, p.key_dim, present);
    flash_copy<WIDTH>(keys + PAGE_BYTES, p.values + slot * p.value_dim, p.kv_heads * p.value_dim, p.value_dim, present);
    commit_copies();
  };
  copy(page);
  flash_queries<WIDTH, 64 * M>(shared, p.query + (size_t)tile.at * p.key_dim, p.heads * p.key_dim, p.key_dim,
                               tile.end - tile.position, p.scale * FLASH_LOG2E);
  __syncthreads();
  FlashWarp<WIDTH, M> warp;
  warp.begin(queries, lane);

  for (; page * FLASH_PAGE < tile.end; page++) {
    wait_for_copies<0>();
    __syncthreads();
    int begin = page * FLASH_PAGE, from = tile.position + from_row;
    if (begin + FLASH_PAGE < tile.end) copy(page + 1);
    if (from >= tile.end || begin >= from + 16 * M || begin + FLASH_PAGE <= from + 1 - span) continue;  // the warp sees nothing of it
    const char *keys = pages + (page & 1) * 2 * PAGE_BYTES;
    float s[M][8][4];
    warp.score(s, queries, keys, lane);
    if (begin + FLASH_PAGE > from + 1 || begin < from + 16 * M - span) warp.mask(s, from + lane / 4 - begin - lane % 4 * 2, span);
    unsigned weight[M][4][4];
    warp.weigh(s, weight);
    warp.add(weight, keys + PAGE_BYTES, lane);
  }
  int count = tile.end - tile.position - from_row;
  if (count <= 0) return;
  float sink = p.sinks ? fmaxf(p.sinks[tile.at % p.heads] * FLASH_LOG2E, FLASH_NONE) : -INFINITY;
  warp.store(p.to + (size_t)(tile.at + from_row * p.heads) * p.value_dim, p.heads * p.value_dim, p.value_dim, count, sink, lane);
}

// Heads by turns, late tiles first: they see the most.
template <int WIDTH> static __device__ __forceinline__ void flash(const Flash &p) {
  __shared__ FlashTile tile;
  let_next_start();
  wait_for_previous();
  unsigned block = blockIdx.y * gridDim.x + blockIdx.x, head = block % p.heads;
  const unsigned *rows = p.tiles + 2 * (gridDim.x - 1 - block / p.heads), *row = p.rows + 2 * rows[0];
  int count = rows[1], position = row[1];
  if (threadIdx.x == 0) tile = {row[0], rows[0] * p.heads + head, head / (p.heads / p.kv_heads), position, position + count};
  __syncthreads();
  if (count <= FLASH_ROWS / 2) flash_tile<WIDTH, 1>(p, tile);
  else flash_tile<WIDTH, 2>(p, tile);
}

KERNEL(flash_64, Flash, FLASH_THREADS, 3) { flash<64>(p); }
KERNEL(flash_128, Flash, FLASH_THREADS, 2) { flash<128>(p); }
