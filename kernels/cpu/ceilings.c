// SPDX-License-Identifier: Apache-2.0
// The best of several rounds on all threads at once: each reads its share of a buffer several times
// the last-level cache, then multiplies in registers.
#include "ceilings.h"

#include <string.h>
#include <time.h>

#include "pack.h"

enum { ROUNDS = 7 };
static const size_t READ_BYTES = (size_t)512 << 20;

typedef struct probe {
    const cpu_kernels *kernels;
    char *data;
    size_t share; // bytes of each thread
    cpu_format format;
    int64_t rounds;
    double done; // multiply-adds of a thread
} probe;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fill(void *arg, int thread) {
    probe *p = arg;
    memset(p->data + (size_t)thread * p->share, 0, p->share);
}

static void read_share(void *arg, int thread) {
    probe *p = arg;
    volatile float sink = p->kernels->read_stream(p->data + (size_t)thread * p->share, p->share);
    (void)sink;
}

static void multiply(void *arg, int thread) {
    probe *p = arg;
    float sink = 1;
    const double done = p->kernels->product_rounds(p->format, p->rounds, &sink);
    if (thread == 0)
        p->done = done;
}

static double best_time(cpu_pool *pool, void (*fn)(void *, int), probe *p) {
    double best = 1e9;
    for (int i = 0; i < ROUNDS; i++) {
        const double start = now();
        cpu_pool_run(pool, fn, p);
        const double t = now() - start;
        best = t < best ? t : best;
    }
    return best;
}

int cpu_ceilings(const cpu_kernels *kernels, cpu_pool *pool, cpu_format format, ssm_ceilings *out) {
    const int threads = cpu_pool_threads(pool);
    probe p = {.kernels = kernels,
               .data = cpu_map(READ_BYTES),
               .share = READ_BYTES / (size_t)threads / 4096 * 4096,
               .format = format,
               .rounds = 1 << 20};
    if (!p.data)
        return SSM_ENOMEM;
    cpu_pool_run(pool, fill, &p); // a page belongs to who touches it first
    out->read_bytes_per_second = (double)p.share * threads / best_time(pool, read_share, &p);
    const double t = best_time(pool, multiply, &p);
    out->product_flops_per_second = 2 * p.done * threads / t;
    cpu_unmap(p.data, READ_BYTES);
    return 0;
}
