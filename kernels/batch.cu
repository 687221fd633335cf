// Batches: images of a resident data set, gathered, changed at random, enlarged and normalised.
// Instances: T = float, half, bf16
#include "common.cuh"
#include "philox.cuh"
#include "reduce.cuh"

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
  // For division by out_h and out_w.
  unsigned by_out_h[2], by_out_w[2];
};

// What was drawn for an image: see src/data/augment.rs, whose random numbers these are.
struct Draw {
  int index;
  // The pixel at place p of a side of the mirrored and cropped image is from + step * p of the image: rows, columns.
  int row_from, row_step, col_from, col_step;
  int cos, sin;  // in units of 2^-16
  int cut_row, cut_col;
};

#define STREAM_AUGMENT 0x20000000u

// What is drawn for the image at a place of the epoch's order: by a warp, of whose first three lanes each draws from a stream of
// its own. The third is that of the image, whatever its place, and of the run.
__device__ __forceinline__ Draw draw_for(unsigned position, const int* order, const int* turns, const Step* s,
                                         const BatchDims& d) {
  const int lane = threadIdx.x % 32, stream = min(lane, 2), index = order[position];
  Step at = *s;
  at.step = 0;  // an image's changes depend on its place in the epoch alone
  if (stream == 2) at.epoch = 0;
  unsigned words[4];
  philox(stream == 2 ? index : position, STREAM_AUGMENT + stream, &at, words);
  const auto word = [&](int i, int stream) { return __shfl_sync(ALL_LANES, words[i], stream); };
  const bool flips = word(0, d.alternate ? 2 : 0) >> 8 < d.flip, turned = word(3, 0) >> 8 < d.vertical_flip;
  const bool mirrored = flips != (d.alternate && s->epoch % 2 == 1);
  const unsigned places = 2 * d.pad + 1;
  const int top = (int)__umulhi(word(1, 0), places) - d.pad, left = (int)__umulhi(word(2, 0), places) - d.pad;
  const unsigned angle = __umulhi(word(0, 1), (unsigned)d.angles);
  Draw draw;
  draw.index = index;
  draw.row_from = turned ? top + d.h - 1 : top, draw.row_step = turned ? -1 : 1;
  draw.col_from = mirrored ? left + d.w - 1 : left, draw.col_step = mirrored ? -1 : 1;
  draw.cos = turns[2 * angle], draw.sin = turns[2 * angle + 1];
  draw.cut_row = (int)__umulhi(word(1, 1), (unsigned)d.out_h) - d.cutout / 2;
  draw.cut_col = (int)__umulhi(word(2, 1), (unsigned)d.out_w) - d.cutout / 2;
  return draw;
}

// What lies outside an image, as in src/data/augment.rs.
#define BLACK 0
#define EDGE 1
#define REFLECT 2
#define SYMMETRIC 3

// A pixel along one side of an image, and whether it is what shows: or else it is black.
struct Place {
  int at;
  bool shows;
};

// Before the first of a row of pixels they come in reverse, and the first `again` or not.
__device__ __forceinline__ int mirror(int at, int again) { return at < 0 ? -at - again : at; }

// What shows at a place along one side of an image of `size`, or less than `size` outside of it.
__device__ __forceinline__ Place place(int at, int size, int border) {
  const int last = size - 1, again = border == SYMMETRIC ? 1 : 0;
  const int nearest = min(max(at, 0), last), mirrored = last - mirror(last - mirror(at, again), again);
  return {border == BLACK || border == EDGE ? nearest : mirrored, border != BLACK || at == nearest};
}

// Whether the pixel is in the square that becomes the mean colour.
__device__ __forceinline__ bool is_cut(int row, int col, const Draw& draw, const BatchDims& d) {
  return (unsigned)(row - draw.cut_row) < (unsigned)d.cutout && (unsigned)(col - draw.cut_col) < (unsigned)d.cutout;
}

// Pixels of the image [h, w, c], each from another place, to x [h, w, c]: from `first` on, each `step`th. C is c, or 0: that in d.
template <int C, class T>
__device__ __forceinline__ void copy(const unsigned char* image, const float* table, T* x, const Draw& draw, int first,
                                     int step, const BatchDims& d) {
  const int c = C ? C : d.c;
#pragma unroll 4
  for (int i = first; i < d.out_h * d.out_w; i += step) {
    const int row = divide(i, d.by_out_w), col = i - row * d.out_w;
    const Place from_row = place(draw.row_from + draw.row_step * row, d.h, d.border);
    const Place from_col = place(draw.col_from + draw.col_step * col, d.w, d.border);
    const unsigned char* pixel = image + (from_row.at * d.w + from_col.at) * c;
    const bool shows = from_row.shows && from_col.shows, cut = is_cut(row, col, draw, d);
#pragma unroll
    for (int channel = 0; channel < c; ++channel) {
      const float value = table[channel * 256 + (shows ? pixel[channel] : 0)];
      x[i * c + channel] = from_float<T>(cut ? 0.f : value);
    }
  }
}

// Positions are in units of 2^-17 of a pixel, weights in units of 2^-11.
#define PIXEL 17
#define WEIGHT 11

// A position along one side of an image: the two pixels around it, and their weights. Those of black ones are 0; `inside` has the
// weights of all that are not outside of the rotated image.
struct Side {
  int at[2], weights[2], inside;
};

// The position `at` along a side of `to` pixels that show `size`, of which the one at place p is from + turn * p.
__device__ __forceinline__ Side side(int at, int to, const unsigned (&by_to)[2], int size, int from, int turn,
                                     const BatchDims& d) {
  const int half = 1 << (PIXEL - 1), end = to << PIXEL;
  const bool is_enlarged = to != size, there = at + half >= 0 && at + half < end;
  if (is_enlarged) {
    // (at + half) * size / to, whose product has more than 31 bits.
    const int known = there ? at + half : half, whole = divide(known, by_to), rest = known - whole * to;
    at = max(whole * size + divide(rest * size, by_to) - half, 0);
  }
  const int first = at >> PIXEL, second = (at & ((1 << PIXEL) - 1)) >> (PIXEL - WEIGHT);
  Side s;
  s.inside = 0;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int nearest = min(max(first + k, 0), size - 1);
    const bool counts = is_enlarged ? there : nearest == first + k;
    s.at[k] = from + turn * nearest;
    s.weights[k] = counts ? (k ? second : (1 << WEIGHT) - second) : 0;
    s.inside += s.weights[k];
    if (d.pad > 0) {
      const Place shown = place(s.at[k], size, d.border);
      s.at[k] = shown.at;
      if (!shown.shows) s.weights[k] = 0;
    }
  }
  return s;
}

// Pixels of the image [h, w, c], rotated and enlarged, each the mean of four, to x [out_h, out_w, c]; otherwise as above.
template <int C, class T>
__device__ __forceinline__ void sample(const unsigned char* image, const float* scale, T* x, const Draw& draw,
                                       int first, int step, const BatchDims& d) {
  const int c = C ? C : d.c;
  float scales[C ? 2 * C : 1];
#pragma unroll
  for (int k = 0; k < 2 * C; ++k) scales[k] = scale[k];
  for (int i = first; i < d.out_h * d.out_w; i += step) {
    const int row = divide(i, d.by_out_w), col = i - row * d.out_w;
    // From the centre, in units of half a pixel.
    const int v = 2 * row + 1 - d.out_h, u = 2 * col + 1 - d.out_w;
    const Side ys = side(draw.sin * u + draw.cos * v + ((d.out_h - 1) << (PIXEL - 1)), d.out_h, d.by_out_h, d.h,
                         draw.row_from, draw.row_step, d);
    const Side xs = side(draw.cos * u - draw.sin * v + ((d.out_w - 1) << (PIXEL - 1)), d.out_w, d.by_out_w, d.w,
                         draw.col_from, draw.col_step, d);
    const unsigned char *upper = image + ys.at[0] * d.w * c, *lower = image + ys.at[1] * d.w * c;
    const int left = xs.at[0] * c, right = xs.at[1] * c;
    const float share = (d.mean ? ys.inside * xs.inside : 1 << 2 * WEIGHT) * (1.f / (1 << 2 * WEIGHT));
    const bool cut = is_cut(row, col, draw, d);
#pragma unroll
    for (int channel = 0; channel < c; ++channel) {
      const int above = xs.weights[0] * upper[left + channel] + xs.weights[1] * upper[right + channel];
      const int below = xs.weights[0] * lower[left + channel] + xs.weights[1] * lower[right + channel];
      const int sum = ys.weights[0] * above + ys.weights[1] * below;
      // Three roundings, as the CPU has them, and no multiply-add.
      const float *at = C ? scales : scale, offset = __fmul_rn(at[2 * channel + 1], share);
      const float value = __fadd_rn(__fmul_rn((float)sum, at[2 * channel]), offset);
      x[i * c + channel] = from_float<T>(cut ? 0.f : value);
    }
  }
}

// x[i] = normalised, randomly changed image order[batch_offset + first_image + i]; y[i] = its label.
// Threads: the blocks of a row of the grid, in y, share an image; their threads stride over its pixels. The first warp of each
//     block draws.
// Traffic: one byte read and one value written a value, four bytes where pixels are means; the tables stay in the cache.
// Launch: grid (n, pieces) of 256; static shared memory 36 bytes.
// Numerics: exact: the numbers come from the host's table, or are sums of integers below 2^30 that are scaled as on the CPU.
// Limits: pad < min(h, w); out_h, out_w <= 4096; fewer than 2^31 values in a batch.
// Registers: at most 64.
template <class T>
__global__ void __launch_bounds__(256, 4)
    batch_make(const unsigned char* __restrict__ images, const int* __restrict__ labels, const int* __restrict__ order,
               const float* __restrict__ table, const float* __restrict__ scale, const int* __restrict__ turns,
               const Step* __restrict__ s, T* __restrict__ x, int* __restrict__ y, BatchDims d) {
  SHARED(Draw, draws, [1]);
  if (threadIdx.x < 32) {
    const Draw draw = draw_for(s->batch_offset + s->first_image + blockIdx.x, order, turns, s, d);
    if (threadIdx.x == 0) {
      draws[0] = draw;
      if (blockIdx.y == 0) y[blockIdx.x] = labels[draw.index];
    }
  }
  __syncthreads();
  const Draw draw = draws[0];
  const unsigned char* image = images + (size_t)draw.index * (d.h * d.w * d.c);  // [h, w, c]
  x += (size_t)blockIdx.x * (d.out_h * d.out_w * d.c);                           // [out_h, out_w, c]
  const int first = blockIdx.y * blockDim.x + threadIdx.x, step = gridDim.y * blockDim.x;
  if (d.samples) {
    if (d.c == 3) return sample<3>(image, scale, x, draw, first, step, d);
    return sample<0>(image, scale, x, draw, first, step, d);
  }
  if (d.c == 3) return copy<3>(image, table, x, draw, first, step, d);
  copy<0>(image, table, x, draw, first, step, d);
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
    const int from = place(row + d.shift, d.h, REFLECT).at;
    const int at = place((d.mirrored ? d.w - 1 - col : col) + d.shift, d.w, REFLECT).at;
    y[i] = x[((size_t)(pixel / d.w / d.h * d.h + from) * d.w + at) * d.c + channel];
  }
}
