// The matrix product that linear and convolution share: C[M,N] = A[M,K]·B[K,N], row-major C.
//
// A block computes a tile of M x N of C. It walks along K in steps: a step of A and one of B go through shared memory,
// and every thread multiplies them into its TM x TN registers.
//
//   global memory --(16 bytes per thread)--> registers --> shared memory --(16 bytes)--> registers --> FFMA
//
// Shared memory is double-buffered: while the products of one step run, the loads of the next are already
// on their way to registers, and they are put into the other buffer afterwards: one barrier per step.
//
// A source says where the elements of an operand lie. It knows lines (rows of A, columns of B) and gives the places of
// four neighbours at a time; how the bytes are moved from there is the product's business (`fetch`):
//     static constexpr bool along_k    the four are at (line, k..k+3), otherwise at (line..line+3, k)
//     const E* data, bool wide         the array; whether the four are always neighbours in it, and aligned
//     void start(int line)             this thread's line, the same for the whole kernel
//     int first(int k)                 the place in `data` of the first of the four; NOWHERE for a zero
//     void four(int k, int (&at)[4])   the places of all four
// AlongK and AcrossK below are plain matrices: a transpose is a choice of source. Convolution brings sources that find
// a matrix in the image (conv2d.cuh).
//
// Split-K. A product with few tiles and a long K would leave most of the GPU idle. The grid's z cuts the
// steps along K into ranges of `split_steps`; each writes its own partial result [z][M][N], and split_sum
// adds them in a fixed order. No atomics: the bits don't depend on which block ends first. What is done with a sum
// before it is stored is said once, in Epilogue, for the tile and for split_sum.
//
// Which tile and how many splits: the host decides from M, N, K alone, never from the GPU, so that all GPUs
// give the same bits (Rust: `Plan` in src/ops/product.rs). It tries each tile with one split and with 132·i/blocks of
// them, i = 1 to 16, each of a step at least; estimates their times on an H100, which has 132 multiprocessors; and takes the fastest, the larger tile
// where they are equal. For a tile S and a number of splits:
//     blocks = ceil(M/S.M)·ceil(N/S.N)·splits,  steps = ceil(ceil(K/S.K)/splits) + 2: the first load, the last store
//     each = ceil(blocks/132) blocks for a multiprocessor, which holds 576 threads at once; waves = ceil(each/(576/S.THREADS))
//     time = max(waves·steps·S.LATENCY, each·steps·S.M·S.N·S.K/(225·S.SPEED/100)) ns
// A few blocks wait for their loads, many share the arithmetic. With more splits than one, partial results are added up:
// 2000 ns and 8·splits·M·N bytes at 4000 bytes a ns; they take 64 MiB at most. The numbers of the tiles were found by
// trying, with whole training steps of eight networks (H100, 2026-11-26): Simt128 has 58 % of the arithmetic with
// one block on a multiprocessor, and 72 % with two.
#pragma once
#include "four.cuh"

// A block's work: M x N of C in steps of K, TM x TN of it by each of THREADS threads, of which a multiprocessor shall
// hold BLOCKS blocks (0: as many as fit). The host reads these numbers too. The 32 lanes of a warp form 4 rows x 8
// columns; a lane has groups of 4x4 outputs, 16 rows and 32 columns apart. So when a warp reads its part of A from
// shared memory, 16 bytes per lane, there are 4 different addresses, next to each other and each read by 8 lanes; for B
// there are 8. No two meet in a bank.
struct Simt128 {
  enum { M = 128, N = 128, K = 8, TM = 8, TN = 8, THREADS = 256, BLOCKS = 2, LATENCY = 1000, SPEED = 72 };
};
struct Simt64 {
  enum { M = 64, N = 64, K = 16, TM = 8, TN = 4, THREADS = 128, BLOCKS = 0, LATENCY = 1000, SPEED = 60 };
};
struct Simt32 {
  enum { M = 32, N = 32, K = 16, TM = 4, TN = 4, THREADS = 64, BLOCKS = 0, LATENCY = 900, SPEED = 45 };
};

// Floats of a row of a tile in shared memory. Padding by 4 keeps rows 16-byte aligned and puts k and k + 4 into
// different halves of the banks, so that storing a line that came along K has no conflicts.
template <class Tile>
constexpr int ROW = Tile::M + 4;

// The place of an element that is outside of the matrix: zero. (Operands have fewer than 2^31 elements: an int is a
// place.)
constexpr int NOWHERE = -1;

// A matrix [lines][k_size]: K is contiguous.
template <class E>
struct AlongK {
  static constexpr bool along_k = true;
  const E* data;
  int lines, k_size;
  bool wide;
  int row;  // the place of this thread's line
  __device__ AlongK(const E* data, int lines, int k_size)
      : data(data), lines(lines), k_size(k_size), wide(rows_of_4(data, k_size)) {}
  __device__ __forceinline__ void start(int line) {
    row = line * k_size;
    if (line >= lines) k_size = 0;
  }
  __device__ __forceinline__ int first(int k) const { return k < k_size ? row + k : NOWHERE; }
  __device__ __forceinline__ void four(int k, int (&at)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) at[i] = first(k + i);
  }
};

// A matrix [k_size][lines]: the lines are contiguous.
template <class E>
struct AcrossK {
  static constexpr bool along_k = false;
  const E* data;
  int lines, k_size;
  bool wide;
  int line;  // the first of this thread's four
  __device__ AcrossK(const E* data, int lines, int k_size)
      : data(data), lines(lines), k_size(k_size), wide(rows_of_4(data, lines)) {}
  __device__ __forceinline__ void start(int first) { line = first; }
  __device__ __forceinline__ int first(int k) const { return k < k_size && line < lines ? k * lines + line : NOWHERE; }
  __device__ __forceinline__ void four(int k, int (&at)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) at[i] = k < k_size && line + i < lines ? k * lines + line + i : NOWHERE;
  }
};

template <class E>
__device__ __forceinline__ float one_of(const E* data, int at) {
  return at == NOWHERE ? 0.0f : to_float(data[at]);
}

// The four neighbours of a source at k: one load if they lie together, otherwise all at once when they are found.
template <class Source>
__device__ __forceinline__ Four<float> fetch(const Source& source, int k) {
  if (source.wide) {
    const int at = source.first(k);
    return at == NOWHERE ? Four<float>{} : load<4>(source.data + at);
  }
  int at[4];
  source.four(k, at);
  Four<float> v;
#pragma unroll
  for (int i = 0; i < 4; ++i) v.v[i] = one_of(source.data, at[i]);
  return v;
}

// What becomes of the sums of C [m][n]: the tile applies it, or split_sum if there are splits.
template <class E>
struct Epilogue {
  E* y;               // [m][n]
  const float* bias;  // [n] or null, added to every row
  int accumulate;     // add to y instead of overwriting it
  __device__ __forceinline__ float bias_at(int column, int n) const { return bias && column < n ? bias[column] : 0.0f; }
  // Stores one sum, which has its bias already.
  __device__ __forceinline__ void store(size_t at, float v) const {
    y[at] = from_float<E>(accumulate ? to_float(y[at]) + v : v);
  }
  // Four neighbours of a row, as many of them as there are columns.
  __device__ __forceinline__ void store(int row, int column, int n, const Four<float>& v) const {
    const size_t at = (size_t)row * n + column;
    if (rows_of_4(y, n)) {
      const Four<float> old = accumulate ? load<4>(y + at) : Four<float>{};
      Four<float> out;
#pragma unroll
      for (int i = 0; i < 4; ++i) out.v[i] = accumulate ? old.v[i] + v.v[i] : v.v[i];
      return ::store(y + at, out);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (column + i < n) store(at + i, v.v[i]);
  }
};

// The sizes of a product and how K is cut.
struct Cut {
  int m, n, k, split_steps;
  float* partial;  // [splits][m][n], or null if there is no split
};

// Puts four neighbours into the shared tile [Tile::K][ROW].
template <class Tile, class Source>
__device__ __forceinline__ void stage(float (*tile)[ROW<Tile>], int line, int k, const Four<float>& v) {
  if constexpr (Source::along_k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) tile[k + i][line] = v.v[i];
  } else {
    store(&tile[k][line], v);
  }
}

// The line within the tile that this thread loads, and its first k within a pass of 8.
template <class Tile, class Source>
__device__ __forceinline__ int line_of(int t) {
  return Source::along_k ? t / 2 : t % (Tile::M / 4) * 4;
}
template <class Tile, class Source>
__device__ __forceinline__ int k_of(int t) {
  return Source::along_k ? t % 2 * 4 : t / (Tile::M / 4);
}

// One block's tile of C. Grid: x = ceil(m/M)·ceil(n/N) tiles, those of one row of tiles next to each other
// (they share A in the L2 cache); z = splits.
template <class Tile, class A, class B, class E>
__device__ __forceinline__ void product(A a, B b, const Cut& cut, const Epilogue<E>& epilogue) {
  constexpr int BK = Tile::K, TM = Tile::TM, TN = Tile::TN;
  // Two threads per line: one pass of all threads brings 8 k of every line.
  constexpr int PASSES = BK / 8, WARPS_N = Tile::N / (8 * TN);
  static_assert(Tile::M == Tile::N && Tile::THREADS == 2 * Tile::M && BK % 8 == 0, "a pass brings 8 k");
  SHARED(float, as, [2][BK][ROW<Tile>]);
  SHARED(float, bs, [2][BK][ROW<Tile>]);
  const int t = threadIdx.x;
  const int tiles_n = (cut.n + Tile::N - 1) / Tile::N;
  const int m0 = (int)blockIdx.x / tiles_n * Tile::M, n0 = (int)blockIdx.x % tiles_n * Tile::N;
  const int first = blockIdx.z * cut.split_steps;
  const int steps = min((cut.k + BK - 1) / BK - first, cut.split_steps);

  // This thread's part of the loads.
  const int a_line = line_of<Tile, A>(t), a_k = k_of<Tile, A>(t);
  const int b_line = line_of<Tile, B>(t), b_k = k_of<Tile, B>(t);
  a.start(m0 + a_line);
  b.start(n0 + b_line);

  // This thread's part of the products.
  const int warp = t / 32, lane = t % 32;
  const int row = warp / WARPS_N * (4 * TM) + lane / 8 * 4;
  const int column = warp % WARPS_N * (8 * TN) + lane % 8 * 4;
  const bool busy = m0 + row < cut.m && n0 + column < cut.n;  // some of its outputs exist
  float acc[TM][TN] = {};

  Four<float> next_a[PASSES], next_b[PASSES];
  int k = first * BK;
  for (int step = -1; step < steps; ++step) {
    // Step -1 only fetches the first tiles.
    const bool more = step + 1 < steps;
    if (more) {
#pragma unroll
      for (int p = 0; p < PASSES; ++p) {
        next_a[p] = fetch(a, k + 8 * p + a_k);
        next_b[p] = fetch(b, k + 8 * p + b_k);
      }
      k += BK;
    }
    if (step >= 0 && busy) {
      const float(*at)[ROW<Tile>] = as[step & 1];
      const float(*bt)[ROW<Tile>] = bs[step & 1];
#pragma unroll
      for (int kk = 0; kk < BK; ++kk) {
        Four<float> av[TM / 4], bv[TN / 4];
#pragma unroll
        for (int i = 0; i < TM / 4; ++i) av[i] = load<4>(&at[kk][row + i * 16]);
#pragma unroll
        for (int j = 0; j < TN / 4; ++j) bv[j] = load<4>(&bt[kk][column + j * 32]);
#pragma unroll
        for (int i = 0; i < TM; ++i)
#pragma unroll
          for (int j = 0; j < TN; ++j) acc[i][j] = fmaf(av[i / 4].v[i % 4], bv[j / 4].v[j % 4], acc[i][j]);
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
  // A partial result is stored as it is: the epilogue comes when all are added up.
  float* partial = cut.partial ? cut.partial + (size_t)blockIdx.z * cut.m * cut.n : nullptr;
  const Epilogue<float> none = {partial, nullptr, 0};
#pragma unroll
  for (int j = 0; j < TN; j += 4) {
    const int c = n0 + column + j * 8;
    if (c >= cut.n) continue;
    Four<float> bias = {};
#pragma unroll
    for (int q = 0; q < 4; ++q) bias.v[q] = partial ? 0.0f : epilogue.bias_at(c + q, cut.n);
#pragma unroll
    for (int i = 0; i < TM; ++i) {
      const int r = m0 + row + i / 4 * 16 + i % 4;
      if (r >= cut.m) continue;
      Four<float> v;
#pragma unroll
      for (int q = 0; q < 4; ++q) v.v[q] = acc[i][j + q] + bias.v[q];
      if (partial) none.store(r, c, cut.n, v);
      else epilogue.store(r, c, cut.n, v);
    }
  }
}
