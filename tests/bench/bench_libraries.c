// SPDX-License-Identifier: Apache-2.0
// Our products beside the distribution's libraries, at the shapes of prefills:
//
//   bench_libraries [--threads N]
//
// OpenBLAS takes fp32; oneDNN fp32, and bf16 by bf16 into fp32, its weights reordered beforehand
// into the format that it prefers, as ours are packed. Both of one matrix run in turns, a row is
// the median of the rounds, each after a rest in which the other's threads stop spinning for work,
// and a library's result must be ours but for rounding. Built where CMake finds both libraries
// (libopenblas-dev, libdnnl-dev 2); results/ has what it printed.
#include <cblas.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cpu/model.h"
#include "op_cases.h"

enum { ROUNDS = 9, REST_MS = 40, MAX_THREADS = 64 };

typedef struct contest {
    const cpu_kernels *kernels;
    cpu_pool *pool;
    int32_t rows, cols, tokens;
    bool is_bf16;
    float *x, *blocked; // [tokens][cols] and ours of it
    void *x_bf16;       // [tokens][cols]
    void *form;         // ours, CPU_X_BF16
    float *weight;      // [rows][cols], exact in bf16
    void *weight_bf16;
    float *ours, *theirs; // [blocks][tokens][16], [tokens][rows]
    cpu_slice slices[MAX_THREADS];
    dnnl_primitive_t primitive;
    dnnl_stream_t stream;
    dnnl_exec_arg_t args[3];
} contest;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void need(dnnl_status_t status, const char *what) {
    if (status == dnnl_success)
        return;
    fprintf(stderr, "bench_libraries: oneDNN: %s: status %d\n", what, (int)status);
    exit(EXIT_FAILURE);
}

static uint16_t *halves(const float *x, size_t n) {
    uint16_t *out = malloc(n * sizeof *out);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        out[i] = (uint16_t)(bits >> 16);
    }
    return out;
}

// Numbers that bf16 holds exactly, so that every product multiplies the same.
static float *exact(random_model *r, size_t n) {
    float *x = op_random(r, n, 0, 1);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0xffff0000u;
        memcpy(&x[i], &bits, sizeof bits);
    }
    return x;
}

// ---- ours

static void pack_ours(contest *c) {
    const int threads = cpu_pool_threads(c->pool);
    static float zero[1 << 16];
    const ssm_tensor weight = {
        .data = c->weight, .dtype = SSM_DTYPE_F32, .rows = c->rows, .cols = c->cols};
    const ssm_tensor bias = {.data = zero, .dtype = SSM_DTYPE_F32, .rows = c->rows, .cols = 1};
    const cpu_matrix m = {&weight,        &bias, NULL,
                          {{0, c->rows}}, 1,     c->is_bf16 ? CPU_W_BF16_DOT : CPU_W_F32};
    for (int i = 0; i < threads; i++) {
        const cpu_range range = cpu_share(cpu_blocks(c->rows), i, threads);
        cpu_arena arena = {0};
        cpu_pack(&arena, &m, range.first, range.end, &c->slices[i]);
        const size_t size = arena.size > arena.used ? arena.size : arena.used;
        arena = (cpu_arena){.base = cpu_map(size), .size = size}; // lives as long as the program
        cpu_pack(&arena, &m, range.first, range.end, &c->slices[i]);
    }
}

static void run_share(void *arg, int thread) {
    const contest *c = arg;
    const cpu_input x = {.data = c->is_bf16 ? c->form : c->blocked, .tokens = c->tokens};
    const cpu_output out = {c->ours, (size_t)c->tokens * CPU_LANES, CPU_LANES, false};
    c->kernels->product(&c->slices[thread], &x, &out);
}

static void run_ours(contest *c) {
    cpu_pool_run(c->pool, run_share, c);
}

// ---- theirs

static void run_openblas(contest *c) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, c->tokens, c->rows, c->cols, 1, c->x,
                c->cols, c->weight, c->cols, 0, c->theirs, c->rows);
}

static dnnl_memory_t plain(dnnl_engine_t engine, const dnnl_memory_desc_t *desc, const void *data) {
    dnnl_memory_t memory;
    need(dnnl_memory_create(&memory, desc, engine, (void *)data), "memory");
    return memory;
}

static void prepare_onednn(contest *c, dnnl_engine_t engine) {
    const dnnl_data_type_t type = c->is_bf16 ? dnnl_bf16 : dnnl_f32;
    const dnnl_dims_t x_dims = {c->tokens, c->cols}, w_dims = {c->cols, c->rows},
                      y_dims = {c->tokens, c->rows};
    dnnl_memory_desc_t x, w, w_any, y;
    need(dnnl_memory_desc_init_by_tag(&x, 2, x_dims, type, dnnl_ab), "x");
    need(dnnl_memory_desc_init_by_tag(&w, 2, w_dims, type, dnnl_ba), "weights");
    need(dnnl_memory_desc_init_by_tag(&w_any, 2, w_dims, type, dnnl_format_tag_any), "any");
    need(dnnl_memory_desc_init_by_tag(&y, 2, y_dims, dnnl_f32, dnnl_ab), "y");
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t pd, reorder_pd;
    need(dnnl_matmul_desc_init(&desc, &x, &w_any, NULL, &y), "matmul");
    need(dnnl_primitive_desc_create(&pd, &desc, NULL, engine, NULL), "matmul's description");
    need(dnnl_primitive_create(&c->primitive, pd), "matmul's primitive");
    const dnnl_memory_desc_t *best = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    dnnl_memory_t from = plain(engine, &w, c->is_bf16 ? c->weight_bf16 : c->weight), to;
    need(dnnl_memory_create(&to, best, engine, DNNL_MEMORY_ALLOCATE), "packed weights");
    dnnl_primitive_t reorder;
    need(dnnl_reorder_primitive_desc_create(&reorder_pd, &w, engine, best, engine, NULL),
         "reorder's description");
    need(dnnl_primitive_create(&reorder, reorder_pd), "reorder");
    const dnnl_exec_arg_t moves[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
    need(dnnl_primitive_execute(reorder, c->stream, 2, moves), "reorder's run");
    need(dnnl_stream_wait(c->stream), "wait");
    c->args[0] =
        (dnnl_exec_arg_t){DNNL_ARG_SRC, plain(engine, &x, c->is_bf16 ? c->x_bf16 : (void *)c->x)};
    c->args[1] = (dnnl_exec_arg_t){DNNL_ARG_WEIGHTS, to};
    c->args[2] = (dnnl_exec_arg_t){DNNL_ARG_DST, plain(engine, &y, c->theirs)};
}

static void run_onednn(contest *c) {
    need(dnnl_primitive_execute(c->primitive, c->stream, 3, c->args), "matmul's run");
    need(dnnl_stream_wait(c->stream), "wait");
}

// ---- rounds

static double timed(void (*run)(contest *), contest *c) {
    nanosleep(&(struct timespec){.tv_nsec = REST_MS * 1000000L}, NULL);
    const double start = now();
    run(c);
    return now() - start;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double difference(const contest *c) {
    double d = 0, norm = 0;
    for (int32_t t = 0; t < c->tokens; t++) {
        for (int32_t i = 0; i < c->rows; i++) {
            const size_t at = ((size_t)(i / CPU_LANES) * (size_t)c->tokens + (size_t)t) * CPU_LANES;
            const double a = (double)c->ours[at + (size_t)(i % CPU_LANES)];
            const double b = (double)c->theirs[(size_t)t * (size_t)c->rows + (size_t)i];
            d += (a - b) * (a - b);
            norm += b * b;
        }
    }
    return sqrt(d / norm);
}

static bool compete(contest *c, void (*run)(contest *), const char *name) {
    double ours[ROUNDS], theirs[ROUNDS];
    run(c), run_ours(c); // first touches
    const double d = difference(c);
    for (int i = 0; i < ROUNDS; i++) {
        ours[i] = timed(run_ours, c);
        theirs[i] = timed(run, c);
    }
    qsort(ours, ROUNDS, sizeof *ours, by_value);
    qsort(theirs, ROUNDS, sizeof *theirs, by_value);
    const double flops = 2e-9 * c->rows * c->cols * c->tokens;
    const double a = ours[ROUNDS / 2], b = theirs[ROUNDS / 2];
    printf("%5d x %4d x %3d  %s  ours %8.3f ms %6.1f Gflop/s   %-8s %8.3f ms %6.1f Gflop/s   "
           "theirs / ours %.2f\n",
           c->rows, c->cols, c->tokens, c->is_bf16 ? "bf16" : "f32 ", 1e3 * a, flops / a, name,
           1e3 * b, flops / b, b / a);
    return d <= 1e-4;
}

int main(int argc, char **argv) {
    const int threads = argc == 3 && strcmp(argv[1], "--threads") == 0 ? atoi(argv[2]) : 2;
    static const int32_t shapes[][2] = {{3072, 768}, {768, 1536}, {10240, 2560}, {2560, 5120}};
    static const int32_t tokens[] = {64, 192, 512};
    const cpu_kernels *kernels = cpu_kernels_choose(NULL);
    cpu_pool *pool =
        threads >= 1 && threads <= MAX_THREADS ? cpu_pool_create(threads, false) : NULL;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    need(dnnl_engine_create(&engine, dnnl_cpu, 0), "engine");
    need(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags), "stream");
    if (!pool || !kernels)
        return EXIT_FAILURE;
    openblas_set_num_threads(threads);
    const dnnl_version_t *v = dnnl_version();
    printf("%s, %d threads (OMP_NUM_THREADS for oneDNN); %s; oneDNN %d.%d.%d\n", kernels->name,
           threads, openblas_get_config(), v->major, v->minor, v->patch);
    bool well = true;
    for (int i = 0; i < 4 * 3 * 2; i++) {
        random_model r = {.state = 11};
        contest c = {.kernels = kernels,
                     .pool = pool,
                     .rows = shapes[i / 6][0],
                     .cols = shapes[i / 6][1],
                     .tokens = tokens[i / 2 % 3],
                     .is_bf16 = i % 2,
                     .stream = stream};
        if (c.is_bf16 && !kernels->has_bf16_dot)
            continue;
        const size_t inputs = (size_t)c.tokens * (size_t)c.cols;
        const size_t weights = (size_t)c.rows * (size_t)c.cols;
        c.x = exact(&r, inputs);
        c.weight = exact(&r, weights);
        c.blocked = op_blocked(c.x, c.cols, c.tokens);
        c.x_bf16 = halves(c.x, inputs);
        c.weight_bf16 = halves(c.weight, weights);
        c.form = op_alloc(inputs);
        kernels->convert(CPU_X_BF16, c.blocked, cpu_blocks(c.cols), c.tokens, 0, c.tokens, c.form,
                         NULL, NULL);
        c.ours = op_alloc((size_t)cpu_blocks(c.rows) * CPU_LANES * (size_t)c.tokens);
        c.theirs = op_alloc((size_t)c.rows * (size_t)c.tokens);
        pack_ours(&c);
        prepare_onednn(&c, engine);
        if (!c.is_bf16)
            well &= compete(&c, run_openblas, "OpenBLAS");
        well &= compete(&c, run_onednn, "oneDNN");
    }
    if (!well)
        fprintf(stderr, "bench_libraries: results differ\n");
    return well ? EXIT_SUCCESS : EXIT_FAILURE;
}
