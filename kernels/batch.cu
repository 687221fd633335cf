// Batches: images of a resident data set, gathered, mirrored, cropped and normalised.
// Instances: T = float, half, bf16
#include "common.cuh"
#include "philox.cuh"

struct BatchDims {
  int h, w, c;    // an image
  int pad;        // pixels added on each side before the crop
  int reflect;    // 1: they mirror the image, 0: they are black
  unsigned flip;  // probability of a mirrored image, in units of 2^-24
};

// Source: src/data/batch.rs, whose random numbers these are.
#define STREAM_AUGMENT 0x20000000u

// Where a place along one side of an image of `size` lies in it; -1 is black.
__device__ __forceinline__ int place(int at, int size, int reflect) {
  if (at >= 0 && at < size) return at;
  if (!reflect) return -1;
  return at < 0 ? -at : 2 * (size - 1) - at;
}

// x[i] = normalised, randomly changed image order[batch_offset + first_image + i]; y[i] = its label.
// Threads: a block an image; its threads stride over the values, neighbours side by side.
// Traffic: one byte read and one value written a value; the table stays in the cache.
// Launch: grid n blocks of 256; static shared memory 16 bytes.
// Numerics: exact: the numbers come from the host's table.
// Limits: pad < min(h, w); fewer than 2^31 values in a batch.
// Registers: at most 40.
template <class T>
__global__ void __launch_bounds__(256)
    batch_make(const unsigned char* __restrict__ images, const unsigned char* __restrict__ labels,
               const int* __restrict__ order, const float* __restrict__ table, const Step* __restrict__ s,
               T* __restrict__ x, int* __restrict__ y, BatchDims d) {
  SHARED(int, draw, [4]);  // index, mirrored, top, left
  if (threadIdx.x == 0) {
    unsigned position = s->batch_offset + s->first_image + blockIdx.x;
    Step epoch = *s;
    epoch.step = 0;  // an image's changes depend on its place in the epoch alone
    unsigned words[4];
    philox(position, STREAM_AUGMENT, &epoch, words);
    unsigned places = 2 * d.pad + 1;
    draw[0] = order[position];
    draw[1] = words[0] >> 8 < d.flip;
    draw[2] = (int)__umulhi(words[1], places) - d.pad;
    draw[3] = (int)__umulhi(words[2], places) - d.pad;
    y[blockIdx.x] = labels[draw[0]];
  }
  __syncthreads();
  const int size = d.h * d.w * d.c;
  const unsigned char* image = images + (size_t)draw[0] * size;  // [h, w, c]
  x += (size_t)blockIdx.x * size;                                // [h, w, c]
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
    int channel = i % d.c, col = i / d.c % d.w, row = i / d.c / d.w;
    row = place(row + draw[2], d.h, d.reflect);
    col = place((draw[1] ? d.w - 1 - col : col) + draw[3], d.w, d.reflect);
    int byte = row < 0 || col < 0 ? 0 : image[(row * d.w + col) * d.c + channel];
    x[i] = from_float<T>(table[channel * 256 + byte]);
  }
}
