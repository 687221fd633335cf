// Batches: images of a resident data set, gathered, changed at random, enlarged and normalised.
// Instances: T = float, half, bf16
#include "common.cuh"
#include "philox.cuh"

struct BatchDims {
  int h, w, c;             // an image of the data set
  int out_h, out_w;        // an image of the batch
  int samples;             // 1: a pixel is the mean of four
  int angles;              // how many
  int pad;                 // pixels added on each side before the crop
  int border;              // what they are: see `place`
  int mean;                // what a rotated image leaves empty is 1: the mean colour, 0: black
  int cutout;              // side of the square that becomes the mean colour
  unsigned flip;           // probability of a mirrored image, in units of 2^-24
  unsigned vertical_flip;  // and of one upside down
  int alternate;           // 1: an image is mirrored in every other epoch, `flip` says how it begins
  // For division by c, out_h and out_w.
  unsigned by_c[2], by_out_h[2], by_out_w[2];
};

// What was drawn for an image: see src/data/augment.rs, whose random numbers these are.
struct Draw {
  int index;
  int mirrored, upside_down;
  int top, left;
  int cos, sin;  // in units of 2^-16
  int cut_row, cut_col;
};

#define STREAM_AUGMENT 0x20000000u
// Positions are in units of 2^-17 of a pixel, weights in units of 2^-11.
#define PIXEL 17
#define WEIGHT 11

// What lies outside an image, as in src/data/augment.rs.
#define BLACK 0
#define EDGE 1
#define REFLECT 2
#define SYMMETRIC 3

// Where a place along one side of an image of `size` lies in it; -1 is black.
__device__ __forceinline__ int place(int at, int size, int border) {
  if (at >= 0 && at < size) return at;
  if (border == BLACK) return -1;
  if (border == EDGE) return at < 0 ? 0 : size - 1;
  const int again = border == SYMMETRIC ? 1 : 0;  // the border pixels come twice
  return at < 0 ? -at - again : 2 * (size - 1) + again - at;
}

// Where the pixel at a place of the mirrored and cropped image begins; -1 is black.
__device__ __forceinline__ int source(const Draw& draw, const BatchDims& d, int row, int col) {
  row = place((draw.upside_down ? d.h - 1 - row : row) + draw.top, d.h, d.border);
  col = place((draw.mirrored ? d.w - 1 - col : col) + draw.left, d.w, d.border);
  return row < 0 || col < 0 ? -1 : (row * d.w + col) * d.c;
}

// A position along one side of an image: the two pixels around it, -1 outside of it, and their weights.
struct Side {
  int places[2], weights[2];
};

// The position `at` along a side of `to` pixels that show `from`.
__device__ __forceinline__ Side side(int at, int to, const unsigned (&by_to)[2], int from) {
  const int half = 1 << (PIXEL - 1);
  Side s;
  if (to == from) {
    int first = at >> PIXEL;
    s.places[0] = first >= 0 && first < to ? first : -1;
    s.places[1] = first + 1 >= 0 && first + 1 < to ? first + 1 : -1;
  } else if (at + half >= 0 && at + half < to << PIXEL) {
    // (at + half) * from / to, whose product has more than 31 bits.
    const int whole = divide(at + half, by_to), rest = at + half - whole * to;
    at = whole * from + divide(rest * from, by_to) - half;
    if (at < 0) at = 0;
    s.places[0] = at >> PIXEL;
    s.places[1] = s.places[0] + 1 < from ? s.places[0] + 1 : from - 1;
  } else {
    s.places[0] = s.places[1] = -1;
  }
  s.weights[1] = (at & ((1 << PIXEL) - 1)) >> (PIXEL - WEIGHT);
  s.weights[0] = (1 << WEIGHT) - s.weights[1];
  return s;
}

// x[i] = normalised, randomly changed image order[batch_offset + first_image + i]; y[i] = its label.
// Threads: the blocks of a row of the grid, in y, share an image; their threads stride over the values, or where pixels are means
//     over the pixels. Each block draws for itself.
// Traffic: one byte read and one value written a value, four bytes where pixels are means; the tables stay in the cache.
// Launch: grid (n, pieces) of 256, with about four values or pixels a thread, or fewer where images are few; static shared memory
//     48 bytes.
// Numerics: exact: the numbers come from the host's table, or are sums of integers below 2^30 that are scaled as on the CPU.
// Limits: pad < min(h, w); out_h, out_w <= 4096; fewer than 2^31 values in a batch.
// Registers: at most 64.
template <class T>
__global__ void __launch_bounds__(256)
    batch_make(const unsigned char* __restrict__ images, const int* __restrict__ labels, const int* __restrict__ order,
               const float* __restrict__ table, const float* __restrict__ scale, const int* __restrict__ turns,
               const Step* __restrict__ s, T* __restrict__ x, int* __restrict__ y, BatchDims d) {
  SHARED(Draw, draws, [1]);
  if (threadIdx.x == 0) {
    unsigned position = s->batch_offset + s->first_image + blockIdx.x;
    Step epoch = *s;
    epoch.step = 0;  // an image's changes depend on its place in the epoch alone
    unsigned words[4], words_of_run[4], more[4] = {0, 0, 0, 0};
    philox(position, STREAM_AUGMENT, &epoch, words);
    if (d.angles > 1 || d.cutout > 0) philox(position, STREAM_AUGMENT + 1, &epoch, more);
    unsigned places = 2 * d.pad + 1;
    Draw draw;
    draw.index = order[position];
    draw.mirrored = words[0] >> 8 < d.flip;
    if (d.alternate) {
      // Once and for all, by the image and not its place.
      Step run = epoch;
      run.epoch = 0;
      philox(draw.index, STREAM_AUGMENT + 2, &run, words_of_run);
      draw.mirrored = (words_of_run[0] >> 8 < d.flip) != (s->epoch % 2 == 1);
    }
    draw.upside_down = words[3] >> 8 < d.vertical_flip;
    draw.top = (int)__umulhi(words[1], places) - d.pad;
    draw.left = (int)__umulhi(words[2], places) - d.pad;
    unsigned angle = __umulhi(more[0], (unsigned)d.angles);
    draw.cos = turns[2 * angle];
    draw.sin = turns[2 * angle + 1];
    draw.cut_row = (int)__umulhi(more[1], (unsigned)d.out_h) - d.cutout / 2;
    draw.cut_col = (int)__umulhi(more[2], (unsigned)d.out_w) - d.cutout / 2;
    draws[0] = draw;
    if (blockIdx.y == 0) y[blockIdx.x] = labels[draw.index];
  }
  __syncthreads();
  const Draw draw = draws[0];
  const unsigned char* image = images + (size_t)draw.index * (d.h * d.w * d.c);  // [h, w, c]
  const int pixels = d.out_h * d.out_w;
  x += (size_t)blockIdx.x * (pixels * d.c);  // [out_h, out_w, c]
  const int first = blockIdx.y * blockDim.x + threadIdx.x, step = gridDim.y * blockDim.x;
  if (!d.samples) {
#pragma unroll 4
    for (int i = first; i < pixels * d.c; i += step) {
      const int pixel = divide(i, d.by_c), channel = i - pixel * d.c;
      const int row = divide(pixel, d.by_out_w), col = pixel - row * d.out_w;
      bool cut =
          (unsigned)(row - draw.cut_row) < (unsigned)d.cutout && (unsigned)(col - draw.cut_col) < (unsigned)d.cutout;
      int at = source(draw, d, row, col);
      x[i] = from_float<T>(cut ? 0.f : table[channel * 256 + (at < 0 ? 0 : image[at + channel])]);
    }
    return;
  }
  for (int i = first; i < pixels; i += step) {
    const int row = divide(i, d.by_out_w), col = i - row * d.out_w;
    // From the centre, in units of half a pixel.
    int v = 2 * row + 1 - d.out_h, u = 2 * col + 1 - d.out_w;
    Side ys = side(draw.sin * u + draw.cos * v + ((d.out_h - 1) << (PIXEL - 1)), d.out_h, d.by_out_h, d.h);
    Side xs = side(draw.cos * u - draw.sin * v + ((d.out_w - 1) << (PIXEL - 1)), d.out_w, d.by_out_w, d.w);
    int at[4], weights[4], inside = d.mean ? 0 : 1 << 2 * WEIGHT;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      int r = ys.places[k / 2], c = xs.places[k % 2];
      weights[k] = ys.weights[k / 2] * xs.weights[k % 2];
      at[k] = r < 0 || c < 0 ? -1 : source(draw, d, r, c);
      if (d.mean && r >= 0 && c >= 0) inside += weights[k];
    }
    bool cut =
        (unsigned)(row - draw.cut_row) < (unsigned)d.cutout && (unsigned)(col - draw.cut_col) < (unsigned)d.cutout;
    float share = inside * (1.f / (1 << 2 * WEIGHT));
    for (int channel = 0; channel < d.c; ++channel) {
      int sum = 0;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (at[k] >= 0) sum += weights[k] * image[at[k] + channel];
      }
      // Three roundings, as the CPU has them, and no multiply-add.
      float offset = __fmul_rn(scale[2 * channel + 1], share);
      float value = __fadd_rn(__fmul_rn((float)sum, scale[2 * channel]), offset);
      x[i * d.c + channel] = from_float<T>(cut ? 0.f : value);
    }
  }
}

struct ViewDims {
  int n;         // elements of all images
  int h, w, c;   // an image
  int mirrored;  // 1: left to right
  int shift;     // row and column of the image that the view's first pixel shows
};

// y = x [images][h][w][c], moved and then mirrored: beyond the border the image is mirrored.
// Threads: one a value, neighbours side by side.
// Traffic: one read and one write a value.
// Launch: grid up to 4096 blocks of 256, striding; no shared memory.
// Numerics: exact.
// Limits: |shift| < min(h, w); fewer than 2^31 values.
template <class T>
__global__ void __launch_bounds__(256) batch_view(const T* __restrict__ x, T* __restrict__ y, ViewDims d) {
  FOR_EACH(i, d.n) {
    const int channel = i % d.c, pixel = i / d.c, col = pixel % d.w, row = pixel / d.w % d.h;
    const int from = place(row + d.shift, d.h, REFLECT);
    const int at = place((d.mirrored ? d.w - 1 - col : col) + d.shift, d.w, REFLECT);
    y[i] = x[((size_t)(pixel / d.w / d.h * d.h + from) * d.w + at) * d.c + channel];
  }
}
