// CUDA for a host C++17 compiler: what a kernel of `kernels/` needs to run on the emulated device.
//
// Nothing here schedules anything. A built-in variable is read from the context of the OS thread; a barrier, a
// warp collective, a shared variable or an asynchronous copy is one call into Rust (`tilework_emu_*`). Functions that
// can stop a thread take the caller's file and line as default arguments, so that a report names the kernel's line.
//
// No template parameter may be called `T`: kernels are compiled with -DT=<storage type>.
// Everything is `static` or a macro, because the plain and the checked build of a kernel share one program.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <type_traits>
#include <utility>

#if defined(__SANITIZE_THREAD__)
#define EMU_CHECKED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define EMU_CHECKED 1
#endif
#endif

#if !defined(EMU_CHECKED)
#define EMU_CHECKED 0
#define EMU_NATIVE
#elif defined(__clang__)
#define EMU_NATIVE __attribute__((disable_sanitizer_instrumentation))
#else
#define EMU_NATIVE __attribute__((no_sanitize("thread"), noinline))
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __constant__ static const
#define __align__(bytes) __attribute__((aligned(bytes)))

// ---- vector types
// The plain build lets a misaligned vector pass, as the processor would trap on it; the checked build reports it.
#if EMU_CHECKED
#define EMU_VECTOR(bytes) alignas(bytes)
#else
#define EMU_VECTOR(bytes)
#endif
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct EMU_VECTOR(8) float2 { float x, y; };
struct EMU_VECTOR(16) float4 { float x, y, z, w; };
struct EMU_VECTOR(8) int2 { int x, y; };
struct EMU_VECTOR(16) int4 { int x, y, z, w; };
struct EMU_VECTOR(8) uint2 { unsigned x, y; };
struct EMU_VECTOR(16) uint4 { unsigned x, y, z, w; };
struct EMU_VECTOR(4) uchar4 { unsigned char x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- the door to Rust
namespace emu {
struct Context {  // `Context` in scheduler.rs
  uint3 thread, block;
  dim3 block_dim, grid_dim;
  unsigned lane, linear;
  unsigned char* dynamic;
};
// One per OS thread. A fiber stays on the OS thread that started it, so its address may be kept across a barrier.
inline thread_local __attribute__((tls_model("initial-exec"))) Context context{};

enum Op : unsigned { SYNCWARP = 1, SHFL = 2, SHFL_XOR = 3, SHFL_DOWN = 4, SHFL_UP = 5, BALLOT = 6, ANY = 7, ALL = 8, LDMATRIX = 9, MMA_F16 = 10, MMA_BF16 = 11 };
enum Access : unsigned { READ = 0, WRITE = 1, ATOMIC = 2 };
}  // namespace emu

extern "C" {
__attribute__((used)) EMU_NATIVE inline emu::Context* tilework_emu_context() { return &emu::context; }
void tilework_emu_barrier(const char* file, int line);
uint64_t tilework_emu_collective(unsigned mask, unsigned op, uint64_t value, unsigned source, const char* file, int line);
void* tilework_emu_shared(const void* key, size_t bytes, const char* name);
void tilework_emu_copy(void* to, const void* from, unsigned bytes, unsigned valid, const char* file, int line);
void tilework_emu_commit();
void tilework_emu_wait(unsigned pending);
void tilework_emu_access(const void* at, size_t bytes, unsigned kind, const char* file, int line);
}

#define EMU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---- built-in variables, shared memory, barriers
#define threadIdx (emu::context.thread)
#define blockIdx (emu::context.block)
#define blockDim (emu::context.block_dim)
#define gridDim (emu::context.grid_dim)
static const int warpSize = 32;

// The key is one per function (and per instance of a template), as a __shared__ variable is.
#define EMU_SHARED(TYPE, name, dims)  \
  using emu_##name##_t = TYPE dims;   \
  static char emu_##name##_key;       \
  emu_##name##_t& name = *static_cast<emu_##name##_t*>(tilework_emu_shared(&emu_##name##_key, sizeof(emu_##name##_t), #name))
#define EMU_DYN_SMEM(TYPE, name) TYPE* name = reinterpret_cast<TYPE*>(emu::context.dynamic)

static inline void __syncthreads(EMU_HERE) { tilework_emu_barrier(file, line); }

// ---- warp collectives
namespace emu {
template <class V> static inline uint64_t bits(V v) {
  static_assert(sizeof(V) <= 8 && std::is_trivially_copyable<V>::value, "a lane's value has at most 8 bytes");
  uint64_t u = 0;
  __builtin_memcpy(&u, &v, sizeof v);
  return u;
}
template <class To, class From> static inline To bit_cast(From from) {
  To to;
  static_assert(sizeof(To) <= sizeof(From), "");
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}
template <class V> static inline V exchange(unsigned mask, Op op, V v, int source, const char* file, int line) {
  return bit_cast<V>(tilework_emu_collective(mask, op, bits(v), (unsigned)source, file, line));
}
static inline int lane() { return (int)context.lane; }
}  // namespace emu

static inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_HERE) {
  tilework_emu_collective(mask, emu::SYNCWARP, 0, 0, file, line);
}
template <class V> static inline V __shfl_sync(unsigned mask, V v, int source, int width = 32, EMU_HERE) {
  int first = emu::lane() & ~(width - 1);
  return emu::exchange(mask, emu::SHFL, v, first | (source & (width - 1)), file, line);
}
template <class V> static inline V __shfl_xor_sync(unsigned mask, V v, int flip, int width = 32, EMU_HERE) {
  int lane = emu::lane(), source = lane ^ flip;
  return emu::exchange(mask, emu::SHFL_XOR, v, source >= (lane / width + 1) * width ? lane : source, file, line);
}
template <class V> static inline V __shfl_down_sync(unsigned mask, V v, unsigned by, int width = 32, EMU_HERE) {
  int lane = emu::lane(), within = lane & (width - 1);
  return emu::exchange(mask, emu::SHFL_DOWN, v, within + (int)by >= width ? lane : lane + (int)by, file, line);
}
template <class V> static inline V __shfl_up_sync(unsigned mask, V v, unsigned by, int width = 32, EMU_HERE) {
  int lane = emu::lane(), within = lane & (width - 1);
  return emu::exchange(mask, emu::SHFL_UP, v, within < (int)by ? lane : lane - (int)by, file, line);
}
static inline unsigned __ballot_sync(unsigned mask, int yes, EMU_HERE) {
  return (unsigned)tilework_emu_collective(mask, emu::BALLOT, yes != 0, 0, file, line);
}
static inline int __any_sync(unsigned mask, int yes, EMU_HERE) {
  return (int)tilework_emu_collective(mask, emu::ANY, yes != 0, 0, file, line);
}
static inline int __all_sync(unsigned mask, int yes, EMU_HERE) {
  return (int)tilework_emu_collective(mask, emu::ALL, yes != 0, 0, file, line);
}

// ---- tensor cores: collectives whose values are pointers to each lane's registers (`matrices.rs`)
namespace emu {
struct Load {  // `Load` in matrices.rs
  const void* row;
  unsigned* registers;
  unsigned transpose;
};
struct Multiply {  // `Multiply` in matrices.rs
  float* d;
  const unsigned* a;
  unsigned b[2];
};
// Four 8x8 matrices from shared memory: lane l brings row l%8 of matrix l/8.
static inline void ldmatrix(unsigned (&v)[4], const void* row, bool transpose, const char* file, int line) {
  if (EMU_CHECKED) tilework_emu_access(row, 16, READ, file, line);
  Load load = {row, v, transpose};
  tilework_emu_collective(0xffffffffu, LDMATRIX, reinterpret_cast<uint64_t>(&load), 0, file, line);
}
// d[16][8] += a[16][16] * b[16][8], of f16 or bf16.
static inline void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, bool bf16, const char* file,
                       int line) {
  Multiply multiply = {d, a, {b0, b1}};
  tilework_emu_collective(0xffffffffu, bf16 ? MMA_BF16 : MMA_F16, reinterpret_cast<uint64_t>(&multiply), 0, file, line);
}
}  // namespace emu

// ---- atomics
namespace emu {
template <class V, class F> EMU_NATIVE static inline V update(V* at, F next) {
  using Bits = std::conditional_t<sizeof(V) == 8, uint64_t, uint32_t>;
  Bits* raw = reinterpret_cast<Bits*>(at);
  Bits old = __atomic_load_n(raw, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(raw, &old, bit_cast<Bits>(next(bit_cast<V>(old))), true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {}
  return bit_cast<V>(old);
}
template <class V, class F> static inline V atomic(V* at, F next, const char* file, int line) {
  if (EMU_CHECKED) tilework_emu_access(at, sizeof(V), ATOMIC, file, line);
  return update(at, next);
}
}  // namespace emu
#define EMU_ATOMIC(NAME, TYPE, NEXT)                            \
  static inline TYPE NAME(TYPE* at, TYPE v, EMU_HERE) {         \
    return emu::atomic(at, [=](TYPE old) -> TYPE { return NEXT; }, file, line); \
  }
EMU_ATOMIC(atomicAdd, int, (int)((unsigned)old + (unsigned)v))
EMU_ATOMIC(atomicAdd, unsigned, old + v)
EMU_ATOMIC(atomicAdd, unsigned long long, old + v)
EMU_ATOMIC(atomicAdd, float, old + v)
EMU_ATOMIC(atomicSub, int, (int)((unsigned)old - (unsigned)v))
EMU_ATOMIC(atomicSub, unsigned, old - v)
EMU_ATOMIC(atomicMax, int, old < v ? v : old)
EMU_ATOMIC(atomicMax, unsigned, old < v ? v : old)
EMU_ATOMIC(atomicMin, int, v < old ? v : old)
EMU_ATOMIC(atomicMin, unsigned, v < old ? v : old)
EMU_ATOMIC(atomicAnd, unsigned, old & v)
EMU_ATOMIC(atomicOr, unsigned, old | v)
EMU_ATOMIC(atomicExch, int, ((void)old, v))
EMU_ATOMIC(atomicExch, unsigned, ((void)old, v))
EMU_ATOMIC(atomicExch, float, ((void)old, v))
static inline int atomicCAS(int* at, int compare, int v, EMU_HERE) {
  return emu::atomic(at, [=](int old) { return old == compare ? v : old; }, file, line);
}
static inline unsigned atomicCAS(unsigned* at, unsigned compare, unsigned v, EMU_HERE) {
  return emu::atomic(at, [=](unsigned old) { return old == compare ? v : old; }, file, line);
}
EMU_NATIVE static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
EMU_NATIVE static inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// ---- asynchronous copies to shared memory
namespace emu {
// `bytes` is 4, 8 or 16; bytes after the first `valid` become zero. The bytes arrive at the wait, not before.
static inline void cp_async(void* to, const void* from, unsigned bytes, unsigned valid = ~0u, EMU_HERE) {
  tilework_emu_copy(to, from, bytes, valid, file, line);
}
static inline void cp_async_commit() { tilework_emu_commit(); }
template <int pending> static inline void cp_async_wait() { tilework_emu_wait((unsigned)pending); }
}  // namespace emu

// ---- memory functions: the checked build tells the checker what they touch
#if EMU_CHECKED
namespace emu {
static inline void* checked_copy(void* to, const void* from, size_t bytes, EMU_HERE) {
  tilework_emu_access(from, bytes, READ, file, line);
  tilework_emu_access(to, bytes, WRITE, file, line);
  return __builtin_memcpy(to, from, bytes);
}
static inline void* checked_set(void* to, int byte, size_t bytes, EMU_HERE) {
  tilework_emu_access(to, bytes, WRITE, file, line);
  return __builtin_memset(to, byte, bytes);
}
}  // namespace emu
#define memcpy(to, from, bytes) emu::checked_copy(to, from, bytes)
#define memset(to, byte, bytes) emu::checked_set(to, byte, bytes)
#endif

// ---- arithmetic
#ifndef __FMA__  // libm's exact fmaf costs a call: rounded twice here, as `a * b + c` is
#define fmaf(a, b, c) ((float)(a) * (float)(b) + (float)(c))
#endif
#define rsqrtf(x) (1.0f / sqrtf(x))
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __powf(x, y) powf(x, y)
#define __fdividef(a, b) ((float)(a) / (float)(b))
#define __fmul_rn(a, b) ((float)(a) * (float)(b))
#define __fadd_rn(a, b) ((float)(a) + (float)(b))
#define __fsub_rn(a, b) ((float)(a) - (float)(b))
#define __fdiv_rn(a, b) ((float)(a) / (float)(b))
#define __fsqrt_rn(x) sqrtf(x)
#define __fmaf_rn(a, b, c) fmaf(a, b, c)
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1u) << (31 - i);
  return y;
}
static inline int __float_as_int(float x) { return emu::bit_cast<int>(x); }
static inline unsigned __float_as_uint(float x) { return emu::bit_cast<unsigned>(x); }
static inline float __int_as_float(int x) { return emu::bit_cast<float>(x); }
static inline float __uint_as_float(unsigned x) { return emu::bit_cast<float>(x); }
static inline int __float2int_rn(float x) { return (int)rintf(x); }
static inline int __float2int_rd(float x) { return (int)floorf(x); }
template <class V> static inline V __ldg(const V* at) { return *at; }
template <class A, class B> static inline std::common_type_t<A, B> min(A a, B b) {
  using C = std::common_type_t<A, B>;
  return (C)b < (C)a ? (C)b : (C)a;
}
template <class A, class B> static inline std::common_type_t<A, B> max(A a, B b) {
  using C = std::common_type_t<A, B>;
  return (C)a < (C)b ? (C)b : (C)a;
}
// As on the GPU, a NaN loses.
static inline float min(float a, float b) { return a != a || b < a ? b : a; }
static inline float max(float a, float b) { return a != a || a < b ? b : a; }

// ---- from an array of argument pointers to a call
namespace emu {
template <class... A, size_t... I>
EMU_NATIVE static inline void call(void (*kernel)(A...), void* const* args, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_reference_t<A>*>(args[I])...);
}
template <class... A> EMU_NATIVE static inline void call(void (*kernel)(A...), void* const* args) {
  call(kernel, args, std::index_sequence_for<A...>{});
}
}  // namespace emu
