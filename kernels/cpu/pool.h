// SPDX-License-Identifier: Apache-2.0
// Threads that run one function together and meet at barriers. See pool.c.
#ifndef SSM_KERNELS_CPU_POOL_H
#define SSM_KERNELS_CPU_POOL_H

#include <stdbool.h>

typedef struct cpu_pool cpu_pool;

// Cores that this process may use: its affinity, cut by the cgroup's quota (rounded up). At
// least 1.
int cpu_usable_cores(void);

// threads - 1 workers: the thread that calls cpu_pool_run is thread 0. NULL: out of memory or
// threads. pin: worker i (and the caller, at its next run) is bound to the i-th usable core.
cpu_pool *cpu_pool_create(int threads, bool pin);
void cpu_pool_free(cpu_pool *pool); // waits for the workers; NULL is allowed

int cpu_pool_threads(const cpu_pool *pool);

// Runs fn(arg, 0 .. threads - 1) on all threads and returns when all have returned.
void cpu_pool_run(cpu_pool *pool, void (*fn)(void *arg, int thread), void *arg);

// Memory that a thread will read soon. Whenever it has nothing to read it fetches some lines of it
// into its second-level cache.
typedef struct cpu_ahead {
    const char *at, *end;
} cpu_ahead;

static inline void cpu_ahead_fetch(cpu_ahead *ahead, int lines) {
    enum { LINE_BYTES = 64 };
    for (; lines > 0 && ahead->at < ahead->end; lines--, ahead->at += LINE_BYTES)
        __builtin_prefetch(ahead->at, 0, 2);
}

// Inside fn: returns when every thread has come here; what each wrote before is seen by all. Who
// waits fetches `ahead` meanwhile (NULL: nothing).
void cpu_pool_barrier(cpu_pool *pool, cpu_ahead *ahead);

#endif
