// The instructions that products on tensor cores are made of, one function each: asynchronous copies to shared memory,
// matrices from shared memory to registers, and the product of two such matrices. From sm_80 on; on sm_75 copies are
// ordinary loads and stores and a product is two of half the depth, for half alone. On the emulated device each has a twin.
//
// Eight elements of two bytes, 16 bytes, are a chunk: what a copy moves, and a row of an 8x8 matrix.
#pragma once
#include "four.cuh"

template <class E>
using Chunk = Pack<E, 8>;

// How many products along K of a step are laid out one after the other: where a product is two, registers are scarce.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr int DEPTH = 2;
#else
constexpr int DEPTH = 1;
#endif

// Numbers of the type as a product takes them, two in a register. A float is none: such a product is not on tensor cores.
template <class E>
struct Operand;
template <>
struct Operand<half> {};
template <>
struct Operand<bf16> {};

// Of the quarters of `v`, lanes that differ in bit BIT of their number exchange those that are BIT apart, so that with BIT = 1,
// then 2, quarter p of lane l becomes quarter l of lane p (of every four).
template <int BIT, class V, int N>
__device__ __forceinline__ void exchange(V (&v)[N], int lane) {
  const bool upper = lane & BIT;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i / (N / 4) & BIT) continue;
    const int j = i + N / 4 * BIT;
    const V got = __shfl_xor_sync(0xffffffffu, upper ? v[i] : v[j], BIT);
    if (upper) v[i] = got;
    else v[j] = got;
  }
}

#ifdef TILEWORK_EMULATED

template <class E, int N>
__device__ __forceinline__ void copy_async(Pack<E, N>* to, const E* from, bool valid, EMU_HERE) {
  emu::cp_async(to, from, sizeof *to, valid ? sizeof *to : 0, file, line);
}
__device__ __forceinline__ void copy_commit() { emu::cp_async_commit(); }
template <int PENDING>
__device__ __forceinline__ void copy_wait() {
  emu::cp_async_wait<PENDING>();
}
template <bool TRANSPOSE, class E>
__device__ __forceinline__ void load_matrices(unsigned (&v)[4], const Chunk<E>* row, EMU_HERE) {
  emu::ldmatrix(v, row, TRANSPOSE, file, line);
}
__device__ __forceinline__ void multiply(Operand<half>, float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                                         EMU_HERE) {
  emu::mma(d, a, b0, b1, false, file, line);
}
__device__ __forceinline__ void multiply(Operand<bf16>, float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                                         EMU_HERE) {
  emu::mma(d, a, b0, b1, true, file, line);
}

#else

// Starts to copy a chunk or a part of one from global to shared memory, or to write zeros if it is not valid: then nothing
// is read. Whole chunks go past the L1.
template <class E, int N>
__device__ __forceinline__ void copy_async(Pack<E, N>* to, const E* from, bool valid) {
#if __CUDA_ARCH__ >= 800
  constexpr int bytes = sizeof *to;
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_address(to)), "l"(from),
                 "r"(valid ? bytes : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(smem_address(to)), "l"(from), "n"(bytes),
                 "r"(valid ? bytes : 0)
                 : "memory");
#else
  *to = valid ? *reinterpret_cast<const Pack<E, N>*>(from) : Pack<E, N>{};
#endif
}

// Closes this thread's current group of copies, which may be empty.
__device__ __forceinline__ void copy_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most PENDING of this thread's youngest groups are unfinished. Other threads see the copies after a barrier.
template <int PENDING>
__device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// Four 8x8 matrices. Lane l brings row l%8 of matrix l/8; afterwards it has in v[i] row l/4, columns 2(l%4) and +1, of
// matrix i, the first in the low half; or with TRANSPOSE of its transpose. All lanes of the warp take part.
template <bool TRANSPOSE, class E>
__device__ __forceinline__ void load_matrices(unsigned (&v)[4], const Chunk<E>* row) {
  const unsigned address = smem_address(row);
  if constexpr (TRANSPOSE)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(address)
                 : "memory");
}

// d[16][8] += a[16][16] · b[16][8], sums in float. With g = l/4 and t = l%4, lane l holds
//   a: rows g (registers 0, 2) and g+8 (1, 3), columns 2t, 2t+1 (0, 1) and 2t+8, 2t+9 (2, 3)
//   b: column g, rows 2t, 2t+1 (b0) and 2t+8, 2t+9 (b1)
//   d: rows g (0, 1) and g+8 (2, 3), columns 2t, 2t+1
// All lanes of the warp take part.
__device__ __forceinline__ void multiply(Operand<half>, float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                         unsigned b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  const unsigned b[2] = {b0, b1};
#pragma unroll
  for (int i = 0; i < 2; ++i)
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
#endif
}
__device__ __forceinline__ void multiply(Operand<bf16>, float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                         unsigned b1) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();  // sm_75 has no such product, and the host refuses bf16 there
#endif
}

#endif
