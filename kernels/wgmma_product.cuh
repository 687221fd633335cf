// The product of product.cuh on Hopper's tensor cores, by wgmma: for operands of two bytes, on sm_90a alone.
//
//   global memory --(cp.async, 16 bytes)--> shared memory --> wgmma
//
// A block computes M x N of C in steps of 64 along K. Its last 128 threads copy: they fill a ring of STAGES slots, each with a
// step of A and of B. The 256 others, two warpgroups, multiply: each has half of the rows, 64 times MT of them. A slot has two
// mbarriers. `full`: the copies of all 128 threads have come. `empty`: all eight warps have done with it; they say so a step
// later, when the products of that slot have ended and those of the next are under way.
//
// An operand lies in shared memory as in global memory, in rows of 128 bytes: [lines][64 of K] if it comes along K; if not,
// [64 of K][64 lines], block after block. wgmma reads either, so nothing is ever turned. Chunk c of row r lies at c ^ r % 8, as
// the swizzle of wgmma's descriptors has it. A copying thread has one chunk of every 16th row: along K all its chunks of a step
// have the same k, so that what k says of the place is found once.
//
// What cp.async wrote is ordinary memory to wgmma: the fence is with those who multiply, behind the wait. A source whose chunks
// do not lie together is read element by element, into the same places; it is slow, and the host prefers other tiles then.
//
// The accumulators of four lanes are 2 of 8 columns each of a row; they exchange them, so that a lane has 8 side by side.
#pragma once
#include "hopper.cuh"
#include "operand.cuh"
#include "tensor_core.cuh"

// This thread's part of the copies of an operand's LINES lines: one chunk of every 16th of its rows of 128 bytes.
template <class Source, int LINES>
struct Gather {
  using E = typename Source::Element;
  static constexpr bool ALONG = Source::along_k;
  // Chunks of a thread: COUNT sources with lines of their own, each at FINDS places along K.
  static constexpr int FINDS = ALONG ? 1 : 4, COUNT = LINES / 16 / FINDS;
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
  // Lines from `line` on, by thread t of 128.
  __device__ __forceinline__ Gather(const Source& s, int line, int t)
      : Gather(s, line, t, typename Upto<COUNT>::Type{}) {}
  __device__ __forceinline__ int line_of(int i) const { return line + (ALONG ? row + 16 * i : 64 * i + 8 * chunk); }
  __device__ __forceinline__ int k_of(int f) const { return ALONG ? 8 * chunk : row + 16 * f; }
  __device__ __forceinline__ Chunk<E>* place(Chunk<E>* tile) const { return tile + 8 * row + (chunk ^ row % 8); }

  // Starts to copy the step that begins at k.
  __device__ __forceinline__ void copy(Chunk<E>* tile, int k) const {
    Chunk<E>* to = place(tile);
#pragma unroll
    for (int f = 0; f < FINDS; ++f) {
      const auto found = whole.find(k + k_of(f));
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        const int at = sources[i].at(found);
        copy_async(to + 128 * (FINDS * i + f), whole.data + max(at, 0), at != NOWHERE);
      }
    }
  }
  // The same element by element, with ordinary stores; a loop, as it is long.
  __device__ __forceinline__ void copy_each(Chunk<E>* tile, int k) const {
    Chunk<E>* to = place(tile);
#pragma unroll 1
    for (int p = 0; p < COUNT * FINDS; ++p) {
      Source source = whole;
      source.start(line_of(p / FINDS));
      int at[8];
      source.each(k + k_of(p % FINDS), at);
      Chunk<E> v;
#pragma unroll
      for (int i = 0; i < 8; ++i) v.v[i] = at[i] == NOWHERE ? E{} : whole.data[at[i]];
      to[128 * p] = v;
    }
  }
};

// Of `v`, lanes that differ in bit BIT of their number exchange: a pair for each of two groups of pairs BIT apart, so that
// with BIT = 1, then 2, pair p of lane l becomes pair l of lane p (of every four).
template <int BIT>
__device__ __forceinline__ void exchange(float (&v)[8], int lane) {
  const bool upper = lane & BIT;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i / 2 & BIT) continue;
    const int j = i + 2 * BIT;
    const float got = __shfl_xor_sync(0xffffffffu, upper ? v[i] : v[j], BIT);
    if (upper) v[i] = got;
    else v[j] = got;
  }
}

// One block's tile of C. Grid as in `product`.
template <class Tile, class A, class B, class Y>
__device__ __forceinline__ void product_wgmma(const A& a, const B& b, const Cut& cut, const Epilogue<Y>& epilogue) {
  constexpr int M = Tile::M, N = Tile::N, K = Tile::K, STAGES = Tile::STAGES, MT = M / 128;
  // In bytes: 64 lines of an operand, or 64 of K for each of 64 lines; a slot.
  constexpr int BLOCK = 64 * 128, SLOT = (M + N) * 128;
  static_assert(K == 64 && M % 128 == 0 && N % 64 == 0 && Tile::THREADS == 384, "two warpgroups fill the tile");
  static_assert(Tile::SHARED == STAGES * (SLOT + 16), "as the host must know it");
  using E = typename A::Element;
  DYN_TILES(Chunk<E>, tiles);
  const unsigned slots = smem_address(tiles), bars = slots + STAGES * SLOT;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; ++i) {
      mbarrier_init(bars + 16 * i, 128);
      mbarrier_init(bars + 16 * i + 8, 8);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  const int tiles_n = (cut.n + N - 1) / N;
  const int m0 = (int)blockIdx.x / tiles_n * M, n0 = (int)blockIdx.x % tiles_n * N;
  const int first = blockIdx.z * cut.split_steps;
  const int steps = min((cut.k + K - 1) / K - first, cut.split_steps);
  const int group = threadIdx.x / 128, t = threadIdx.x % 128;
  int slot = 0, phase = 0;

  if (group == 2) {
    const Gather<A, M> of_a(a, m0, t);
    const Gather<B, N> of_b(b, n0, t);
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      const unsigned full = bars + 16 * slot;
      Chunk<E>*to_a = tiles + slot * (SLOT / 16), *to_b = to_a + M * 8;
      const int k = (first + step) * K;
      mbarrier_wait(full + 8, phase ^ 1);
      if (a.wide) of_a.copy(to_a, k);
      else of_a.copy_each(to_a, k);
      if (b.wide) of_b.copy(to_b, k);
      else of_b.copy_each(to_b, k);
      if (a.wide && b.wide) {
        mbarrier_arrive_copies(full);
      } else {
        copy_commit();
        copy_wait<0>();
        fence_async();
        mbarrier_arrive(full);
      }
      if (++slot == STAGES) slot = 0, phase ^= 1;
    }
    return;
  }

  float acc[MT][N / 2];
#pragma unroll
  for (int i = 0; i < MT; ++i) wgmma_keep(acc[i]);
  const int lane = t % 32;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const unsigned full = bars + 16 * slot;
    const unsigned at = slots + slot * SLOT + group * MT * BLOCK, bt = slots + slot * SLOT + M * 128;
    mbarrier_wait(full, phase);
    fence_async();
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const unsigned along_a = k * (A::along_k ? 32 : 16 * 128), along_b = k * (B::along_k ? 32 : 16 * 128);
#pragma unroll
      for (int i = 0; i < MT; ++i)
        wgmma<E, N, !A::along_k, !B::along_k>(acc[i], descriptor<128>(at + i * BLOCK + along_a, 1024, BLOCK),
                                              descriptor<128>(bt + along_b, 1024, BLOCK), (step | k) != 0);
    }
    wgmma_commit();
    wgmma_wait<1>();
    const unsigned before = slot == 0 ? STAGES - 1 : slot - 1;
    if (step > 0 && lane == 0) mbarrier_arrive(bars + 16 * before + 8);
    if (++slot == STAGES) slot = 0, phase ^= 1;
  }
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < MT; ++i) wgmma_keep(acc[i]);

  float* partial = cut.partial ? cut.partial + (size_t)blockIdx.z * cut.m * cut.n : nullptr;
  const Epilogue<float> none = {partial, nullptr, 0, 0};
  const int row = m0 + group * MT * 64 + t / 32 * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < N / 8; j += 4) {
    const int c = n0 + 8 * (j + lane % 4);
    float bias[8];
#pragma unroll
    for (int q = 0; q < 8; ++q) bias[q] = partial ? 0.0f : epilogue.bias_at(c + q, cut.n);
#pragma unroll
    for (int i = 0; i < 2 * MT; ++i) {
      Pack<float, 8> v;
#pragma unroll
      for (int q = 0; q < 8; ++q) v.v[q] = acc[i / 2][4 * (j + q / 2) + i % 2 * 2 + q % 2];
      exchange<1>(v.v, lane);
      exchange<2>(v.v, lane);
      const int r = row + i / 2 * 64 + i % 2 * 8;
      if (r >= cut.m || c >= cut.n) continue;
#pragma unroll
      for (int q = 0; q < 8; ++q) v.v[q] += bias[q];
      if (partial) none.store(r, c, cut.n, v);
      else epilogue.store(r, c, cut.n, v);
    }
  }
}
