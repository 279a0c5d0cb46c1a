// SPDX-License-Identifier: Apache-2.0
// Weights in 12 bits beside the same model without them, in steps whose kernels read them: near for
// any weights; for those that 12 bits hold (but for up to 16 rows) the same bits of states, and
// logits that differ by the order in which their tokens' norms were added up; and models that
// cannot be packed so.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/packed_format.h"
#include "tests.h"

// An even number of tokens, so that head.cu makes the logits: cuBLASLt's algorithm for others is
// chosen by time, and the file that remembers the choice is every process's.
static const small_shape published[] = {
    {"mamba 1536", SSM_BLOCK_MAMBA, 2, 1536, 3072, 16, 4, 96, 0, 0, 516, false, false, true},
    {"mamba 2048", SSM_BLOCK_MAMBA, 2, 2048, 4096, 16, 4, 128, 0, 0, 516, false, false, true},
    {"mamba 2560", SSM_BLOCK_MAMBA, 2, 2560, 5120, 16, 4, 160, 0, 0, 516, false, false, true},
    {"mamba2 1536", SSM_BLOCK_MAMBA2, 2, 1536, 3072, 128, 4, 0, 48, 1, 516, false, false, true},
    {"mamba2 2048", SSM_BLOCK_MAMBA2, 2, 2048, 4096, 128, 4, 0, 64, 1, 516, false, false, true},
    {"mamba2 2560", SSM_BLOCK_MAMBA2, 2, 2560, 5120, 128, 4, 0, 80, 1, 516, false, false, true},
    {"mamba2 1024", SSM_BLOCK_MAMBA2, 3, 1024, 2048, 128, 4, 0, 32, 1, 516, false, false, true},
    {"falcon 4096", SSM_BLOCK_MAMBA, 1, 4096, 8192, 16, 4, 256, 0, 0, 516, true, false, false},
    {"codestral 4096", SSM_BLOCK_MAMBA2, 1, 4096, 8192, 128, 4, 0, 128, 8, 516, false, false,
     false},
};
// Whose layers have no kernels for packed weights; the last one's head has none either.
static const small_shape others[] = {
    {"mamba 1536, biases", SSM_BLOCK_MAMBA, 1, 1536, 3072, 16, 4, 96, 0, 0, 300, false, true, true},
    {"mamba 1024", SSM_BLOCK_MAMBA, 1, 1024, 2048, 16, 4, 64, 0, 0, 300, false, false, true},
    {"mamba 200", SSM_BLOCK_MAMBA, 1, 200, 400, 16, 4, 13, 0, 0, 300, false, false, true},
};
enum {
    N_PUBLISHED = sizeof published / sizeof published[0],
    FALCON = 7,
    MOST = 64,
    STEPS = 4,
    REFERENCED = 21
};

// n rows for STEPS steps: all slots fresh at first, some again later.
static void run(rig *r, int32_t n, int32_t each) {
    for (int32_t step = 0; step < STEPS; step++) {
        ssm_segment segments[MOST];
        int32_t ids[MOST], rows = 0;
        for (int32_t k = 0; k < n; k += each, rows++) {
            const bool fresh = step == 0 || (step == 2 && k % 5 == 4);
            segments[rows] = (ssm_segment){(k * 7 + 3) % MOST, rows, 1, fresh, SSM_WANT_LAST};
            ids[rows] = (k * 31 + step * 17 + n) % r->vocab;
        }
        rig_step(r, ids, segments, rows);
    }
}

static rig open_on(const char *backend, const small_model *m, ssm_dtype state, bool unpacked) {
    return rig_open_with(backend, &m->weights,
                         (ssm_device_options){.n_slots = MOST,
                                              .max_rows = MOST,
                                              .max_tokens = MOST,
                                              .weight_dtype = SSM_DTYPE_BF16,
                                              .state_dtype = state,
                                              .unpacked = unpacked});
}

static ssm_device_info info_of(const rig *r) {
    ssm_device_info info;
    r->b->info(r->d, &info);
    ck_assert_msg((info.packed_bytes > 0) == (strstr(info.text, "12 bits") != NULL), "%s",
                  info.text);
    return info;
}

// what: "lm_head" or "in_proj".
static bool has_packed(const rig *r, const char *what) {
    return strstr(info_of(r).text, what) != NULL;
}

// Where kernels read them, on these cards at least, they are there.
static bool is_packed(const rig *r, const char *what) {
    const ssm_device_info info = info_of(r);
    if (strstr(info.text, " H100") || strstr(info.text, " H200"))
        return has_packed(r, what);
    printf("%s: no card that must have packed weights\n", info.text);
    return true;
}

// ---- weights

static ssm_tensor *matrix(small_model *m, int layer, bool in_proj) {
    return in_proj ? &m->layers[layer].in_proj : &m->layers[layer].out_proj;
}

static uint16_t *numbers(small_model *m, int layer, bool in_proj) {
    return (uint16_t *)(uintptr_t)matrix(m, layer, in_proj)->data;
}

static size_t count(small_model *m, int layer, bool in_proj) {
    const ssm_tensor *t = matrix(m, layer, in_proj);
    return (size_t)t->rows * (size_t)t->cols;
}

static uint32_t largest(const uint16_t *w, size_t n) {
    uint32_t most = 0;
    for (size_t k = 0; k < n; k++)
        most = (w[k] & 0x7fffu) > most ? w[k] & 0x7fffu : most;
    return most;
}

static void round_all(uint16_t *w, size_t n) {
    const int base = packed_base(largest(w, n));
    for (size_t k = 0; k < n; k++)
        w[k] = (uint16_t)packed_bf16(packed_of(w[k], base), base);
}

static uint16_t *head_row(small_model *m, int row) {
    return (uint16_t *)(uintptr_t)m->weights.lm_head.data +
           (size_t)row * (size_t)m->weights.geometry.d_model;
}

// To what 12 bits hold.
static void make_exact(small_model *m) {
    const ssm_geometry *g = &m->weights.geometry;
    for (int row = 0; row < g->vocab_size; row++)
        round_all(head_row(m, row), (size_t)g->d_model);
    for (int i = 0; i < 2 * g->n_layers; i++)
        round_all(numbers(m, i / 2, i % 2), count(m, i / 2, i % 2));
}

// ---- packed and not

static void same_rows(pair *p, rig *without, int32_t n, bool exact) {
    // Where the layers' copy is read sums are of another order; steps of more than 16 rows of
    // Mamba-2, or 32 of Mamba-1, read the head's alone, but for falcon-mamba-7b's.
    enum { ORDER = 1 << 20 }; // of its norm's sum: 2^-20
    const ssm_geometry *g = &p->model.weights.geometry;
    const bool is_mamba = g->kind == SSM_BLOCK_MAMBA;
    exact = exact && n > (is_mamba ? 32 : 16) && !(is_mamba && g->d_model == 4096);
    run(&p->cuda, n, 1);
    run(without, n, 1);
    for (int32_t k = 0; k<n; k += n> 16 ? 3 : 1) {
        float *logits[] = {rig_logits(&p->cuda, k), rig_logits(without, k)};
        float *states[] = {rig_state(&p->cuda, (k * 7 + 3) % MOST),
                           rig_state(without, (k * 7 + 3) % MOST)};
        const double off = distance(logits[0], logits[1], (size_t)p->cuda.vocab);
        ck_assert_msg(!exact || off <= 1. / ORDER, "%s: row %d of %d has other logits, by %g",
                      p->what, k, n, off);
        ck_assert_msg(
            !exact || memcmp(states[0], states[1], p->cuda.state_floats * sizeof *states[0]) == 0,
            "%s: row %d of %d has another state", p->what, k, n);
        compare(p, logits[0], logits[1], (size_t)p->cuda.vocab, "logits");
        compare(p, states[0], states[1], p->cuda.state_floats, "a state");
    }
}

START_TEST(packed_weights_give_what_weights_do) {
    // Steps of few rows also behind ones of more, with which they take turns at a scratch.
    static const int32_t counts[] = {1, 2, 3, 4, 7, 24, 8, 12, 40, 16, 32, 64, 17};
    const small_shape *shape = &published[_i];
    pair p = {0};
    small_model_create(&p.model, shape, SSM_DTYPE_BF16, (uint64_t)_i + 71);
    for (int i = 0; i < 4; i++) {
        const bool exact = i >= 2;
        const number_format *format = &formats[i % 2 ? 3 : 1]; // bf16 weights, f32 and f16 states
        if (i == 2)
            make_exact(&p.model);
        p.tolerance = format->tolerance, p.worst = 0;
        snprintf(p.what, sizeof p.what, "%s, %s state, %s", shape->name,
                 ssm_dtype_name(format->state), exact ? "exact" : "rounded");
        p.cuda = open_on("cuda", &p.model, format->state, false);
        rig without = open_on("cuda", &p.model, format->state, true);
        ck_assert(is_packed(&p.cuda, "in_proj"));
        ck_assert(is_packed(&p.cuda, "lm_head"));
        const ssm_device_info with = info_of(&p.cuda), plain = info_of(&without);
        ck_assert_uint_eq(plain.packed_bytes, 0);
        ck_assert_uint_eq(with.weight_bytes, plain.weight_bytes + with.packed_bytes);
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++)
            same_rows(&p, &without, counts[c], exact);
        rig_close(&p.cuda);
        rig_close(&without);
        printf("%-40s worst %.1e\n", p.what, p.worst);
    }
    small_model_free(&p.model);
}
END_TEST

// ---- models that are packed, or not, and answer as the reference

typedef struct odd_weights {
    const char *name;
    void (*make)(small_model *m);
    bool packed, head_packed, finite;
} odd_weights;

// z's row of the first layer: what is behind it stays finite.
static size_t in_z(const small_model *m) {
    const ssm_geometry *g = &m->weights.geometry;
    return (size_t)(g->d_inner + 77) * (size_t)g->d_model + 5;
}

static void one_is_large(small_model *m) {
    numbers(m, 0, true)[in_z(m)] = (127 + 15) << 7; // the others are about 2^-6
}

static void one_is_infinite(small_model *m) {
    numbers(m, 1, false)[4321] = 0x7f80;
}

static void one_is_no_number(small_model *m) {
    numbers(m, 1, true)[count(m, 1, true) - 1] = 0xffc1;
}

static void all_are_zero(small_model *m) {
    memset(numbers(m, 0, true), 0, count(m, 0, true) * sizeof(uint16_t));
    memset(numbers(m, 1, false), 0, count(m, 1, false) * sizeof(uint16_t));
}

static void scale_one(uint16_t *w, int by) {
    const int exponent = (*w >> 7 & 255) + by;
    *w = (uint16_t)((*w & 0x807f) | (exponent > 0 ? exponent << 7 : 0));
}

static void scale(small_model *m, bool in_proj, size_t first, size_t n, int by) {
    for (size_t i = first; i < first + n; i++)
        scale_one(&numbers(m, 0, in_proj)[i], by);
}

static void all_are_tiny(small_model *m) { // exponents below 16
    scale(m, true, 0, count(m, 0, true), -112);
}

static void all_are_large(small_model *m) { // 2^17 times as large: nearly the largest factor
    scale(m, false, 0, count(m, 0, false), 17);
}

static void a_row_is_small(small_model *m) {
    const size_t columns = (size_t)m->weights.geometry.d_inner;
    scale(m, false, 100 * columns, columns, -20);
}

static void a_column_is_small(small_model *m) {
    const size_t columns = (size_t)m->weights.geometry.d_inner;
    for (size_t i = 100; i < count(m, 0, false); i += columns)
        scale(m, false, i, 1, -20);
}

static void a_word_is_rare(small_model *m) {
    for (int i = 0; i < m->weights.geometry.d_model; i++)
        scale_one(head_row(m, 7) + i, -30), head_row(m, 500)[i] = 0;
}

static void a_feature_is_small(small_model *m) {
    for (int row = 0; row < m->weights.geometry.vocab_size; row++)
        scale_one(head_row(m, row) + 1500, -20);
}

static void a_feature_is_zero(small_model *m) {
    for (int row = 0; row < m->weights.geometry.vocab_size; row++)
        head_row(m, row)[100] = 0;
}

enum { LARGE_WORD = 515, LARGE_EXPONENT = 20, LARGE = 1 << LARGE_EXPONENT };

static void one_of_a_word_is_large(small_model *m) {
    head_row(m, LARGE_WORD)[3] = (127 + LARGE_EXPONENT) << 7;
}

static void one_of_a_word_is_no_number(small_model *m) {
    head_row(m, 0)[1535] = 0x7fc0;
}

static void nothing(small_model *m) {
}

static const odd_weights odd[] = {
    {"as they are", nothing, true, true, true},
    {"one of 2^15", one_is_large, false, true, true},
    {"one infinite", one_is_infinite, false, true, false},
    {"one no number", one_is_no_number, false, true, false},
    {"zeros", all_are_zero, true, true, true},
    {"tiny", all_are_tiny, true, true, true},
    {"large", all_are_large, true, true, true},
    {"a small row", a_row_is_small, false, true, true},
    {"a small column", a_column_is_small, false, true, true},
    {"a rare word", a_word_is_rare, true, true, true},
    {"a small feature", a_feature_is_small, true, false, true},
    {"a feature of zeros", a_feature_is_zero, true, true, true},
    {"a large weight of a word", one_of_a_word_is_large, true, false, true},
    {"a word's no number", one_of_a_word_is_no_number, true, false, false},
};

// A word's logit that one weight makes is one feature of a row times it: as near as rows are, whose
// features are about 1, however small this one is. Beside it others would be nothing.
static void compare_large(const pair *p, float *logit, float *want) {
    const double off = fabs((double)*logit - (double)*want) / LARGE;
    ck_assert_msg(off <= p->tolerance, "%s: the large logit off by %g times its weight", p->what,
                  off);
    *logit = *want = 0;
}

static void compare_odd(pair *p, int32_t k, const odd_weights *kind) {
    const bool finite = kind->finite;
    float *logits = rig_logits(&p->cuda, k), *want = rig_logits(&p->reference, k / REFERENCED);
    ck_assert_msg(isfinite(want[0]) == finite && isfinite(logits[0]) == finite, "%s: %g, %g",
                  p->what, (double)logits[0], (double)want[0]);
    if (kind->make == one_of_a_word_is_large)
        compare_large(p, &logits[LARGE_WORD], &want[LARGE_WORD]);
    if (finite) {
        compare(p, logits, want, (size_t)p->cuda.vocab, "logits");
        return;
    }
    free(logits);
    free(want);
}

static void agrees_with_reference(const odd_weights *kind, const small_shape *shape) {
    static const int32_t counts[] = {1, 24, MOST};
    pair p = {.tolerance = formats[1].tolerance};
    small_model_create(&p.model, shape, SSM_DTYPE_BF16, 81);
    kind->make(&p.model);
    snprintf(p.what, sizeof p.what, "%s, %s", shape->name, kind->name);
    p.cuda = open_on("cuda", &p.model, SSM_DTYPE_F32, false);
    p.reference = open_on("reference", &p.model, SSM_DTYPE_F32, false);
    ck_assert_msg(kind->packed ? is_packed(&p.cuda, "in_proj") : !has_packed(&p.cuda, "in_proj"),
                  "%s", p.what);
    ck_assert_msg(kind->head_packed ? is_packed(&p.cuda, "lm_head")
                                    : !has_packed(&p.cuda, "lm_head"),
                  "%s", p.what);
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        const int32_t n = counts[c];
        run(&p.cuda, n, 1);
        run(&p.reference, n, REFERENCED);
        for (int32_t k = 0; k < n; k += REFERENCED)
            compare_odd(&p, k, kind);
    }
    printf("%-40s worst %.1e\n", p.what, p.worst);
    pair_close(&p);
}

START_TEST(models_that_do_not_fit_are_as_they_are) {
    agrees_with_reference(&odd[_i], &published[0]);
}
END_TEST

// falcon-mamba-7b's layers leave sums of squares for either head.
START_TEST(a_head_that_does_not_fit_behind_packed_layers) {
    static const odd_weights kind = {"a large weight of a word", one_of_a_word_is_large, true,
                                     false, true};
    agrees_with_reference(&kind, &published[FALCON]);
}
END_TEST

START_TEST(models_whose_kernels_read_none_have_none) {
    small_model m;
    small_model_create(&m, &others[_i], SSM_DTYPE_BF16, 91);
    rig r = open_on("cuda", &m, SSM_DTYPE_F32, false);
    ck_assert(!has_packed(&r, "in_proj"));
    if (others[_i].d_model % PACKED_HEAD_COLUMNS == 0)
        ck_assert(is_packed(&r, "lm_head"));
    else
        ck_assert_uint_eq(info_of(&r).packed_bytes, 0);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

void packed_tests(TCase *tc, cuda_part part, int one) {
    if (part != PART_ALL && part != PART_PACKED)
        return;
    if (one < N_PUBLISHED)
        tcase_add_loop_test(tc, packed_weights_give_what_weights_do, one < 0 ? 0 : one,
                            one < 0 ? N_PUBLISHED : one + 1);
    if (one >= 0 && one < N_PUBLISHED)
        return;
    tcase_add_loop_test(tc, models_that_do_not_fit_are_as_they_are, 0,
                        (int)(sizeof odd / sizeof odd[0]));
    tcase_add_test(tc, a_head_that_does_not_fit_behind_packed_layers);
    tcase_add_loop_test(tc, models_whose_kernels_read_none_have_none, 0,
                        (int)(sizeof others / sizeof others[0]));
}
