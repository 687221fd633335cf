// Convolution: y[n][p][q][o] = b[o] + sum over r, s, c of w[o][r][s][c] · x[n][p·sh - ph + r][q·sw - pw + s][c].
//
// Implicit GEMM, the default: conv2d_fwd, conv2d_bwd_x and conv2d_bwd_w. gemm.cuh has
// the product, conv2d.cuh the loaders that find a matrix in an image. Explicit GEMM, the one to study:
// conv2d_im2col, then linear_fwd or linear_bwd_w; linear_bwd_x, then conv2d_col2im. The bias gradient is
// linear_column_sums of gy, and partial results are added up by linear_split_sum. Source of the matrix form: Chellapilla, Puri, Simard, "High Performance Convolutional
// Neural Networks for Document Processing", 2006.
// Instances: T = float; Tile = Simt128, Simt64, Simt32
#include "conv2d.cuh"

// y = conv(x, w) + b: patches·wᵀ.
// Threads: 256, 128 or 64 in a tile of side S = 128, 64 or 32; each has 8x8, 8x4 or 4x4 outputs in groups of 4x4, 16 rows
//     and 32 columns apart.
// Traffic: reads (n·ho·wo)·o·(kh·kw·c)·8/S bytes through the L2, S/4 FLOP for each; writes 4 bytes per output.
// Launch: grid [ceil((n·ho·wo)/S)·ceil(o/S), 1, splits], block as above, 16.5, 17 or 9 KiB of static shared memory.
// Numerics: f32 FMA along K in order, then the splits in order, then the bias.
// Limits: any geometry; `partial` [splits][n·ho·wo][o] instead of the output if splits > 1, and then linear_split_sum.
// Registers: at most 128 (Simt128), 112.
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    conv2d_fwd(const T* __restrict__ x, const float* __restrict__ w, OPTIONAL const float* __restrict__ b,
               T* __restrict__ y, OPTIONAL float* __restrict__ partial, Conv2dDims d) {
  const PatchesAlongK<T> a(x, d);                 // A = patches  [n·ho·wo][kh·kw·c]
  const AlongK<float> wt(w, d.o, patch_size(d));  // B = wᵀ: its columns are the rows of w [o][kh·kw·c]
  const Output<T> out = {y, b, partial, pixels_out(d), d.o, d.accumulate};
  gemm<Tile>(a, wt, out, patch_size(d), d.split_steps);
}

// gx = taps·w': every input pixel gathers what the output pixels that saw it send back.
// Threads: 256, 128 or 64 in a tile of side S = 128, 64 or 32; each has 8x8, 8x4 or 4x4 outputs in groups of 4x4, 16 rows
//     and 32 columns apart.
// Traffic: reads (n·h·w)·c·(kh·kw·o)·8/S bytes through the L2, S/4 FLOP for each; writes 4 bytes per output.
// Launch: grid [ceil((n·h·w)/S)·ceil(c/S), 1, splits], block as above, 16.5, 17 or 9 KiB of static shared memory.
// Numerics: f32 FMA along K in order, then the splits in order.
// Limits: any geometry; `partial` [splits][n·h·w][c] instead of the output if splits > 1, and then linear_split_sum.
// Registers: at most 128 (Simt128), 112.
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    conv2d_bwd_x(const T* __restrict__ gy, const float* __restrict__ w, T* __restrict__ gx,
                 OPTIONAL float* __restrict__ partial, Conv2dDims d) {
  const TapsAlongK<T> a(gy, d);  // A = taps  [n·h·w][kh·kw·o]
  const WeightsByTap b(w, d);    // B = w'    [kh·kw·o][c]
  const Output<T> out = {gx, nullptr, partial, pixels_in(d), d.c, d.accumulate};
  gemm<Tile>(a, b, out, d.kh * d.kw * d.o, d.split_steps);
}

// gw = gyᵀ·patches.
// Threads: 256, 128 or 64 in a tile of side S = 128, 64 or 32; each has 8x8, 8x4 or 4x4 outputs in groups of 4x4, 16 rows
//     and 32 columns apart.
// Traffic: reads o·(kh·kw·c)·(n·ho·wo)·8/S bytes through the L2, S/4 FLOP for each; writes 4 bytes per output.
// Launch: grid [ceil(o/S)·ceil((kh·kw·c)/S), 1, splits], block as above, 16.5, 17 or 9 KiB of static shared memory.
// Numerics: f32 FMA along K in order, then the splits in order.
// Limits: any geometry; `partial` [splits][o][kh·kw·c] instead of the output if splits > 1, and then linear_split_sum.
// Registers: at most 128 (Simt128), 112.
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    conv2d_bwd_w(const T* __restrict__ gy, const T* __restrict__ x, float* __restrict__ gw,
                 OPTIONAL float* __restrict__ partial, Conv2dDims d) {
  const AcrossK<T> a(gy, d.o, pixels_out(d));  // A = gyᵀ: its rows are the columns of gy [n·ho·wo][o]
  const PatchesAcrossK<T> b(x, d);             // B = patches  [n·ho·wo][kh·kw·c]
  const Output<float> out = {gw, nullptr, partial, d.o, patch_size(d), d.accumulate};
  gemm<Tile>(a, b, out, pixels_out(d), d.split_steps);
}

// cols = im2col(x): the patches [n·ho·wo][kh·kw·c] laid out in memory, zeros in the padding.
// Threads: one per element of cols; neighbours lie along the patch, that is along c.
// Traffic: writes 4 bytes per element; reads x from memory about once, kh·kw/(sh·sw) times through the caches.
// Launch: grid [ceil(n·ho·wo·kh·kw·c/256), 1, 1], block 256, no shared memory.
// Numerics: exact.
// Limits: any geometry; cols of fewer than 2^31 elements.
// Registers: at most 32.
template <class T>
__global__ void __launch_bounds__(256) conv2d_im2col(const T* __restrict__ x, T* __restrict__ cols, Conv2dDims d) {
  const unsigned i = global_index();
  const int patch = patch_size(d);
  const int pixel = i / (unsigned)patch;
  if (pixel >= pixels_out(d)) return;
  cols[i] = from_float<T>(one_of(x, index_in_x(corner_of(pixel, d), i - pixel * patch, d)));
}

// gx = col2im(gcols): every input element adds up the places in gcols [n·ho·wo][kh·kw·c] that im2col copied it to.
// Threads: one per element of gx; neighbours lie along c. Gathering needs no atomics: scattering would.
// Traffic: reads the elements of gcols that are not padding once, writes 4 bytes per element of gx.
// Launch: grid [ceil(n·h·w·c/256), 1, 1], block 256, no shared memory.
// Numerics: f32, the kernel's rows in order, and along them the columns.
// Limits: any geometry; gcols of fewer than 2^31 elements.
// Registers: at most 48.
template <class T>
__global__ void __launch_bounds__(256) conv2d_col2im(const T* __restrict__ gcols, T* __restrict__ gx, Conv2dDims d) {
  const unsigned i = global_index();
  const int pixel = i / (unsigned)d.c, channel = i - pixel * d.c;
  if (pixel >= pixels_in(d)) return;
  const int nh = pixel / d.w, image = nh / d.h;
  const int h = nh - image * d.h + d.ph, w = pixel - nh * d.w + d.pw;
  const int patch = patch_size(d);
  float sum = 0.0f;
  for (int r = 0; r < d.kh && r <= h; ++r) {
    const int p = divide(h - r, d.sh_magic, d.sh_shift);
    if (p * d.sh != h - r || p >= d.ho) continue;
    for (int s = 0; s < d.kw && s <= w; ++s) {
      const int q = divide(w - s, d.sw_magic, d.sw_shift);
      if (q * d.sw != w - s || q >= d.wo) continue;
      const T* row = gcols + (size_t)((image * d.ho + p) * d.wo + q) * patch;  // [kh][kw][c]
      sum += to_float(row[(r * d.kw + s) * d.c + channel]);
    }
  }
  gx[i] = from_float<T>(d.accumulate ? to_float(gx[i]) + sum : sum);
}
