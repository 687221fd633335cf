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

// C's elements from the sums of all splits, which each block has written to the same place `sums`, [M][SUMS_ROW]. All threads
// of the cluster call it.
template <class Tile, class Then>
__device__ __forceinline__ void add_up_in_cluster(const float* sums, int m, int n, const Cut& cut,
                                                  const Then& epilogue) {
  if constexpr (CLUSTERS) {
    constexpr int FOURS = Tile::N / 4, AHEAD = 4;
    const unsigned mine = smem_address(sums);
    const int splits = gridDim.z;
    cluster_sync();
    for (int i = blockIdx.z * Tile::THREADS + threadIdx.x; i < Tile::M * FOURS; i += splits * Tile::THREADS) {
      // Neighbouring threads have what are neighbours in memory.
      const int row = Then::BY_COLUMNS ? i % Tile::M : i / FOURS;
      const int column = 4 * (Then::BY_COLUMNS ? i / Tile::M : i % FOURS);
      const int r = m + row, c = n + column;
      if (r >= cut.m || c >= cut.n) continue;
      const unsigned place = mine + 4 * (row * SUMS_ROW<Tile> + column);
      float4 all = {0.0f, 0.0f, 0.0f, 0.0f};
      for (int first = 0; first < splits; first += AHEAD) {
        float4 v[AHEAD];
#pragma unroll
        for (int z = 0; z < AHEAD; ++z)
          if (first + z < splits) v[z] = load_cluster4(cluster_address(place, first + z));
#pragma unroll
        for (int z = 0; z < AHEAD; ++z) {
          if (first + z >= splits) break;
          all.x += v[z].x, all.y += v[z].y, all.z += v[z].z, all.w += v[z].w;
        }
      }
      Pack<float, 4> out = {{all.x, all.y, all.z, all.w}};
#pragma unroll
      for (int q = 0; q < 4; ++q) out.v[q] += epilogue.bias_at(c + q, cut.n);
      epilogue.store(r, c, cut.n, out);
    }
    // Nobody leaves while others read what it has.
    cluster_sync();
  }
}
