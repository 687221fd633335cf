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
  __device__ __forceinline__ unsigned empty_before() const {
    return bars + (slot == 0 ? STAGES - 1 : slot - 1) * 16 + 8;
  }
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
      wgmma<E, 64, turned, turned>(acc, descriptor<128>(r.a() + along, 1024, TILE),
                                   descriptor<128>(r.b() + along, 1024, TILE), (step | k) != 0);
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

// a[k][m], b[k][n]: MN-major both, as the gradient of weights has them.
// Registers: at most 128.
template <class T>
__global__ void __launch_bounds__(160)
    hopper_turned(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* __restrict__ y,
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
        tma_load2(r.a(), &a, r.full(), row, step * 64);
        tma_load2(r.b(), &b, r.full(), column, step * 64);
        r.next();
      }
    }
  } else {
    float acc[32] = {};
    wgmma_keep(acc);
    multiply<T, 1>(acc, r, steps);
    put(acc, y, row, column, d);
  }
}

// As hopper_gemm, by clusters of two blocks with rows of their own and the same columns: each loads half of b for both. A slot
// is empty when the products of both blocks have read it, as either writes to both.
// Registers: at most 128.
template <class T>
__global__ void __launch_bounds__(160)
    hopper_multicast(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
                     float* __restrict__ y, ProductDims d) {
  DYN_TILES(unsigned char, tiles);
  SHARED(unsigned long long, bars, [2 * STAGES]);
  Ring r = ring(tiles, bars, 2);
  const int row = blockIdx.y * 64, column = blockIdx.x * 64, steps = (d.k + 63) / 64;
  const unsigned rank = cluster_rank();
  cluster_sync();
  if (threadIdx.x >= 128) {
    if (elect_one()) {
      for (int step = 0; step < steps; ++step) {
        mbarrier_wait_cluster(r.empty(), r.phase ^ 1);
        mbarrier_arrive_expect(r.full(), 2 * TILE);
        tma_load2(r.a(), &a, r.full(), step * 64, row);
        tma_load2_all(r.b() + rank * (TILE / 2), &b, r.full(), 3, step * 64, column + rank * 32);
        r.next();
      }
    }
  } else {
    float acc[32] = {};
    wgmma_keep(acc);
    for (int step = 0; step < steps; ++step) {
      mbarrier_wait(r.full(), r.phase);
      wgmma_fence();
      for (int k = 0; k < 4; ++k)
        wgmma<T, 64, 0, 0>(acc, descriptor<128>(r.a() + k * 32, 1024, 0), descriptor<128>(r.b() + k * 32, 1024, 0),
                           (step | k) != 0);
      wgmma_commit();
      wgmma_wait<0>();
      if (threadIdx.x < 2) mbarrier_arrive_cluster(cluster_address(r.empty(), threadIdx.x));
      r.next();
    }
    wgmma_keep(acc);
    put(acc, y, row, column, d);
  }
  __syncwarp();
  cluster_sync();
}

// As hopper_gemm, by clusters of two blocks that have the same tile and half of the steps each; partial results are added
// through the cluster's shared memory.
// Registers: at most 128.
template <class T>
__global__ void __launch_bounds__(128)
    hopper_split(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* __restrict__ y,
                 ProductDims d) {
  DYN_TILES(unsigned char, tiles);
  SHARED(unsigned long long, bars, [2 * STAGES]);
  SHARED(float, part, [64 * 68]);
  Ring r = ring(tiles, bars, 1);
  const int t = threadIdx.x, row = blockIdx.y * 64, column = blockIdx.x / 2 * 64, steps = (d.k + 63) / 64;
  const int rank = cluster_rank(), first = steps * rank / 2, last = steps * (rank + 1) / 2;
  float acc[32] = {};
  wgmma_keep(acc);
  for (int step = first; step < last; ++step) {
    if (t == 0) {
      mbarrier_arrive_expect(r.full(), 2 * TILE);
      tma_load2(r.a(), &a, r.full(), step * 64, row);
      tma_load2(r.b(), &b, r.full(), step * 64, column);
    }
    mbarrier_wait(r.full(), r.phase);
    wgmma_fence();
    for (int k = 0; k < 4; ++k)
      wgmma<T, 64, 0, 0>(acc, descriptor<128>(r.a() + k * 32, 1024, 0), descriptor<128>(r.b() + k * 32, 1024, 0), true);
    wgmma_commit();
    wgmma_wait<0>();
    named_sync(1, 128);
    r.next();
  }
  wgmma_keep(acc);
  for (int i = 0; i < 32; ++i)
    part[(t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8) * 68 + i / 4 * 8 + t % 4 * 2 + i % 2] = acc[i];
  cluster_sync();
  for (int i = t; i < 32 * 16; i += 128) {
    const int at = rank * 32 + i / 16, c = i % 16 * 4;
    const unsigned from = smem_address(part + at * 68 + c);
    const float4 u = load_cluster4(cluster_address(from, 0)), v = load_cluster4(cluster_address(from, 1));
    const float sum[4] = {u.x + v.x, u.y + v.y, u.z + v.z, u.w + v.w};
    for (int j = 0; j < 4; ++j)
      if (row + at < d.m && column + c + j < d.n) y[(row + at) * d.n + column + c + j] = sum[j];
  }
  cluster_sync();
}

// ---- convolution: y[pixel][o] = sum over taps and c of x * w, 64 pixels x 64 o a block. `x` is an im2col map of the images,
// `w` a map of the filters [o][tap][c], `y` one of the result.
struct ConvDims {
  int c, taps, kw, oh, ow, stride, pad;
};

// Registers: at most 128.
template <class T>
__global__ void __launch_bounds__(160)
    hopper_conv(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                const __grid_constant__ CUtensorMap y, ConvDims d) {
  DYN_TILES(unsigned char, tiles);
  SHARED(unsigned long long, bars, [2 * STAGES]);
  Ring r = ring(tiles, bars, 1);
  const int pixel = blockIdx.x * 64, o = blockIdx.y * 64, chunks = (d.c + 63) / 64, steps = d.taps * chunks;
  if (threadIdx.x >= 128) {
    if (elect_one()) {
      // The first pixel's window.
      const int line = pixel / d.ow, image = line / d.oh;
      const int left = (pixel - line * d.ow) * d.stride - d.pad, top = (line - image * d.oh) * d.stride - d.pad;
      for (int step = 0; step < steps; ++step) {
        const int tap = step / chunks, c = step % chunks * 64;
        mbarrier_wait(r.empty(), r.phase ^ 1);
        mbarrier_arrive_expect(r.full(), 2 * TILE);
        tma_load_im2col(r.a(), &x, r.full(), c, left, top, image, tap % d.kw, tap / d.kw);
        tma_load3(r.b(), &w, r.full(), c, tap, o);
        r.next();
      }
    }
    return;
  }
  float acc[32] = {};
  wgmma_keep(acc);
  multiply<T, 0>(acc, r, steps);
  // Through a slab behind the ring: 64 rows of 128 bytes, swizzled as the map of y says.
  const int t = threadIdx.x, lane = t % 32, row = t / 32 * 16 + lane % 16;
  const unsigned slab = smem_address(tiles) + STAGES * 2 * TILE;
  for (int i = 0; i < 4; ++i) {
    unsigned pairs[4];
    for (int j = 0; j < 4; ++j)
      pairs[j] = from_float<T>(acc[i * 8 + j * 2]).bits | (unsigned)from_float<T>(acc[i * 8 + j * 2 + 1]).bits << 16;
    store_tiles(slab + swizzled<128>(row * 128 + i * 32 + lane / 16 * 16), pairs[0], pairs[1], pairs[2], pairs[3]);
  }
  fence_async();
  named_sync(1, 128);
  if (t == 0) {
    tma_store2(&y, slab, o, pixel);
    tma_commit();
    tma_wait<0>();
  }
}

// Every other instruction of hopper.cuh once, for the compiler and as far as that goes for the emulated device.
// Registers: at most 128.
template <class T>
__global__ void __launch_bounds__(128)
    hopper_words(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap y, float* __restrict__ out,
                 HopperDims d) {
  DYN_TILES(unsigned char, tiles);
  SHARED(unsigned long long, bar, [2]);
  const unsigned tile = smem_address(tiles), full = smem_address(bar), other = full + 8;
  const int t = threadIdx.x;
  registers_down<96>();
  registers_up<128>();
  grid_wait();
  tma_prefetch(&x);
  if (t == 0) {
    mbarrier_init(full, 1);
    mbarrier_init(other, 128);
    mbarrier_init_fence();
    mbarrier_expect(full, d.bytes);
    mbarrier_arrive(full);
    tma_load2(tile, &x, full, 0, 0);
  }
  __syncthreads();
  while (!mbarrier_test(full, 0)) {
  }
  mbarrier_arrive_copies(other);
  mbarrier_wait(other, 0);
  // a[64][16] in registers, as the K-major tile has it; b is the tile's first 8, or 256, lines.
  const int row = t / 32 * 16 + t % 32 / 4, k = t % 4 * 4;
  const unsigned a[4] = {load_shared(tile + swizzled<128>(row * 128 + k)),
                         load_shared(tile + swizzled<128>((row + 8) * 128 + k)),
                         load_shared(tile + swizzled<128>(row * 128 + k + 16)),
                         load_shared(tile + swizzled<128>((row + 8) * 128 + k + 16))};
  float narrow[4] = {}, acc[16] = {};
  wgmma_fence();
  wgmma<T, 8, 0>(narrow, a, descriptor<128>(tile, 1024, 0), false);
  wgmma<T, 32, 0, 0>(acc, descriptor<128>(tile, 1024, 0), descriptor<128>(tile, 1024, 0), false);
  wgmma_commit();
  wgmma_wait<0>();
  const uint3 block = cluster_block(), dim = cluster_dim(), id = cluster_id(), count = cluster_count();
  const unsigned place = block.x + dim.x * 10 + id.x * 100 + count.x * 1000 + cluster_size() * 10000 + block.y + id.z;
  store_tiles_transposed(tile + 8192 + t / 32 * 512 + t % 32 * 16, t, t + 1, t + 2, t + 3);
  named_arrive(2, 256 / 2);
  fence_async();
  fence_cluster();
  cluster_sync();
  const unsigned mine = cluster_address(tile + 12288 + t * 16, cluster_rank());
  store_cluster4(mine, make_float4(narrow[0], narrow[1], acc[0], acc[1]));
  store_cluster(mine + 12, (float)place);
  const uint4 v = load_shared4(tile + 12288 + t * 16);
  store_shared4(tile + 12288 + t * 16, v);
  store_shared(tile + 12288 + t * 16 + 8, __float_as_uint(load_cluster(mine + 4)));
  fence_async();
  cluster_sync();
  if (t == 0) {
    tma_store1(&y, tile + 12288, blockIdx.x * 512);
    tma_commit();
    tma_wait_read<0>();
    mbarrier_inval(full);
  }
  grid_launch();
  out[blockIdx.x * 128 + t] = load_shared(tile + 8192 + t * 4) & 0xffff;
}

// y = 64 x 64, a sum over 16 k, from tiles with rows of 64 or 32 bytes, or of 16 without a swizzle. TMA brings as many boxes
// as it takes: side by side along k, or along m and n if `turned`, which is MN-major.
template <class T, int row, int turned>
__device__ __forceinline__ void narrow_rows(const CUtensorMap* a, const CUtensorMap* b, float* y,
                                            const ProductDims& d) {
  DYN_TILES(unsigned char, tiles);
  SHARED(unsigned long long, bar, [1]);
  constexpr int WIDTH = row / 2, BOXES = turned ? 64 / WIDTH : row == 16 ? 2 : 1, BOX = (turned ? 16 : 64) * row;
  const unsigned full = smem_address(bar), to = smem_address(tiles);
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(full, 2 * BOXES * BOX);
    for (int i = 0; i < BOXES; ++i) {
      tma_load2(to + i * BOX, a, full, i * WIDTH, 0);
      tma_load2(to + (BOXES + i) * BOX, b, full, i * WIDTH, 0);
    }
  }
  __syncthreads();
  mbarrier_wait(full, 0);
  // From eight lines (or k) to the next, and from a box to the next; without a swizzle MN-major has them the other way round.
  constexpr int EIGHT = 8 * row, STRIDE = turned && row == 16 ? BOX : EIGHT,
                LEADING = turned && row == 16 ? EIGHT : BOX;
  float acc[32] = {};
  wgmma_keep(acc);
  wgmma_fence();
  wgmma<T, 64, turned, turned>(acc, descriptor<row>(to, STRIDE, LEADING),
                               descriptor<row>(to + BOXES * BOX, STRIDE, LEADING), false);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_keep(acc);
  put(acc, y, 0, 0, d);
}

// d.k: the bytes of a row; negative if the operands are MN-major.
// Registers: at most 128.
template <class T>
__global__ void __launch_bounds__(128)
    hopper_rows(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, float* __restrict__ y,
                ProductDims d) {
  if (d.k == 64) narrow_rows<T, 64, 0>(&a, &b, y, d);
  if (d.k == 32) narrow_rows<T, 32, 0>(&a, &b, y, d);
  if (d.k == 16) narrow_rows<T, 16, 0>(&a, &b, y, d);
  if (d.k == -64) narrow_rows<T, 64, 1>(&a, &b, y, d);
  if (d.k == -32) narrow_rows<T, 32, 1>(&a, &b, y, d);
  if (d.k == -16) narrow_rows<T, 16, 1>(&a, &b, y, d);
}
