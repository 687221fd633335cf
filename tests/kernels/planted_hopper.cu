// Kernels for sm_90a with planted bugs, and the same kernels without: what the emulated device must report, and what it must
// let pass. `bug` says which, 0 none. x: 128 rows of 64 values, of which the first 64 are a and the others b; `map` copies 64
// rows of it, swizzled. `out` is a map of y, 64 x 64.
#include "hopper.cuh"

struct PlantedDims {
  int n;
  int bug;
};

constexpr int TILE = 64 * 128;  // bytes

__device__ __forceinline__ void put(const float (&acc)[32], float* y) {
  const int t = threadIdx.x;
  for (int i = 0; i < 32; ++i)
    y[(t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8) * 64 + i / 4 * 8 + t % 4 * 2 + i % 2] = acc[i];
}

__device__ __forceinline__ void multiply(float (&acc)[32], unsigned a, unsigned b, bool accumulate) {
  for (int k = 0; k < 4; ++k)
    wgmma<half, 64, 0, 0>(acc, descriptor<128>(a + k * 32, 1024, 0), descriptor<128>(b + k * 32, 1024, 0),
                          accumulate || k > 0);
}

enum {
  WRONG_PHASE = 1,
  OFF_BY_A_ROW,
  TOO_FEW,
  TOO_MANY,
  NO_LAST_WAIT,
  NO_FENCE,
  NO_WAIT,
  NO_SUCH_PHASE,
  NO_EMPTY_WAIT,
  NO_INIT_FENCE,
  ONE_ARRIVAL_MORE,
  NO_INIT,
  EARLY_ARRIVAL,
  EARLY_USE,
  OTHER_PRODUCT,
  CROOKED_BOX,
  LATE_WRITE,
  BASE_OFFSET,
  MORE_ARRIVE
};

// y = 2 a b, in two steps through one slot: a thread loads, a warpgroup multiplies.
__global__ void __launch_bounds__(160)
    product(const __grid_constant__ CUtensorMap map, const __grid_constant__ CUtensorMap out, const half* x, float* y,
            PlantedDims d) {
  DYN_TILES(unsigned char, tiles);
  SHARED(unsigned long long, bars, [2]);
  const unsigned a = smem_address(tiles), b = a + TILE, full = smem_address(bars), empty = full + 8;
  const int t = threadIdx.x;
  if (t == 0) {
    mbarrier_init(full, 1);
    if (d.bug != NO_INIT) mbarrier_init(empty, 1);
    if (d.bug != NO_INIT_FENCE) mbarrier_init_fence();
  }
  __syncthreads();
  if (t >= 128) {
    for (int step = 0; t == 128 && step < 2; ++step) {
      if (step > 0 && d.bug != NO_EMPTY_WAIT) mbarrier_wait(empty, 0);
      mbarrier_arrive_expect(full, d.bug == TOO_FEW ? TILE : d.bug == TOO_MANY ? 2 * TILE + 16 : 2 * TILE);
      if (d.bug == ONE_ARRIVAL_MORE) mbarrier_arrive(full);
      tma_load2(a + (d.bug == CROOKED_BOX ? 64 : 0), &map, full, 0, 0);
      tma_load2(b, &map, full, 0, 64);
    }
    return;
  }
  float acc[32] = {};
  float early = 0.0f;
  for (int step = 0; step < 2; ++step) {
    if (d.bug != NO_WAIT) mbarrier_wait(full, d.bug == WRONG_PHASE ? step ^ 1 : step);
    if (d.bug != NO_FENCE) wgmma_fence();
    if (d.bug == LATE_WRITE && step == 1) acc[3] = 1.0f;
    if (d.bug == BASE_OFFSET)
      wgmma<half, 64, 0, 0>(acc, descriptor<128>(a, 1024, 0) | 1ull << 49, descriptor<128>(b, 1024, 0), true);
    multiply(acc, a + (d.bug == OFF_BY_A_ROW || (d.bug == OTHER_PRODUCT && t == 5) ? 128 : 0), b, step > 0);
    wgmma_commit();
    if (d.bug == EARLY_USE) early = acc[5];
    if (step == 0) {
      if (d.bug != EARLY_ARRIVAL) wgmma_wait<0>();
      if (t < (d.bug == MORE_ARRIVE ? 3 : 1)) mbarrier_arrive(empty);
    }
  }
  if (d.bug != NO_LAST_WAIT) wgmma_wait<0>();
  if (d.bug == NO_SUCH_PHASE) mbarrier_wait(full, 0);
  put(acc, y);
  if (d.bug == EARLY_USE) y[0] += early;
}

// y = a b: ordinary instructions bring a and b to shared memory; the bug leaves out the fence, or a comes too late.
__global__ void __launch_bounds__(128)
    stored_tiles(const __grid_constant__ CUtensorMap map, const __grid_constant__ CUtensorMap out, const half* x,
                 float* y, PlantedDims d) {
  DYN_TILES(half, tiles);
  for (int i = threadIdx.x; i < 128 * 64; i += 128) tiles[swizzled<128>(i * 2) / 2] = x[i];
  if (d.bug != 1) fence_async();
  if (d.bug != 2) __syncthreads();
  float acc[32] = {};
  wgmma_fence();
  multiply(acc, smem_address(tiles), smem_address(tiles) + TILE, false);
  wgmma_commit();
  wgmma_wait<0>();
  put(acc, y);
}

// y = a b, with a in registers; the bug changes one before the product has read it.
__global__ void __launch_bounds__(128)
    registers(const __grid_constant__ CUtensorMap map, const __grid_constant__ CUtensorMap out, const half* x, float* y,
              PlantedDims d) {
  DYN_TILES(half, tiles);
  const int t = threadIdx.x, row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
  for (int i = t; i < 64 * 64; i += 128) tiles[swizzled<128>(i * 2) / 2] = x[64 * 64 + i];
  fence_async();
  __syncthreads();
  float acc[32] = {};
  unsigned a[4][4];
  for (int k = 0; k < 4; ++k)
    for (int i = 0; i < 4; ++i) a[k][i] = *(const unsigned*)&x[(row + i % 2 * 8) * 64 + k * 16 + i / 2 * 8 + column];
  wgmma_fence();
  for (int k = 0; k < 4; ++k)
    wgmma<half, 64, 0>(acc, a[k], descriptor<128>(smem_address(tiles) + k * 32, 1024, 0), k > 0);
  wgmma_commit();
  if (d.bug) a[1][2] = 0;
  wgmma_wait<0>();
  put(acc, y);
}

// y = 1, 2, ... through shared memory by two bulk stores from one slab. The bugs: no fence before them, no wait before the
// slab is written again, none at the end.
__global__ void __launch_bounds__(128)
    stores(const __grid_constant__ CUtensorMap map, const __grid_constant__ CUtensorMap out, const half* x, float* y,
           PlantedDims d) {
  DYN_TILES(float, slab);
  for (int half_y = 0; half_y < 2; ++half_y) {
    for (int i = threadIdx.x; i < 32 * 64; i += 128) slab[i] = half_y * 2048 + i + 1;
    if (d.bug != 1) fence_async();
    __syncthreads();
    if (threadIdx.x == 0) {
      tma_store2(&out, smem_address(slab), 0, half_y * 32);
      tma_commit();
      if (d.bug != 2 && !(d.bug == 3 && half_y == 1)) tma_wait_read<0>();
    }
    __syncthreads();
  }
}

// Blocks of a cluster read each other's shared memory. The bugs: no barrier before it, none after it, an arrival too many, an
// address that is none.
__global__ void __launch_bounds__(64)
    neighbours(const __grid_constant__ CUtensorMap map, const __grid_constant__ CUtensorMap out, const half* x,
               float* y, PlantedDims d) {
  SHARED(float, mine, [64]);
  const int t = threadIdx.x, rank = cluster_rank(), other = (rank + 1) % cluster_size();
  mine[t] = blockIdx.x * 64 + t;
  if (d.bug == 3) cluster_arrive();
  if (d.bug != 1) cluster_sync();
  const unsigned at = smem_address(&mine[63 - t]) + (d.bug == 4 ? 0x20000 : 0);
  y[blockIdx.x * 64 + t] = load_cluster(cluster_address(at, other));
  if (d.bug != 2) cluster_sync();
}

// A thread writes into a neighbour's shared memory and arrives at its mbarrier; the bug arrives first.
__global__ void __launch_bounds__(64)
    remote_arrival(const __grid_constant__ CUtensorMap map, const __grid_constant__ CUtensorMap out, const half* x,
                   float* y, PlantedDims d) {
  SHARED(float, mine, [64]);
  SHARED(unsigned long long, bar, [1]);
  const int t = threadIdx.x, other = (cluster_rank() + 1) % cluster_size();
  if (t == 0) {
    mbarrier_init(smem_address(bar), 64);
    mbarrier_init_fence();
  }
  cluster_sync();
  const unsigned there = cluster_address(smem_address(bar), other);
  if (d.bug == 1) mbarrier_arrive_cluster(there);
  store_cluster(cluster_address(smem_address(&mine[t]), other), (float)(blockIdx.x * 64 + t));
  if (d.bug != 1) mbarrier_arrive_cluster(there);
  mbarrier_wait_cluster(smem_address(bar), 0);
  y[blockIdx.x * 64 + t] = mine[63 - t];
  cluster_sync();
}

// Both blocks of a cluster get a tile, half of it from each. The bug: one expects only its own half.
__global__ void __launch_bounds__(64)
    multicast(const __grid_constant__ CUtensorMap map, const __grid_constant__ CUtensorMap out, const half* x, float* y,
              PlantedDims d) {
  DYN_TILES(half, tile);
  SHARED(unsigned long long, bar, [1]);
  const unsigned full = smem_address(bar), rank = cluster_rank();
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(full, d.bug == 1 && rank == 1 ? TILE : 2 * TILE);
  }
  cluster_sync();
  if (threadIdx.x == 0) tma_load2_all(smem_address(tile) + rank * TILE, &map, full, 3, 0, rank * 64);
  mbarrier_wait(full, 0);
  y[blockIdx.x * 64 + threadIdx.x] = to_float(tile[swizzled<128>((rank * 64 + threadIdx.x) * 128 + 6) / 2]);
  cluster_sync();
}

// Two pairs of warps hand values on, each at its barrier; the bug: one warp comes to the other pair's.
__global__ void __launch_bounds__(128)
    pairs(const __grid_constant__ CUtensorMap map, const __grid_constant__ CUtensorMap out, const half* x, float* y,
          PlantedDims d) {
  SHARED(float, tile, [128]);
  const int t = threadIdx.x, pair = t / 64;
  tile[t] = t;
  if (d.bug != 1) named_sync(1 + pair, d.bug == 2 && t == 3 ? 96 : 64);
  y[t] = tile[t ^ 32];
}

// cp.async into a tile, an arrival when they are there; polls. The bug: it arrives as if they were.
__global__ void __launch_bounds__(64)
    gather(const __grid_constant__ CUtensorMap map, const __grid_constant__ CUtensorMap out, const half* x, float* y,
           PlantedDims d) {
  SHARED(half, tile, [512]);
  SHARED(unsigned long long, bar, [1]);
  const int t = threadIdx.x;
  if (t == 0) mbarrier_init(smem_address(bar), 64);
  __syncthreads();
  emu::cp_async(&tile[t * 8], &x[t * 8], 16);
  if (d.bug) mbarrier_arrive(smem_address(bar));
  else mbarrier_arrive_copies(smem_address(bar));
  while (!mbarrier_try(smem_address(bar), 0)) {
  }
  y[t] = to_float(tile[511 - t]);
}

// The bug: an mbarrier whose bytes are used for something else, or that nobody ever arrives at.
__global__ void __launch_bounds__(64)
    overwritten(const __grid_constant__ CUtensorMap map, const __grid_constant__ CUtensorMap out, const half* x,
                float* y, PlantedDims d) {
  SHARED(unsigned long long, bar, [1]);
  if (threadIdx.x == 0) {
    mbarrier_init(smem_address(bar), 1);
    if (d.bug == 1) bar[0] = 1;
    if (d.bug != 2) mbarrier_arrive(smem_address(bar));
  }
  __syncthreads();
  while (!mbarrier_test(smem_address(bar), 0)) {
  }
  y[threadIdx.x] = 1.0f;
}

// Operands from any row of a swizzled buffer on, as measured on an H100: `n` says which, and y is the product with ones on the
// diagonal. bug 0: a begins at row n, K-major. 1: b does, MN-major. 2: and b's blocks of 64 columns begin one row apart, so that
// they overlap.
__global__ void __launch_bounds__(128)
    any_row(const __grid_constant__ CUtensorMap map, const __grid_constant__ CUtensorMap out, const half* x, float* y,
            PlantedDims d) {
  DYN_TILES(half, tiles);
  const int t = threadIdx.x;
  for (int i = t; i < 128 * 64; i += 128) tiles[swizzled<128>(i * 2) / 2] = x[i];
  for (int i = t; i < 64 * 64; i += 128)
    tiles[128 * 64 + swizzled<128>(i * 2) / 2] = from_float<half>(i / 64 == i % 64 ? 1.0f : 0.0f);
  fence_async();
  __syncthreads();
  const unsigned from = smem_address(tiles) + d.n * 128, ones = smem_address(tiles) + 128 * 128;
  float acc[32] = {}, wide[64] = {};
  wgmma_fence();
  for (int k = 0; k < 4; ++k) {
    const unsigned long long eye = descriptor<128>(ones + k * 32, 1024, 0);
    if (d.bug == 0) wgmma<half, 64, 0, 0>(acc, descriptor<128>(from + k * 32, 1024, 0), eye, k > 0);
    if (d.bug == 1) wgmma<half, 64, 0, 1>(acc, eye, descriptor<128>(from + k * 16 * 128, 1024, 0), k > 0);
    if (d.bug == 2) wgmma<half, 128, 0, 1>(wide, eye, descriptor<128>(from + k * 16 * 128, 1024, 128), k > 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < 32; ++i) acc[i] = d.bug == 2 ? wide[32 + i] : acc[i];
  put(acc, y);
}
