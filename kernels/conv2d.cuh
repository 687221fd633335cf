// The geometry of a convolution and the loaders that read an image as a matrix (implicit GEMM).
//
// With patches = im2col(x), the matrix [n·ho·wo][kh·kw·c] whose row is what the window sees at an output pixel:
//     forward          y[n·ho·wo][o]   = patches · wᵀ
//     input gradient   gx[n·h·w][c]    = taps · w'      taps: what reaches an input pixel, [n·h·w][kh·kw·o]
//     weight gradient  gw[o][kh·kw·c]  = gyᵀ · patches
// Explicit convolution writes `patches` to memory and calls the kernels of linear.cu. Implicit convolution
// computes, for each load of a tile, where in the image the element lies; nothing else is different.
//
// Layouts: x [n][h][w][c], w [o][kh][kw][c], y [n][ho][wo][o]; 2^31 elements at most in each.
#pragma once
#include "gemm.cuh"

struct Conv2dDims {
    int n, h, w, c;   // images, their height, width, channels
    int ho, wo, o;    // output height, width, channels
    int kh, kw;       // kernel
    int sh, sw;       // stride
    int ph, pw;       // padding
    int accumulate;   // 1: add to the output; 0: overwrite it
    int split_steps;  // steps along K of one split (gemm.cuh)
    // Divisors, each as the two numbers that `divide` (common.cuh) takes.
    unsigned c_magic, c_shift, o_magic, o_shift;      // c, o
    unsigned kw_magic, kw_shift;                      // kw
    unsigned ho_magic, ho_shift, wo_magic, wo_shift;  // ho, wo
    unsigned sh_magic, sh_shift, sw_magic, sw_shift;  // sh, sw
};

__device__ __forceinline__ int patch_size(const Conv2dDims& d) { return d.kh * d.kw * d.c; }
__device__ __forceinline__ int pixels_in(const Conv2dDims& d) { return d.n * d.h * d.w; }
__device__ __forceinline__ int pixels_out(const Conv2dDims& d) { return d.n * d.ho * d.wo; }

// A place in the window: row r, column s, channel.
struct Tap {
    int r, s, channel;
};
__device__ __forceinline__ Tap tap_of(int i, int channels, unsigned magic, unsigned shift, const Conv2dDims& d) {
    const int rs = divide(i, magic, shift);
    const int r = divide(rs, d.kw_magic, d.kw_shift);
    return {r, rs - r * d.kw, i - rs * channels};
}
__device__ __forceinline__ Tap tap_of_patch(int i, const Conv2dDims& d) {
    return tap_of(i, d.c, d.c_magic, d.c_shift, d);
}

// Where the window lies for an output pixel: its upper left corner, which may be outside the image.
struct Corner {
    int image, h, w;
};
// So far outside that no tap of the window is inside.
constexpr int FAR_OUTSIDE = -(1 << 30);
__device__ __forceinline__ Corner corner_of(int pixel, const Conv2dDims& d) {
    if (pixel >= pixels_out(d)) return {0, FAR_OUTSIDE, FAR_OUTSIDE};
    const int np = divide(pixel, d.wo_magic, d.wo_shift);
    const int image = divide(np, d.ho_magic, d.ho_shift);
    return {image, (np - image * d.ho) * d.sh - d.ph, (pixel - np * d.wo) * d.sw - d.pw};
}

// Where x has the pixel under a tap, at channel 0; null in the padding.
template <class E>
__device__ __forceinline__ const E* under(const E* x, const Corner& at, int r, int s, const Conv2dDims& d) {
    const int h = at.h + r, w = at.w + s;
    if ((unsigned)h >= (unsigned)d.h || (unsigned)w >= (unsigned)d.w) return nullptr;
    return x + (size_t)((at.image * d.h + h) * d.w + w) * d.c;
}

// `patches`, for four k of one pixel: forward. One tap serves all four when c is a multiple of 4.
template <class E> struct PatchesAlongK {
    static constexpr bool along_k = true;
    const E* x;
    const Conv2dDims& d;
    bool wide;
    Corner corner;
    __device__ PatchesAlongK(const E* x, const Conv2dDims& d) : x(x), d(d), wide(rows_of_4(x, d.c)), corner{} {}
    __device__ __forceinline__ void start(int pixel) { corner = corner_of(pixel, d); }
    __device__ __forceinline__ float one(int k) const {
        if (k >= patch_size(d)) return 0.0f;
        const Tap tap = tap_of_patch(k, d);
        const E* p = under(x, corner, tap.r, tap.s, d);
        return p ? to_float(p[tap.channel]) : 0.0f;
    }
    __device__ __forceinline__ float4 at(int k) const {
        if (!wide) return make_float4(one(k), one(k + 1), one(k + 2), one(k + 3));
        if (k >= patch_size(d)) return zero4();
        const Tap tap = tap_of_patch(k, d);
        const E* p = under(x, corner, tap.r, tap.s, d);
        return p ? load4(p + tap.channel) : zero4();
    }
};

// `patches`, for four elements of the patch at one pixel (here K counts the pixels): weight gradient.
template <class E> struct PatchesAcrossK {
    static constexpr bool along_k = false;
    const E* x;
    const Conv2dDims& d;
    bool wide;
    int element;  // the first of the four
    __device__ PatchesAcrossK(const E* x, const Conv2dDims& d) : x(x), d(d), wide(rows_of_4(x, d.c)), element(0) {}
    __device__ __forceinline__ void start(int line) { element = line; }
    // Where x has element i of the patch; null in the padding and outside the patch.
    __device__ __forceinline__ const E* find(const Corner& corner, int i) const {
        if (i >= patch_size(d)) return nullptr;
        const Tap tap = tap_of_patch(i, d);
        const E* p = under(x, corner, tap.r, tap.s, d);
        return p ? p + tap.channel : nullptr;
    }
    __device__ __forceinline__ float one(const Corner& corner, int i) const {
        const E* p = find(corner, i);
        return p ? to_float(*p) : 0.0f;
    }
    __device__ __forceinline__ float4 at(int pixel) const {
        const Corner corner = corner_of(pixel, d);
        if (!wide)
            return make_float4(one(corner, element), one(corner, element + 1), one(corner, element + 2),
                               one(corner, element + 3));
        const E* p = find(corner, element);
        return p ? load4(p) : zero4();
    }
};

// `taps`: for an input pixel and a place in the window, the output pixel that saw it there, if there is one:
// p·sh - ph + r = h. K counts (r, s, o), o the fastest. Input gradient.
template <class E> struct TapsAlongK {
    static constexpr bool along_k = true;
    const E* gy;
    const Conv2dDims& d;
    bool wide;
    int image, h, w;  // the input pixel, moved by the padding
    __device__ TapsAlongK(const E* gy, const Conv2dDims& d)
        : gy(gy), d(d), wide(rows_of_4(gy, d.o)), image(0), h(0), w(0) {}
    __device__ __forceinline__ void start(int pixel) {
        if (pixel < pixels_in(d)) {
            const int nh = pixel / d.w;
            image = nh / d.h, h = nh - image * d.h + d.ph, w = pixel - nh * d.w + d.pw;
        } else {
            h = FAR_OUTSIDE;
        }
    }
    // The four, or the one, at k: null if no output pixel saw the input pixel there.
    __device__ __forceinline__ const E* seen(int k) const {
        if (k >= d.kh * d.kw * d.o) return nullptr;
        const Tap tap = tap_of(k, d.o, d.o_magic, d.o_shift, d);
        const int ph = h - tap.r, pw = w - tap.s;
        if (ph < 0 || pw < 0) return nullptr;
        const int p = divide(ph, d.sh_magic, d.sh_shift), q = divide(pw, d.sw_magic, d.sw_shift);
        if (p * d.sh != ph || q * d.sw != pw || p >= d.ho || q >= d.wo) return nullptr;
        return gy + (size_t)((image * d.ho + p) * d.wo + q) * d.o + tap.channel;
    }
    __device__ __forceinline__ float one(int k) const {
        const E* p = seen(k);
        return p ? to_float(*p) : 0.0f;
    }
    __device__ __forceinline__ float4 at(int k) const {
        if (!wide) return make_float4(one(k), one(k + 1), one(k + 2), one(k + 3));
        const E* p = seen(k);
        return p ? load4(p) : zero4();
    }
};

// w', the weights [o][kh][kw][c] as the matrix [kh·kw·o][c] that belongs to `taps`. Input gradient.
struct WeightsByTap {
    static constexpr bool along_k = false;
    const float* weights;
    const Conv2dDims& d;
    bool wide;
    int left;  // channels from this thread's to the end
    __device__ WeightsByTap(const float* weights, const Conv2dDims& d)
        : weights(weights), d(d), wide(rows_of_4(weights, d.c)), left(0) {}
    __device__ __forceinline__ void start(int channel) { weights += channel, left = d.c - channel; }
    __device__ __forceinline__ float4 at(int k) const {
        if (k >= d.kh * d.kw * d.o || left <= 0) return zero4();
        const int rs = divide(k, d.o_magic, d.o_shift), channel_out = k - rs * d.o;
        const float* p = weights + ((size_t)channel_out * d.kh * d.kw + rs) * d.c;
        if (wide) return load4(p);
        return make_float4(p[0], left > 1 ? p[1] : 0.0f, left > 2 ? p[2] : 0.0f, left > 3 ? p[3] : 0.0f);
    }
};
