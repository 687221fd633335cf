// Split-K within a cluster: the blocks that share a tile of C leave their sums in shared memory, and each adds up a part of the
// tile, reading those of all. No partial result goes through global memory, and there is no second kernel. From sm_90 on; a
// launch has clusters of its z, at most eight blocks, and `partial` is null.
//
// The sums of a split are added in the order of the splits, so the bits are those of split_sum where it has no groups.
#pragma once
#include "hopper.cuh"
#include "operand.cuh"

// Whether a tile has splits in clusters: its struct says CLUSTER = 1.
template <class Tile, class = void>
constexpr bool takes_clusters = false;
template <class Tile>
constexpr bool takes_clusters<Tile, Void<decltype(Tile::CLUSTER)>> = CLUSTERS;

// Floats from one row of a tile's sums to the next: rows begin four banks apart.
template <class Tile>
constexpr int SUMS_ROW = Tile::N + 4;

// Whether the blocks of a tile add up its sums themselves.
__device__ __forceinline__ bool in_cluster(const Cut& cut) { return CLUSTERS && !cut.partial && gridDim.z > 1; }

// Calls use(row, column, place of its sum) for four neighbours each of the block's part of a tile. Neighbouring threads have what
// are neighbours in memory.
template <class Tile, class Then, class Use>
__device__ __forceinline__ void each_in_part(int m, int n, const Cut& cut, Use use) {
  constexpr int FOURS = Tile::N / 4;
  for (int i = blockIdx.z * Tile::THREADS + threadIdx.x; i < Tile::M * FOURS; i += gridDim.z * Tile::THREADS) {
    const int row = Then::BY_COLUMNS ? i % Tile::M : i / FOURS;
    const int column = 4 * (Then::BY_COLUMNS ? i / Tile::M : i % FOURS);
    if (m + row < cut.m && n + column < cut.n) use(m + row, n + column, row * SUMS_ROW<Tile> + column);
  }
}

// What is stored with the sums of a part, where a thread has four of them at most, as a cluster has two blocks or more: loaded in the
// first step.
template <class Tile, class Then>
constexpr bool comes_early = takes_clusters<Tile> && Tile::M * Tile::N <= 8 * Tile::THREADS && !pools<Then>;
template <class Tile, class Then, bool = comes_early<Tile, Then>>
struct WithSums {
  __device__ __forceinline__ void load(int, int, const Cut&, const Then&) {}
};
template <class Tile, class Then>
struct WithSums<Tile, Then, true> {
  Pack<float, 4> bias;
  Pack<unsigned, 4> masks;
  __device__ __forceinline__ void load(int m, int n, const Cut& cut, const Then& epilogue) {
    if (!in_cluster(cut)) return;
    each_in_part<Tile, Then>(m, n, cut, [&](int row, int column, int) {
#pragma unroll
      for (int q = 0; q < 4; ++q) bias.v[q] = epilogue.bias_at(column + q, cut.n);
      if constexpr (may_mask<Then>)
        if (has_masks<4>(epilogue, cut.n)) masks = masks_at<4>(epilogue, row, column, cut.n);
    });
  }
};

// C's elements from the sums of all splits, which each block has written to the same place `sums`, [M][SUMS_ROW]. All threads
// of the cluster call it.
template <class Tile, class Then>
__device__ __forceinline__ void add_up_in_cluster(float* sums, int m, int n, const Cut& cut, const Then& epilogue,
                                                  const WithSums<Tile, Then>& with) {
  if constexpr (CLUSTERS) {
    constexpr int AHEAD = 4;
    const unsigned mine = smem_address(sums);
    const int splits = gridDim.z;
    cluster_sync();
    each_in_part<Tile, Then>(m, n, cut, [&](int, int, int at) {
      Pack<float, 4> all = {};
      for (int first = 0; first < splits; first += AHEAD) {
        float4 v[AHEAD];
#pragma unroll
        for (int z = 0; z < AHEAD; ++z)
          if (first + z < splits) v[z] = load_cluster4(cluster_address(mine + 4 * at, first + z));
#pragma unroll
        for (int z = 0; z < AHEAD; ++z) {
          if (first + z >= splits) break;
          all.v[0] += v[z].x, all.v[1] += v[z].y, all.v[2] += v[z].z, all.v[3] += v[z].w;
        }
      }
      // Nobody else reads this place of this block.
      *reinterpret_cast<Pack<float, 4>*>(sums + at) = all;
    });
    // Nobody leaves while others read what it has. An arrival waits until what its thread has stored is there: C comes after it.
    cluster_arrive();
    each_in_part<Tile, Then>(m, n, cut, [&](int row, int column, int at) {
      Pack<float, 4> out = *reinterpret_cast<const Pack<float, 4>*>(sums + at);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        if constexpr (comes_early<Tile, Then>) out.v[q] += with.bias.v[q];
        else out.v[q] += epilogue.bias_at(column + q, cut.n);
      }
      if constexpr (comes_early<Tile, Then> && may_mask<Then>)
        if (has_masks<4>(epilogue, cut.n)) return epilogue.store(row, column, cut.n, out, with.masks);
      epilogue.store(row, column, cut.n, out);
    });
    cluster_wait();
  }
}
