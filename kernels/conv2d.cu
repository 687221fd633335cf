// Convolution: y[n][p][q][o] = b[o] + sum over r, s, c of w[o][r][s][c] · x[n][p·sh - ph + r][q·sw - pw + s][c].
//
// Implicit GEMM, the default: conv2d_fwd, conv2d_bwd_x and conv2d_bwd_w, each in three tile sizes. gemm.cuh has
// the product, conv2d.cuh the loaders that find a matrix in an image. Explicit GEMM, the one to study:
// conv2d_im2col, then linear_fwd or linear_bwd_w; linear_bwd_x, then conv2d_col2im. The bias gradient is
// linear_column_sums of gy, and partial results are added up by linear_split_sum. Source of the matrix form: Chellapilla, Puri, Simard, "High Performance Convolutional
// Neural Networks for Document Processing", 2006.
#include "conv2d.cuh"

// y = conv(x, w) + b: patches·wᵀ, in 128x128 tiles.
// Threads: 256; each 8x8 outputs in groups of 4x4, 16 rows and 32 columns apart.
// Traffic: reads (n·ho·wo)·o·(kh·kw·c)·8/128 bytes through the L2, 32 FLOP for each; writes 4 bytes per output.
// Launch: grid [ceil((n·ho·wo)/128)·ceil(o/128), 1, splits], block 256, 16.5 KiB of static shared memory.
// Numerics: f32 FMA along K in order, then the splits in order, then the bias.
// Limits: any geometry; `partial` [splits][n·ho·wo][o] instead of the output if splits > 1, and then linear_split_sum.
// Registers: at most 128.
// Measured: not yet.
extern "C" __global__ void __launch_bounds__(256, 2)
    conv2d_fwd_128(const T* __restrict__ x, const float* __restrict__ w, OPTIONAL const float* __restrict__ b,
                   T* __restrict__ y, OPTIONAL float* __restrict__ partial, Conv2dDims d) {
  const PatchesAlongK<T> a(x, d);                 // A = patches  [n·ho·wo][kh·kw·c]
  const AlongK<float> wt(w, d.o, patch_size(d));  // B = wᵀ: its columns are the rows of w [o][kh·kw·c]
  const Output<T> out = {y, b, partial, pixels_out(d), d.o, d.accumulate};
  gemm<Tile128>(a, wt, out, patch_size(d), d.split_steps);
}

// y = conv(x, w) + b: patches·wᵀ, in 64x64 tiles.
// Threads: 128; each 8x4 outputs in groups of 4x4, 16 rows and 32 columns apart.
// Traffic: reads (n·ho·wo)·o·(kh·kw·c)·8/64 bytes through the L2, 16 FLOP for each; writes 4 bytes per output.
// Launch: grid [ceil((n·ho·wo)/64)·ceil(o/64), 1, splits], block 128, 17 KiB of static shared memory.
// Numerics: f32 FMA along K in order, then the splits in order, then the bias.
// Limits: any geometry; `partial` [splits][n·ho·wo][o] instead of the output if splits > 1, and then linear_split_sum.
// Registers: at most 112.
// Measured: not yet.
extern "C" __global__ void __launch_bounds__(128)
    conv2d_fwd_64(const T* __restrict__ x, const float* __restrict__ w, OPTIONAL const float* __restrict__ b,
                  T* __restrict__ y, OPTIONAL float* __restrict__ partial, Conv2dDims d) {
  const PatchesAlongK<T> a(x, d);                 // A = patches  [n·ho·wo][kh·kw·c]
  const AlongK<float> wt(w, d.o, patch_size(d));  // B = wᵀ: its columns are the rows of w [o][kh·kw·c]
  const Output<T> out = {y, b, partial, pixels_out(d), d.o, d.accumulate};
  gemm<Tile64>(a, wt, out, patch_size(d), d.split_steps);
}

// y = conv(x, w) + b: patches·wᵀ, in 32x32 tiles.
// Threads: 64; each 4x4 outputs in groups of 4x4, 16 rows and 32 columns apart.
// Traffic: reads (n·ho·wo)·o·(kh·kw·c)·8/32 bytes through the L2, 8 FLOP for each; writes 4 bytes per output.
// Launch: grid [ceil((n·ho·wo)/32)·ceil(o/32), 1, splits], block 64, 9 KiB of static shared memory.
// Numerics: f32 FMA along K in order, then the splits in order, then the bias.
// Limits: any geometry; `partial` [splits][n·ho·wo][o] instead of the output if splits > 1, and then linear_split_sum.
// Registers: at most 112.
// Measured: not yet.
extern "C" __global__ void __launch_bounds__(64)
    conv2d_fwd_32(const T* __restrict__ x, const float* __restrict__ w, OPTIONAL const float* __restrict__ b,
                  T* __restrict__ y, OPTIONAL float* __restrict__ partial, Conv2dDims d) {
  const PatchesAlongK<T> a(x, d);                 // A = patches  [n·ho·wo][kh·kw·c]
  const AlongK<float> wt(w, d.o, patch_size(d));  // B = wᵀ: its columns are the rows of w [o][kh·kw·c]
  const Output<T> out = {y, b, partial, pixels_out(d), d.o, d.accumulate};
  gemm<Tile32>(a, wt, out, patch_size(d), d.split_steps);
}

// gx = taps·w': every input pixel gathers what the output pixels that saw it send back, in 128x128 tiles.
// Threads: 256; each 8x8 outputs in groups of 4x4, 16 rows and 32 columns apart.
// Traffic: reads (n·h·w)·c·(kh·kw·o)·8/128 bytes through the L2, 32 FLOP for each; writes 4 bytes per output.
// Launch: grid [ceil((n·h·w)/128)·ceil(c/128), 1, splits], block 256, 16.5 KiB of static shared memory.
// Numerics: f32 FMA along K in order, then the splits in order.
// Limits: any geometry; `partial` [splits][n·h·w][c] instead of the output if splits > 1, and then linear_split_sum.
// Registers: at most 128.
// Measured: not yet.
extern "C" __global__ void __launch_bounds__(256, 2)
    conv2d_bwd_x_128(const T* __restrict__ gy, const float* __restrict__ w, T* __restrict__ gx,
                     OPTIONAL float* __restrict__ partial, Conv2dDims d) {
  const TapsAlongK<T> a(gy, d);  // A = taps  [n·h·w][kh·kw·o]
  const WeightsByTap b(w, d);    // B = w'    [kh·kw·o][c]
  const Output<T> out = {gx, nullptr, partial, pixels_in(d), d.c, d.accumulate};
  gemm<Tile128>(a, b, out, d.kh * d.kw * d.o, d.split_steps);
}

// gx = taps·w': every input pixel gathers what the output pixels that saw it send back, in 64x64 tiles.
// Threads: 128; each 8x4 outputs in groups of 4x4, 16 rows and 32 columns apart.
// Traffic: reads (n·h·w)·c·(kh·kw·o)·8/64 bytes through the L2, 16 FLOP for each; writes 4 bytes per output.
// Launch: grid [ceil((n·h·w)/64)·ceil(c/64), 1, splits], block 128, 17 KiB of static shared memory.
// Numerics: f32 FMA along K in order, then the splits in order.
// Limits: any geometry; `partial` [splits][n·h·w][c] instead of the output if splits > 1, and then linear_split_sum.
// Registers: at most 112.
// Measured: not yet.
extern "C" __global__ void __launch_bounds__(128)
    conv2d_bwd_x_64(const T* __restrict__ gy, const float* __restrict__ w, T* __restrict__ gx,
                    OPTIONAL float* __restrict__ partial, Conv2dDims d) {
  const TapsAlongK<T> a(gy, d);  // A = taps  [n·h·w][kh·kw·o]
  const WeightsByTap b(w, d);    // B = w'    [kh·kw·o][c]
  const Output<T> out = {gx, nullptr, partial, pixels_in(d), d.c, d.accumulate};
  gemm<Tile64>(a, b, out, d.kh * d.kw * d.o, d.split_steps);
}

// gx = taps·w': every input pixel gathers what the output pixels that saw it send back, in 32x32 tiles.
// Threads: 64; each 4x4 outputs in groups of 4x4, 16 rows and 32 columns apart.
// Traffic: reads (n·h·w)·c·(kh·kw·o)·8/32 bytes through the L2, 8 FLOP for each; writes 4 bytes per output.
// Launch: grid [ceil((n·h·w)/32)·ceil(c/32), 1, splits], block 64, 9 KiB of static shared memory.
// Numerics: f32 FMA along K in order, then the splits in order.
// Limits: any geometry; `partial` [splits][n·h·w][c] instead of the output if splits > 1, and then linear_split_sum.
// Registers: at most 112.
// Measured: not yet.
extern "C" __global__ void __launch_bounds__(64)
    conv2d_bwd_x_32(const T* __restrict__ gy, const float* __restrict__ w, T* __restrict__ gx,
                    OPTIONAL float* __restrict__ partial, Conv2dDims d) {
  const TapsAlongK<T> a(gy, d);  // A = taps  [n·h·w][kh·kw·o]
  const WeightsByTap b(w, d);    // B = w'    [kh·kw·o][c]
  const Output<T> out = {gx, nullptr, partial, pixels_in(d), d.c, d.accumulate};
  gemm<Tile32>(a, b, out, d.kh * d.kw * d.o, d.split_steps);
}

// gw = gyᵀ·patches, in 128x128 tiles.
// Threads: 256; each 8x8 outputs in groups of 4x4, 16 rows and 32 columns apart.
// Traffic: reads o·(kh·kw·c)·(n·ho·wo)·8/128 bytes through the L2, 32 FLOP for each; writes 4 bytes per output.
// Launch: grid [ceil(o/128)·ceil((kh·kw·c)/128), 1, splits], block 256, 16.5 KiB of static shared memory.
// Numerics: f32 FMA along K in order, then the splits in order.
// Limits: any geometry; `partial` [splits][o][kh·kw·c] instead of the output if splits > 1, and then linear_split_sum.
// Registers: at most 128.
// Measured: not yet.
extern "C" __global__ void __launch_bounds__(256, 2)
    conv2d_bwd_w_128(const T* __restrict__ gy, const T* __restrict__ x, float* __restrict__ gw,
                     OPTIONAL float* __restrict__ partial, Conv2dDims d) {
  const AcrossK<T> a(gy, d.o, pixels_out(d));  // A = gyᵀ: its rows are the columns of gy [n·ho·wo][o]
  const PatchesAcrossK<T> b(x, d);             // B = patches  [n·ho·wo][kh·kw·c]
  const Output<float> out = {gw, nullptr, partial, d.o, patch_size(d), d.accumulate};
  gemm<Tile128>(a, b, out, pixels_out(d), d.split_steps);
}

// gw = gyᵀ·patches, in 64x64 tiles.
// Threads: 128; each 8x4 outputs in groups of 4x4, 16 rows and 32 columns apart.
// Traffic: reads o·(kh·kw·c)·(n·ho·wo)·8/64 bytes through the L2, 16 FLOP for each; writes 4 bytes per output.
// Launch: grid [ceil(o/64)·ceil((kh·kw·c)/64), 1, splits], block 128, 17 KiB of static shared memory.
// Numerics: f32 FMA along K in order, then the splits in order.
// Limits: any geometry; `partial` [splits][o][kh·kw·c] instead of the output if splits > 1, and then linear_split_sum.
// Registers: at most 112.
// Measured: not yet.
extern "C" __global__ void __launch_bounds__(128)
    conv2d_bwd_w_64(const T* __restrict__ gy, const T* __restrict__ x, float* __restrict__ gw,
                    OPTIONAL float* __restrict__ partial, Conv2dDims d) {
  const AcrossK<T> a(gy, d.o, pixels_out(d));  // A = gyᵀ: its rows are the columns of gy [n·ho·wo][o]
  const PatchesAcrossK<T> b(x, d);             // B = patches  [n·ho·wo][kh·kw·c]
  const Output<float> out = {gw, nullptr, partial, d.o, patch_size(d), d.accumulate};
  gemm<Tile64>(a, b, out, pixels_out(d), d.split_steps);
}

// gw = gyᵀ·patches, in 32x32 tiles.
// Threads: 64; each 4x4 outputs in groups of 4x4, 16 rows and 32 columns apart.
// Traffic: reads o·(kh·kw·c)·(n·ho·wo)·8/32 bytes through the L2, 8 FLOP for each; writes 4 bytes per output.
// Launch: grid [ceil(o/32)·ceil((kh·kw·c)/32), 1, splits], block 64, 9 KiB of static shared memory.
// Numerics: f32 FMA along K in order, then the splits in order.
// Limits: any geometry; `partial` [splits][o][kh·kw·c] instead of the output if splits > 1, and then linear_split_sum.
// Registers: at most 112.
// Measured: not yet.
extern "C" __global__ void __launch_bounds__(64)
    conv2d_bwd_w_32(const T* __restrict__ gy, const T* __restrict__ x, float* __restrict__ gw,
                    OPTIONAL float* __restrict__ partial, Conv2dDims d) {
  const AcrossK<T> a(gy, d.o, pixels_out(d));  // A = gyᵀ: its rows are the columns of gy [n·ho·wo][o]
  const PatchesAcrossK<T> b(x, d);             // B = patches  [n·ho·wo][kh·kw·c]
  const Output<float> out = {gw, nullptr, partial, d.o, patch_size(d), d.accumulate};
  gemm<Tile32>(a, b, out, pixels_out(d), d.split_steps);
}

// cols = im2col(x): the patches [n·ho·wo][kh·kw·c] laid out in memory, zeros in the padding.
// Threads: one per element of cols; neighbours lie along the patch, that is along c.
// Traffic: writes 4 bytes per element; reads x from memory about once, kh·kw/(sh·sw) times through the caches.
// Launch: grid [ceil(n·ho·wo·kh·kw·c/256), 1, 1], block 256, no shared memory.
// Numerics: exact.
// Limits: any geometry; cols of fewer than 2^31 elements.
// Registers: at most 32.
// Measured: not yet.
extern "C" __global__ void __launch_bounds__(256)
    conv2d_im2col(const T* __restrict__ x, T* __restrict__ cols, Conv2dDims d) {
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
// Measured: not yet.
extern "C" __global__ void __launch_bounds__(256)
    conv2d_col2im(const T* __restrict__ gcols, T* __restrict__ gx, Conv2dDims d) {
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
