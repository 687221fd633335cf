// The product of product.cuh on Hopper's tensor cores with operands that TMA brings: for elements of two bytes, on sm_90a alone.
//
//   global memory --(TMA, boxes)--> shared memory --> wgmma
//
// As in wgmma_product.cuh a block computes M x N of C in steps of 64 along K, operands lie in rows of 128 bytes, and two
// warpgroups multiply, each half of the rows. But they copy nothing: the block's first thread asks for the boxes of a step, and
// the tensor memory accelerator finds the addresses, fills in the zeros and swizzles. Blocks walk over tiles, and the first
// steps of a tile are on their way while the one before it is stored.
//
// A slot of the ring has two mbarriers, which lie behind the slots. `full`: the bytes of both operands have come. `empty`: both
// warpgroups have read them; each says so of a step when its products of the next are under way. The thread that loads waits
// for both when it has started the products of one step more, so that neither warpgroup runs dry. (A warp of its own for the
// loads leaves each thread 168 registers, or 96 with two blocks on a multiprocessor: the sums and their store did not fit.)
//
// A source here names boxes, not elements:
//     static constexpr bool along_k                   which way its rows of 128 bytes lie, as for wgmma
//     void start(int line)                            the tile's first line
//     void load(unsigned to, unsigned bar, int k)     asks for the tile's lines of a step, from k on: whole boxes, whatever
//                                                     of them is outside of the tensor
#pragma once
#include "pool.cuh"
#include "wgmma_product.cuh"

// The slots that the steps take in turns.
template <class Tile>
struct Ring {
  static constexpr int STAGES = Tile::STAGES, BYTES = STAGES * SLOT<Tile> + 16 * STAGES;
  unsigned tiles;
  int slot, phase;
  __device__ __forceinline__ explicit Ring(unsigned tiles) : tiles(tiles), slot(0), phase(0) {}
  __device__ __forceinline__ unsigned at() const { return tiles + slot * SLOT<Tile>; }
  __device__ __forceinline__ unsigned full(int i) const { return tiles + STAGES * SLOT<Tile> + 16 * i; }
  __device__ __forceinline__ unsigned empty(int i) const { return full(i) + 8; }
  __device__ __forceinline__ int before() const { return slot == 0 ? STAGES - 1 : slot - 1; }
  __device__ __forceinline__ void next() {
    if (++slot == STAGES) slot = 0, phase ^= 1;
  }
};

// The loads of a block, step by step and tile by tile.
template <class Tile, class A, class B>
struct Loads {
  A& a;
  B& b;
  const Cut& cut;
  Ring<Tile> ring;
  int tiles, tile, k, end;  // the next step's place along K, and where the block's share ends
  __device__ __forceinline__ Loads(A& a, B& b, const Cut& cut, const Ring<Tile>& ring, int tiles)
      : a(a), b(b), cut(cut), ring(ring), tiles(tiles), tile(blockIdx.x) {
    begin();
  }
  __device__ __forceinline__ void begin() {
    const Share<Tile> share(cut, tile);
    k = share.first * Tile::K, end = k + share.steps * Tile::K;
    a.start(share.m);
    b.start(share.n);
  }
  // Asks for one step, if there is one more, when its slot is free.
  __device__ __forceinline__ void next() {
    if (tile >= tiles) return;
    const unsigned full = ring.full(ring.slot);
    // The phase before a barrier's first counts as past: all slots are free to begin with.
    mbarrier_wait(ring.empty(ring.slot), ring.phase ^ 1);
    mbarrier_arrive_expect(full, SLOT<Tile>);
    a.load(ring.at(), full, k);
    b.load(ring.at() + Tile::M * 128, full, k);
    ring.next();
    if ((k += Tile::K) < end) return;
    tile += gridDim.x;
    if (tile < tiles) begin();
  }
};

// Stores what wins of a warpgroup's sums, whose rows are those of windows of 2x2: 64 pixels of the windows' upper rows, in the
// image's order, and the 64 below them. A thread has a pixel and the one below it; the neighbour of both is in lane ^ 4. Of two
// such pixels, 8 rows of the tile apart, each of these lanes takes one with its neighbour.
template <class Tile, class E, int MT, class Then>
__device__ __forceinline__ void store_windows(const float (&acc)[MT][Tile::N / 2], const Share<Tile>& share, int group,
                                              const Cut& cut, const Then& epilogue) {
  static_assert(MT == 2, "a warpgroup has both rows of its windows");
  const int lane = threadIdx.x % 32;
  const bool right = lane & 4;
  const int window = share.m / 4 + group * 32 + threadIdx.x % 128 / 32 * 8 + lane / 8 + (right ? 4 : 0);
#pragma unroll
  for (int j = 0; j < Tile::N / 8; j += 4) {
    const Biases bias(epilogue, share.n + 8 * j, cut.n, lane);
    // Of the upper row of windows and of the lower, left and right: 8 columns.
    Words words[2][2];
#pragma unroll
    for (int down = 0; down < 2; ++down) {
      Words mine[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float* sums = acc[down] + 4 * j + 2 * i;
        mine[i] =
            exchange_rounded(lane, [&](int p, int q) { return epilogue.rounded(sums[4 * p + q] + bias.of[p][q]); });
      }
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const unsigned kept = right ? mine[1].v[p] : mine[0].v[p];
        const unsigned got = __shfl_xor_sync(0xffffffffu, right ? mine[0].v[p] : mine[1].v[p], 4);
        words[down][0].v[p] = right ? got : kept;
        words[down][1].v[p] = right ? kept : got;
      }
    }
    const auto value = [&](int place) {
      Pack<float, 8> v;
#pragma unroll
      for (int q = 0; q < 8; ++q) v.v[q] = to_float(element<E>(words[place / 2][place % 2], q));
      return v;
    };
    Largest<8> found(value(0), 0);
#pragma unroll
    for (int place = 1; place < 4; ++place) found.see(value(place), place);
    const int c = share.n + 8 * (j + lane % 4);
    if (4 * window < cut.m && c < cut.n) epilogue.store(window, c, cut.n, found);
  }
}

// One block's tiles of C. Grid: x = blocks that take every x-th of the ceil(m/M)·ceil(n/N) tiles, which are in the order of
// `product`, or with splits in clusters as many as there are; z = splits.
template <class Tile, class A, class B, class Then>
__device__ __forceinline__ void product_tma(A& a, B& b, const Cut& cut, const Then& epilogue) {
  constexpr int M = Tile::M, N = Tile::N, STAGES = Tile::STAGES, MT = M / 128;
  static_assert(Tile::THREADS == 256 && Tile::K == 64 && M % 128 == 0 && N % 64 == 0, "two warpgroups fill the tile");
  static_assert(Tile::SHARED == Ring<Tile>::BYTES, "as the host must know it");
  static_assert(STAGES >= 3,
                "a step is asked for one step after its slot was given back, and before the next is multiplied");
  DYN_TILES(unsigned char, slots);
  Ring<Tile> ring(smem_address(slots));
  const int group = threadIdx.x / 128, tiles = (cut.m + M - 1) / M * ((cut.n + N - 1) / N);
  const bool loads = threadIdx.x == 0, speaks = threadIdx.x % 128 == 0;
  if (loads) {
#pragma unroll
    for (int i = 0; i < STAGES; ++i) {
      mbarrier_init(ring.full(i), 1);
      mbarrier_init(ring.empty(i), 2);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  Loads<Tile, A, B> loader(a, b, cut, ring, tiles);
  if (loads) {
#pragma unroll 1
    for (int i = 0; i < STAGES; ++i) loader.next();
  }
  float acc[MT][N / 2];
#pragma unroll 1
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const Share<Tile> share(cut, tile);
#pragma unroll
    for (int i = 0; i < MT; ++i) wgmma_keep(acc[i]);
#pragma unroll 1
    for (int step = 0; step < share.steps; ++step) {
      mbarrier_wait(ring.full(ring.slot), ring.phase);
      multiply_step<Tile, A, B>(acc, ring.at(), group, step == 0);
      // The slot of the step before the last one: the thread has the time while two steps are under way.
      if (loads && step > 1) loader.next();
      wgmma_wait<1>();
      if (speaks && step > 0) mbarrier_arrive(ring.empty(ring.before()));
      ring.next();
    }
    if (loads && share.steps > 1) loader.next();
    wgmma_wait<0>();
    if (speaks) mbarrier_arrive(ring.empty(ring.before()));
    if (loads) loader.next();
#pragma unroll
    for (int i = 0; i < MT; ++i) wgmma_keep(acc[i]);
    if constexpr (pools<Then>) store_windows<Tile, typename A::Element>(acc, share, group, cut, epilogue);
    else store_sums(acc, share, group, cut, epilogue, slots);
  }
}
