// SPDX-License-Identifier: Apache-2.0
// A pool of threads for steps of a few milliseconds with a hundred barriers in each.
//
// A barrier is one shared counter and one generation: the last to arrive advances the generation,
// the others watch it. They spin for a while (4,096 pauses, of themselves 53 us on an Ice Lake
// at 2.8 GHz), long enough for threads of equal work on cores of their own, then sleep in a futex,
// so that a preempted thread's core is not fought over. With more threads than usable cores
// spinning only delays the thread that is waited for: then they sleep at once. Between runs workers
// wait in the same way for the next one. A wake-up costs a system call only if somebody sleeps,
// which `sleepers` tells.
//
// Cores that other processes keep busy are not known here. Tried for them: 64 pauses. With two
// threads on two cores at a load of 3 to 4, sleeping earlier took more of the processor, not less:
// CPU seconds of test_engine_queue 2.5 and 1.8 with 4,096, 3.1 and 5.0 with 64 (four to nine times
// the voluntary switches); of test_cache_traffic 4.8 and 4.8, 4.7 and 4.7. At a load of 8 it is the
// other way: test_engine_queue 14.5 and 11.5 with 4,096, 3.2 and 3.4 with 256; seven of tests/http,
// a token at a time, 14.8 and 15.6, with 1,024 11.1 and 11.3, with 256 10.2 and 10.0. SSM_CPU_SPINS
// is for such a machine, that of ./run test.
//
// Cores are counted from the affinity mask and the cgroup's CPU quota (version 2's cpu.max, version
// 1's cfs quota), since a container's quota is not seen in the mask.
#define _GNU_SOURCE
#include "pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

// Sanitized code takes so much longer between barriers that spinning wins nothing; a little, so
// that both ways are tested.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SPINS = 1 << 6 };
#else
enum { SPINS = 1 << 12 };
#endif
enum { LINE = 64 };

// A number that threads wait on to change.
typedef struct gate {
    _Alignas(LINE) _Atomic uint32_t value;
    _Alignas(LINE) _Atomic int sleepers;
} gate;

struct cpu_pool {
    gate run;     // generation of runs
    gate barrier; // generation of barriers
    _Alignas(LINE) _Atomic int arrived;
    int threads, spins;
    bool pin, stop, caller_bound;
    void (*fn)(void *arg, int thread);
    void *arg;
    pthread_t *workers; // [threads - 1]
    int started;
};

typedef struct worker_start {
    cpu_pool *pool;
    int thread;
} worker_start;

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void gate_wait(gate *g, uint32_t old, int spins, cpu_ahead *ahead) {
    enum { LINES = 4 };
    for (int i = 0; i < spins; i++) {
        if (atomic_load_explicit(&g->value, memory_order_acquire) != old)
            return;
        if (ahead)
            cpu_ahead_fetch(ahead, LINES);
        relax();
    }
    atomic_fetch_add(&g->sleepers, 1);
    while (atomic_load(&g->value) == old)
        syscall(SYS_futex, &g->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&g->sleepers, 1);
}

static void gate_open(gate *g) {
    atomic_fetch_add(&g->value, 1);
    if (atomic_load(&g->sleepers) > 0)
        syscall(SYS_futex, &g->value, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

void cpu_pool_barrier(cpu_pool *p, cpu_ahead *ahead) {
    if (p->threads == 1)
        return;
    const uint32_t generation = atomic_load(&p->barrier.value);
    if (atomic_fetch_add(&p->arrived, 1) == p->threads - 1) {
        atomic_store(&p->arrived, 0);
        gate_open(&p->barrier);
    } else {
        gate_wait(&p->barrier, generation, p->spins, ahead);
    }
}

static int most_spins(void) {
    const char *limit = getenv("SSM_CPU_SPINS"); // for tests beside other tests: no more than these
    const int n = limit ? atoi(limit) : SPINS;
    return n < 0 || n > SPINS ? SPINS : n;
}

// Binds the calling thread to the i-th core of its mask. Best effort: a refusal costs speed only.
static void bind_to_core(int i) {
    cpu_set_t mask, one;
    if (sched_getaffinity(0, sizeof mask, &mask) != 0)
        return;
    const int cores = CPU_COUNT(&mask);
    for (int core = 0, seen = 0; core < CPU_SETSIZE; core++) {
        if (!CPU_ISSET(core, &mask) || seen++ != i % cores)
            continue;
        CPU_ZERO(&one);
        CPU_SET(core, &one);
        (void)sched_setaffinity(0, sizeof one, &one);
        return;
    }
}

static void *work(void *arg) {
    const worker_start start = *(worker_start *)arg;
    cpu_pool *p = start.pool;
    free(arg);
    if (p->pin)
        bind_to_core(start.thread);
    for (uint32_t generation = 0;; generation++) {
        gate_wait(&p->run, generation, p->spins, NULL);
        if (p->stop)
            return NULL;
        p->fn(p->arg, start.thread);
        cpu_pool_barrier(p, NULL);
    }
}

void cpu_pool_run(cpu_pool *p, void (*fn)(void *arg, int thread), void *arg) {
    if (p->pin && !p->caller_bound) {
        bind_to_core(0);
        p->caller_bound = true;
    }
    p->fn = fn;
    p->arg = arg;
    if (p->threads > 1)
        gate_open(&p->run);
    fn(arg, 0);
    cpu_pool_barrier(p, NULL);
}

int cpu_pool_threads(const cpu_pool *p) {
    return p->threads;
}

static bool start_worker(cpu_pool *p, int thread) {
    worker_start *start = malloc(sizeof *start);
    if (!start)
        return false;
    *start = (worker_start){p, thread};
    if (pthread_create(&p->workers[p->started], NULL, work, start) != 0) {
        free(start);
        return false;
    }
    p->started++;
    return true;
}

cpu_pool *cpu_pool_create(int threads, bool pin) {
    cpu_pool *p = aligned_alloc(LINE, sizeof *p);
    if (!p)
        return NULL;
    memset(p, 0, sizeof *p);
    p->threads = threads;
    p->pin = pin;
    p->spins = threads <= cpu_usable_cores() ? most_spins() : 0;
    p->workers = calloc((size_t)threads, sizeof *p->workers);
    for (int i = 1; p->workers && i < threads; i++) {
        if (!start_worker(p, i))
            break;
    }
    if (p->workers && p->started == threads - 1)
        return p;
    cpu_pool_free(p);
    return NULL;
}

void cpu_pool_free(cpu_pool *p) {
    if (!p)
        return;
    p->stop = true;
    gate_open(&p->run);
    for (int i = 0; i < p->started; i++)
        pthread_join(p->workers[i], NULL);
    free(p->workers);
    free(p);
}

// ---- usable cores

static bool read_text(const char *path, char *text, size_t size) {
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    const size_t n = fread(text, 1, size - 1, file);
    fclose(file);
    text[n] = '\0';
    return n > 0;
}

// Cores' worth of quota in a cgroup's folder, rounded up; 0: none.
static int quota_of(const char *folder) {
    char path[512], text[64];
    long quota = -1, period = 0;
    snprintf(path, sizeof path, "%s/cpu.max", folder);
    if (read_text(path, text, sizeof text)) {
        if (sscanf(text, "%ld %ld", &quota, &period) != 2) // "max 100000"
            return 0;
    } else {
        snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder);
        if (read_text(path, text, sizeof text))
            quota = strtol(text, NULL, 10);
        snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
        if (read_text(path, text, sizeof text))
            period = strtol(text, NULL, 10);
    }
    return quota > 0 && period > 0 ? (int)((quota + period - 1) / period) : 0;
}

// The smallest quota on the way from this process's group to the root.
static int cgroup_quota(void) {
    char text[4096], folder[400] = "";
    int least = quota_of("/sys/fs/cgroup/cpu"); // version 1 as containers see it
    if (!read_text("/proc/self/cgroup", text, sizeof text))
        return least;
    const char *line = strstr(text, "0::/");
    if (line)
        snprintf(folder, sizeof folder, "/sys/fs/cgroup%.*s", (int)strcspn(line + 3, "\n"),
                 line + 3);
    else
        snprintf(folder, sizeof folder, "/sys/fs/cgroup");
    while (strlen(folder) >= strlen("/sys/fs/cgroup")) {
        const int quota = quota_of(folder);
        if (quota > 0 && (least == 0 || quota < least))
            least = quota;
        *strrchr(folder, '/') = '\0';
    }
    return least;
}

int cpu_usable_cores(void) {
    cpu_set_t mask;
    int cores = 1;
    if (sched_getaffinity(0, sizeof mask, &mask) == 0)
        cores = CPU_COUNT(&mask);
    const int quota = cgroup_quota();
    return quota > 0 && quota < cores ? quota : cores;
}
