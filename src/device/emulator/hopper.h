// The instructions of sm_90 for a host C++ compiler: what `kernels/hopper.cuh` declares, as calls into Rust.
//
// Names and arguments are those of hopper.cuh, where each is explained. Here too functions take the caller's file and line
// as default arguments, so that a report names the kernel's line.
#pragma once
#include "cuda.h"


namespace emu {
struct Tma {  // `Request` in tma.rs
  const void* map;
  unsigned shared, barrier;
  int at[5];
  unsigned offsets[3];
  unsigned rank, kind, blocks;
};
struct Product {  // `Request` in wgmma.rs
  float* d;
  const unsigned* registers;
  uint64_t a, b;
  unsigned n, flags;
};
enum : unsigned { LOAD, LOAD_IM2COL, STORE };
enum : unsigned { INIT, INVALIDATE, ARRIVE, EXPECT, ARRIVE_EXPECT, TEST, WAIT };
enum : unsigned { FENCE_PROXY, FENCE_INIT, FENCE_REGISTERS };
enum : unsigned { CLUSTER_RANK, CLUSTER_SIZE, CLUSTER_ARRIVE, CLUSTER_WAIT, CLUSTER_BLOCK = 4, CLUSTER_DIM = 7, CLUSTER_ID = 10, CLUSTERS = 13 };
}  // namespace emu

extern "C" {
unsigned tilework_emu_smem_address(const void* at, const char* file, int line);
void* tilework_emu_remote(unsigned address, unsigned bytes, unsigned kind, const char* file, int line);
unsigned tilework_emu_cluster(unsigned what, const char* file, int line);
bool tilework_emu_mbarrier(unsigned what, unsigned address, unsigned argument, const char* file, int line);
void tilework_emu_named(unsigned id, unsigned threads, bool waits, const char* file, int line);
void tilework_emu_fence(unsigned kind);
void tilework_emu_tma(const emu::Tma* request, const char* file, int line);
void tilework_emu_bulk(unsigned what, unsigned pending);
void tilework_emu_wgmma(const emu::Product* request, const char* file, int line);
void tilework_emu_wgmma_group(unsigned what, unsigned pending, const char* file, int line);
}

#define DYN_TILES(type, name) EMU_DYN_SMEM(type, name)

// ---- shared memory
static inline unsigned smem_address(const void* p, EMU_HERE) { return tilework_emu_smem_address(p, file, line); }
namespace emu {
template <class V> EMU_NATIVE static inline V load(unsigned address, const char* file, int line) {
  V v;
  __builtin_memcpy(&v, tilework_emu_remote(address, sizeof(V), READ, file, line), sizeof v);
  return v;
}
template <class V> EMU_NATIVE static inline void store(unsigned address, V v, const char* file, int line) {
  __builtin_memcpy(tilework_emu_remote(address, sizeof(V), WRITE, file, line), &v, sizeof v);
}
}  // namespace emu
static inline float load_cluster(unsigned address, EMU_HERE) { return emu::load<float>(address, file, line); }
static inline float4 load_cluster4(unsigned address, EMU_HERE) { return emu::load<float4>(address, file, line); }
static inline void store_cluster(unsigned address, float v, EMU_HERE) { emu::store(address, v, file, line); }
static inline void store_cluster4(unsigned address, float4 v, EMU_HERE) { emu::store(address, v, file, line); }
static inline unsigned load_shared(unsigned address, EMU_HERE) { return emu::load<unsigned>(address, file, line); }
static inline uint4 load_shared4(unsigned address, EMU_HERE) { return emu::load<uint4>(address, file, line); }
static inline void store_shared(unsigned address, unsigned v, EMU_HERE) { emu::store(address, v, file, line); }
static inline void store_shared4(unsigned address, uint4 v, EMU_HERE) { emu::store(address, v, file, line); }

// ---- mbarriers
static inline void mbarrier_init(unsigned bar, unsigned count, EMU_HERE) { tilework_emu_mbarrier(emu::INIT, bar, count, file, line); }
static inline void mbarrier_inval(unsigned bar, EMU_HERE) { tilework_emu_mbarrier(emu::INVALIDATE, bar, 0, file, line); }
static inline void mbarrier_init_fence() { tilework_emu_fence(emu::FENCE_INIT); }
static inline void mbarrier_arrive(unsigned bar, EMU_HERE) { tilework_emu_mbarrier(emu::ARRIVE, bar, 1, file, line); }
static inline void mbarrier_arrive_cluster(unsigned bar, EMU_HERE) { tilework_emu_mbarrier(emu::ARRIVE, bar, 1, file, line); }
static inline void mbarrier_arrive_expect(unsigned bar, unsigned bytes, EMU_HERE) { tilework_emu_mbarrier(emu::ARRIVE_EXPECT, bar, bytes, file, line); }
static inline void mbarrier_expect(unsigned bar, unsigned bytes, EMU_HERE) { tilework_emu_mbarrier(emu::EXPECT, bar, bytes, file, line); }
static inline bool mbarrier_test(unsigned bar, unsigned parity, EMU_HERE) { return tilework_emu_mbarrier(emu::TEST, bar, parity, file, line); }
static inline bool mbarrier_try(unsigned bar, unsigned parity, EMU_HERE) { return tilework_emu_mbarrier(emu::TEST, bar, parity, file, line); }
static inline void mbarrier_wait(unsigned bar, unsigned parity, EMU_HERE) { tilework_emu_mbarrier(emu::WAIT, bar, parity, file, line); }
static inline void mbarrier_wait_cluster(unsigned bar, unsigned parity, EMU_HERE) { tilework_emu_mbarrier(emu::WAIT, bar, parity, file, line); }
// The thread's copies arrive first, all of them: no kernel can tell this from the real thing's earliest case.
static inline void mbarrier_arrive_copies(unsigned bar, EMU_HERE) {
  tilework_emu_commit();
  tilework_emu_wait(0);
  tilework_emu_mbarrier(emu::ARRIVE, bar, 1, file, line);
}

// ---- fences and barriers
static inline void fence_async() { tilework_emu_fence(emu::FENCE_PROXY); }
static inline void fence_cluster() {}
static inline void named_sync(unsigned id, unsigned threads, EMU_HERE) { tilework_emu_named(id, threads, true, file, line); }
static inline void named_arrive(unsigned id, unsigned threads, EMU_HERE) { tilework_emu_named(id, threads, false, file, line); }

// ---- clusters
static inline unsigned cluster_rank(EMU_HERE) { return tilework_emu_cluster(emu::CLUSTER_RANK, file, line); }
static inline unsigned cluster_size(EMU_HERE) { return tilework_emu_cluster(emu::CLUSTER_SIZE, file, line); }
namespace emu {
static inline uint3 cluster3(unsigned what, const char* file, int line) {
  return {tilework_emu_cluster(what, file, line), tilework_emu_cluster(what + 1, file, line), tilework_emu_cluster(what + 2, file, line)};
}
}  // namespace emu
static inline uint3 cluster_block(EMU_HERE) { return emu::cluster3(emu::CLUSTER_BLOCK, file, line); }
static inline uint3 cluster_dim(EMU_HERE) { return emu::cluster3(emu::CLUSTER_DIM, file, line); }
static inline uint3 cluster_id(EMU_HERE) { return emu::cluster3(emu::CLUSTER_ID, file, line); }
static inline uint3 cluster_count(EMU_HERE) { return emu::cluster3(emu::CLUSTERS, file, line); }
static inline void cluster_arrive(EMU_HERE) { tilework_emu_cluster(emu::CLUSTER_ARRIVE, file, line); }
static inline void cluster_wait(EMU_HERE) { tilework_emu_cluster(emu::CLUSTER_WAIT, file, line); }
static inline void cluster_sync(EMU_HERE) {
  cluster_arrive(file, line);
  cluster_wait(file, line);
}
static inline unsigned cluster_address(unsigned address, unsigned block) { return (address & 0xffffffu) | (block + 1) << 24; }

// ---- TMA
namespace emu {
static inline void tma(unsigned kind, const void* map, unsigned shared, unsigned bar, unsigned blocks, unsigned rank,
                       int x, int y, int z, int u, int v, unsigned s, unsigned r, const char* file, int line) {
  Tma request = {map, shared, bar, {x, y, z, u, v}, {s, r, 0}, rank, kind, blocks};
  tilework_emu_tma(&request, file, line);
}
}  // namespace emu
static inline void tma_prefetch(const void*) {}
static inline void tma_load1(unsigned to, const void* map, unsigned bar, int x, EMU_HERE) { emu::tma(emu::LOAD, map, to, bar, 0, 1, x, 0, 0, 0, 0, 0, 0, file, line); }
static inline void tma_load2(unsigned to, const void* map, unsigned bar, int x, int y, EMU_HERE) { emu::tma(emu::LOAD, map, to, bar, 0, 2, x, y, 0, 0, 0, 0, 0, file, line); }
static inline void tma_load3(unsigned to, const void* map, unsigned bar, int x, int y, int z, EMU_HERE) { emu::tma(emu::LOAD, map, to, bar, 0, 3, x, y, z, 0, 0, 0, 0, file, line); }
static inline void tma_load4(unsigned to, const void* map, unsigned bar, int x, int y, int z, int u, EMU_HERE) { emu::tma(emu::LOAD, map, to, bar, 0, 4, x, y, z, u, 0, 0, 0, file, line); }
static inline void tma_load5(unsigned to, const void* map, unsigned bar, int x, int y, int z, int u, int v, EMU_HERE) { emu::tma(emu::LOAD, map, to, bar, 0, 5, x, y, z, u, v, 0, 0, file, line); }
static inline void tma_load2_all(unsigned to, const void* map, unsigned bar, unsigned blocks, int x, int y, EMU_HERE) { emu::tma(emu::LOAD, map, to, bar, blocks, 2, x, y, 0, 0, 0, 0, 0, file, line); }
static inline void tma_load3_all(unsigned to, const void* map, unsigned bar, unsigned blocks, int x, int y, int z, EMU_HERE) { emu::tma(emu::LOAD, map, to, bar, blocks, 3, x, y, z, 0, 0, 0, 0, file, line); }
static inline void tma_load_im2col(unsigned to, const void* map, unsigned bar, int c, int w, int h, int n, unsigned s, unsigned r, EMU_HERE) { emu::tma(emu::LOAD_IM2COL, map, to, bar, 0, 4, c, w, h, n, 0, s, r, file, line); }
static inline void tma_load_im2col_all(unsigned to, const void* map, unsigned bar, unsigned blocks, int c, int w, int h, int n, unsigned s, unsigned r, EMU_HERE) { emu::tma(emu::LOAD_IM2COL, map, to, bar, blocks, 4, c, w, h, n, 0, s, r, file, line); }
static inline void tma_store1(const void* map, unsigned from, int x, EMU_HERE) { emu::tma(emu::STORE, map, from, 0, 0, 1, x, 0, 0, 0, 0, 0, 0, file, line); }
static inline void tma_store2(const void* map, unsigned from, int x, int y, EMU_HERE) { emu::tma(emu::STORE, map, from, 0, 0, 2, x, y, 0, 0, 0, 0, 0, file, line); }
static inline void tma_store3(const void* map, unsigned from, int x, int y, int z, EMU_HERE) { emu::tma(emu::STORE, map, from, 0, 0, 3, x, y, z, 0, 0, 0, 0, file, line); }
static inline void tma_store4(const void* map, unsigned from, int x, int y, int z, int u, EMU_HERE) { emu::tma(emu::STORE, map, from, 0, 0, 4, x, y, z, u, 0, 0, 0, file, line); }
static inline void tma_store5(const void* map, unsigned from, int x, int y, int z, int u, int v, EMU_HERE) { emu::tma(emu::STORE, map, from, 0, 0, 5, x, y, z, u, v, 0, 0, file, line); }
static inline void tma_commit() { tilework_emu_bulk(0, 0); }
template <int pending> static inline void tma_wait_read() { tilework_emu_bulk(1, pending); }
template <int pending> static inline void tma_wait() { tilework_emu_bulk(1, pending); }

// ---- wgmma
static inline void wgmma_fence() { tilework_emu_fence(emu::FENCE_REGISTERS); }
static inline void wgmma_commit(EMU_HERE) { tilework_emu_wgmma_group(0, 0, file, line); }
template <int pending> static inline void wgmma_wait(EMU_HERE) { tilework_emu_wgmma_group(1, pending, file, line); }
template <int n> static inline void wgmma_keep(float (&)[n]) {}
template <class E, int n, int ta, int tb>
static inline void wgmma(float (&d)[n / 2], unsigned long long a, unsigned long long b, bool accumulate, EMU_HERE) {
  emu::Product request = {d, nullptr, a, b, n, (unsigned)(ta | tb << 1 | wgmma_kind((const E*)nullptr) << 2 | accumulate << 3)};
  tilework_emu_wgmma(&request, file, line);
}
template <class E, int n, int tb>
static inline void wgmma(float (&d)[n / 2], const unsigned (&a)[4], unsigned long long b, bool accumulate, EMU_HERE) {
  emu::Product request = {d, a, 0, b, n, (unsigned)(tb << 1 | wgmma_kind((const E*)nullptr) << 2 | accumulate << 3)};
  tilework_emu_wgmma(&request, file, line);
}

// ---- warps and registers
template <int count> static inline void registers_up() {}
template <int count> static inline void registers_down() {}
static inline bool elect_one(EMU_HERE) { return __ffs((int)__ballot_sync(0xffffffffu, 1, file, line)) - 1 == emu::lane(); }
static inline void grid_wait() {}
static inline void grid_launch() {}
static inline void store_tiles(unsigned address, unsigned a, unsigned b, unsigned c, unsigned d, EMU_HERE) {
  unsigned tiles[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) {
    unsigned row = __shfl_sync(0xffffffffu, address, i * 8 + emu::lane() / 4, 32, file, line);
    emu::store(row + emu::lane() % 4 * 4, tiles[i], file, line);
  }
}
static inline void store_tiles_transposed(unsigned address, unsigned a, unsigned b, unsigned c, unsigned d, EMU_HERE) {
  unsigned tiles[4] = {a, b, c, d};
  for (int i = 0; i < 8; ++i) {
    unsigned row = __shfl_sync(0xffffffffu, address, i / 2 * 8 + emu::lane() % 4 * 2 + i % 2, 32, file, line);
    emu::store(row + emu::lane() / 4 * 2, (unsigned short)(tiles[i / 2] >> i % 2 * 16), file, line);
  }
}
