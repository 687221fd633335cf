// Batch normalisation with a max-pool: the sizes, and where windows lie.
#pragma once
#include "batch_norm2d.cuh"
#include "pool.cuh"

struct BatchNorm2dPoolDims {
  int h, w, c;                        // x [n, h, w, c]
  int ho, wo;                         // y [n, ho, wo, c]
  int down, across;                   // windows of an image: those of y; backward also those that h and w cut off
  int rows;                           // windows of all images
  int tile, chunk;                    // channels that a block treats, and windows
  unsigned by_across[2], by_down[2];  // divisors, as `divide` (common.cuh) takes them
  float inv_rows;                     // 1 / pixels of x
  int activation;                     // its number, or 0 for none: activation.cuh
};

// A window: where it lies in y, and its first pixel in x.
struct Place {
  int n, p, q, pixel;
  __device__ __forceinline__ Place(int i, const BatchNorm2dPoolDims& d) {
    const int np = divide(i, d.by_across);
    n = divide(np, d.by_down);
    q = i - np * d.across;
    p = np - n * d.down;
    pixel = (n * d.h + 2 * p) * d.w + 2 * q;
  }
};
