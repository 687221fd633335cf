// What every kernel file includes first: types, shared memory, a few helpers.
//
// On a GPU these files are compiled by NVRTC, which has no CUDA headers: only what is built into the
// compiler may be used. On the emulated device the same files are C++, and cuda.h supplies CUDA's words.
#pragma once

#ifdef TILEWORK_EMULATED
#include "cuda.h"
#define SHARED(type, name, dims) EMU_SHARED(type, name, dims)
#define DYN_SMEM(type, name) EMU_DYN_SMEM(type, name)
#else

// Static shared memory, 16-byte aligned: SHARED(float, tile, [16][132]) declares `float tile[16][132]`.
#define SHARED(type, name, dims) __shared__ __align__(16) type name dims

// Dynamic shared memory, as large as the launch says: DYN_SMEM(float, part) declares `float* part`.
#define DYN_SMEM(type, name)                                     \
  extern __shared__ __align__(128) unsigned char dynamic_smem[]; \
  type* name = reinterpret_cast<type*>(dynamic_smem)

// The 32-bit number that instructions address shared memory by.
__device__ __forceinline__ unsigned smem_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

#endif

// Marks a pointer parameter that may be null. For the reader and for the launcher; nothing to the compiler.
#define OPTIONAL

// What the tensor memory accelerator knows of a tensor: a parameter `const __grid_constant__ CUtensorMap name`.
struct __align__(64) CUtensorMap {
  unsigned long long opaque[16];
};

// Everything that changes from step to step. It lies in device memory, so that a captured graph sees the
// new values: a kernel never takes them as arguments.
// src/step.rs says what the fields mean.
struct Rate {
  double lr, momentum, decay;
};
constexpr int GROUPS = 8;
struct Step {
  unsigned long long seed, step, held;
  double ema;
  unsigned epoch, batch_offset, first_image;
  float clip, clip_norm, loss_scale;
  Rate rates[GROUPS];
};

// By what the loss is multiplied (loss_scale.cu). It lies in device memory, and the host reads it when it saves.
struct Scaling {
  float scale;       // the factor, a power of two
  float good;        // steps since it changed
  float skipped;     // steps that moved nothing, all in all
  float overflowed;  // 1: a gradient of this step is not finite
};

// A template parameter T is the type that activations are stored in. Arithmetic is in float: values are read with
// to_float(x[i]) and written with y[i] = from_float<T>(v).
#include "half.cuh"

// This thread's index in a one-dimensional grid.
__device__ __forceinline__ unsigned global_index() { return blockIdx.x * blockDim.x + threadIdx.x; }

// n / divisor for 0 <= n < 2^31 without a division, which would cost some twenty instructions. The host
// computes, for 1 <= divisor < 2^31:
//     shift = ceil(log2(divisor)),  magic = floor(2^32 * (2^shift - divisor) / divisor) + 1
// and passes {magic, shift} (Rust: `magic` in src/device/cuda/launch.rs). Source: Granlund, Montgomery, "Division by Invariant
// Integers using Multiplication", 1994, figure 4.1; with n < 2^31 the sum cannot overflow.
__device__ __forceinline__ int divide(int n, const unsigned (&by)[2]) {
  return (int)((__umulhi((unsigned)n, by[0]) + (unsigned)n) >> by[1]);
}

// The loop over elements of a kernel that treats each alike: neighbouring threads take neighbouring
// elements, and the grid strides over what one wave of blocks does not cover.
#define FOR_EACH(i, n) for (int i = global_index(); i < (n); i += gridDim.x * blockDim.x)
