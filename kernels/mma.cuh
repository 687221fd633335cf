// The product of product.cuh on tensor cores, by mma.sync: for operands of two bytes.
//
//   global memory --(cp.async, 16 bytes)--> shared memory --(ldmatrix)--> registers --> mma.sync
//
// A block computes M x N of C in steps of K, each of its warps WM x WN. The tiles of a step of A and B lie in one of STAGES
// buffers in shared memory: while a step is multiplied, the copies of the next STAGES-1 are on their way. One wait and one
// barrier a step: behind it all threads have the step's tiles, and have done with those of the step before, whose buffers
// the next copies may have.
//
// An operand lies in shared memory as in global memory, [lines][K] if it comes along K and [K][lines] if not. ldmatrix reads
// either, the second transposed, so nothing is ever turned by hand. Rows consist of chunks of 8 elements; chunk c of row
// r lies at c ^ (r / (8/S) % S), where S is the number of chunks of a row, 8 at most: then 8 rows' chunks c lie in 8
// different groups of 4 banks, and neither the copies nor ldmatrix meet in a bank.
//
// The bits are the same in every run on one architecture. Others may round the sum of a product's terms in another way: that
// is not specified.
//
// A source whose chunks do not lie together is copied by pairs, or if these do not either (three channels, a view that is not
// aligned) read element by element.
#pragma once
#include "cluster_sum.cuh"
#include "pool.cuh"
#include "tensor_core.cuh"

template <class E, int LINES, int K, bool ALONG_K>
struct Staged {
  static constexpr int ROWS = ALONG_K ? LINES : K, CHUNKS = (ALONG_K ? K : LINES) / 8, SIZE = ROWS * CHUNKS;
  static constexpr int S = CHUNKS < 8 ? CHUNKS : 8;
  static_assert((CHUNKS & (CHUNKS - 1)) == 0, "the swizzle takes powers of two");
  static __device__ __forceinline__ int place(int row, int chunk) { return row * CHUNKS + (chunk ^ row / (8 / S) % S); }
  // Rows that `load_matrices` takes from a lane: 16 lines from `line` on, 16 of K from k on. B's registers are those of two
  // columns of 8, each with both halves of K; A's those of both halves of the lines, for each half of K.
  template <bool A>
  static __device__ __forceinline__ const Chunk<E>* row_of(const Chunk<E>* tile, int line, int k, int lane) {
    const int first = lane / 8 % 2, second = lane / 16;
    const int l = line + 8 * (A ? first : second), kk = k + 8 * (A ? second : first);
    return tile + (ALONG_K ? place(l + lane % 8, kk / 8) : place(kk + lane % 8, l / 8));
  }
};

// This thread's part of the copies of an operand: PER chunks of each step, each with a source of its own.
template <class Tile, class Source, class E, int LINES>
struct Copies {
  using Where = Staged<E, LINES, Tile::K, Source::along_k>;
  static constexpr int PER = Where::SIZE / Tile::THREADS;
  static_assert(PER * Tile::THREADS == Where::SIZE, "every thread copies as much");
  Source sources[PER];
  template <int>
  struct Count {};
  __device__ __forceinline__ Copies(const Source& source) : Copies(source, Count<PER>{}) {}
  __device__ __forceinline__ Copies(const Source& s, Count<1>) : sources{s} {}
  __device__ __forceinline__ Copies(const Source& s, Count<2>) : sources{s, s} {}
  __device__ __forceinline__ static int row(int p) { return (threadIdx.x + p * Tile::THREADS) / Where::CHUNKS; }
  __device__ __forceinline__ static int chunk(int p) { return (threadIdx.x + p * Tile::THREADS) % Where::CHUNKS; }
  __device__ __forceinline__ void start(int line) {
#pragma unroll
    for (int p = 0; p < PER; ++p) sources[p].start(line + (Source::along_k ? row(p) : 8 * chunk(p)));
  }
  // The step that begins at k.
  __device__ __forceinline__ void copy(Chunk<E>* tile, int k) const {
#pragma unroll
    for (int p = 0; p < PER; ++p) {
      const Source& source = sources[p];
      const int at_k = k + (Source::along_k ? 8 * chunk(p) : row(p));
      Chunk<E>* to = tile + Where::place(row(p), chunk(p));
      if (source.wide) {
        const int at = source.at(source.find(at_k));
        copy_async(to, source.data + (at == NOWHERE ? 0 : at), at != NOWHERE);
      } else if (source.pairs) {
        int at[8];
        source.each(at_k, at);
#pragma unroll
        for (int i = 0; i < 8; i += 2)
          copy_async(reinterpret_cast<Pack<E, 2>*>(to) + i / 2, source.data + (at[i] == NOWHERE ? 0 : at[i]),
                     at[i] != NOWHERE);
      } else {
        int at[8];
        source.each(at_k, at);
        Chunk<E> v;
#pragma unroll
        for (int i = 0; i < 8; ++i) v.v[i] = at[i] == NOWHERE ? E{} : source.data[at[i]];
        *to = v;
      }
    }
  }
};

// What is stored with a thread's sums, of MT * NT products, where they are few: loaded in the first step. The sums are of
// rows `row` and every eighth from there on, and of pairs of columns, every eighth from `column` on.
template <int MT, int NT, class Then, bool = MT * NT <= 2>
struct FewSums {
  __device__ __forceinline__ void load(int, int, const Cut&, const Then&) {}
  __device__ __forceinline__ float bias_at(int, int q, int c, const Cut& cut, const Then& epilogue) const {
    return epilogue.bias_at(c + q, cut.n);
  }
  __device__ __forceinline__ void store(int, int, int r, int c, const Pack<float, 2>& v, const Cut& cut,
                                        const Then& epilogue) const {
    epilogue.store(r, c, cut.n, v);
  }
};
template <int MT, int NT, class Then>
struct FewSums<MT, NT, Then, true> {
  float bias[NT][2];
  Pack<unsigned, 2> masks[NT][2 * MT];
  __device__ __forceinline__ void load(int row, int column, const Cut& cut, const Then& epilogue) {
    if (cut.partial || in_cluster(cut)) return;
#pragma unroll
    for (int j = 0; j < NT; ++j)
#pragma unroll
      for (int q = 0; q < 2; ++q) bias[j][q] = epilogue.bias_at(column + 8 * j + q, cut.n);
    if constexpr (may_mask<Then>) {
      if (!has_masks<2>(epilogue, cut.n)) return;
#pragma unroll
      for (int i = 0; i < 2 * MT; ++i) {
        if (row + 8 * i >= cut.m) continue;
#pragma unroll
        for (int j = 0; j < NT; ++j)
          if (column + 8 * j < cut.n) masks[j][i] = masks_at<2>(epilogue, row + 8 * i, column + 8 * j, cut.n);
      }
    }
  }
  __device__ __forceinline__ float bias_at(int j, int q, int, const Cut&, const Then&) const { return bias[j][q]; }
  __device__ __forceinline__ void store(int j, int i, int r, int c, const Pack<float, 2>& v, const Cut& cut,
                                        const Then& epilogue) const {
    if constexpr (may_mask<Then>)
      if (has_masks<2>(epilogue, cut.n)) return epilogue.store(r, c, cut.n, v, masks[j][i]);
    epilogue.store(r, c, cut.n, v);
  }
};

// One block's tile of C. Grid as in `product`.
template <class Tile, class A, class B, class Then>
__device__ __forceinline__ void product_mma(const A& a, const B& b, const Cut& cut, const Then& epilogue) {
  constexpr int M = Tile::M, N = Tile::N, K = Tile::K, STAGES = Tile::STAGES;
  using E = typename A::Element;
  constexpr int MT = Tile::WM / 16, NT = Tile::WN / 8, WARPS_N = N / Tile::WN;
  static_assert(M / Tile::WM * WARPS_N * 32 == Tile::THREADS && Tile::WN % 16 == 0 && K % 16 == 0,
                "warps fill the tile");
  using CopyA = Copies<Tile, A, E, M>;
  using CopyB = Copies<Tile, B, E, N>;
  using WhereA = typename CopyA::Where;
  using WhereB = typename CopyB::Where;
  SHARED(Chunk<E>, as, [STAGES][WhereA::SIZE]);
  SHARED(Chunk<E>, bs, [STAGES][WhereB::SIZE]);
  const int tiles_n = (cut.n + N - 1) / N;
  const int m0 = (int)blockIdx.x / tiles_n * M, n0 = (int)blockIdx.x % tiles_n * N;
  if (m0 >= cut.m) return;
  const int first = cut.template first_step<K>(), steps = cut.template steps<K>();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int wm = warp / WARPS_N * Tile::WM, wn = warp % WARPS_N * Tile::WN;
  const bool busy = m0 + wm < cut.m && n0 + wn < cut.n;  // some of the warp's outputs exist

  float* partial = cut.partial_of(blockIdx.z);
  WithSums<Tile, Then> with;
  FewSums<MT, NT, Then> few;

  CopyA copy_a(a);
  CopyB copy_b(b);
  copy_a.start(m0);
  copy_b.start(n0);
  const auto bring = [&](int step) {
    if (step < steps) {
      copy_a.copy(as[step % STAGES], (first + step) * K);
      copy_b.copy(bs[step % STAGES], (first + step) * K);
    }
    copy_commit();  // an empty group too, so that a wait counts steps
  };
  float acc[MT][NT][4] = {};
  // Before step 0 the copies of the first steps are only started. There is a step 0 even if there are no sums: it
  // loads what is stored with them, while the copies are on their way.
#pragma unroll 1
  for (int step = 1 - STAGES; step < max(steps, 1); ++step) {
    if (step == 0) {
      with.load(m0, n0, cut, epilogue);
      few.load(m0 + wm + lane / 4, n0 + wn + lane % 4 * 2, cut, epilogue);
    }
    if (step >= 0) {
      copy_wait<STAGES - 2>();
      __syncthreads();
    }
    bring(step + STAGES - 1);
    if (step < 0 || step >= steps || !busy) continue;
    const Chunk<E>*at = as[step % STAGES], *bt = bs[step % STAGES];
#pragma unroll DEPTH
    for (int k = 0; k < K; k += 16) {
      unsigned av[MT][4], bv[NT / 2][4];
#pragma unroll
      for (int i = 0; i < MT; ++i)
        load_matrices<!A::along_k>(av[i], WhereA::template row_of<true>(at, wm + 16 * i, k, lane));
#pragma unroll
      for (int j = 0; j < NT / 2; ++j)
        load_matrices<!B::along_k>(bv[j], WhereB::template row_of<false>(bt, wn + 16 * j, k, lane));
#pragma unroll
      for (int i = 0; i < MT; ++i)
#pragma unroll
        for (int j = 0; j < NT; ++j)
          multiply(Operand<E>{}, acc[i][j], av[i], bv[j / 2][j % 2 * 2], bv[j / 2][j % 2 * 2 + 1]);
    }
  }

  if constexpr (pools<Then>) {
#pragma unroll
    for (int j = 0; j < NT; ++j) {
      const int c = n0 + wn + 8 * j + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < 2 * MT; ++i) {
        // Lanes that differ in bits 2 and 3 of their number have the four rows of a window. The first of them sees them in
        // their order.
        const int r = m0 + wm + 8 * i + lane / 4;
        Pack<float, 2> v;
#pragma unroll
        for (int q = 0; q < 2; ++q) v.v[q] = acc[i / 2][j][i % 2 * 2 + q] + few.bias_at(j, q, c, cut, epilogue);
        Largest<2> found(epilogue.stored(v), r % 4);
#pragma unroll
        for (int bit = 4; bit <= 8; bit *= 2) {
#pragma unroll
          for (int q = 0; q < 2; ++q) {
            const float value = __shfl_xor_sync(0xffffffffu, found.value.v[q], bit);
            const int place = __shfl_xor_sync(0xffffffffu, found.place[q], bit);
            found.see(q, value, place);
          }
        }
        if (r % 4 == 0 && r < cut.m && c < cut.n) epilogue.store(r / 4, c, cut.n, found);
      }
    }
  } else {
    if constexpr (takes_clusters<Tile>) {
      if (in_cluster(cut)) {
        static_assert(M * SUMS_ROW<Tile> * sizeof(float) <= sizeof as, "the sums fit where A was");
        float* sums = reinterpret_cast<float*>(as);
        __syncthreads();  // all warps have done with the last step
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
          for (int i = 0; i < 2 * MT; ++i) {
            const Pack<float, 2> v = {{acc[i / 2][j][i % 2 * 2], acc[i / 2][j][i % 2 * 2 + 1]}};
            store(sums + (wm + 8 * i + lane / 4) * SUMS_ROW<Tile> + wn + 8 * j + lane % 4 * 2, v);
          }
        return add_up_in_cluster(sums, m0, n0, cut, epilogue, with);
      }
    }
    const auto none = epilogue.of_partial(partial);
#pragma unroll
    for (int j = 0; j < NT; ++j) {
      const int c = n0 + wn + 8 * j + lane % 4 * 2;
      if (c >= cut.n) continue;
      float bias[2];
#pragma unroll
      for (int q = 0; q < 2; ++q) bias[q] = partial ? 0.0f : few.bias_at(j, q, c, cut, epilogue);
#pragma unroll
      for (int i = 0; i < 2 * MT; ++i) {
        const int r = m0 + wm + 8 * i + lane / 4;
        if (r >= cut.m) continue;
        const Pack<float, 2> v = {{acc[i / 2][j][i % 2 * 2] + bias[0], acc[i / 2][j][i % 2 * 2 + 1] + bias[1]}};
        if (partial) none.store(r, c, cut.n, v);
        else few.store(j, i, r, c, v, cut, epilogue);
      }
    }
  }
}
