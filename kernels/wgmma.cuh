// wgmma, for the GPU: d[64][n] (+)= a[64][16] * b[16][n] by the 128 threads of a warpgroup. Included by hopper.cuh.
//
// Lane l of warp w has, of row 16 w + l / 4, the columns 8 j + l % 4 * 2 + {0, 1} in d[4 j + {0, 1}], and of the row 8 below
// them d[4 j + {2, 3}]. ta, tb = 1: the operand is MN-major. accumulate = false: d = a * b.
#pragma once

#define HOPPER __device__ __forceinline__

// Before the first product, and after registers of one were written.
HOPPER void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
HOPPER void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending>
HOPPER void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}
// No use of the accumulators moves across this: it stands before the first product and after the wait.
template <int n>
HOPPER void wgmma_keep(float (&d)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D8(i) D4(i), D4(i + 4)
#define D16(i) D8(i), D8(i + 8)
#define D32(i) D16(i), D16(i + 16)
#define D64(i) D32(i), D32(i + 32)
#define LIST0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define LIST1 LIST0 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define LIST2 LIST1 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define LIST3 LIST2 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define LIST4 LIST3 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define LIST5 LIST4 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define LIST6 LIST5 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define LIST7 LIST6 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define LIST8 LIST7 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define LIST9 LIST8 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define LIST10 LIST9 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define LIST11 LIST10 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define LIST12 LIST11 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define LIST13 LIST12 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define LIST14 LIST13 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define LIST15 LIST14 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define HALF_LIST "%0, %1, %2, %3"
// The operands' numbers follow the accumulators'.
#define SHARED_A(N, type, LIST, A, B, P, TA, TB, ...)                                                               \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type \
               "." type " {" LIST "}, %" #A ", %" #B ", p, 1, 1, %" #TA ", %" #TB ";\n}"                            \
               : __VA_ARGS__                                                                                        \
               : "l"(a), "l"(b), "r"((int)accumulate), "n"(ta), "n"(tb))
#define REGISTER_A(N, type, LIST, A, B, C, D, E, P, TB, ...)                                                        \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type \
               "." type " {" LIST "}, {%" #A ", %" #B ", %" #C ", %" #D "}, %" #E ", p, 1, 1, %" #TB ";\n}"         \
               : __VA_ARGS__                                                                                        \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(tb))

template <class E, int n, int ta, int tb>
HOPPER void wgmma(float (&d)[n / 2], unsigned long long a, unsigned long long b, bool accumulate) {
  constexpr bool f16 = wgmma_kind((const E*)nullptr) == 0;
  static_assert(n == 32 || n == 64 || n == 128 || n == 256, "a width that is here");
  if constexpr (n == 32 && f16) SHARED_A(32, "f16", LIST1, 16, 17, 18, 19, 20, D16(0));
  if constexpr (n == 32 && !f16) SHARED_A(32, "bf16", LIST1, 16, 17, 18, 19, 20, D16(0));
  if constexpr (n == 64 && f16) SHARED_A(64, "f16", LIST3, 32, 33, 34, 35, 36, D32(0));
  if constexpr (n == 64 && !f16) SHARED_A(64, "bf16", LIST3, 32, 33, 34, 35, 36, D32(0));
  if constexpr (n == 128 && f16) SHARED_A(128, "f16", LIST7, 64, 65, 66, 67, 68, D64(0));
  if constexpr (n == 128 && !f16) SHARED_A(128, "bf16", LIST7, 64, 65, 66, 67, 68, D64(0));
  if constexpr (n == 256 && f16) SHARED_A(256, "f16", LIST15, 128, 129, 130, 131, 132, D64(0), D64(64));
  if constexpr (n == 256 && !f16) SHARED_A(256, "bf16", LIST15, 128, 129, 130, 131, 132, D64(0), D64(64));
}

template <class E, int n, int tb>
HOPPER void wgmma(float (&d)[n / 2], const unsigned (&a)[4], unsigned long long b, bool accumulate) {
  constexpr bool f16 = wgmma_kind((const E*)nullptr) == 0;
  static_assert(n == 8 || n == 64, "a width that is here");
  if constexpr (n == 8 && f16) REGISTER_A(8, "f16", HALF_LIST, 4, 5, 6, 7, 8, 9, 10, D4(0));
  if constexpr (n == 8 && !f16) REGISTER_A(8, "bf16", HALF_LIST, 4, 5, 6, 7, 8, 9, 10, D4(0));
  if constexpr (n == 64 && f16) REGISTER_A(64, "f16", LIST3, 32, 33, 34, 35, 36, 37, 38, D32(0));
  if constexpr (n == 64 && !f16) REGISTER_A(64, "bf16", LIST3, 32, 33, 34, 35, 36, 37, 38, D32(0));
}

#undef HOPPER
