// A libcuda for tests: the driver functions that this crate calls, on host memory, in one thread of
// work. It is strict and late: a call without a current context fails, and nothing that is queued on
// the stream is done before someone waits for it, so that memory reused too early shows.
//
// Environment: FAKE_CUDA_INIT (what cuInit returns), FAKE_CUDA_COUNT (GPUs), FAKE_CUDA_VERSION (12090),
// FAKE_CUDA_ARCH (90), FAKE_CUDA_MEMORY (bytes). Kernels by name: scale_fwd(x, y, {n, a}) computes
// y = a * x; fault_fwd fails when it runs; heavy_fwd is refused at its launch; wide_fwd has 16 KiB of
// static shared memory; map_fwd(map) takes a tensor map; every other kernel does nothing.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
typedef unsigned int Result;
enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NOT_READY = 3, BAD_CONTEXT = 201, BAD_IMAGE = 200, NOT_FOUND = 500,
       ILLEGAL = 700, RESOURCES = 701, CAPTURE = 900 };

typedef struct Module { char *text; } Module;
typedef struct Function { char name[64]; int dynamic; } Function;
typedef struct Event { long at; } Event;  // position in the queue; -1: not recorded
typedef struct { int kind; uint64_t to; uint64_t from; size_t bytes; Function *f; float a; int n; Event *event; } Op;
enum { H2D, D2H, D2D, ZERO, RUN, MARK };
// Of each node, those that it waits for; node i is known to the program as i + 1.
typedef struct Graph { Op ops[256]; int count; char waits[256][256]; } Graph;
typedef struct { char *at; size_t bytes; } Range;

static int ready, capturing, mode, broken, live, calls_late;
static Result sticky;
static __thread void *current;
static int context, stream;
static Op queue[65536];
static long head, tail;
static Graph recording;
static void *ends[256];  // what the next node waits for
static size_t end_count;
static Range ranges[1024], pinned[64];
static size_t used;
static long last_cluster, last_priority, last_map, map_aligned;
static long count_launch, count_graph, count_wait, count_alloc, count_context;

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atol(text) : otherwise;
}

// What the tests ask: launches done, graphs replayed, objects alive.
API long fake_count(const char *what) {
    if (!strcmp(what, "cluster")) return last_cluster;
    if (!strcmp(what, "priority")) return last_priority;
    if (!strcmp(what, "map")) return map_aligned ? last_map : -1;
    if (!strcmp(what, "launches")) return count_launch;
    if (!strcmp(what, "graphs")) return count_graph;
    if (!strcmp(what, "waits")) return count_wait;
    if (!strcmp(what, "allocations")) return count_alloc;
    if (!strcmp(what, "contexts")) return count_context;
    if (!strcmp(what, "live")) return live;
    if (!strcmp(what, "queued")) return tail - head;
    return -1;
}

static int inside(uint64_t at, size_t bytes) {
    for (int i = 0; i < 1024; i++) {
        uint64_t from = (uint64_t)ranges[i].at;
        if (ranges[i].at && at >= from && at + bytes <= from + ranges[i].bytes) return 1;
    }
    return 0;
}

static void perform(Op *op) {
    if (sticky) return;
    switch (op->kind) {
    case H2D: case D2H: case D2D: memmove((void *)op->to, (void *)op->from, op->bytes); break;
    case ZERO: memset((void *)op->to, 0, op->bytes); break;
    case MARK: break;
    case RUN:
        count_launch++;
        if (!strcmp(op->f->name, "fault_fwd")) sticky = ILLEGAL;
        if (!strcmp(op->f->name, "scale_fwd"))
            for (int i = 0; i < op->n; i++) ((float *)op->to)[i] = op->a * ((float *)op->from)[i];
    }
}

static void run_to(long end) {
    for (; head < end; head++) perform(&queue[head % 65536]);
}

static Result check(void) {
    if (!ready) return NOT_READY;
    if (!current) return BAD_CONTEXT;
    return sticky;
}

static Result push(Op op) {
    if (capturing) {
        if (op.kind == H2D || op.kind == D2H || recording.count == 256) { broken = 1; return CAPTURE; }
        for (size_t i = 0; i < end_count; i++) recording.waits[recording.count][(size_t)ends[i] - 1] = 1;
        recording.ops[recording.count++] = op;
        ends[0] = (void *)(size_t)recording.count; end_count = 1;
        return OK;
    }
    if (tail - head == 65536) run_to(tail);
    queue[tail++ % 65536] = op;
    return OK;
}

API Result cuDriverGetVersion(int *v) { *v = (int)number("FAKE_CUDA_VERSION", 12090); return OK; }
#ifndef TRUNCATED
API Result cuInit(unsigned flags) {
    Result r = (Result)number("FAKE_CUDA_INIT", 0);
    ready = r == OK && flags == 0;
    return r;
}
#endif
API Result cuDeviceGetCount(int *n) { *n = (int)number("FAKE_CUDA_COUNT", 1); return ready ? OK : NOT_READY; }
API Result cuDeviceGet(int *d, int ordinal) { *d = ordinal; return ready ? OK : NOT_READY; }
API Result cuDeviceGetName(char *name, int length, int d) { snprintf(name, length, "Fake GPU %d", d); return OK; }
API Result cuDeviceTotalMem_v2(size_t *bytes, int d) { (void)d; *bytes = number("FAKE_CUDA_MEMORY", 64 << 20); return OK; }
API Result cuDeviceGetAttribute(int *v, int what, int d) {
    (void)d;
    int arch = (int)number("FAKE_CUDA_ARCH", 90);
    switch (what) {
    case 75: *v = arch / 10; return OK;
    case 76: *v = arch % 10; return OK;
    case 16: *v = 4; return OK;            // multiprocessors
    case 13: *v = 1000000; return OK;      // clock, kHz
    case 36: *v = 2000000; return OK;      // memory clock, kHz
    case 37: *v = 256; return OK;          // bus width
    case 38: *v = 1 << 20; return OK;      // L2
    case 97: *v = 232448; return OK;       // shared memory per block, opt-in
    default: return INVALID;
    }
}
API Result cuDevicePrimaryCtxRetain(void **c, int d) { (void)d; *c = &context; count_context++; return ready ? OK : NOT_READY; }
API Result cuDevicePrimaryCtxRelease_v2(int d) { (void)d; count_context--; return OK; }
API Result cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return check(); }
API Result cuCtxSetCurrent(void *c) { current = c; return ready ? OK : NOT_READY; }

API Result cuStreamCreate(void **s, unsigned flags) { (void)flags; Result r = check(); *s = &stream; live++; return r; }
API Result cuStreamDestroy_v2(void *s) { (void)s; live--; return check(); }
API Result cuStreamSynchronize(void *s) {
    if (s != &stream) return INVALID;
    Result r = check();
    if (r) return r;
    if (capturing) { broken = 1; return CAPTURE; }
    count_wait++;
    run_to(tail);
    return sticky;
}

API Result cuEventCreate(Event **e, unsigned flags) { (void)flags; *e = malloc(sizeof **e); (*e)->at = -1; live++; return check(); }
API Result cuEventDestroy_v2(Event *e) { free(e); live--; return check(); }
API Result cuEventRecord(Event *e, void *s) {
    if (s != &stream) return INVALID;
    Result r = check();
    if (r == OK) r = push((Op){.kind = MARK, .event = e});
    e->at = tail;
    return r;
}
API Result cuEventSynchronize(Event *e) {
    Result r = check();
    if (r) return r;
    if (e->at > head) { calls_late++; run_to(e->at); }
    return sticky;
}
API Result cuEventElapsedTime(float *ms, Event *a, Event *b) {
    if (a->at < 0 || b->at < 0 || b->at > head) return 600;
    *ms = (float)(b->at - a->at);
    return check();
}

API Result cuMemAlloc_v2(uint64_t *at, size_t bytes) {
    Result r = check();
    if (r) return r;
    if (bytes == 0) return INVALID;
    if (capturing && mode != 2) { broken = 1; return CAPTURE; }
    if (used + bytes > (size_t)number("FAKE_CUDA_MEMORY", 64 << 20)) return NO_MEMORY;
    for (int i = 0; i < 1024; i++)
        if (!ranges[i].at) {
            ranges[i] = (Range){malloc(bytes), bytes};
            memset(ranges[i].at, 0xA5, bytes);
            used += bytes; live++; count_alloc++;
            *at = (uint64_t)ranges[i].at;
            return OK;
        }
    return NO_MEMORY;
}
API Result cuMemFree_v2(uint64_t at) {
    run_to(tail);
    for (int i = 0; i < 1024; i++)
        if (at && (uint64_t)ranges[i].at == at) {
            used -= ranges[i].bytes; live--;
            free(ranges[i].at);
            ranges[i].at = 0;
            return check();
        }
    return INVALID;
}
API Result cuMemGetInfo_v2(size_t *free_, size_t *total) {
    *total = number("FAKE_CUDA_MEMORY", 64 << 20);
    *free_ = *total - used;
    return check();
}
API Result cuMemHostAlloc(void **p, size_t bytes, unsigned flags) {
    (void)flags;
    *p = malloc(bytes); live++;
    for (int i = 0; i < 64; i++) if (!pinned[i].at) { pinned[i] = (Range){*p, bytes}; break; }
    return check();
}
API Result cuMemFreeHost(void *p) {
    for (int i = 0; i < 64; i++) if (pinned[i].at == p) pinned[i].at = 0;
    free(p); live--;
    return check();
}
API Result cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *s) {
    Result r = check();
    if (r) return r;
    if (s != &stream || !inside(to, bytes)) return INVALID;
    return push((Op){.kind = H2D, .to = to, .from = (uint64_t)from, .bytes = bytes});
}
API Result cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *s) {
    Result r = check();
    if (r) return r;
    if (s != &stream || !inside(from, bytes)) return INVALID;
    return push((Op){.kind = D2H, .to = (uint64_t)to, .from = from, .bytes = bytes});
}
API Result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *s) {
    Result r = check();
    if (r) return r;
    if (s != &stream || !inside(to, bytes) || !inside(from, bytes)) return INVALID;
    return push((Op){.kind = D2D, .to = to, .from = from, .bytes = bytes});
}
API Result cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *s) {
    Result r = check();
    if (r) return r;
    if (s != &stream || value != 0 || !inside(to, bytes)) return INVALID;
    return push((Op){.kind = ZERO, .to = to, .bytes = bytes});
}

// A module is what the fake NVRTC makes: a mark, then the kernel file's text.
API Result cuModuleLoadData(Module **m, const char *image) {
    Result r = check();
    if (r) return r;
    if (strncmp(image, "FAKE", 4)) return BAD_IMAGE;
    if (capturing && mode != 2) { broken = 1; return CAPTURE; }
    *m = malloc(sizeof **m);
    (*m)->text = strdup(image);
    live++;
    return OK;
}
API Result cuModuleUnload(Module *m) { free(m->text); free(m); live--; return check(); }
API Result cuModuleGetFunction(Function **f, Module *m, const char *name) {
    Result r = check();
    if (r) return r;
    // What the fake NVRTC makes of a kernel's name.
    if (strncmp(name, "_Z", 2) || !strstr(m->text, name + 2)) return NOT_FOUND;
    name += 2;
    *f = calloc(1, sizeof **f);  // never freed, as the driver's are
    snprintf((*f)->name, sizeof (*f)->name, "%s", name);
    return OK;
}
static int fixed(Function *f) { return strcmp(f->name, "wide_fwd") ? 0 : 16384; }
API Result cuFuncGetAttribute(int *v, int what, Function *f) { *v = fixed(f); return what == 1 ? check() : INVALID; }
API Result cuFuncSetAttribute(Function *f, int what, int v) {
    if (what != 8 || v + fixed(f) > 232448) return INVALID;
    f->dynamic = v;
    return check();
}
typedef struct { int id; char pad[4]; unsigned value[16]; } Attribute;
typedef struct { unsigned grid[3], block[3], shared; void *stream; Attribute *attributes; unsigned count; } Config;
API Result cuLaunchKernelEx(const Config *c, Function *f, void **args, void **extra) {
    Result r = check();
    if (r) return r;
    unsigned threads = c->block[0] * c->block[1] * c->block[2];
    if (c->stream != &stream || extra || !(c->grid[0] * c->grid[1] * c->grid[2]) || !threads || threads > 1024) return INVALID;
    int most = f->dynamic ? f->dynamic : 49152 - fixed(f);
    if ((int)c->shared > most) return INVALID;
    // Clusters: from sm_90 on, of at most 8 blocks, each side a divisor of the grid's.
    last_cluster = last_priority = 0;
    for (unsigned a = 0; a < c->count; a++) {
        const unsigned *value = c->attributes[a].value;
        switch (c->attributes[a].id) {
        case 4:
            if (number("FAKE_CUDA_ARCH", 90) < 90) return INVALID;
            for (int i = 0; i < 3; i++) if (!value[i] || c->grid[i] % value[i]) return INVALID;
            last_cluster = value[0] * value[1] * value[2];
            if (last_cluster > 8) return INVALID;
            break;
        case 8: last_priority = *(const int *)value; break;
        default: return INVALID;
        }
    }
    if (last_priority > 0 || last_priority < -5) return INVALID;
    if (!strncmp(f->name, "map_fwd", 7)) { last_map = ((uint64_t *)args[0])[15]; map_aligned = (uint64_t)args[0] % 64 == 0; }
    if (!strcmp(f->name, "heavy_fwd")) return RESOURCES;
    Op op = {.kind = RUN, .f = f};
    if (!strcmp(f->name, "scale_fwd")) {
        struct { int n; float a; } d;
        memcpy(&op.from, args[0], 8);
        memcpy(&op.to, args[1], 8);
        memcpy(&d, args[2], 8);
        op.n = d.n;
        op.a = d.a;
    }
    return push(op);
}

// A map that says what it was made of: mode, type, rank and how it is copied; address; dimensions and strides; the box.
static Result describe(uint64_t *map, uint64_t mode, uint64_t type, unsigned rank, uint64_t at, const uint64_t *dims,
                       const uint64_t *strides, const unsigned *steps, int plain, int swizzle, int l2, int fill) {
    if ((uint64_t)map % 64 || at % 16 || rank > 5 || plain || fill) return INVALID;
    memset(map, 0, 128);
    map[0] = mode | type << 8 | (uint64_t)rank << 16 | (uint64_t)swizzle << 24 | (uint64_t)l2 << 32;
    map[1] = at;
    for (unsigned i = 0; i < rank; i++) map[2 + i] = dims[i] | (i ? strides[i - 1] : 0) << 32;
    for (unsigned i = 0; i < rank; i++) map[7 + i] = (uint64_t)steps[i] << 32;
    return check();
}
API Result cuTensorMapEncodeTiled(uint64_t *map, int type, unsigned rank, uint64_t at, const uint64_t *dims,
                                  const uint64_t *strides, const unsigned *box, const unsigned *steps, int plain,
                                  int swizzle, int l2, int fill) {
    Result r = describe(map, 1, type, rank, at, dims, strides, steps, plain, swizzle, l2, fill);
    for (unsigned i = 0; !r && i < rank; i++) map[7 + i] |= box[i];
    return r;
}
API Result cuTensorMapEncodeIm2col(uint64_t *map, int type, unsigned rank, uint64_t at, const uint64_t *dims,
                                   const uint64_t *strides, const int *lower, const int *upper, unsigned channels,
                                   unsigned pixels, const unsigned *steps, int plain, int swizzle, int l2, int fill) {
    Result r = describe(map, 2, type, rank, at, dims, strides, steps, plain, swizzle, l2, fill);
    for (unsigned i = 0; !r && i + 2 < rank; i++) map[8 + i] |= (uint16_t)lower[i] | (unsigned)(uint16_t)upper[i] << 16;
    map[12] = channels | (uint64_t)pixels << 32;
    return r;
}

API Result cuStreamBeginCapture_v2(void *s, int m) {
    if (s != &stream || capturing) return INVALID;
    capturing = 1; mode = m; broken = 0; end_count = 0;
    memset(&recording, 0, sizeof recording);
    return check();
}
API Result cuStreamGetCaptureInfo_v2(void *s, int *status, uint64_t *id, void **graph, void ***nodes, size_t *count) {
    if (s != &stream || !capturing) return INVALID;
    *status = 1; *id = 1; *graph = &recording; *nodes = ends; *count = end_count;
    return check();
}
API Result cuStreamUpdateCaptureDependencies(void *s, void **nodes, size_t count, unsigned flags) {
    if (s != &stream || !capturing || flags != 1 || count > 256) return INVALID;
    memmove(ends, nodes, count * sizeof *nodes);
    end_count = count;
    return check();
}
API Result cuStreamEndCapture(void *s, Graph **g) {
    if (s != &stream || !capturing) return INVALID;
    capturing = 0;
    *g = 0;
    if (broken) return 901;
    *g = malloc(sizeof **g); live++;
    **g = recording;
    return check();
}
API Result cuGraphInstantiateWithFlags(Graph **e, Graph *g, unsigned long long flags) {
    if (flags != 8 || !g) return INVALID;
    *e = malloc(sizeof **e); live++;
    **e = *g;
    return check();
}
API Result cuGraphDestroy(Graph *g) { free(g); live--; return check(); }
API Result cuGraphExecDestroy(Graph *g) { free(g); live--; return check(); }
API Result cuGraphLaunch(Graph *e, void *s) {
    Result r = check();
    if (r || s != &stream) return r ? r : INVALID;
    count_graph++;
    // Each node as late as those that wait for it allow: from the end, the first in the recording that none left waits for.
    int order[256];
    char done[256] = {0};
    for (int n = e->count; n-- > 0;) {
        int node = -1, waited = 1;
        while (waited) {
            waited = done[++node];
            for (int i = 0; i < e->count; i++) waited |= !done[i] && e->waits[i][node];
        }
        order[n] = node; done[node] = 1;
    }
    for (int i = 0; i < e->count; i++) push(e->ops[order[i]]);
    return OK;
}

static const char *name(Result r) {
    switch (r) {
    case OK: return "CUDA_SUCCESS";
    case INVALID: return "CUDA_ERROR_INVALID_VALUE";
    case NO_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
    case BAD_IMAGE: return "CUDA_ERROR_INVALID_IMAGE";
    case BAD_CONTEXT: return "CUDA_ERROR_INVALID_CONTEXT";
    case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
    case ILLEGAL: return "CUDA_ERROR_ILLEGAL_ADDRESS";
    case RESOURCES: return "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES";
    case CAPTURE: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
    case 901: return "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
    case 999: return "CUDA_ERROR_UNKNOWN";
    default: return 0;
    }
}
API Result cuGetErrorName(Result r, const char **text) { *text = name(r); return *text ? OK : INVALID; }
API Result cuGetErrorString(Result r, const char **text) { *text = name(r) ? "as the fake says" : 0; return *text ? OK : INVALID; }
