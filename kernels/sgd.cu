// SGD: one pass over the flat arena of parameters.
#include "four.cuh"

struct SgdDims {
  int fours;       // elements / 4
  float momentum;  // of the velocity
  float decay;     // L2 penalty
  int nesterov;    // whether the momentum is Nesterov's
};

// g' = g + decay * p; without v: p -= lr * g'; with it: v = momentum * v + g' and p -= lr * v, or for
// Nesterov p -= lr * (g' + momentum * v). lr is the step's.
// Threads: one for four elements, neighbours side by side.
// Traffic: p and g read, p written; v read and written where there is one.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: in float.
// Limits: a multiple of 4 elements, aligned to 16 bytes: what an arena is.
// Registers: at most 40.
// Measured: not yet.
extern "C" __global__ void __launch_bounds__(256)
sgd_step(const float* __restrict__ g, OPTIONAL float* __restrict__ v, float* __restrict__ p,
         const StepState* __restrict__ s, SgdDims d) {
  float lr = s->lr;
  FOR_EACH(i, d.fours) {
    Four<float> step = four(g + 4 * i), value = four(p + 4 * i);
#pragma unroll
    for (int k = 0; k < 4; ++k) step.v[k] += d.decay * value.v[k];
    if (v) {
      Four<float> velocity = four(v + 4 * i);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        velocity.v[k] = d.momentum * velocity.v[k] + step.v[k];
        step.v[k] = d.nesterov ? step.v[k] + d.momentum * velocity.v[k] : velocity.v[k];
      }
      four(v + 4 * i) = velocity;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) value.v[k] -= lr * step.v[k];
    four(p + 4 * i) = value;
  }
}
