// SPDX-License-Identifier: Apache-2.0
// Every operation of every instruction set against the reference's, at odd shapes; then the same
// checks on deliberately wrong kernels, which they must find. bench_ops has the published shapes
// and the clock.
#include <check.h>

#include "op_cases.h"

#ifdef __aarch64__
static const char *const isas[] = {"neon", "avx2", "avx512", "avx512vnni", "avx512bf16"};
#else
static const char *const isas[] = {"portable", "avx2", "avx512", "avx512vnni", "avx512bf16"};
#endif
enum { N_ISAS = 5 };

static const cpu_kernels *table_of(int i) { // NULL: not on this machine
    const cpu_kernels *k = cpu_kernels_choose(isas[i]);
    return k && strcmp(k->name, isas[i]) == 0 ? k : NULL;
}

static double error_of(const cpu_kernels *k, const op_shape *shape) {
    op_case *c = op_case_create(shape);
    const double e = c->error(c, k);
    op_case_free(c);
    return e;
}

static double product_error(const cpu_kernels *k, const op_matrix *m, cpu_format format,
                            int32_t tokens) {
    if (!op_has_format(k, format))
        return 0;
    op_case *c = op_case_create_product(m, format, tokens);
    const double e = c->error(c, k);
    op_case_free(c);
    return e;
}

// ---- products

static const char *const format_names[] = {"f32",  "f16",  "bf16", "bf16 dot", "bf16 word",
                                           "int8", "int4", "int5", "int6"};

// Chains of K roundings end 2e-6 sqrt(K) / 16 from the sum and an ulp; integers' sums are exact
// over a row (INT8) or a group, and what is left is a few roundings.
static double product_tolerance(cpu_format format, int32_t cols) {
    return format == CPU_W_INT8 ? 4e-7 : 3e-7 + 2e-6 * sqrt(cols) / 16;
}

START_TEST(products) {
    const int32_t rows[] = {1, 16, 17, 48, 65, 130}, cols[] = {1, 15, 16, 33, 257};
    const int32_t tokens[] = {1, 2, 3, 5, 7, 8, 9, 17};
    const cpu_format format = (cpu_format)_i;
    const ssm_dtype stored[] = {SSM_DTYPE_F32,  SSM_DTYPE_F16,  SSM_DTYPE_BF16,
                                SSM_DTYPE_BF16, SSM_DTYPE_BF16, SSM_DTYPE_BF16,
                                SSM_DTYPE_F32,  SSM_DTYPE_BF16, SSM_DTYPE_F32};
    for (int i = 0; i < 6 * 5; i++) {
        op_matrix *m = op_matrix_create(stored[_i], rows[i / 5], cols[i % 5], format, 0);
        for (int j = 0; j < N_ISAS * 8; j++) {
            const cpu_kernels *k = table_of(j / 8);
            const double e = k ? product_error(k, m, format, tokens[j % 8]) : 0;
            ck_assert_msg(e <= product_tolerance(format, m->cols), "%s %s %d x %d x %d: %g",
                          isas[j / 8], format_names[_i], m->rows, m->cols, tokens[j % 8], e);
        }
        op_matrix_free(m);
    }
}
END_TEST

// More tokens than pass all panels together, and enough to expand bf16 panels.
START_TEST(long_products) {
    const int32_t cols[] = {1600, 3500}, tokens = 130;
    const cpu_format format = (cpu_format)_i;
    for (int i = 0; i < 2; i++) {
        op_matrix *m = op_matrix_create(format == CPU_W_F16 ? SSM_DTYPE_F16 : SSM_DTYPE_BF16, 65,
                                        cols[i], format, 0);
        for (int j = 0; j < N_ISAS; j++) {
            const cpu_kernels *k = table_of(j);
            const double e = k ? product_error(k, m, format, tokens) : 0;
            ck_assert_msg(e <= product_tolerance(format, m->cols), "%s %s %d x %d x %d: %g",
                          isas[j], format_names[_i], m->rows, m->cols, tokens, e);
        }
        op_matrix_free(m);
    }
}
END_TEST

// Words whose sums are the largest that there can be: all weights of a row and all activations of a
// token equal, so that every group's integers add up (such weights keep 9 bits); one row holds a
// NaN, which stays in it.
START_TEST(word_sums_at_their_limit) {
    enum { ROWS = 18, COLS = 1600, TOKENS = 9 };
    const cpu_kernels *k = cpu_kernels_choose("avx512vnni");
    if (!k || !k->has_word_dot)
        return;
    float *w = op_alloc(ROWS * COLS), *x = op_alloc(COLS * TOKENS), *out = op_alloc(32 * TOKENS);
    for (int i = 0; i < ROWS * COLS; i++)
        w[i] = i / COLS % 2 ? -3.0f : i / COLS == 4 ? 1e-20f : 0.5f;
    for (int i = 0; i < COLS * TOKENS; i++)
        x[i] = i / COLS % 2 ? -7.0f : 1.75f;
    w[2 * COLS + 1000] = NAN;
    const ssm_tensor weight = {w, SSM_DTYPE_F32, ROWS, COLS};
    const cpu_matrix plan = {&weight, NULL, NULL, {{0, ROWS}}, 1, CPU_W_WORD};
    cpu_arena arena = {0};
    cpu_slice slice;
    cpu_pack(&arena, &plan, 0, 2, &slice);
    const size_t bytes = arena.size > arena.used ? arena.size : arena.used;
    arena = (cpu_arena){.base = cpu_map(bytes), .size = bytes};
    cpu_pack(&arena, &plan, 0, 2, &slice);
    float *blocked = op_blocked(x, COLS, TOKENS), *words = op_alloc(COLS * TOKENS), scale[TOKENS];
    k->convert(CPU_X_WORD, blocked, COLS / CPU_LANES, TOKENS, 0, TOKENS, words, scale, NULL);
    for (int scratch = 0; scratch < 2; scratch++) {
        void *made = scratch ? op_alloc(CPU_SCRATCH_BYTES / sizeof(float)) : NULL;
        const cpu_input in = {words, scale, NULL, made, TOKENS};
        const cpu_output to = {out, TOKENS * CPU_LANES, CPU_LANES, false};
        k->product(&slice, &in, &to);
        for (int i = 0; i < 32 * TOKENS; i++) {
            const int row = i / CPU_LANES / TOKENS * CPU_LANES + i % CPU_LANES;
            const int t = i / CPU_LANES % TOKENS;
            const double want = row < ROWS ? (double)w[row * COLS] * (double)x[t * COLS] * COLS : 0;
            if (row == 2)
                ck_assert(isnan(out[i]));
            else
                ck_assert_msg(fabs((double)out[i] - want) <= 2e-3 * fabs(want),
                              "row %d token %d: %g, not %g", row, t, (double)out[i], want);
        }
        free(made);
    }
    cpu_unmap(arena.base, bytes);
    free(w), free(x), free(out), free(blocked), free(words);
}
END_TEST

// As stored: bit by bit. From another type: half a unit in the last place. Of uniform weights, int8
// keeps 1 / 127 / 2 and int4 1 / 15 of a row's or a group's largest, by their root mean square; a
// bit more halves it.
START_TEST(packed_weights_are_those_stored) {
    const struct {
        ssm_dtype stored;
        cpu_format format;
        double most;
    } cases[] = {{SSM_DTYPE_F32, CPU_W_F32, 0},       {SSM_DTYPE_F16, CPU_W_F16, 0},
                 {SSM_DTYPE_BF16, CPU_W_BF16, 0},     {SSM_DTYPE_BF16, CPU_W_BF16_DOT, 0},
                 {SSM_DTYPE_BF16, CPU_W_WORD, 1e-3},  {SSM_DTYPE_F32, CPU_W_WORD, 0x1p-8},
                 {SSM_DTYPE_F32, CPU_W_F16, 0x1p-11}, {SSM_DTYPE_F32, CPU_W_BF16, 0x1p-8},
                 {SSM_DTYPE_F32, CPU_W_INT8, 5e-3},   {SSM_DTYPE_F32, CPU_W_INT4, 0.08},
                 {SSM_DTYPE_BF16, CPU_W_INT8, 5e-3},  {SSM_DTYPE_BF16, CPU_W_INT4, 0.08},
                 {SSM_DTYPE_F32, CPU_W_INT5, 0.04},   {SSM_DTYPE_F32, CPU_W_INT6, 0.02},
                 {SSM_DTYPE_BF16, CPU_W_INT5, 0.04},  {SSM_DTYPE_BF16, CPU_W_INT6, 0.02}};
    const int32_t rows[] = {1, 17, 65}, cols[] = {1, 33, 257};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0] * 9; i++) {
        op_matrix *m = op_matrix_create(cases[i / 9].stored, rows[i % 3], cols[i / 3 % 3],
                                        cases[i / 9].format, 0);
        const double e = op_matrix_error(m);
        ck_assert_msg(e <= cases[i / 9].most, "type %d as %s, %d x %d: %g", cases[i / 9].stored,
                      format_names[cases[i / 9].format], m->rows, m->cols, e);
        op_matrix_free(m);
    }
}
END_TEST

START_TEST(conversions) {
    const cpu_kernels *k = table_of(_i);
    const int32_t n[] = {1, 16, 33, 257}, tokens[] = {1, 3, 8, 17};
    const cpu_form forms[] = {CPU_X_BF16, CPU_X_Q16, CPU_X_Q15, CPU_X_WORD};
    for (int i = 0; k && i < (k->has_word_dot ? 4 : 3) * 16; i++) {
        const op_shape s = {OP_CONVERT, tokens[i % 4], .n = n[i / 4 % 4], .form = forms[i / 16]};
        const double e = error_of(k, &s);
        // half a unit, and two roundings of a number up to 32767 units
        const double most = s.form == CPU_X_BF16 ? 0 : 0.505;
        ck_assert_msg(e <= most, "%s form %d, %d x %d: %g", k->name, s.form, s.n, s.tokens, e);
    }
}
END_TEST

// A token that is not finite stays so, in every form, and only that token.
START_TEST(conversions_keep_what_is_not_finite) {
    enum { N = 3 * CPU_LANES, TOKENS = 11 }; // several together, then one by one
    const cpu_kernels *k = table_of(_i);
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; k && i < 2 * 3; i++) {
        const int t = i / 3 == 0 ? 1 : 9;
        float x[N * TOKENS], scale[TOKENS] = {0}, bytes[(N + CPU_LANES) * TOKENS];
        int32_t sum[2 * TOKENS];
        for (int j = 0; j < N * TOKENS; j++)
            x[j] = 0.25f;
        x[(1 * TOKENS + t) * CPU_LANES + 5] = bad[i % 3];
        const cpu_form first = k->has_word_dot ? CPU_X_WORD : CPU_X_Q16;
        for (cpu_form form = first; form <= CPU_X_Q15; form++) {
            k->convert(form, x, N / CPU_LANES, TOKENS, 0, TOKENS, bytes, scale, sum);
            for (int j = 0; j < TOKENS; j++)
                ck_assert(j == t ? !isfinite(scale[j]) : isfinite(scale[j]) && scale[j] > 0);
        }
        k->convert(CPU_X_BF16, x, N / CPU_LANES, TOKENS, 0, TOKENS, bytes, NULL, NULL);
        const size_t at = (size_t)(1 * TOKENS + t) * CPU_LANES + 5;
        uint32_t bits;
        memcpy(&bits, &bytes[at], sizeof bits);
        if (k->has_bf16_dot) {
            uint16_t half;
            memcpy(&half, (const char *)bytes + 2 * at, sizeof half);
            bits = (uint32_t)half << 16;
        }
        float kept;
        memcpy(&kept, &bits, sizeof kept);
        ck_assert(isnan(bad[i % 3]) ? isnan(kept) : kept == bad[i % 3]);
    }
}
END_TEST

// ---- convolution and recurrence

START_TEST(convolutions) {
    const cpu_kernels *k = table_of(_i);
    for (int32_t width = 1; k && width <= 8; width++) {
        for (int32_t count = 1; count < 140; count += 1 + count / 3) {
            for (int fresh = 0; fresh < 2; fresh++) {
                const op_shape s = {OP_CONV, count, .n = 32, .k = width, .fresh = fresh};
                const double e = error_of(k, &s);
                ck_assert_msg(e <= 1e-6, "%s width %d, %d tokens, fresh %d: %g", k->name, width,
                              count, fresh, e);
            }
        }
    }
}
END_TEST

START_TEST(recurrences) {
    const cpu_kernels *k = table_of(_i);
    const int32_t states[] = {1, 3, 8, 16, 17, 32, 33, 128}, counts[] = {1, 2, 63, 64, 65, 200};
    for (int i = 0; k && i < 8 * 6 * 4; i++) {
        // three blocks: Mamba-2 takes two together, then one
        op_shape s = {OP_SCAN, counts[i / 4 % 6], .n = 48, .k = states[i / 24]};
        s.per_state = i % 2;
        s.fresh = i / 2 % 2;
        const double e = error_of(k, &s);
        ck_assert_msg(e <= 2e-6, "%s n %d, %d tokens, kind %d, fresh %d: %g", k->name, s.k,
                      s.tokens, s.per_state, s.fresh, e);
    }
}
END_TEST

// Lanes of a block whose heads read different groups of B and C.
START_TEST(recurrences_of_mixed_groups) {
    const cpu_kernels *k = table_of(_i);
    const int32_t states[] = {1, 5, 16, 33}, counts[] = {1, 2, 65};
    for (int i = 0; k && i < 4 * 3 * 4; i++) {
        const op_shape s = {OP_SCAN, counts[i / 4 % 3], .n = 16, .k = states[i / 12],
                            .groups = 2 << i % 4};
        const double e = error_of(k, &s);
        ck_assert_msg(e <= 2e-6, "%s n %d, %d tokens, %d groups: %g", k->name, s.k, s.tokens,
                      s.groups, e);
    }
}
END_TEST

// ---- norms and softplus

START_TEST(norms) {
    const cpu_kernels *k = table_of(_i);
    const int32_t cases[][2] = {{1, 1}, {15, 1}, {65, 1}, {64, 2}, {120, 8}, {96, 3}, {768, 1}};
    for (int i = 0; k && i < 3 * 7; i++) {
        const op_shape s = {OP_NORM, 1 + i, .n = cases[i % 7][0], .k = cases[i % 7][1]};
        const double e = error_of(k, &s);
        ck_assert_msg(e <= 5e-7, "%s %d in %d: %g", k->name, s.n, s.k, e);
    }
}
END_TEST

START_TEST(softplus_over_its_range) {
    const cpu_kernels *k = table_of(_i);
    const op_shape open = {OP_SOFTPLUS, 12000, .n = 16, .lo = 0, .hi = INFINITY};
    const op_shape clamped = {OP_SOFTPLUS, 500, .n = 16, .lo = 0.001f, .hi = 2};
    // without a fused product the argument's reduction loses up to |x| ulp
    const double most = _i == 0 ? 1e-5 : 5e-7;
    const double e = k ? error_of(k, &open) : 0, c = k ? error_of(k, &clamped) : 0;
    ck_assert_msg(e <= most && c <= most, "%s: %g, clamped %g", isas[_i], e, c);
}
END_TEST

// ---- planted errors

static const cpu_kernels *right;

static void product_without_last_input(const cpu_slice *w, const cpu_input *x,
                                       const cpu_output *out) {
    cpu_slice cut = *w;
    cut.k_blocks -= 2;
    right->product(&cut, x, out);
}
static void product_without_add(const cpu_slice *w, const cpu_input *x, const cpu_output *out) {
    cpu_output wrong = *out;
    wrong.add = false;
    right->product(w, x, &wrong);
}
static void product_without_last_block(const cpu_slice *w, const cpu_input *x,
                                       const cpu_output *out) {
    cpu_slice cut = *w;
    cut.n_blocks -= CPU_PANEL_BLOCKS;
    right->product(&cut, x, out);
}
static void conv_without_tail(const cpu_conv *args) {
    cpu_conv wrong = *args;
    wrong.fresh = true;
    right->conv(&wrong);
}
static void conv_reads_old_slot(const cpu_conv *args) {
    cpu_conv wrong = *args;
    wrong.fresh = false;
    right->conv(&wrong);
}
static void scan_with_shared_decay(const cpu_scan *args) {
    cpu_scan wrong = *args;
    wrong.per_state = false;
    right->scan(&wrong);
}
static void scan_reads_old_slot(const cpu_scan *args) {
    cpu_scan wrong = *args;
    wrong.fresh = false;
    right->scan(&wrong);
}
static void norm_without_weight(const cpu_norm *args) {
    cpu_norm wrong = *args;
    wrong.weight = NULL;
    right->norm(&wrong);
}
static void norm_of_nothing(const cpu_norm *args) {
}
static void softplus_without_bounds(float *x, size_t n, float lo, float hi) {
    right->softplus(x, n, -INFINITY, INFINITY);
}
static void softplus_of_nan(float *x, size_t n, float lo, float hi) {
    right->softplus(x, n, lo, hi);
    x[n / 2] = NAN;
}
static void convert_without_last_token(cpu_form form, const float *x, int32_t blocks,
                                       int32_t tokens, int32_t first, int32_t count, void *out,
                                       float *scale, int32_t *sum) {
    right->convert(form, x, blocks, tokens, first, count - 1, out, scale, sum);
}

START_TEST(wrong_products_are_found) {
    void (*const wrongs[])(const cpu_slice *, const cpu_input *, const cpu_output *) = {
        product_without_last_input, product_without_add, product_without_last_block};
    for (cpu_format format = CPU_W_F32; format <= CPU_W_INT6; format++) {
        right = cpu_kernels_choose(format == CPU_W_WORD ? "avx512vnni" : NULL);
        if (!right || !op_has_format(right, format))
            continue;
        op_matrix *m = op_matrix_create(SSM_DTYPE_F32, 96, 64, format, 0);
        ck_assert(product_error(right, m, format, 3) <= product_tolerance(format, 64));
        for (int i = 0; i < 3; i++) {
            cpu_kernels wrong = *right;
            wrong.product = wrongs[i];
            ck_assert(!(product_error(&wrong, m, format, 3) <= 1e-3));
        }
        op_matrix_free(m);
    }
}
END_TEST

START_TEST(wrong_kernels_are_found) {
    right = cpu_kernels_choose(NULL);
    const op_shape conv = {OP_CONV, 100, .n = 16, .k = 4},
                   scan = {OP_SCAN, 50, .n = 16, .k = 16, .per_state = true};
    op_shape new_conv = conv, new_scan = scan;
    new_conv.fresh = new_scan.fresh = true;
    const op_shape norm = {OP_NORM, 2, .n = 64, .k = 1};
    const op_shape softplus = {OP_SOFTPLUS, 10, .n = 16, .lo = 0.001f, .hi = 2};
    const op_shape convert = {OP_CONVERT, 4, .n = 64, .form = CPU_X_Q16};
    const struct {
        const op_shape *shape;
        cpu_kernels wrong;
    } cases[] = {{&conv, {.conv = conv_without_tail}},
                 {&new_conv, {.conv = conv_reads_old_slot}},
                 {&scan, {.scan = scan_with_shared_decay}},
                 {&new_scan, {.scan = scan_reads_old_slot}},
                 {&norm, {.norm = norm_without_weight}},
                 {&norm, {.norm = norm_of_nothing}},
                 {&softplus, {.softplus = softplus_without_bounds}},
                 {&softplus, {.softplus = softplus_of_nan}},
                 {&convert, {.convert = convert_without_last_token}}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const double e = error_of(&cases[i].wrong, cases[i].shape);
        const double good = error_of(right, cases[i].shape);
        ck_assert_msg(!(e <= (cases[i].shape == &convert ? 0.6 : 1e-3)), "case %zu: %g", i, e);
        ck_assert_msg(good <= (cases[i].shape == &convert ? 0.505 : 2e-6), "case %zu: %g", i, good);
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("ops");
    TCase *tc = tcase_create("all");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, products, CPU_W_F32, CPU_W_INT6 + 1);
    tcase_add_loop_test(tc, long_products, CPU_W_F32, CPU_W_INT6 + 1);
    tcase_add_test(tc, word_sums_at_their_limit);
    tcase_add_test(tc, packed_weights_are_those_stored);
    tcase_add_loop_test(tc, conversions, 0, N_ISAS);
    tcase_add_loop_test(tc, conversions_keep_what_is_not_finite, 0, N_ISAS);
    tcase_add_loop_test(tc, convolutions, 0, N_ISAS);
    tcase_add_loop_test(tc, recurrences, 0, N_ISAS);
    tcase_add_loop_test(tc, recurrences_of_mixed_groups, 0, N_ISAS);
    tcase_add_loop_test(tc, norms, 0, N_ISAS);
    tcase_add_loop_test(tc, softplus_over_its_range, 0, N_ISAS);
    tcase_add_test(tc, wrong_products_are_found);
    tcase_add_test(tc, wrong_kernels_are_found);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
