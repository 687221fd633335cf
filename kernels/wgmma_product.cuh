// The product of product.cuh on Hopper's tensor cores, by wgmma: for operands of two bytes, on sm_90a alone.
//
//   global memory --(cp.async, 16 bytes)--> shared memory --> wgmma
//
// A block computes M x N of C in steps of 64 along K. STAGES slots of shared memory hold a step of A and of B each. Two
// warpgroups multiply, each half of the rows: MT times 64; while their products are under way, the same threads copy the steps
// to come. One wait and one barrier a step, as in mma.cuh. Meanwhile another block of the multiprocessor multiplies. (A third
// warpgroup that does nothing but copy took longer on an H100: 128 threads are too few for the places of the elements.)
//
// An operand lies in shared memory as in global memory, in rows of 128 bytes: [lines][64 of K] if it comes along K; if not,
// [64 of K][64 lines], block after block. wgmma reads either, so nothing is ever turned. Chunk c of row r lies at c ^ r % 8, as
// the swizzle of wgmma's descriptors has it. A thread has one chunk of every 32nd row: along K all its chunks of a step
// have the same k, so that what k says of the place is found once.
//
// What cp.async and ordinary stores wrote is seen by wgmma behind a fence of those who copied, before the barrier. A source whose chunks do not lie together is read element by element,
// which is slow; the host prefers other tiles then.
//
// The bits are the same in every run. They need not be those of mma.sync, which rounds the sums of a step otherwise.
#pragma once
#include "cluster_sum.cuh"
#include "rows.cuh"

// The part that one of THREADS threads has in the copies of an operand's LINES lines: one chunk of every STRIDE-th of its rows
// of 128 bytes.
template <class Source, int LINES, int THREADS>
struct Gather {
  using E = typename Source::Element;
  static constexpr bool ALONG = Source::along_k;
  // Chunks of a thread: COUNT sources with lines of their own, each at FINDS places along K.
  static constexpr int STRIDE = THREADS / 8, FINDS = ALONG ? 1 : 64 / STRIDE, COUNT = LINES / STRIDE / FINDS;
  const Source& whole;
  Source sources[COUNT];
  int line, row, chunk;

  template <int... I>
  struct Numbers {};
  template <int N, int... I>
  struct Upto : Upto<N - 1, N - 1, I...> {};
  template <int... I>
  struct Upto<0, I...> {
    using Type = Numbers<I...>;
  };
  template <int... I>
  __device__ __forceinline__ Gather(const Source& s, int line, int t, Numbers<I...>)
      : whole(s), sources{(static_cast<void>(I), s)...}, line(line), row(t / 8), chunk(t % 8) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) sources[i].start(line_of(i));
  }
  // Lines from `line` on, by thread t.
  __device__ __forceinline__ Gather(const Source& s, int line, int t)
      : Gather(s, line, t, typename Upto<COUNT>::Type{}) {}
  __device__ __forceinline__ int line_of(int i) const { return line + (ALONG ? row + STRIDE * i : 64 * i + 8 * chunk); }
  __device__ __forceinline__ int k_of(int f) const { return ALONG ? 8 * chunk : row + STRIDE * f; }
  __device__ __forceinline__ Chunk<E>* place(Chunk<E>* tile) const { return tile + 8 * row + (chunk ^ row % 8); }

  // Copies the step that begins at k: starts to, or if chunks do not lie together, with ordinary stores.
  __device__ __forceinline__ void copy(Chunk<E>* tile, int k) const {
    Chunk<E>* to = place(tile);
    if (!whole.wide) return copy_each(to, k);
#pragma unroll
    for (int f = 0; f < FINDS; ++f) {
      const auto found = whole.find(k + k_of(f));
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        const int at = sources[i].at(found);
        copy_async(to + THREADS * (FINDS * i + f), whole.data + max(at, 0), at != NOWHERE);
      }
    }
  }
  // Element by element; a loop, as it is long.
  __device__ __forceinline__ void copy_each(Chunk<E>* to, int k) const {
#pragma unroll 1
    for (int p = 0; p < COUNT * FINDS; ++p) {
      Source source = whole;
      source.start(line_of(p / FINDS));
      int at[8];
      source.each(k + k_of(p % FINDS), at);
      Chunk<E> v;
#pragma unroll
      for (int i = 0; i < 8; ++i) v.v[i] = at[i] == NOWHERE ? E{} : whole.data[at[i]];
      to[THREADS * p] = v;
    }
  }
};

// One block's share of a product: which tile of C, and which steps along K.
template <class Tile>
struct Share {
  int m, n, first, steps;
  __device__ __forceinline__ Share(const Cut& cut, int tile) {
    const int tiles_n = (cut.n + Tile::N - 1) / Tile::N;
    m = tile / tiles_n * Tile::M, n = tile % tiles_n * Tile::N;
    first = cut.first_step<Tile::K>(), steps = cut.steps<Tile::K>();
  }
};

// Rows of 128 bytes of a slot: A's, then B's. A block of an operand, 64 lines, is 64 rows.
template <class Tile>
constexpr int SLOT = (Tile::M + Tile::N) * 128;
constexpr int BLOCK = 64 * 128;

// Starts the products of a warpgroup for one step; `fresh`: the first.
template <class Tile, class A, class B, int MT>
__device__ __forceinline__ void multiply_step(float (&acc)[MT][Tile::N / 2], unsigned slot, int group, bool fresh) {
  const unsigned at = slot + group * MT * BLOCK, bt = slot + Tile::M * 128;
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const unsigned along_a = k * (A::along_k ? 32 : 16 * 128), along_b = k * (B::along_k ? 32 : 16 * 128);
#pragma unroll
    for (int i = 0; i < MT; ++i)
      wgmma<typename A::Element, Tile::N, !A::along_k, !B::along_k>(
          acc[i], descriptor<128>(at + i * BLOCK + along_a, 1024, BLOCK), descriptor<128>(bt + along_b, 1024, BLOCK),
          !fresh || k > 0);
  }
  wgmma_commit();
}

// Stores a warpgroup's sums in two bytes, whatever is there.
template <class Tile, int MT, class E>
__device__ __forceinline__ void store_rounded(const float (&acc)[MT][Tile::N / 2], const Share<Tile>& share, int group,
                                              const Cut& cut, const Epilogue<E>& epilogue) {
  const int lane = threadIdx.x % 32;
  const int row = share.m + group * MT * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;
  const float least = epilogue.least();
#pragma unroll
  for (int j = 0; j < Tile::N / 8; j += 4) {
    const int c = share.n + 8 * (j + lane % 4);
    const Biases bias(epilogue, share.n + 8 * j, cut.n, lane);
#pragma unroll
    for (int i = 0; i < 2 * MT; ++i) {
      const float* sums = acc[i / 2] + 4 * j + i % 2 * 2;
      const Words words = exchange_rounded(
          lane, [&](int p, int q) { return epilogue.rounded(sums[4 * p + q] + bias.of[p][q], least); });
      const int r = row + i / 2 * 64 + i % 2 * 8;
      if (r < cut.m && c < cut.n) *reinterpret_cast<Words*>(epilogue.y + (size_t)r * cut.n + c) = words;
    }
  }
}

// Stores a warpgroup's sums; with a split in a cluster by way of `shared` memory, which nothing else is in by then.
template <class Tile, int MT, class Then>
__device__ __forceinline__ void store_sums(float (&acc)[MT][Tile::N / 2], const Share<Tile>& share, int group,
                                           const Cut& cut, const Then& epilogue, void* shared) {
  float* partial = cut.partial_of(blockIdx.z);
  if constexpr (takes_clusters<Tile>) {
    if (in_cluster(cut)) {
      static_assert(Tile::M * SUMS_ROW<Tile> * sizeof(float) <= Tile::SHARED, "the sums fit where the operands were");
      float* sums = static_cast<float*>(shared);
      const int row = group * MT * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
      __syncthreads();  // both warpgroups have done with the last step
#pragma unroll
      for (int j = 0; j < Tile::N / 8; ++j)
#pragma unroll
        for (int i = 0; i < 2 * MT; ++i) {
          const int at = (row + i / 2 * 64 + i % 2 * 8) * SUMS_ROW<Tile> + 8 * j + threadIdx.x % 4 * 2;
          const Pack<float, 2> v = {{acc[i / 2][4 * j + i % 2 * 2], acc[i / 2][4 * j + i % 2 * 2 + 1]}};
          store(sums + at, v);
        }
      return add_up_in_cluster(sums, share.m, share.n, cut, epilogue, WithSums<Tile, Then>{});
    }
  }
  if constexpr (stores_words<Then>) {
    if (!partial && epilogue.template overwrites<8>(cut.n))
      return store_rounded<Tile>(acc, share, group, cut, epilogue);
  }
  const auto none = epilogue.of_partial(partial);
  const int lane = threadIdx.x % 32;
  const int row = share.m + group * MT * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < Tile::N / 8; j += 4) {
    const int c = share.n + 8 * (j + lane % 4);
    float bias[8];
#pragma unroll
    for (int q = 0; q < 8; ++q) bias[q] = partial ? 0.0f : epilogue.bias_at(c + q, cut.n);
#pragma unroll
    for (int i = 0; i < 2 * MT; ++i) {
      Pack<float, 8> v = exchange_sums(lane, [&](int p, int q) { return acc[i / 2][4 * (j + p) + i % 2 * 2 + q]; });
      const int r = row + i / 2 * 64 + i % 2 * 8;
      if (r >= cut.m || c >= cut.n) continue;
#pragma unroll
      for (int q = 0; q < 8; ++q) v.v[q] += bias[q];
      if (partial) none.store(r, c, cut.n, v);
      else epilogue.store(r, c, cut.n, v);
    }
  }
}

// One block's tile of C. Grid as in `product`.
template <class Tile, class A, class B, class Then>
__device__ __forceinline__ void product_wgmma(const A& a, const B& b, const Cut& cut, const Then& epilogue) {
  constexpr int M = Tile::M, N = Tile::N, STAGES = Tile::STAGES, MT = M / 128;
  static_assert(Tile::THREADS == 256 && Tile::K == 64 && M % 128 == 0 && N % 64 == 0, "two warpgroups fill the tile");
  static_assert(Tile::SHARED == STAGES * SLOT<Tile>, "as the host must know it");
  using E = typename A::Element;
  DYN_TILES(Chunk<E>, tiles);
  const unsigned slots = smem_address(tiles);
  const Share<Tile> share(cut, blockIdx.x);
  if (share.m >= cut.m) return;
  const int group = threadIdx.x / 128;
  const Gather<A, M, 256> of_a(a, share.m, threadIdx.x);
  const Gather<B, N, 256> of_b(b, share.n, threadIdx.x);
  float acc[MT][N / 2];
#pragma unroll
  for (int i = 0; i < MT; ++i) wgmma_keep(acc[i]);
  int slot = 0, next = 0;  // of this step, of the one to copy
  // Before step 0 the copies of the first steps are only started.
#pragma unroll 1
  for (int step = 1 - STAGES; step < share.steps; ++step) {
    if (step >= 0) {
      copy_wait<STAGES - 2>();
      fence_async();
      wgmma_wait<0>();
      __syncthreads();
      multiply_step<Tile, A, B>(acc, slots + slot * SLOT<Tile>, group, step == 0);
      if (++slot == STAGES) slot = 0;
    }
    const int ahead = step + STAGES - 1;
    if (ahead < share.steps) {
      Chunk<E>* to = tiles + next * (SLOT<Tile> / 16);
      of_a.copy(to, (share.first + ahead) * Tile::K);
      of_b.copy(to + 8 * M, (share.first + ahead) * Tile::K);
      if (++next == STAGES) next = 0;
    }
    copy_commit();  // an empty group too, so that a wait counts steps
  }
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < MT; ++i) wgmma_keep(acc[i]);
  if (share.steps <= 0) {  // nothing has been written to them
#pragma unroll
    for (int i = 0; i < MT; ++i)
#pragma unroll
      for (int j = 0; j < N / 2; ++j) acc[i][j] = 0.0f;
  }
  store_sums(acc, share, group, cut, epilogue, tiles);
}
