// Kernels that exist for sm_90a alone, for the tests: each is small and complete, and compared with plain loops. NVRTC
// compiles them, the emulated device runs them.
// Instances: sm_90a: T = float
#include "hopper.cuh"

struct HopperDims {
  int bytes;  // of a tile
};

// y = the first value of the tile that the tensor memory accelerator brings to each block of a cluster.
// Registers: at most 32.
template <class T>
__global__ void __launch_bounds__(128)
    hopper_copy(const __grid_constant__ CUtensorMap map, T* __restrict__ y, HopperDims d) {
  DYN_SMEM(T, tile);
  SHARED(unsigned long long, arrived, [1]);
  const unsigned bar = smem_address(arrived);
  if (threadIdx.x == 0) {
    mbarrier_init(bar, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(bar, d.bytes);
    tma_load1(smem_address(tile), &map, bar, 0);
  }
  cluster_sync();
  mbarrier_wait(bar, 0);
  y[blockIdx.x * 128 + threadIdx.x] = tile[0];
}

// ---- products: y[m][n] = sum over k of a * b, a tile of 64 x 64 for each block, 64 k a step
constexpr int TILE = 64 * 128, STAGES = 2;  // bytes of an operand's tile, slots of the ring

struct ProductDims {
  int m, n, k;
};

// A ring of tiles: a slot is `full` when TMA has brought both operands, `empty` when the products that read them are done.
struct Ring {
  int slot, phase;
  unsigned tiles, bars;
  __device__ __forceinline__ unsigned full() const { return bars + slot * 16; }
  __device__ __forceinline__ unsigned empty() const { return bars + slot * 16 + 8; }
  __device__ __forceinline__ unsigned a() const { return tiles + slot * 2 * TILE; }
  __device__ __forceinline__ unsigned b() const { return tiles + slot * 2 * TILE + TILE; }
  __device__ __forceinline__ void next() {
    if (++slot == STAGES) slot = 0, phase ^= 1;
  }
  __device__ __forceinline__ unsigned empty_before() const { return bars + (slot == 0 ? STAGES - 1 : slot - 1) * 16 + 8; }
};

__device__ __forceinline__ Ring ring(const void* tiles, const void* bars, unsigned readers) {
  Ring r = {0, 0, smem_address(tiles), smem_address(bars)};
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; ++i) mbarrier_init(r.bars + i * 16, 1), mbarrier_init(r.bars + i * 16 + 8, readers);
    mbarrier_init_fence();
  }
  __syncthreads();
  return r;
}

// The warpgroup's half: waits for each slot, multiplies, and gives back the slot before. `turned`: both operands are
// MN-major.
template <class E, int turned>
__device__ __forceinline__ void multiply(float (&acc)[32], Ring r, int steps) {
  for (int step = 0; step < steps; ++step) {
    mbarrier_wait(r.full(), r.phase);
    wgmma_fence();
    for (int k = 0; k < 4; ++k) {
      const unsigned along = turned ? k * 16 * 128 : k * 32;
      wgmma<E, 64, turned, turned>(acc, descriptor<128>(r.a() + along, 1024, TILE), descriptor<128>(r.b() + along, 1024, TILE),
                                   (step | k) != 0);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (step > 0 && threadIdx.x == 0) mbarrier_arrive(r.empty_before());
    r.next();
  }
  wgmma_wait<0>();
  wgmma_keep(acc);
}

// Stores a warpgroup's accumulators, which are rows from `row` on and columns from `column` on.
__device__ __forceinline__ void put(const float (&acc)[32], float* y, int row, int column, const ProductDims& d) {
  const int t = threadIdx.x;
  for (int i = 0; i < 32; ++i) {
    const int r = row + t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, c = column + i / 4 * 8 + t % 4 * 2 + i % 2;
    if (r < d.m && c < d.n) y[r * d.n + c] = acc[i];
  }
}

// a[m][k], b[n][k]: K-major both. A warp loads, a warpgroup multiplies.
// Instances: sm_90a: T = half, bf16
// Registers: at most 128.
template <class T>
__global__ void __launch_bounds__(160)
    hopper_gemm(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* __restrict__ y,
                ProductDims d) {
  DYN_TILES(unsigned char, tiles);
  SHARED(unsigned long long, bars, [2 * STAGES]);
  Ring r = ring(tiles, bars, 1);
  const int row = blockIdx.y * 64, column = blockIdx.x * 64, steps = (d.k + 63) / 64;
  if (threadIdx.x >= 128) {
    if (elect_one()) {
      for (int step = 0; step < steps; ++step) {
        mbarrier_wait(r.empty(), r.phase ^ 1);
        mbarrier_arrive_expect(r.full(), 2 * TILE);
        tma_load2(r.a(), &a, r.full(), step * 64, row);
        tma_load2(r.b(), &b, r.full(), step * 64, column);
        r.next();
      }
    }
  } else {
    float acc[32] = {};
    wgmma_keep(acc);
    multiply<T, 0>(acc, r, steps);
    put(acc, y, row, column, d);
  }
}
