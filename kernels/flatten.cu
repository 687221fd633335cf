// Flatten: NHWC to channel-major features, and back: a transpose of each image.
// Instances: T = float, half, bf16
#include "common.cuh"

struct FlattenDims {
  int rows, cols;  // of x; an image is h*w rows of c columns, its features c rows of h*w columns
};

// y[n, col, row] = x[n, row, col].
// Threads: 32 x 8 for a tile of 32 x 32; neighbours along the columns of x when reading and along
// those of y when writing, the exchange is in shared memory.
// Traffic: one read and one write an element.
// Launch: grid (images, ceil(rows / 32), ceil(cols / 32)) of (32, 8); 4224 bytes of shared memory.
// Numerics: exact.
// Limits: rows and cols < 2^21, an image < 2^31 elements.
// Registers: at most 32.
// Measured: H100, 2026-11-26, b1-bn-cnn at batch 16: 22 % of the memory's ceiling.
template <class T>
__global__ void __launch_bounds__(256) flatten_transpose(const T* __restrict__ x, T* __restrict__ y, FlattenDims d) {
  // One column more than needed, so that the 32 elements of a column lie in 32 different banks.
  SHARED(T, tile, [32][33]);
  const int lane = threadIdx.x, row0 = blockIdx.y * 32, col0 = blockIdx.z * 32;
  const size_t image = (size_t)blockIdx.x * d.rows * d.cols;
  x += image;  // [rows, cols]
  y += image;  // [cols, rows]
  if (col0 + lane < d.cols) {
    for (int k = threadIdx.y; k < 32 && row0 + k < d.rows; k += 8) tile[k][lane] = x[(row0 + k) * d.cols + col0 + lane];
  }
  __syncthreads();
  if (row0 + lane < d.rows) {
    for (int k = threadIdx.y; k < 32 && col0 + k < d.cols; k += 8) y[(col0 + k) * d.rows + row0 + lane] = tile[lane][k];
  }
}
