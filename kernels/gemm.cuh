// The matrix product that linear and convolution share: C[M,N] = A[M,K]·B[K,N], row-major C.
//
// A block computes a tile of BM x BN of C. It walks along K in steps of BK: the tile BM x BK of A and the
// tile BK x BN of B go through shared memory, and every thread multiplies them into its TM x TN registers.
//
//   global memory --(16 bytes per thread)--> registers --> shared memory --(16 bytes)--> registers --> FFMA
//
// Shared memory is double-buffered: while the products of one step run, the loads of the next are already
// on their way to registers, and they are put into the other buffer afterwards: one barrier per step.
//
// How the operands lie in memory is the business of two loaders. A loader knows lines (rows of A, columns
// of B) and gives four neighbours at a time, zeros outside the matrix:
//     static constexpr bool along_k    the four are at (line, k..k+3), otherwise at (line..line+3, k)
//     void start(int line)             this thread's line, the same for the whole kernel
//     float4 at(int k)                 the four neighbours
// AlongK and AcrossK below read plain matrices: a transpose is a choice of loader. Convolution brings loaders
// that gather from the image (conv2d.cuh).
//
// Split-K. A product with few tiles and a long K would leave most of the GPU idle. The grid's z cuts the
// steps along K into ranges of `split_steps`; each writes its own partial result [z][M][N], and split_sum
// adds them in order. No atomics: the bits don't depend on which block ends first.
//
// Which tile and how many splits: the host decides from M, N, K alone, never from the GPU, so that all GPUs
// give the same bits (Rust: `Plan::new(m, n, k)`). For each tile of side S:
//     blocks = ceil(M/S)·ceil(N/S),  steps = ceil(K/BK)
//     splits = min(264/blocks, steps/4, 2^24/(M·N)), at least 1;  split_steps = ceil(steps/splits);
//     splits = ceil(steps/split_steps)
//     cost   = blocks·S·S·steps·BK / SPEED / min(1, blocks·splits/264)
// and the cheapest is taken, the larger tile where they are equal. 264 blocks are two for each of 132 multiprocessors;
// a split has four steps or more; partial results take 64 MiB at most. The speeds are estimates, not measurements.
#pragma once
#include "common.cuh"

// A block's work: M x N of C in steps of K, TM x TN of it by each of THREADS threads, of which a multiprocessor shall
// hold BLOCKS blocks; SPEED is above. (The host reads these numbers too.) The 32 lanes of a warp form 4 rows x 8 columns; a
// lane has groups of 4x4 outputs, 16 rows and 32 columns apart. So when a warp reads its part of A from shared memory, 16
// bytes per lane, there are 4 different addresses, next to each other and each read by 8 lanes; for B there are 8. No two
// meet in a bank.
struct Simt128 {
  enum { M = 128, N = 128, K = 8, TM = 8, TN = 8, THREADS = 256, BLOCKS = 2, SPEED = 16 };
};
struct Simt64 {
  enum { M = 64, N = 64, K = 16, TM = 8, TN = 4, THREADS = 128, BLOCKS = 0, SPEED = 12 };
};
struct Simt32 {
  enum { M = 32, N = 32, K = 16, TM = 4, TN = 4, THREADS = 64, BLOCKS = 0, SPEED = 7 };
};

// Floats of a row of a tile in shared memory. Padding by 4 keeps rows 16-byte aligned and puts k and k + 4 into
// different halves of the banks, so that storing a line that came along K has no conflicts.
template <class Tile>
constexpr int ROW = Tile::M + 4;

__device__ __forceinline__ float4 zero4() { return make_float4(0.0f, 0.0f, 0.0f, 0.0f); }

// A matrix [lines][k_size]: K is contiguous. (Operands have fewer than 2^31 elements: an int is an index.)
template <class E>
struct AlongK {
  static constexpr bool along_k = true;
  const E* p;  // this thread's line
  int lines, k_size;
  bool wide;  // 16-byte loads are possible; the same for all threads
  __device__ AlongK(const E* data, int lines, int k_size)
      : p(data), lines(lines), k_size(k_size), wide(rows_of_4(data, k_size)) {}
  __device__ __forceinline__ void start(int line) {
    if (line < lines) p += line * k_size;
    else k_size = 0;
  }
  __device__ __forceinline__ float one(int k) const { return k < k_size ? to_float(p[k]) : 0.0f; }
  __device__ __forceinline__ float4 at(int k) const {
    if (wide) return k < k_size ? load4(p + k) : zero4();
    return make_float4(one(k), one(k + 1), one(k + 2), one(k + 3));
  }
};

// A matrix [k_size][lines]: the lines are contiguous.
template <class E>
struct AcrossK {
  static constexpr bool along_k = false;
  const E* p;
  int lines, k_size;
  bool wide;
  int line;  // the first of this thread's four
  __device__ AcrossK(const E* data, int lines, int k_size)
      : p(data), lines(lines), k_size(k_size), wide(rows_of_4(data, lines)) {}
  __device__ __forceinline__ void start(int first) { line = first; }
  __device__ __forceinline__ float one(int k, int i) const {
    return line + i < lines ? to_float(p[k * lines + line + i]) : 0.0f;
  }
  __device__ __forceinline__ float4 at(int k) const {
    if (k >= k_size) return zero4();
    if (wide) return line < lines ? load4(p + k * lines + line) : zero4();
    return make_float4(one(k, 0), one(k, 1), one(k, 2), one(k, 3));
  }
};

// Writes `count` (1..4) neighbours, or adds them to what is there.
template <class E>
__device__ __forceinline__ void put(E* p, float4 v, bool wide, int count, bool accumulate) {
  if (wide) {
    if (accumulate) {
      const float4 old = load4(p);
      v = make_float4(old.x + v.x, old.y + v.y, old.z + v.z, old.w + v.w);
    }
    return store4(p, v);
  }
  const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < count) p[i] = from_float<E>(accumulate ? to_float(p[i]) + values[i] : values[i]);
}

// Where C goes.
template <class E>
struct Output {
  E* y;               // [m][n], written if there is no split
  const float* bias;  // [n] or null, added to every row
  float* partial;     // [splits][m][n], or null if there is no split
  int m, n;
  int accumulate;  // add to y instead of overwriting it
  __device__ __forceinline__ void store(int row, int column, float4 v) const {
    const size_t at = (size_t)row * n + column;
    const int count = n - column;
    if (partial) {
      float* p = partial + (size_t)blockIdx.z * m * n;
      put(p + at, v, rows_of_4(p, n), count, false);
    } else {
      put(y + at, v, rows_of_4(y, n), count, accumulate != 0);
    }
  }
  __device__ __forceinline__ float bias_at(int column) const {
    return bias && !partial && column < n ? bias[column] : 0.0f;
  }
};

// Puts four neighbours into the shared tile [BK][ROW].
template <class Tile, class Loader>
__device__ __forceinline__ void stage(float (*tile)[ROW<Tile>], int line, int k, float4 v) {
  if (Loader::along_k) {
    tile[k][line] = v.x, tile[k + 1][line] = v.y, tile[k + 2][line] = v.z, tile[k + 3][line] = v.w;
  } else {
    store4(&tile[k][line], v);
  }
}

// The line within the tile that this thread loads, and its first k within a pass of 8.
template <class Tile, class Loader>
__device__ __forceinline__ int line_of(int t) {
  return Loader::along_k ? t / 2 : t % (Tile::M / 4) * 4;
}
template <class Tile, class Loader>
__device__ __forceinline__ int k_of(int t) {
  return Loader::along_k ? t % 2 * 4 : t / (Tile::M / 4);
}

// One block's tile of C. Grid: x = ceil(M/BM)·ceil(N/BN) tiles, those of one row of tiles next to each other
// (they share A in the L2 cache); z = splits.
template <class Tile, class A, class B, class E>
__device__ __forceinline__ void gemm(A a, B b, const Output<E>& out, int k_size, int split_steps) {
  constexpr int BK = Tile::K, TM = Tile::TM, TN = Tile::TN;
  // Two threads per line: one pass of all threads brings 8 k of every line.
  constexpr int PASSES = BK / 8, WARPS_N = Tile::N / (8 * TN);
  static_assert(Tile::M == Tile::N && Tile::THREADS == 2 * Tile::M && BK % 8 == 0, "a pass brings 8 k");
  SHARED(float, as, [2][BK][ROW<Tile>]);
  SHARED(float, bs, [2][BK][ROW<Tile>]);
  const int t = threadIdx.x;
  const int tiles_n = (out.n + Tile::N - 1) / Tile::N;
  const int m0 = (int)blockIdx.x / tiles_n * Tile::M, n0 = (int)blockIdx.x % tiles_n * Tile::N;
  const int first = blockIdx.z * split_steps;
  const int steps = min((k_size + BK - 1) / BK - first, split_steps);

  // This thread's part of the loads.
  const int a_line = line_of<Tile, A>(t), a_k = k_of<Tile, A>(t);
  const int b_line = line_of<Tile, B>(t), b_k = k_of<Tile, B>(t);
  a.start(m0 + a_line);
  b.start(n0 + b_line);

  // This thread's part of the products.
  const int warp = t / 32, lane = t % 32;
  const int row = warp / WARPS_N * (4 * TM) + lane / 8 * 4;
  const int column = warp % WARPS_N * (8 * TN) + lane % 8 * 4;
  const bool busy = m0 + row < out.m && n0 + column < out.n;  // some of its outputs exist
  float acc[TM][TN] = {};

  float4 next_a[PASSES], next_b[PASSES];
  int k = first * BK;
  for (int step = -1; step < steps; ++step) {
    // Step -1 only fetches the first tiles.
    const bool more = step + 1 < steps;
    if (more) {
#pragma unroll
      for (int p = 0; p < PASSES; ++p) {
        next_a[p] = a.at(k + 8 * p + a_k);
        next_b[p] = b.at(k + 8 * p + b_k);
      }
      k += BK;
    }
    if (step >= 0 && busy) {
      const float(*at)[ROW<Tile>] = as[step & 1];
      const float(*bt)[ROW<Tile>] = bs[step & 1];
#pragma unroll
      for (int kk = 0; kk < BK; ++kk) {
        float av[TM], bv[TN];
#pragma unroll
        for (int i = 0; i < TM; i += 4) store4(av + i, load4(&at[kk][row + i * 4]));
#pragma unroll
        for (int j = 0; j < TN; j += 4) store4(bv + j, load4(&bt[kk][column + j * 8]));
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
          for (int j = 0; j < TN; ++j) acc[i][j] = fmaf(av[i], bv[j], acc[i][j]);
      }
    }
    if (more) {
#pragma unroll
      for (int p = 0; p < PASSES; ++p) {
        stage<Tile, A>(as[(step + 1) & 1], a_line, 8 * p + a_k, next_a[p]);
        stage<Tile, B>(bs[(step + 1) & 1], b_line, 8 * p + b_k, next_b[p]);
      }
    }
    __syncthreads();
  }

  if (!busy) return;
#pragma unroll
  for (int j = 0; j < TN; j += 4) {
    const int c = n0 + column + j * 8;
    if (c >= out.n) continue;
    const float b0 = out.bias_at(c), b1 = out.bias_at(c + 1), b2 = out.bias_at(c + 2), b3 = out.bias_at(c + 3);
#pragma unroll
    for (int i = 0; i < TM; ++i) {
      const int r = m0 + row + i / 4 * 16 + i % 4;
      if (r >= out.m) continue;
      out.store(r, c, make_float4(acc[i][j] + b0, acc[i][j + 1] + b1, acc[i][j + 2] + b2, acc[i][j + 3] + b3));
    }
  }
}

struct SplitSumDims {
  int size;        // elements of one partial result: m * n
  int columns;     // n: the length of the bias
  int splits;      // partial results
  int accumulate;  // 1: y += the sum; 0: y = the sum
};

// y[i] (+)= sum over z of partial[z][i] + b[i % columns], in the order of z. One thread per element.
template <class E>
__device__ __forceinline__ void split_sum(const float* partial, const float* b, E* y, const SplitSumDims& d) {
  const unsigned i = global_index();
  if (i >= (unsigned)d.size) return;
  float sum = 0.0f;
#pragma unroll 4
  for (int z = 0; z < d.splits; ++z) sum += partial[(size_t)z * d.size + i];
  if (b) sum += b[i % d.columns];
  y[i] = from_float<E>(d.accumulate ? to_float(y[i]) + sum : sum);
}
