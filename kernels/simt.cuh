// The product of product.cuh by multiply-adds of single threads: for floats, exact to the last bits.
//
// Every thread computes TM x TN of a block's tile in its registers. A step of A and one of B go through shared memory:
//
//   global memory --(16 bytes per thread)--> registers --> shared memory --(16 bytes)--> registers --> FFMA
//
// Shared memory is double-buffered: while the products of one step run, the loads of the next are already
// on their way to registers, and they are put into the other buffer afterwards: one barrier per step.
#pragma once
#include "operand.cuh"
#include "pool.cuh"

// Floats of a row of a tile in shared memory. Padding by 4 keeps rows 16-byte aligned and puts k and k + 4 into
// different halves of the banks, so that storing a line that came along K has no conflicts.
template <class Tile>
constexpr int ROW = Tile::M + 4;

// The four neighbours of a source at k: one load if they lie together, otherwise all at once when they are found.
template <class Source>
__device__ __forceinline__ Four<float> fetch(const Source& source, int k) {
  if (source.wide) {
    const int at = source.at(source.find(k));
    return at == NOWHERE ? Four<float>{} : load<4>(source.data + at);
  }
  int at[4];
  source.each(k, at);
  Four<float> v;
#pragma unroll
  for (int i = 0; i < 4; ++i) v.v[i] = one_of(source.data, at[i]);
  return v;
}

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

// One block's tile of C. Grid as in `product`.
template <class Tile, class A, class B, class Then>
__device__ __forceinline__ void product_simt(A a, B b, const Cut& cut, const Then& epilogue) {
  constexpr int BK = Tile::K, TM = Tile::TM, TN = Tile::TN;
  // Two threads per line: one pass of all threads brings 8 k of every line.
  constexpr int PASSES = BK / 8, WARPS_N = Tile::N / (8 * TN);
  static_assert(Tile::M == Tile::N && Tile::THREADS == 2 * Tile::M && BK % 8 == 0, "a pass brings 8 k");
  SHARED(float, as, [2][BK][ROW<Tile>]);
  SHARED(float, bs, [2][BK][ROW<Tile>]);
  const int t = threadIdx.x;
  const int tiles_n = (cut.n + Tile::N - 1) / Tile::N;
  const int m0 = (int)blockIdx.x / tiles_n * Tile::M, n0 = (int)blockIdx.x % tiles_n * Tile::N;
  if (m0 >= cut.m) return;
  const int first = cut.template first_step<BK>(), steps = cut.template steps<BK>();

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
  if constexpr (pools<Then>) {
#pragma unroll
    for (int j = 0; j < TN; j += 4) {
      const int c = n0 + column + j * 8;
      if (c >= cut.n) continue;
#pragma unroll
      for (int i = 0; i < TM; i += 4) {
        // Four rows that are neighbours are of one thread, and there together.
        const int r = m0 + row + i * 4;
        if (r >= cut.m) continue;
        const auto at = [&](int place) {
          Four<float> v;
#pragma unroll
          for (int q = 0; q < 4; ++q) v.v[q] = acc[i + place][j + q] + epilogue.bias_at(c + q, cut.n);
          return epilogue.stored(v);
        };
        Largest<4> found(at(0), 0);
#pragma unroll
        for (int place = 1; place < 4; ++place) found.see(at(place), place);
        epilogue.store(r / 4, c, cut.n, found);
      }
    }
  } else {
    // A partial result is stored as it is: the epilogue comes when all are added up.
    float* partial = cut.partial_of(blockIdx.z);
    const auto none = epilogue.of_partial(partial);
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
}
