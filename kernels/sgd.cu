// SGD: one pass over the flat arena of parameters.
// Instances: T = float, half, bf16
#include "update.cuh"

struct SgdDims {
  int fours;      // elements / 4
  int nesterov;   // whether the momentum is Nesterov's
  int decoupled;  // whether the weight decay shrinks the parameters, instead of being an L2 penalty
};

// With decoupled decay first p *= 1 - lr * decay, and decay is 0 in what follows.
// g' = g + decay * p; v = momentum * v + g'; p -= lr * v, or for Nesterov lr * (g' + momentum * v), with
// the step's rates of the parameter's group. Where v is null the momentum is 0.
// Threads: one for four elements, neighbours side by side.
// Traffic: p and g read, p written; v read and written where there is one; `copy`, what products take, written where there
//     is one.
// Launch: grid up to 4096 blocks of 256, striding, or beside other work one for 1024 elements each; no shared memory.
// Numerics: in float.
// Limits: a multiple of 4 elements, aligned to 16 bytes: what an arena is.
// Registers: at most 40.
// Measured: H100, 2026-11-26, b1-bn-cnn: 142 µs, 2.9 TB/s of what is read and written: the ceiling.
template <class T>
__global__ void __launch_bounds__(256)
    sgd_step(const float* __restrict__ g, OPTIONAL float* __restrict__ v, float* __restrict__ p,
             OPTIONAL T* __restrict__ copy, OPTIONAL const unsigned char* __restrict__ groups,
             OPTIONAL const float* __restrict__ norm, OPTIONAL const Scaling* __restrict__ scaling,
             const Step* __restrict__ s, SgdDims d) {
  if (is_skipped(scaling)) return;
  const float clip = s->clip, unscale = gradient_scale(s, norm, scaling);
  FOR_EACH(i, d.fours) {
    const int group = group_of(groups, i);
    if (group == FROZEN) continue;
    const Rate& r = s->rates[group];
    const float lr = (float)r.lr, momentum = (float)r.momentum;
    const float keep = d.decoupled ? 1.0f - lr * (float)r.decay : 1.0f, decay = d.decoupled ? 0.0f : (float)r.decay;
    Four<float> grad = load<4>(g + 4 * i), value = load<4>(p + 4 * i);
    // Without momentum the velocity is the gradient.
    Four<float> velocity = v ? load<4>(v + 4 * i) : Four<float>{};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      float gk = used(grad.v[k], unscale, clip) + decay * value.v[k];
      velocity.v[k] = momentum * velocity.v[k] + gk;
      if (d.decoupled) value.v[k] *= keep;
      value.v[k] -= lr * (d.nesterov ? gk + momentum * velocity.v[k] : velocity.v[k]);
    }
    if (v) store(v + 4 * i, velocity);
    store_parameters(p, copy, i, value);
  }
}
