// Convolution: y[n][p][q][o] = b[o] + sum over r, s, c of w[o][r][s][c] · x[n][p·sh - ph + r][q·sw - pw + s][c].
//
// Implicit GEMM, the default: conv2d_fwd, conv2d_bwd_x and conv2d_bwd_w. product.cuh has the product, conv2d.cuh the
// sources that find a matrix in an image. Explicit GEMM, the one to study: conv2d_im2col, then linear_fwd or
// linear_bwd_w; linear_bwd_x, then conv2d_col2im. The bias gradient is bias_sums of gy, or bias_relu_sums (or zero before a batch-norm), and partial results are
// added up by linear_split_sum. Source of the matrix form: Chellapilla, Puri, Simard, "High Performance Convolutional
// Neural Networks for Document Processing", 2006.
// Instances: T = float; Tile = Simt128, Simt64, Simt32 | T = half, bf16; Tile = Mma128, Mma64, Mma32 | sm_90a: T = half, bf16; Tile = Wgmma128, Wgmma64
#include "conv2d.cuh"
#include "conv2d_tma.cuh"

// y = conv(x, w) + b, and its ReLU: patches·wᵀ, m = n·ho·wo, n = o, k = kh·kw·c.
// Threads: as linear_fwd (linear.cu).
// Traffic: as linear_fwd; x is read through the L1 and L2 once for each place of the window.
// Launch: as linear_fwd.
// Numerics: f32 FMA along K in order, then the splits as linear_split_sum adds them, then the bias.
// Limits: any geometry; `partial` [splits][n·ho·wo][o] instead of the output if splits > 1, and then linear_split_sum.
// Registers: at most 128 (Simt128), 128 (Mma128), 128 (Mma64), 128 (Wgmma128), 80 (Wgmma64), 112.
// Measured: H100, 2026-11-26, Simt128, e1-resnet9-onecycle at batch 64: 64 to 128 channels at 32x32 321 µs, two blocks on a
//     multiprocessor (SM 72 %, of each instruction 4 in 5 are multiply-adds); 128 to 128 at 16x16 186 µs, one (61 %).
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    conv2d_fwd(const T* __restrict__ x, const T* __restrict__ w, OPTIONAL const float* __restrict__ b,
               T* __restrict__ y, OPTIONAL float* __restrict__ partial, Conv2dDims d) {
  const PatchesAlongK<T, Tile::CHUNK> a(x, d);             // A = patches  [n·ho·wo][kh·kw·c]
  const AlongK<T, Tile::CHUNK> wt(w, d.o, patch_size(d));  // B = wᵀ: its columns are the rows of w [o][kh·kw·c]
  product<Tile>(a, wt, {pixels_out(d), d.o, d.to, d.split_steps, partial, 0, d.from},
                Epilogue<T>{y, b, d.accumulate, d.relu});
}

// gx = taps·w': every input pixel gathers what the output pixels that saw it send back; m = n·h·w, n = c, k = kh·kw·o. With a
// stride each phase is such a product of its own, of fewer pixels and fewer taps (conv2d.cuh). Or gx += that, and what ReLU passes
// on of it, as in linear_bwd_x.
// Launch: as above, with sh·sw phases as the grid's y, and tiles for the largest; splits are of the phase with the most taps.
// Limits: as above, windows of 15x15 and 65535 phases at most: more take linear_bwd_x and conv2d_col2im.
// Measured: as above, 512 from 256 channels at 8x8, one block on a multiprocessor, 415 µs (SM 57 %).
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    conv2d_bwd_x(const T* __restrict__ gy, const T* __restrict__ w, OPTIONAL const T* __restrict__ masks,
                 T* __restrict__ gx, OPTIONAL float* __restrict__ partial, Conv2dDims d) {
  const Phase phase(phase_of_block(d), d);
  if (d.keeps && !partial && phase.size(d) == 0) return;
  const TapsAlongK<T, Tile::CHUNK> a(gy, d, phase);   // A = taps  [n·h·w][kh·kw·o], of the phase
  const WeightsByTap<T, Tile::CHUNK> b(w, d, phase);  // B = w'    [kh·kw·o][c]
  const int to = d.sh * d.sw > 1 ? phase.size(d) : d.to;
  product<Tile>(a, b, {phase.pixels(d), d.c, to, d.split_steps, partial, pixels_in(d), d.from},
                PhaseEpilogue<T>{{gx, nullptr, d.accumulate, 0, takes_masks<Tile> ? masks : nullptr}, d, phase.phase});
}

// gw = gyᵀ·patches, m = o, n = kh·kw·c, k = n·ho·wo.
// Measured: as above, 512 from 512 channels at 4x4, four splits, 179 µs (SM 65 %).
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    conv2d_bwd_w(const T* __restrict__ gy, const T* __restrict__ x, float* __restrict__ gw,
                 OPTIONAL float* __restrict__ partial, Conv2dDims d) {
  const AcrossK<T, Tile::CHUNK> a(gy, d.o, pixels_out(d));  // A = gyᵀ: its rows are the columns of gy [n·ho·wo][o]
  const PatchesAcrossK<T, Tile::CHUNK> b(x, d);             // B = patches  [n·ho·wo][kh·kw·c]
  product<Tile>(a, b, {d.o, patch_size(d), pixels_out(d), d.split_steps, partial},
                Epilogue<float>{gw, nullptr, d.accumulate, 0});
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
  cols[i] = from_float<T>(one_of(x, index_in_x(corner_of(pixel, d), tap_of(i - pixel * patch, d.c, d.by_c, d), d)));
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
    const int p = divide(h - r, d.by_sh);
    if (p * d.sh != h - r || p >= d.ho) continue;
    for (int s = 0; s < d.kw && s <= w; ++s) {
      const int q = divide(w - s, d.by_sw);
      if (q * d.sw != w - s || q >= d.wo) continue;
      const T* row = gcols + (size_t)((image * d.ho + p) * d.wo + q) * patch;  // [kh][kw][c]
      sum += to_float(row[(r * d.kw + s) * d.c + channel]);
    }
  }
  gx[i] = from_float<T>(d.accumulate ? to_float(gx[i]) + sum : sum);
}

// conv2d_fwd on Hopper, with operands that TMA brings: `x` is a map of its patches, Tile::M pixels of 64 channels a box, `w` one
// of the weights [o][kh·kw][c], Tile::N rows of 64 channels a box (Rust: src/ops/conv2d/maps.rs).
// Threads: two warpgroups multiply; the first thread also asks for the boxes (tma_product.cuh).
// Launch: grid [blocks that walk over the tiles, 1, splits], block Tile::THREADS, Tile::SHARED bytes of dynamic shared memory.
// Limits: c a multiple of 64, so that a step is of one tap; what maps allow.
// Registers: at most 224 (Tma256), 128.
// Measured: H100, 2026-11-26, Tma256: 256 to 256 channels at 7x7, 2000 images in f16 176 µs, 656 TFLOP/s; Tma64: 64 to 64 at
//     15x15 98 µs, 340 TFLOP/s, as a step's loads take longer than its products.
// Instances: sm_90a: T = half, bf16; Tile = Tma256, Tma64
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    conv2d_fwd_tma(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                   OPTIONAL const float* __restrict__ b, T* __restrict__ y, OPTIONAL float* __restrict__ partial,
                   Conv2dDims d) {
  PatchBoxesAlongK<T> a(&x, d);
  WeightBoxesAlongK<T> wt(&w, d);
  product_tma<Tile>(a, wt, {pixels_out(d), d.o, d.to, d.split_steps, partial, 0, d.from},
                    Epilogue<T>{y, b, d.accumulate, d.relu});
}

// conv2d_bwd_x likewise, for strides of 1: `gy` is a map of taps, that is of the patches that a window turned round sees, and
// `w` one of the weights, 64 rows of 64 channels a box. (With a stride of 2, phase after phase, it was not faster.)
// Limits: o a multiple of 64; what maps allow.
// Registers: at most 255 (Tma256), 128.
// Measured: as above, 165 µs, 700 TFLOP/s, and 95 µs.
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    conv2d_bwd_x_tma(const __grid_constant__ CUtensorMap gy, const __grid_constant__ CUtensorMap w,
                     OPTIONAL const T* __restrict__ masks, T* __restrict__ gx, OPTIONAL float* __restrict__ partial,
                     Conv2dDims d) {
  TapBoxesAlongK<T> a(&gy, d);
  WeightBoxesByTap<T, Tile::N> b(&w, d);
  product_tma<Tile>(a, b, {pixels_in(d), d.c, d.to, d.split_steps, partial, 0, d.from},
                    Epilogue<T>{gx, nullptr, d.accumulate, 0, masks});
}

// conv2d_bwd_w likewise: `gy` is a map of the matrix [n·ho·wo][o], 64 rows of 64 a box, `x` one of patches, 64 pixels of 64
// channels a box. With few output channels most of a tile's rows would be empty: then patchesᵀ·gy, whose rows are the
// elements of a patch, stored as its transpose.
// Limits: c a multiple of 64; what maps allow.
// Measured: as above, 159 µs, 729 TFLOP/s; Tma64, half of whose rows are empty, 64 to 64 channels 250 µs.
// Instances: sm_90a: T = half, bf16; Tile = Tma256, Tma64, Tma64Transposed
template <class T, class Tile>
__global__ void __launch_bounds__(Tile::THREADS, Tile::BLOCKS)
    conv2d_bwd_w_tma(const __grid_constant__ CUtensorMap gy, const __grid_constant__ CUtensorMap x,
                     float* __restrict__ gw, OPTIONAL float* __restrict__ partial, Conv2dDims d) {
  if constexpr (Tile::TRANSPOSED) {
    PatchBoxesAcrossK<T, Tile::M> a(&x, d);
    RowBoxesAcrossK<T, Tile::N> b(&gy);
    product_tma<Tile>(a, b, {patch_size(d), d.o, pixels_out(d), d.split_steps, partial},
                      Transposed<float>{gw, patch_size(d), d.accumulate});
  } else {
    RowBoxesAcrossK<T, Tile::M> a(&gy);
    PatchBoxesAcrossK<T, Tile::N> b(&x, d);
    product_tma<Tile>(a, b, {d.o, patch_size(d), pixels_out(d), d.split_steps, partial},
                      Epilogue<float>{gw, nullptr, d.accumulate, 0});
  }
}
