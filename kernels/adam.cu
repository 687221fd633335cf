// Adam and AdamW: one pass over the flat arena of parameters.
// Instances: T = float, half, bf16
#include "update.cuh"

struct AdamDims {
  int fours;      // elements / 4
  float b2, c2;   // decay of the mean square, and 1 - b2
  float log_b2;   // its logarithm
  float eps;      // added to the denominator
  int decoupled;  // whether the weight decay is AdamW's; Adam's is an L2 penalty
};

// The constants of a group.
struct GroupRate {
  float b1, c1;  // decay of the mean, and 1 - b1
  float rate;    // lr / (1 - b1^t)
  float decay;   // Adam's weight decay
  float keep;    // 1 - lr times AdamW's
};

// g' = g + decay * p; m = b1 * m + c1 * g'; v = b2 * v + c2 * g'^2;
// p = p * (1 - lr * shrink) - lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps), t counts the updates from 1, with b1 the
// momentum of the parameter's group; of decay and shrink the one is the group's weight decay, the other 0.
// Threads: one for four elements, neighbours side by side.
// Traffic: g read, p, m and v read and written; `copy`, what products take, written where there is one.
// Launch: grid up to 4096 blocks of 256, striding, or beside other work one for 1024 elements each; 192 bytes of shared memory.
// Numerics: in float; 1 - b^t is -expm1(t * log b), which keeps its digits where b^t is near 1.
// Limits: a multiple of 4 elements, aligned to 16 bytes: what an arena is; 2^24 steps.
// Registers: at most 48.
template <class T>
__global__ void __launch_bounds__(256)
    adam_step(const float* __restrict__ g, float* __restrict__ m, float* __restrict__ v, float* __restrict__ p,
              OPTIONAL T* __restrict__ copy, OPTIONAL const unsigned char* __restrict__ groups,
              OPTIONAL const float* __restrict__ norm, OPTIONAL const Scaling* __restrict__ scaling,
              const Step* __restrict__ s, AdamDims d) {
  if (is_skipped(scaling)) return;
  // Steps that were skipped moved nothing.
  const float t = (float)(s->step - s->held) + 1.0f - (scaling ? scaling->skipped : 0.0f);
  const float unbias = 1.0f / sqrtf(-expm1f(t * d.log_b2));
  const float clip = s->clip, unscale = gradient_scale(s, norm, scaling);
  // Once a block: the logarithm is in double, which many GPUs are slow at.
  SHARED(GroupRate, rates, [GROUPS]);
  if (threadIdx.x < GROUPS) {
    const Rate& r = s->rates[threadIdx.x];
    const float lr = (float)r.lr, decay = (float)r.decay;
    // Folded so that the loop has one square root and one division.
    const float rate = lr / -expm1f(t * (float)log(r.momentum));
    rates[threadIdx.x] = {(float)r.momentum, (float)(1.0 - r.momentum), rate, d.decoupled ? 0.0f : decay,
                          1.0f - lr * (d.decoupled ? decay : 0.0f)};
  }
  __syncthreads();
  FOR_EACH(i, d.fours) {
    const int group = group_of(groups, i);
    if (group == FROZEN) continue;
    const GroupRate r = rates[group];
    Four<float> grad = load<4>(g + 4 * i), mean = load<4>(m + 4 * i), square = load<4>(v + 4 * i),
                value = load<4>(p + 4 * i);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      float gk = used(grad.v[k], unscale, clip) + r.decay * value.v[k];
      mean.v[k] = r.b1 * mean.v[k] + r.c1 * gk;
      square.v[k] = d.b2 * square.v[k] + d.c2 * gk * gk;
      value.v[k] = value.v[k] * r.keep - r.rate * mean.v[k] / (sqrtf(square.v[k]) * unbias + d.eps);
    }
    store(m + 4 * i, mean);
    store(v + 4 * i, square);
    store_parameters(p, copy, i, value);
  }
}
