// SPDX-License-Identifier: Apache-2.0
// Every operation of every instruction set against the reference's, at odd shapes; then the same
// checks on deliberately wrong kernels, which they must find. With SSM_TEST_TIME=1 each row is
// timed too.
#include <check.h>
#include <stdio.h>
#include <time.h>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/pack.h"
#include "kernels/reference/ops.h"
#include "random_model.h"

#ifdef __aarch64__
static const char *const isas[] = {"neon", "avx2", "avx512", "avx512bf16"};
#else
static const char *const isas[] = {"portable", "avx2", "avx512", "avx512bf16"};
#endif
enum { N_ISAS = 4 };

static const cpu_kernels *table_of(int i) { // NULL: not on this machine
    const cpu_kernels *k = cpu_kernels_choose(isas[i]);
    return k && strcmp(k->name, isas[i]) == 0 ? k : NULL;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// ---- arrays

static float *random_floats(random_model *r, size_t n, double mean, double spread) {
    float *x = malloc((n > 0 ? n : 1) * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(mean + spread * random_unit(r));
    return x;
}

// [tokens][n] to blocks and back; what lies past n is zero.
static float *to_blocked(const float *x, int32_t n, int32_t tokens) {
    const int32_t blocks = cpu_blocks(n);
    float *out = calloc((size_t)blocks * (size_t)tokens * CPU_LANES, sizeof *out);
    for (int32_t t = 0; t < tokens; t++) {
        for (int32_t i = 0; i < n; i++)
            out[(i / CPU_LANES * tokens + t) * CPU_LANES + i % CPU_LANES] = x[t * n + i];
    }
    return out;
}

static double distance(const float *a, const float *b, size_t n) {
    double d = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    return sqrt(d / (norm > 0 ? norm : 1));
}

static double blocked_distance(const float *blocked, const float *want, int32_t n, int32_t tokens) {
    float *expected = to_blocked(want, n, tokens);
    const double d =
        distance(blocked, expected, (size_t)cpu_blocks(n) * (size_t)tokens * CPU_LANES);
    free(expected);
    return d;
}

// ---- products

typedef struct product_case {
    int32_t rows, cols, tokens;
    ssm_dtype dtype;
    cpu_format format;
} product_case;

static double product_error(const cpu_kernels *k, const product_case *c) {
    random_model r = {.state = 3};
    const ssm_tensor w = random_tensor(&r, c->dtype, c->rows, c->cols, 0, 1);
    const ssm_tensor bias = random_tensor(&r, SSM_DTYPE_F32, c->rows, 1, 0, 1);
    const cpu_matrix m = {&w, &bias, NULL, {{0, c->rows}}, 1, c->format};
    cpu_arena arena = {0};
    cpu_slice slice;
    cpu_pack(&arena, &m, 0, cpu_matrix_blocks(&m), &slice);
    const size_t size = arena.size > arena.used ? arena.size : arena.used;
    arena = (cpu_arena){.base = cpu_map(size), .size = size};
    cpu_pack(&arena, &m, 0, cpu_matrix_blocks(&m), &slice);

    float *x = random_floats(&r, (size_t)c->cols * (size_t)c->tokens, 0, 1);
    float *blocked = to_blocked(x, c->cols, c->tokens);
    const size_t floats = (size_t)cpu_blocks(c->rows) * (size_t)c->tokens * CPU_LANES;
    float *out = malloc(floats * sizeof *out);
    memset(out, 0xff, floats * sizeof *out); // poisoned
    const cpu_input input = {.data = blocked, .tokens = c->tokens};
    const cpu_output output = {out, (size_t)c->tokens * CPU_LANES, CPU_LANES, false};
    k->product(&slice, &input, &output);
    if (getenv("SSM_TEST_TIME")) {
        int rounds = 0;
        const double start = now();
        for (; now() - start < 0.05; rounds++)
            k->product(&slice, &input, &output);
        const double t = (now() - start) / rounds;
        printf("%-11s product %5d x %4d x %2d format %d: %8.2f us, %5.1f GB/s, %6.1f Gflop/s\n",
               k->name, c->rows, c->cols, c->tokens, c->format, 1e6 * t, (double)size / t / 1e9,
               2e-9 * c->rows * c->cols * c->tokens / t);
    }
    float *weights = malloc((size_t)c->rows * (size_t)c->cols * sizeof *weights);
    float *want = malloc((size_t)c->rows * (size_t)c->tokens * sizeof *want);
    ssm_tensor_read(&w, 0, (size_t)c->rows * (size_t)c->cols, weights);
    for (int32_t t = 0; t < c->tokens; t++)
        ref_linear((size_t)c->rows, (size_t)c->cols, weights, bias.data, x + t * c->cols,
                   want + t * c->rows);
    const double d = blocked_distance(out, want, c->rows, c->tokens);
    free(x);
    free(blocked);
    free(out);
    free(weights);
    free(want);
    cpu_unmap(arena.base, arena.size);
    random_model_dispose(&r);
    return d;
}

START_TEST(products) {
    const cpu_kernels *k = table_of(_i);
    const int32_t rows[] = {1, 16, 17, 48, 65, 130}, cols[] = {1, 15, 16, 33, 257};
    const int32_t tokens[] = {1, 2, 3, 5, 7, 8, 9, 17};
    const product_case formats[] = {{.dtype = SSM_DTYPE_F32, .format = CPU_W_F32},
                                    {.dtype = SSM_DTYPE_F16, .format = CPU_W_F16},
                                    {.dtype = SSM_DTYPE_BF16, .format = CPU_W_BF16}};
    for (int f = 0; k && f < 3; f++) {
        for (int i = 0; i < 6 * 5 * 8; i++) {
            product_case c = formats[f];
            c.rows = rows[i / 40];
            c.cols = cols[i / 8 % 5];
            c.tokens = tokens[i % 8];
            const double e = product_error(k, &c); // 2e-6 sqrt(K) / 16 and an ulp
            ck_assert_msg(e <= 2e-7 + 2e-6 * sqrt(c.cols) / 16, "%s %d x %d x %d: %g", k->name,
                          c.rows, c.cols, c.tokens, e);
        }
    }
}
END_TEST

// ---- convolution and recurrence over one block, against the reference token by token

static double conv_error(const cpu_kernels *k, int32_t width, int32_t count) {
    random_model r = {.state = 5};
    const size_t w = (size_t)width, n = CPU_LANES;
    float *weight = random_floats(&r, n * w, 0, 1), *bias = random_floats(&r, n, 0, 1);
    float *tail = random_floats(&r, n * w, 0, 1); // [16][width - 1]
    float *x = random_floats(&r, n * (size_t)count, 0, 2);
    float *out = calloc(n * (size_t)count, sizeof *out), *packed = calloc(n * w, sizeof *packed);
    float *own_tail = calloc(n * w, sizeof *own_tail);
    for (size_t c = 0; c < n; c++) {
        for (size_t j = 0; j < w; j++)
            packed[j * n + c] = weight[c * w + j];
        for (size_t j = 0; j + 1 < w; j++)
            own_tail[j * n + c] = tail[c * (w - 1) + j];
    }
    const cpu_conv args = {packed, bias, own_tail, x, out, width, count, false};
    k->conv(&args);
    for (int32_t t = 0; t < count; t++)
        ref_conv_step(n, w, weight, bias, tail, x + t * CPU_LANES);
    double d = distance(out, x, n * (size_t)count);
    for (size_t c = 0; c < n; c++) {
        for (size_t j = 0; j + 1 < w; j++)
            d += own_tail[j * n + c] != tail[c * (w - 1) + j];
    }
    free(weight);
    free(bias);
    free(tail);
    free(x);
    free(out);
    free(packed);
    free(own_tail);
    return d;
}

START_TEST(convolutions) {
    const cpu_kernels *k = table_of(_i);
    for (int32_t width = 1; k && width <= 8; width++) {
        for (int32_t count = 1; count < 140; count += 1 + count / 3) {
            const double e = conv_error(k, width, count);
            ck_assert_msg(e <= 1e-6, "%s width %d, %d tokens: %g", k->name, width, count, e);
        }
    }
}
END_TEST

static double scan_error(const cpu_kernels *k, int32_t n, int32_t count, bool per_state) {
    random_model r = {.state = 7};
    const size_t lanes = CPU_LANES, states = (size_t)n, len = (size_t)count;
    float *a_log = random_floats(&r, lanes * states, 0, 2), *d = random_floats(&r, lanes, 1, 1);
    float *delta = malloc(lanes * len * sizeof *delta); // log-uniform: decays 1 - 1e-5 to 1e-6
    for (size_t i = 0; i < lanes * len; i++)
        delta[i] = (float)exp(-4.5 + 5 * random_unit(&r));
    float *b = random_floats(&r, states * len, 0, 1), *c = random_floats(&r, states * len, 0, 1);
    float *x = random_floats(&r, lanes * len, 0, 1), *z = random_floats(&r, lanes * len, 0, 3);
    float *h = random_floats(&r, lanes * states, 0, 1); // [16][n]
    float *own_h = malloc(lanes * states * sizeof *own_h), *a = malloc(lanes * states * sizeof *a);
    float *y = malloc(lanes * len * sizeof *y), *want = malloc(lanes * len * sizeof *want);
    for (size_t l = 0; l < lanes; l++) {
        for (size_t s = 0; s < states; s++) {
            own_h[s * lanes + l] = h[l * states + s];
            a[s * lanes + l] =
                (float)(-exp((double)a_log[per_state ? l * states + s : l]) * 1.4426950408889634);
        }
    }
    float *bb = to_blocked(b, n, count), *bc = to_blocked(c, n, count);
    const cpu_scan args = {.a = a,
                           .d = d,
                           .delta = delta,
                           .x = x,
                           .z = z,
                           .b = bb,
                           .c = bc,
                           .stride = len * lanes,
                           .h = own_h,
                           .y = y,
                           .n = n,
                           .count = count,
                           .per_state = per_state};
    k->scan(&args);
    for (int32_t t = 0; t < count; t++) {
        const size_t at = (size_t)t * lanes, row = (size_t)t * states;
        if (per_state)
            ref_scan_mamba(lanes, states, a_log, d, delta + at, b + row, c + row, x + at, h,
                           want + at);
        else
            ref_scan_mamba2(lanes, 1, 1, states, a_log, d, delta + at, b + row, c + row, x + at, h,
                            want + at);
        for (size_t l = 0; l < lanes; l++)
            want[at + l] *= ref_silu(z[at + l]);
    }
    double e = distance(y, want, lanes * len), state = 0, norm = 0;
    for (size_t l = 0; l < lanes; l++) {
        for (size_t s = 0; s < states; s++) {
            const double diff = (double)own_h[s * lanes + l] - (double)h[l * states + s];
            state += diff * diff;
            norm += (double)h[l * states + s] * (double)h[l * states + s];
        }
    }
    e = fmax(e, sqrt(state / norm));
    float *all[] = {a_log, d, delta, b, c, x, z, h, own_h, a, y, want, bb, bc};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
    return e;
}

START_TEST(recurrences) {
    const cpu_kernels *k = table_of(_i);
    const int32_t states[] = {1, 3, 8, 16, 17, 32, 33, 128}, counts[] = {1, 2, 63, 64, 65, 200};
    for (int i = 0; k && i < 8 * 6 * 2; i++) {
        const int32_t n = states[i / 12], count = counts[i / 2 % 6];
        const double e = scan_error(k, n, count, i % 2);
        ck_assert_msg(e <= 2e-6, "%s n %d, %d tokens: %g", k->name, n, count, e);
    }
}
END_TEST

// ---- norms and softplus

static double norm_error(const cpu_kernels *k, int32_t n, int32_t groups, int32_t tokens) {
    random_model r = {.state = 9};
    float *x = random_floats(&r, (size_t)n * (size_t)tokens, 0, 3);
    float *weight = random_floats(&r, (size_t)cpu_blocks(n) * CPU_LANES, 1, 0.5);
    float *blocked = to_blocked(x, n, tokens);
    const cpu_norm args = {.x = blocked,
                           .weight = weight,
                           .out = blocked,
                           .n = n,
                           .groups = groups,
                           .tokens = tokens,
                           .out_tokens = tokens,
                           .count = tokens,
                           .eps = 1e-5f};
    k->norm(&args);
    const int32_t width = n / groups;
    for (int32_t i = 0; i < n * tokens; i += width)
        ref_rms_norm((size_t)width, x + i, weight + i % n, 1e-5f, x + i);
    const double d = blocked_distance(blocked, x, n, tokens);
    free(x);
    free(weight);
    free(blocked);
    return d;
}

START_TEST(norms) {
    const cpu_kernels *k = table_of(_i);
    const int32_t cases[][2] = {{1, 1}, {15, 1}, {65, 1}, {64, 2}, {120, 8}, {96, 3}, {768, 1}};
    for (int i = 0; k && i < 7; i++) {
        const double e = norm_error(k, cases[i][0], cases[i][1], 1 + i);
        ck_assert_msg(e <= 5e-7, "%s %d in %d: %g", k->name, cases[i][0], cases[i][1], e);
    }
}
END_TEST

START_TEST(softplus_over_its_range) {
    const cpu_kernels *k = table_of(_i);
    double worst = 0;
    for (double from = -80; k && from < 40; from += 0.01) {
        float x[CPU_LANES];
        double want[CPU_LANES];
        for (int i = 0; i < CPU_LANES; i++) {
            x[i] = (float)(from + 0.01 * i / CPU_LANES);
            want[i] = x[i] > 30 ? (double)x[i] : log1p(exp((double)x[i]));
        }
        k->softplus(x, CPU_LANES, 0, INFINITY);
        for (int i = 0; i < CPU_LANES; i++)
            worst = fmax(worst, fabs((double)x[i] - want[i]) / want[i]);
    }
    if (getenv("SSM_TEST_TIME") && k)
        printf("%-11s softplus: relative error %.2e\n", k->name, worst);
    // without a fused product the argument's reduction loses up to |x| ulp
    ck_assert(worst <= (_i == 0 ? 1e-5 : 5e-7));
}
END_TEST

// ---- planted errors

static const cpu_kernels *right;

static void product_without_last_input(const cpu_slice *w, const cpu_input *x,
                                       const cpu_output *out) {
    cpu_slice cut = *w;
    cut.k_blocks--;
    right->product(&cut, x, out);
}
static void conv_without_tail(const cpu_conv *args) {
    cpu_conv wrong = *args;
    wrong.fresh = true;
    right->conv(&wrong);
}
static void scan_with_shared_decay(const cpu_scan *args) {
    cpu_scan wrong = *args;
    wrong.per_state = false;
    right->scan(&wrong);
}
static void norm_without_weight(const cpu_norm *args) {
    cpu_norm wrong = *args;
    wrong.weight = NULL;
    right->norm(&wrong);
}

START_TEST(planted_errors_are_found) {
    right = cpu_kernels_choose(NULL);
    cpu_kernels wrong = *right;
    wrong.product = product_without_last_input;
    wrong.conv = conv_without_tail;
    wrong.scan = scan_with_shared_decay;
    wrong.norm = norm_without_weight;
    const product_case c = {48, 64, 3, SSM_DTYPE_BF16, CPU_W_BF16};
    ck_assert(product_error(&wrong, &c) > 1e-3);
    ck_assert(conv_error(&wrong, 4, 100) > 1e-3);
    ck_assert(scan_error(&wrong, 16, 50, true) > 1e-3);
    ck_assert(norm_error(&wrong, 64, 1, 2) > 1e-3);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("ops");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, products, 0, N_ISAS);
    tcase_add_loop_test(tc, convolutions, 0, N_ISAS);
    tcase_add_loop_test(tc, recurrences, 0, N_ISAS);
    tcase_add_loop_test(tc, norms, 0, N_ISAS);
    tcase_add_loop_test(tc, softplus_over_its_range, 0, N_ISAS);
    tcase_add_test(tc, planted_errors_are_found);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
