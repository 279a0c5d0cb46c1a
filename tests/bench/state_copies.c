// SPDX-License-Identifier: Apache-2.0
// Two ways out of the device and back: to the host, and by way of it to a file in the page cache.
// Files are new ones each time: ext4 writes a file out at once that is renamed over another.
#include "state_copies.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <ssm/session.h>

#include "engine/state/files.h"
#include "engine/state/snapshot_file.h"

#define PLAIN "bench_state.plain"
#define FILED "bench_state.session"

static struct {
    ssm_engine *engine;
    const char *name; // of the session
    size_t bytes, file_bytes;
    float *host, *other; // of the pool
    float *pageable;
    char *plain;  // [file_bytes]
    void *device; // with a GPU: bytes of its own
    snapshot_image image;
} at;

static const uint64_t owner[2] = {0, 0};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// ---- a GPU's own copies, by the runtime that its machine has

static struct {
    int (*memcpy)(void *to, const void *from, size_t bytes, int kind);
    int (*malloc)(void **out, size_t bytes);
    int (*free)(void *device);
} cuda;

static void find_cuda(void) {
    void *runtime = NULL;
    if (strcmp(at.engine->backend->name, "cuda") != 0)
        return;
    for (int version = 13; !runtime && version >= 11; version--) {
        char name[32];
        snprintf(name, sizeof name, "libcudart.so.%d%s", version, version == 11 ? ".0" : "");
        runtime = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
    if (!runtime) {
        printf("no libcudart: no plain copies\n");
        return;
    }
    *(void **)&cuda.memcpy = dlsym(runtime, "cudaMemcpy");
    *(void **)&cuda.malloc = dlsym(runtime, "cudaMalloc");
    *(void **)&cuda.free = dlsym(runtime, "cudaFree");
    if (cuda.malloc(&at.device, at.bytes) != 0)
        at.device = NULL;
}

static void plain_out(void) {
    if (at.device)
        cuda.memcpy(at.host, at.device, at.bytes, 2);
    else
        memcpy(at.host, at.other, at.bytes);
    __asm__ volatile("" ::"r"(at.host) : "memory");
}

static void plain_in(void) {
    if (at.device)
        cuda.memcpy(at.device, at.host, at.bytes, 1);
    else
        memcpy(at.other, at.host, at.bytes);
    __asm__ volatile("" ::"r"(at.other) : "memory");
}

static void pageable_out(void) {
    if (at.device)
        cuda.memcpy(at.pageable, at.device, at.bytes, 2);
}

static void pageable_in(void) {
    if (at.device)
        cuda.memcpy(at.device, at.pageable, at.bytes, 1);
}

// ---- ours

static void slot_copy(void) {
    const int32_t src = 0, dst = 1;
    at.engine->backend->slots_copy(at.engine->device, &src, &dst, 1, NULL);
}

static void slot_to_host(void) {
    at.engine->backend->slot_read(at.engine->device, 0, at.host, NULL);
}

static void host_to_slot(void) {
    at.engine->backend->slot_write(at.engine->device, 0, at.host, NULL);
}

static void plain_write(void) {
    const struct iovec piece = {at.plain, at.file_bytes};
    file_replace(PLAIN, &piece, 1, false, NULL);
}

static void image_write(void) {
    snapshot_file_write(at.engine->model, &at.image, NULL, FILED, false, NULL);
}

static void session_write(void) {
    ssm_session_export(at.engine, owner, at.name, FILED, NULL);
}

static void plain_read(void) {
    FILE *f = fopen(PLAIN, "r");
    if (read(fileno(f), at.plain, at.file_bytes) != (ssize_t)at.file_bytes)
        fprintf(stderr, "a short read\n");
    fclose(f);
}

// A state's bytes to where states are: with a GPU, page-locked memory in pages of 4 KB.
static void pool_read(void) {
    float *state = state_pool_take(&at.engine->states, at.engine->states.bytes);
    FILE *f = fopen(PLAIN, "r");
    if (read(fileno(f), state, at.bytes) != (ssize_t)at.bytes)
        fprintf(stderr, "a short read\n");
    fclose(f);
    state_pool_give(&at.engine->states, state, 0);
}

static void image_read(void) {
    static snapshot_image image;
    image.pool = &at.engine->states;
    snapshot_file_read(at.engine->model, FILED, &image, NULL, NULL, NULL);
    snapshot_image_dispose(&image);
}

static void session_read(void) {
    ssm_session_import(at.engine, owner, "copy", FILED, NULL, NULL);
}

// ---- steps, and copies beside them

enum { STEP_ROWS = 8, STEPS = 40 };

static void no_copy(void) {
}

static void export_beside(void) {
    uint64_t ticket;
    at.engine->backend->slot_export(at.engine->device, STEP_ROWS, -1, at.host, &ticket, NULL);
}

static void import_beside(void) {
    uint64_t ticket;
    at.engine->backend->slot_import(at.engine->device, STEP_ROWS, -1, at.other, 0, &ticket, NULL);
}

static void read_between(void) {
    at.engine->backend->slot_read(at.engine->device, STEP_ROWS, at.pageable, NULL);
}

// Milliseconds a step, with a copy after each.
static double step_ms(void (*copy)(void)) {
    int32_t tokens[STEP_ROWS];
    ssm_segment segments[STEP_ROWS];
    float *logits = malloc((size_t)at.engine->info.vocab_size * sizeof *logits);
    for (int32_t i = 0; i < STEP_ROWS; i++) {
        tokens[i] = 5;
        segments[i] = (ssm_segment){i, i, 1, false, SSM_WANT_LAST};
    }
    const ssm_plan plan = {tokens, STEP_ROWS, segments, STEP_ROWS};
    double began = 0;
    for (int i = -4; i < STEPS; i++) {
        if (i == 0) {
            at.engine->backend->logits_read(at.engine->device, 0, logits, NULL);
            began = now();
        }
        at.engine->backend->step(at.engine->device, &plan, NULL);
        copy();
    }
    at.engine->backend->logits_read(at.engine->device, 0, logits, NULL); // waits
    const double took = now() - began;
    free(logits);
    return took * 1e3 / STEPS;
}

static void step_row(const char *what, void (*copy)(void), double *alone) {
    double least = step_ms(copy);
    for (int i = 0; i < 4; i++) {
        const double ms = step_ms(copy);
        least = ms < least ? ms : least;
    }
    *alone = *alone > 0 ? *alone : least;
    printf("%-46s %9.3f %17s %7.2f\n", what, least, "", least / *alone);
}

static void steps_beside_copies(void) {
    double alone = 0;
    printf("%-46s %9s\n", "steps of 8 rows, and after each", "least ms");
    step_row("  nothing", no_copy, &alone);
    step_row("  a state to the host, beside the next", export_beside, &alone);
    step_row("  a state from the host, the same", import_beside, &alone);
    step_row("  a state to memory that is not pinned", read_between, &alone);
}

// ---- the table

enum { MOST_ROUNDS = 100, LEAST_ROUNDS = 8 };
static const size_t ROUNDS_BYTES = 400 << 20; // of states, in all rounds

typedef struct copy_row {
    const char *what;
    void (*run)(void);
    int against;         // row
    const char *removed; // before it is timed
    bool is_gpu;
} copy_row;

static const copy_row rows[] = {
    {"plain copy, device to host", plain_out, 0, NULL, false},
    {"  to memory that is not pinned", pageable_out, 0, NULL, true},
    {"plain copy, host to device", plain_in, 2, NULL, false},
    {"  from memory that is not pinned", pageable_in, 2, NULL, true},
    {"slot to slot (save, restore, fork)", slot_copy, 0, NULL, false},
    {"slot to host", slot_to_host, 0, NULL, false},
    {"host to slot", host_to_slot, 2, NULL, false},
    {"plain write, page cache", plain_write, 7, PLAIN, false},
    {"  of a state in memory: checksum and header", image_write, 7, FILED, false},
    {"session to a file", session_write, 7, FILED, false},
    {"plain read, page cache", plain_read, 10, NULL, false},
    {"  of a state, to where states are", pool_read, 10, NULL, false},
    {"  of a state into memory: checksum and checks", image_read, 10, NULL, false},
    {"session from a file", session_read, 10, NULL, false},
};
enum { N_ROWS = sizeof rows / sizeof rows[0] };

static int by_time(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print(double times[N_ROWS][MOST_ROUNDS], int rounds) {
    printf("%-46s %9s %9s %15s\n", "one state", "least ms", "median", "x the plain one");
    for (int i = 0; i < N_ROWS; i++)
        qsort(times[i], (size_t)rounds, sizeof(double), by_time);
    for (int i = 0; i < N_ROWS; i++) {
        const double *mine = times[i], *plain = times[rows[i].against];
        if (rows[i].is_gpu && !at.device)
            continue;
        printf("%-46s %9.3f %9.3f %7.2f %7.2f\n", rows[i].what, mine[0] * 1e3,
               mine[rounds / 2] * 1e3, mine[0] / plain[0], mine[rounds / 2] / plain[rounds / 2]);
    }
}

static void prepare(void) {
    struct stat info;
    at.bytes = at.engine->state_floats * sizeof(float);
    at.host = state_pool_take(&at.engine->states, at.engine->states.bytes);
    at.other = state_pool_take(&at.engine->states, at.engine->states.bytes);
    at.pageable = calloc(1, at.bytes);
    memset(at.host, 0, at.bytes);
    memset(at.other, 0, at.bytes);
    session_write();
    at.image.pool = &at.engine->states;
    snapshot_file_read(at.engine->model, FILED, &at.image, NULL, NULL, NULL);
    stat(FILED, &info);
    at.file_bytes = (size_t)info.st_size;
    at.plain = calloc(1, at.file_bytes);
    find_cuda();
}

void state_copies(ssm_engine *engine, const char *name) {
    static double times[N_ROWS][MOST_ROUNDS];
    at.engine = engine;
    at.name = name;
    prepare();
    const size_t most = ROUNDS_BYTES / at.bytes;
    const int rounds = most > MOST_ROUNDS    ? MOST_ROUNDS
                       : most < LEAST_ROUNDS ? LEAST_ROUNDS
                                             : (int)most;
    printf("state %zu bytes, file %zu, %d rounds\n", at.bytes, at.file_bytes, rounds);
    for (int r = 0; r < rounds; r++) {
        for (int i = 0; i < N_ROWS; i++) {
            if (rows[i].removed)
                unlink(rows[i].removed);
            const double t = now();
            rows[i].run();
            times[i][r] = now() - t;
        }
    }
    print(times, rounds);
    if (engine->backend->slot_export)
        steps_beside_copies();
    ssm_session_delete(engine, owner, "copy", NULL);
    unlink(PLAIN);
    unlink(FILED);
    if (at.device)
        cuda.free(at.device);
    state_pool_give(&engine->states, at.host, 0);
    state_pool_give(&engine->states, at.other, 0);
    snapshot_image_dispose(&at.image);
    free(at.pageable);
    free(at.plain);
}
