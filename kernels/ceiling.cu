// What a device can do at most: the ceilings that kernels are held against.
#include "tensor_core.cuh"

struct CeilingDims {
  int n;       // groups of four numbers to copy
  int rounds;  // rounds of multiply-adds, or of products of matrices
};

// y = x, in groups of four: the memory's ceiling.
// Threads: one a group, neighbours side by side.
// Traffic: 16 bytes read and 16 written a group.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: exact.
// Limits: x and y aligned to 16 bytes.
// Registers: at most 32.
// Measured: H100, 2026-11-26: 2,850 GB/s.
__global__ void __launch_bounds__(256) ceiling_copy(const float* __restrict__ x, float* __restrict__ y, CeilingDims d) {
  FOR_EACH(i, d.n) store(y + 4 * (size_t)i, load<4>(x + 4 * (size_t)i));
}

// Chains of multiply-adds in registers: the ceiling of f32 arithmetic. y gets their sums, so that
// they are not optimised away.
// Threads: each 8 independent chains, enough to hide the latency of one multiply-add.
// Traffic: one write a thread.
// Launch: any grid of blocks of 256; no shared memory.
// Numerics: of no interest.
// Limits: y has an element a thread.
// Measured: H100, 2026-11-26: 56.0 TFLOP/s.
__global__ void __launch_bounds__(256) ceiling_multiply_add(float* __restrict__ y, CeilingDims d) {
  float chain[8];
#pragma unroll
  for (int k = 0; k < 8; ++k) chain[k] = 0.001f * (threadIdx.x + k);
  for (int round = 0; round < d.rounds; ++round)
#pragma unroll
    for (int k = 0; k < 8; ++k) chain[k] = fmaf(chain[k], 0.999f, 0.001f);
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < 8; ++k) sum += chain[k];
  y[global_index()] = sum;
}

// Chains of mma.sync in registers: the ceiling of products of f16 on tensor cores. (On sm_90 wgmma is faster.) y gets the
// sums, so that they are not optimised away.
// Threads: each warp 8 independent chains, enough to hide the latency of one product.
// Traffic: one write a thread.
// Launch: any grid of blocks of 256; no shared memory.
// Numerics: of no interest.
// Limits: y has an element a thread.
// Registers: at most 64.
__global__ void __launch_bounds__(256) ceiling_mma(float* __restrict__ y, CeilingDims d) {
  float chain[8][4] = {};
  // Small numbers of f16: 2^-14 and less.
  const unsigned a[4] = {threadIdx.x, threadIdx.x + 1, threadIdx.x + 2, threadIdx.x + 3};
  for (int round = 0; round < d.rounds; ++round)
#pragma unroll
    for (int k = 0; k < 8; ++k) multiply(Operand<half>{}, chain[k], a, threadIdx.x, threadIdx.x + 1);
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < 8; ++k) sum += chain[k][0] + chain[k][1] + chain[k][2] + chain[k][3];
  y[global_index()] = sum;
}
