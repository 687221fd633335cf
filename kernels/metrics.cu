// Metrics of a training step, kept on the device until the host asks.
// Instances: T = float, half, bf16
#include "reduce.cuh"

struct MetricsDims {
  int n;     // images
  int c;     // classes
  int ring;  // steps that are kept
};

// losses[step % ring] = loss, correct[step % ring] = images whose label has the largest score (the
// first of equals).
// Threads: one block; its threads stride over the images, each reads the row of one.
// Traffic: one read a score.
// Launch: one block of 256; 64 bytes of shared memory.
// Numerics: exact; the sum is of integers.
// Limits: n, c >= 1.
// Registers: at most 40.
template <class T>
__global__ void __launch_bounds__(256)
    metrics_record(const float* __restrict__ loss, const T* __restrict__ scores, const int* __restrict__ labels,
                   const Step* __restrict__ s, float* __restrict__ losses, int* __restrict__ correct, MetricsDims d) {
  int count = 0;
  for (int i = threadIdx.x; i < d.n; i += 256) {
    const T* row = scores + (size_t)i * d.c;  // [c]
    int best = 0;
    for (int k = 1; k < d.c; ++k)
      if (to_float(row[k]) > to_float(row[best])) best = k;
    count += best == labels[i];
  }
  double hits = block_sum(count);
  if (threadIdx.x == 0) {
    unsigned at = (unsigned)s->step % d.ring;
    losses[at] = loss[0];
    correct[at] = (int)hits;
  }
}
