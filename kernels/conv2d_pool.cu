// Convolution, its ReLU and a max-pool of 2x2 in one launch: what is pooled is never stored.
//
// The product is that of conv2d_fwd (conv2d.cu), with its rows in another order: row 4·window + place is the pixel of y at a place
// in its window. So the four values of a window are neighbours in a tile, in the registers of one thread, or of four lanes.
// Pixels that no window has are not computed.
// Instances: T = float; Tile = Simt64, Simt32 | T = half, bf16; Tile = Mma64, Mma32
#include "conv2d.cuh"
#include "conv2d_tma.cuh"
#include "pool.cuh"

// `patches` in that order. Sizes are those of the windows: ho and wo count them, sh and sw are how far apart they are, twice the
// convolution's strides.
template <class E, int N>
struct PatchesByWindow : PatchesAlongK<E, N> {
  using PatchesAlongK<E, N>::d;
  using PatchesAlongK<E, N>::corner;
  __device__ PatchesByWindow(const E* x, const Conv2dDims& d) : PatchesAlongK<E, N>(x, d) {}
  __device__ __forceinline__ void start(int row) {
    corner = corner_of(row / 4, d);
    const int down = row / 2 % 2 * (d.sh / 2), right = row % 2 * (d.sw / 2);
    corner.h += down, corner.w += right, corner.place += (down * d.w + right) * d.c;
  }
};

// What becomes of the sums of a window.
template <class E>
struct PoolEpilogue {
  static constexpr bool BY_COLUMNS = false;
  Epilogue<E> all;
  unsigned char* place;
  __device__ __forceinline__ float bias_at(int column, int n) const { return all.bias_at(column, n); }
  // As it would be stored, so that those are equal that would be equal then.
  __device__ __forceinline__ E rounded(float v) const { return all.rounded(v, all.least()); }
  template <int N>
  __device__ __forceinline__ Pack<float, N> stored(Pack<float, N> v) const {
#pragma unroll
    for (int i = 0; i < N; ++i) v.v[i] = to_float(rounded(v.v[i]));
    return v;
  }
  // What won in N columns, as many of them as there are.
  template <int N>
  __device__ __forceinline__ void store(int window, int column, int n, const Largest<N>& found) const {
    const int at = window * n + column;
    if (rows_of<N>(all.y, n) && is_aligned<N>(place)) return store_winners(all.y, place, at, all.relu, found);
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (column + i < n)
        store_winners(all.y, place, at + i, all.relu, Largest<1>({{found.value.v[i]}}, found.place[i]));
  }
};
template <class E>
constexpr bool pools<PoolEpilogue<E>> = true;

// y = max_pool(conv(x, w) + b), or of its ReLU, y [n][ho][wo][o], and of each of its values the place in its window that won, or
// NOBODY where the ReLU passes nothing on (pool.cuh). m = 4·n·ho·wo, n = o, k = kh·kw·c, never split.
// Threads: as conv2d_fwd.
// Traffic: as conv2d_fwd, but a quarter of the write and a byte an output.
// Launch: as linear_fwd, with a grid of z = 1.
// Numerics: as conv2d_fwd; rounded before it is compared.
// Limits: any geometry whose output has two rows and columns.
// Registers: at most 128 (Mma64), 112.
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    conv2d_pool_fwd(const T* __restrict__ x, const T* __restrict__ w, OPTIONAL const float* __restrict__ b,
                    T* __restrict__ y, unsigned char* __restrict__ place, Conv2dDims d) {
  const PatchesByWindow<T, Tile::CHUNK> a(x, d);
  const AlongK<T, Tile::CHUNK> wt(w, d.o, patch_size(d));
  product<Tile>(a, wt, {4 * pixels_out(d), d.o, patch_size(d), d.split_steps, nullptr},
                PoolEpilogue<T>{{y, b, 0, d.relu}, place});
}

// `patches` for operands that TMA brings, for 64 channels of one tap: a tile's rows are four boxes, of 64 pixels of the windows' upper
// rows, the 64 below them, and both again of the windows that follow.
template <class E>
struct WindowBoxesAlongK {
  using Element = E;
  static constexpr bool along_k = true;
  const CUtensorMap* x;
  const Conv2dDims& d;
  BoxStart from[2];
  __device__ WindowBoxesAlongK(const CUtensorMap* x, const Conv2dDims& d) : x(x), d(d) {}
  __device__ __forceinline__ void start(int line) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      from[i] = box_at(min(line / 4 + 32 * i, pixels_out(d) - 1), d);  // the last are of no window, and not stored
  }
  __device__ __forceinline__ void load(unsigned to, unsigned bar, int k) const {
    const Tap tap = tap_of(k, d.c, d.by_c, d);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      tma_load_im2col(to + i * BLOCK, x, bar, tap.channel, from[i / 2].w, from[i / 2].h, from[i / 2].image, tap.s,
                      tap.r + i % 2 * (d.sh / 2));
  }
};

// conv2d_pool_fwd on Hopper, with operands that TMA brings: `x` is a map of the patches of the windows' upper rows, 64 pixels of 64
// channels a box, `w` one of the weights, Tile::N rows of 64 channels a box (Rust: src/ops/conv2d/maps.rs).
// Threads, launch: as conv2d_fwd_tma, with a grid of z = 1.
// Limits: c a multiple of 64; what maps allow.
// Registers: at most 224.
// Instances: sm_90a: T = half, bf16; Tile = Tma256
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    conv2d_pool_fwd_tma(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                        OPTIONAL const float* __restrict__ b, T* __restrict__ y, unsigned char* __restrict__ place,
                        Conv2dDims d) {
  WindowBoxesAlongK<T> a(&x, d);
  WeightBoxesAlongK<T> wt(&w, d);
  product_tma<Tile>(a, wt, {4 * pixels_out(d), d.o, patch_size(d), d.split_steps, nullptr},
                    PoolEpilogue<T>{{y, b, 0, d.relu}, place});
}
