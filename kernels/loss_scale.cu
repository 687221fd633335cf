// Dynamic loss scaling, for gradients of f16: the loss is multiplied by a number that keeps small gradients from becoming
// zero. Where a gradient is not finite the number was too large: the step is skipped, and the number halved; after many
// steps without one it is doubled. Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018, in the form of
// PyTorch's GradScaler. All of it stays on the device, so a recorded step can be replayed.
#include "update.cuh"

struct LossScaleDims {
  int n;         // gradients
  float share;   // what the loss counts for
  int patience;  // steps without an overflow after which the scale is doubled
};

// gradient[0] = share * scale: the gradient of the loss, from which the backward pass starts.
// Threads: one.
// Traffic: 8 bytes.
// Launch: one block of 32; no shared memory.
// Numerics: one product.
// Limits: none.
// Registers: at most 32.
__global__ void __launch_bounds__(32)
    loss_scale_begin(const Scaling* __restrict__ scaling, float* __restrict__ gradient, LossScaleDims d) {
  if (threadIdx.x == 0) gradient[0] = d.share * scaling->scale;
}

// Notes whether a gradient is infinite or not a number.
// Threads: one for four gradients, neighbours side by side.
// Traffic: one read a gradient.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: exact.
// Limits: a multiple of 4 gradients, aligned to 16 bytes: what an arena is.
// Registers: at most 32.
__global__ void __launch_bounds__(256)
    loss_scale_check(const float* __restrict__ g, Scaling* __restrict__ scaling, LossScaleDims d) {
  bool finite = true;
  FOR_EACH(i, d.n / 4) {
    const Four<float> v = load<4>(g + 4 * i);
#pragma unroll
    // Zero times what is not finite is not a number.
    for (int k = 0; k < 4; ++k) finite &= v.v[k] * 0.0f == 0.0f;
  }
  if (!finite) atomicExch(&scaling->overflowed, 1.0f);
}

// After the update: the scale for the next step.
// Threads: one.
// Traffic: 32 bytes.
// Launch: one block of 32; no shared memory.
// Numerics: powers of two, exact; from 1 to 2^24.
// Limits: none.
// Registers: at most 32.
__global__ void __launch_bounds__(32) loss_scale_adapt(Scaling* __restrict__ scaling, LossScaleDims d) {
  if (threadIdx.x != 0) return;
  Scaling s = *scaling;
  if (s.overflowed != 0.0f) {
    s.scale = fmaxf(0.5f * s.scale, 1.0f);
    s.skipped += 1.0f;
    s.good = 0.0f;
  } else if (++s.good >= (float)d.patience) {
    s.scale = fminf(2.0f * s.scale, 16777216.0f);
    s.good = 0.0f;
  }
  s.overflowed = 0.0f;
  *scaling = s;
}
