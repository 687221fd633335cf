// The instructions of sm_90 and sm_90a that kernels use, one function each. On the emulated device the same functions are
// calls into it (hopper.h there).
//
//   mbarrier   a barrier in shared memory that counts arrivals, and bytes that TMA is still to bring
//   TMA        one thread copies a whole box of a tensor between global and shared memory
//   wgmma      128 threads (a warpgroup) multiply two tiles that lie in shared memory
//   clusters   blocks that run at once and reach each other's shared memory
//
// Shared memory is addressed by 32-bit numbers (smem_address); cluster_address makes one that means another block's. What a
// tile looks like, and which fence belongs where: README.md here.
#pragma once
#include "common.cuh"

#if defined(TILEWORK_EMULATED) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool CLUSTERS = true;
#else
constexpr bool CLUSTERS = false;
#endif

// Which of wgmma's types an operand has.
__device__ constexpr int wgmma_kind(const half*) { return 0; }
__device__ constexpr int wgmma_kind(const bf16*) { return 1; }

// Where and how an operand lies in shared memory. `row` is the length of a row in bytes, 128, 64 or 32, and also the
// swizzle's period; 16: no swizzle. The swizzle goes by bits of the address (bits 4-6 ^= bits 7-9 for 128; 4-5 ^= 7-8 for
// 64; 4 ^= 7 for 32), so that an operand may begin at any row of a buffer that is aligned to 1024 bytes.
//   K-major    a row holds row / 2 values of one line; stride: from 8 lines to the next 8; leading: not used (16: from 8 k to
//              the next 8)
//   MN-major   a row holds row / 2 lines at one k; stride: from 8 k to the next 8; leading: from row / 2 lines to the next (16:
//              the other way round)
template <int row>
__device__ __forceinline__ unsigned long long descriptor(unsigned address, unsigned stride, unsigned leading) {
  static_assert(row == 128 || row == 64 || row == 32 || row == 16, "");
  constexpr unsigned long long swizzle = row == 128 ? 1 : row == 64 ? 2 : row == 32 ? 3 : 0;
  return (unsigned long long)(address >> 4 & 0x3fff) | (unsigned long long)(leading >> 4 & 0x3fff) << 16 |
         (unsigned long long)(stride >> 4 & 0x3fff) << 32 | swizzle << 62;
}

// The place of a 16-byte chunk in a swizzled tile whose first row is at a multiple of 1024 bytes.
template <int row>
__device__ __forceinline__ unsigned swizzled(unsigned offset) {
  return offset ^ (offset >> 7 & (row / 16 - 1)) << 4;
}

#ifdef TILEWORK_EMULATED
#include "hopper.h"
#else

// Dynamic shared memory for tiles: aligned to the largest swizzle's period.
#define DYN_TILES(type, name)                                      \
  extern __shared__ __align__(1024) unsigned char dynamic_tiles[]; \
  type* name = reinterpret_cast<type*>(dynamic_tiles)

#define HOPPER __device__ __forceinline__

// ---- shared memory
HOPPER float load_cluster(unsigned address) {
  float v;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(address) : "memory");
  return v;
}
HOPPER float4 load_cluster4(unsigned address) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
HOPPER void store_cluster(unsigned address, float v) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(v) : "memory");
}
HOPPER void store_cluster4(unsigned address, float4 v) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v.x), "f"(v.y), "f"(v.z),
               "f"(v.w)
               : "memory");
}
HOPPER unsigned load_shared(unsigned address) {
  unsigned v;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
  return v;
}
HOPPER uint4 load_shared4(unsigned address) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
HOPPER void store_shared(unsigned address, unsigned v) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}
HOPPER void store_shared4(unsigned address, uint4 v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// ---- mbarriers: 8 bytes of shared memory. A phase ends when `count` arrivals and all announced bytes have come. `parity`
// is that of the phase whose end is waited for: 0 for the first.
HOPPER void mbarrier_init(unsigned bar, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
HOPPER void mbarrier_inval(unsigned bar) { asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(bar) : "memory"); }
// After the inits, by the thread that did them: TMA and the cluster's other blocks see them.
HOPPER void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
HOPPER void mbarrier_arrive(unsigned bar) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
// At another block's barrier; `bar` is a cluster_address.
HOPPER void mbarrier_arrive_cluster(unsigned bar) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}
// Arrives, and announces bytes that TMA will bring.
HOPPER void mbarrier_arrive_expect(unsigned bar, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
HOPPER void mbarrier_expect(unsigned bar, unsigned bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
// Arrives when all cp.async of this thread so far have been written.
HOPPER void mbarrier_arrive_copies(unsigned bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}
#define POLL(form)                                                                                          \
  unsigned done;                                                                                            \
  asm volatile("{\n.reg .pred p;\nmbarrier." form ".shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}" \
               : "=r"(done)                                                                                 \
               : "r"(bar), "r"(parity)                                                                      \
               : "memory");                                                                                 \
  return done != 0
HOPPER bool mbarrier_test(unsigned bar, unsigned parity) { POLL("test_wait.parity.acquire.cta"); }
// Likewise, but may wait for a while.
HOPPER bool mbarrier_try(unsigned bar, unsigned parity) { POLL("try_wait.parity.acquire.cta"); }
HOPPER bool mbarrier_try_cluster(unsigned bar, unsigned parity) { POLL("try_wait.parity.acquire.cluster"); }
#undef POLL
HOPPER void mbarrier_wait(unsigned bar, unsigned parity) {
  while (!mbarrier_try(bar, parity)) {
  }
}
// Where threads of other blocks arrive.
HOPPER void mbarrier_wait_cluster(unsigned bar, unsigned parity) {
  while (!mbarrier_try_cluster(bar, parity)) {
  }
}

// ---- fences and barriers
// What ordinary instructions wrote to shared memory becomes visible to TMA and wgmma.
HOPPER void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
HOPPER void fence_cluster() { asm volatile("fence.acq_rel.cluster;" ::: "memory"); }
// Barriers 1 to 15 of some of a block's warps; 0 is __syncthreads'.
HOPPER void named_sync(unsigned id, unsigned threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
HOPPER void named_arrive(unsigned id, unsigned threads) {
  asm volatile("barrier.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- clusters
HOPPER unsigned cluster_rank() {
  unsigned v;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(v));
  return v;
}
HOPPER unsigned cluster_size() {
  unsigned v;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(v));
  return v;
}
#define SPECIAL3(name)                                                                           \
  uint3 v;                                                                                       \
  asm volatile("mov.u32 %0, %%" name ".x;\nmov.u32 %1, %%" name ".y;\nmov.u32 %2, %%" name ".z;" \
               : "=r"(v.x), "=r"(v.y), "=r"(v.z));                                               \
  return v
HOPPER uint3 cluster_block() { SPECIAL3("cluster_ctaid"); }  // this block within its cluster
HOPPER uint3 cluster_dim() { SPECIAL3("cluster_nctaid"); }   // blocks of a cluster
HOPPER uint3 cluster_id() { SPECIAL3("clusterid"); }         // this cluster within the grid
HOPPER uint3 cluster_count() { SPECIAL3("nclusterid"); }     // clusters of the grid
#undef SPECIAL3
// All threads of a warp do these two, together (`.aligned`).
HOPPER void cluster_arrive() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
HOPPER void cluster_wait() {
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
HOPPER void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
// The same place in the shared memory of the cluster's block of this rank.
HOPPER unsigned cluster_address(unsigned address, unsigned block) {
  unsigned there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(block));
  return there;
}

// ---- TMA: boxes of a tensor; coordinates are of its first element, dimension 0 first. What lies outside the tensor reads
// as zero and is not written. A load arrives at the mbarrier `bar` with all bytes of its box.
HOPPER void tma_prefetch(const CUtensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
HOPPER void tma_load1(unsigned to, const CUtensorMap* map, unsigned bar, int x) {
  asm volatile(
      "cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3}], [%2];" ::"r"(
          to),
      "l"(map), "r"(bar), "r"(x)
      : "memory");
}
HOPPER void tma_load2(unsigned to, const CUtensorMap* map, unsigned bar, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::
          "r"(to),
      "l"(map), "r"(bar), "r"(x), "r"(y)
      : "memory");
}
HOPPER void tma_load3(unsigned to, const CUtensorMap* map, unsigned bar, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(to),
      "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z)
      : "memory");
}
HOPPER void tma_load4(unsigned to, const CUtensorMap* map, unsigned bar, int x, int y, int z, int u) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(to),
      "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z), "r"(u)
      : "memory");
}
HOPPER void tma_load5(unsigned to, const CUtensorMap* map, unsigned bar, int x, int y, int z, int u, int v) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, "
      "%7}], [%2];" ::"r"(to),
      "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z), "r"(u), "r"(v)
      : "memory");
}
// The same for all blocks of the cluster whose bit is set in `blocks`: to the same place and the same barrier of each.
HOPPER void tma_load2_all(unsigned to, const CUtensorMap* map, unsigned bar, unsigned blocks, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(to),
      "l"(map), "r"(bar), "h"((unsigned short)blocks), "r"(x), "r"(y)
      : "memory");
}
HOPPER void tma_load3_all(unsigned to, const CUtensorMap* map, unsigned bar, unsigned blocks, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(to),
      "l"(map), "r"(bar), "h"((unsigned short)blocks), "r"(x), "r"(y), "r"(z)
      : "memory");
}
// A column of pixels of an NHWC tensor: from pixel (n, h, w) on, row by row and image by image within the map's bounding
// box, each moved by (r, s); its channels from c on.
HOPPER void tma_load_im2col(unsigned to, const CUtensorMap* map, unsigned bar, int c, int w, int h, int n, unsigned s,
                            unsigned r) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(to),
      "l"(map), "r"(bar), "r"(c), "r"(w), "r"(h), "r"(n), "h"((unsigned short)s), "h"((unsigned short)r)
      : "memory");
}
HOPPER void tma_load_im2col_all(unsigned to, const CUtensorMap* map, unsigned bar, unsigned blocks, int c, int w, int h,
                                int n, unsigned s, unsigned r) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8}, %9;" ::"r"(to),
      "l"(map), "r"(bar), "r"(c), "r"(w), "r"(h), "r"(n), "h"((unsigned short)s), "h"((unsigned short)r),
      "h"((unsigned short)blocks)
      : "memory");
}
HOPPER void tma_store1(const CUtensorMap* map, unsigned from, int x) {
  asm volatile("cp.async.bulk.tensor.1d.global.shared::cta.tile.bulk_group [%0, {%2}], [%1];" ::"l"(map), "r"(from),
               "r"(x)
               : "memory");
}
HOPPER void tma_store2(const CUtensorMap* map, unsigned from, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(from),
               "r"(x), "r"(y)
               : "memory");
}
HOPPER void tma_store3(const CUtensorMap* map, unsigned from, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(from), "r"(x), "r"(y), "r"(z)
               : "memory");
}
HOPPER void tma_store4(const CUtensorMap* map, unsigned from, int x, int y, int z, int u) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
               "r"(from), "r"(x), "r"(y), "r"(z), "r"(u)
               : "memory");
}
HOPPER void tma_store5(const CUtensorMap* map, unsigned from, int x, int y, int z, int u, int v) {
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(map),
      "r"(from), "r"(x), "r"(y), "r"(z), "r"(u), "r"(v)
      : "memory");
}
HOPPER void tma_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this thread's groups of stores still read shared memory, or are not written.
template <int pending>
HOPPER void tma_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}
template <int pending>
HOPPER void tma_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory");
}

// ---- warps and registers
// Moves registers from the warpgroups that load to those that multiply; all 128 threads of a group do it.
template <int count>
HOPPER void registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
HOPPER void registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
// True in one lane of a warp.
HOPPER bool elect_one() {
  unsigned elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
  return elected != 0;
}
// Waits until the kernel before has ended; lets the kernel after begin.
HOPPER void grid_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
HOPPER void grid_launch() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
// Four 8 x 8 tiles of 16-bit values to shared memory. Lane l gives the address of row l % 8 of tile l / 8; each lane's i-th
// register holds row l / 4 of tile i, columns l % 4 * 2 and the next.
HOPPER void store_tiles(unsigned address, unsigned a, unsigned b, unsigned c, unsigned d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b),
               "r"(c), "r"(d)
               : "memory");
}
// The same, each tile transposed: the address is that of column l % 8.
HOPPER void store_tiles_transposed(unsigned address, unsigned a, unsigned b, unsigned c, unsigned d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b),
               "r"(c), "r"(d)
               : "memory");
}

#undef HOPPER
#include "wgmma.cuh"
#endif
