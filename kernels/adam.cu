// Adam and AdamW: one pass over the flat arena of parameters.
#include "four.cuh"

struct AdamDims {
  int fours;             // elements / 4
  float b1, c1;          // decay of the mean, and 1 - b1
  float b2, c2;          // decay of the mean square, and 1 - b2
  float log_b1, log_b2;  // their logarithms
  float eps;             // added to the denominator
  float decay;           // Adam's weight decay: an L2 penalty
  float shrink;          // AdamW's, decoupled
};

// g' = g + decay * p; m = b1 * m + c1 * g'; v = b2 * v + c2 * g'^2;
// p = p * (1 - lr * shrink) - lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps), t = step + 1.
// Threads: one for four elements, neighbours side by side.
// Traffic: g read, p, m and v read and written.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: in float; 1 - b^t is -expm1(t * log b), which keeps its digits where b^t is near 1.
// Limits: a multiple of 4 elements, aligned to 16 bytes: what an arena is; 2^24 steps.
// Registers: at most 48.
__global__ void __launch_bounds__(256)
    adam_step(const float* __restrict__ g, float* __restrict__ m, float* __restrict__ v, float* __restrict__ p,
              const StepState* __restrict__ s, AdamDims d) {
  float t = (float)s->step + 1.0f;
  // Folded so that the loop has one square root and one division.
  float rate = s->lr / -expm1f(t * d.log_b1), unbias = 1.0f / sqrtf(-expm1f(t * d.log_b2));
  float keep = 1.0f - s->lr * d.shrink;
  FOR_EACH(i, d.fours) {
    Four<float> grad = four(g + 4 * i), mean = four(m + 4 * i), square = four(v + 4 * i), value = four(p + 4 * i);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      float gk = grad.v[k] + d.decay * value.v[k];
      mean.v[k] = d.b1 * mean.v[k] + d.c1 * gk;
      square.v[k] = d.b2 * square.v[k] + d.c2 * gk * gk;
      value.v[k] = value.v[k] * keep - rate * mean.v[k] / (sqrtf(square.v[k]) * unbias + d.eps);
    }
    four(m + 4 * i) = mean;
    four(v + 4 * i) = square;
    four(p + 4 * i) = value;
  }
}
