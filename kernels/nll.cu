// Negative log-likelihood: the mean over the rows of -x[n, label]. Where x is known to be a log-softmax, the gradient can be that of
// its logits.
// Instances: T = float, half, bf16
#include "softmax.cuh"

struct NllDims {
  int n, c;  // rows, classes
};

// loss = -(sum over n of x[n, label[n]]) / n, NaN where a label is no class; and the logits' gradient gx, as nll_bwd has it, where
// the loss's is known already, gloss.
// Threads: one block, which strides over the rows, and for gx over the elements.
// Traffic: one label and one element a row, each with the sector around it; for gx one read and one write an element.
// Launch: one block of 256; 64 bytes of shared memory.
// Numerics: summed in double: a batch may be a whole data set.
// Limits: n * c < 2^31.
// Registers: at most 40.
// Measured: H100, 2026-11-26, c4-conv-bn, [256, 10]: 1.5 µs, without its launch.
template <class T>
__global__ void __launch_bounds__(256)
    nll_fwd(const T* __restrict__ x, const int* __restrict__ labels, float* __restrict__ loss,
            OPTIONAL const float* __restrict__ gloss, OPTIONAL T* __restrict__ gx, NllDims d) {
  if (gx) {
    const float g = gloss[0] / (float)d.n;
#pragma unroll 4
    for (int i = threadIdx.x; i < d.n * d.c; i += 256)
      gx[i] = loss_gradient(x[i], i % d.c, labels[i / d.c], d.c, 1.0f, 0.0f, g);
  }
  double sum = 0.0;
#pragma unroll 4
  for (int i = threadIdx.x; i < d.n; i += 256) {
    int label = labels[i];
    sum += label >= 0 && label < d.c ? to_float(x[i * d.c + label]) : nanf("");
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) loss[0] = (float)(-sum / d.n);
}

// gx[n, k] = k == label[n] ? -gloss / n : 0, or of the logits, as logp is their log-softmax, gloss / n * (exp(logp[n, k]) - (k ==
// label[n] ? 1 : 0)); NaN where the label is no class.
// Threads: one for an element, neighbours along the row.
// Traffic: one write an element and one read of logp; labels from the cache.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: one rounding.
// Registers: at most 32.
template <class T>
__global__ void __launch_bounds__(256) nll_bwd(const float* __restrict__ gloss, const int* __restrict__ labels,
                                               OPTIONAL const T* __restrict__ logp, T* __restrict__ gx, NllDims d) {
  const float g = gloss[0] / (float)d.n;
  FOR_EACH(i, d.n * d.c) {
    const int label = labels[i / d.c], k = i % d.c;
    if (logp) gx[i] = loss_gradient(logp[i], k, label, d.c, 1.0f, 0.0f, g);
    else gx[i] = from_float<T>(k == label ? -g : label < 0 || label >= d.c ? nanf("") : 0.0f);
  }
}
