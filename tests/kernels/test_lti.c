// SPDX-License-Identifier: Apache-2.0
// Linear time-invariant layers in all their forms: discretisation, the transforms, and backends'
// prompts as recurrence, as convolution and in chunks.
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/model.h"
#include "kernels/backend.h"
#include "kernels/cpu/kernels.h"
#include "kernels/fft.h"
#include "kernels/lti.h"
#include "random_lti.h"

static double worst(const double *a, const double *b, size_t n) {
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        const double off = fabs(a[i] - b[i]);
        if (!(off <= most))
            most = off;
    }
    return most;
}

// ---- discretisation

enum { N = 12 };

// A pole is a dense state of two: [[re, -im], [im, re]], B (1, 0).
START_TEST(a_pole_is_a_dense_pair) {
    const ssm_rule rule = (ssm_rule)_i;
    const double poles[][2] = {{-0.5, 0}, {-0.5, 3}, {-1e-6, 1e-7}, {-4, -20}};
    for (size_t i = 0; i < 4; i++) {
        const double *a = poles[i], dt = 0.07;
        const double dense[4] = {a[0], -a[1], a[1], a[0]}, b[2] = {1, 0};
        double ab[2], bb[2], dense_ab[4], dense_bb[2];
        lti_discretise_pole(rule, dt, a, ab, bb);
        ck_assert_int_eq(lti_discretise_dense(rule, dt, 2, dense, b, dense_ab, dense_bb), 0);
        const double want[6] = {ab[0], -ab[1], ab[1], ab[0], bb[0], bb[1]};
        const double got[6] = {dense_ab[0], dense_ab[1], dense_ab[2],
                               dense_ab[3], dense_bb[0], dense_bb[1]};
        const double off = worst(got, want, 6);
        ck_assert_msg(off <= 1e-14, "%s, pole %zu: off by %g", lti_rule_name(rule), i, off);
    }
}
END_TEST

// zoh is exact for an input that is held; the others near it by their orders: halving dt divides
// the error of Ab by 2^(order + 1).
START_TEST(rules_have_their_orders) {
    static const double orders[] = {
        [SSM_RULE_BILINEAR] = 2, [SSM_RULE_EULER] = 1, [SSM_RULE_RK4] = 4};
    const double a[2] = {-0.8, 2.5};
    for (ssm_rule rule = SSM_RULE_BILINEAR; rule <= SSM_RULE_RK4; rule++) {
        double off[2];
        for (int i = 0; i < 2; i++) {
            double exact[2], ab[2], bb[2];
            lti_discretise_pole(SSM_RULE_ZOH, i ? 0.01 : 0.02, a, exact, bb);
            lti_discretise_pole(rule, i ? 0.01 : 0.02, a, ab, bb);
            off[i] = hypot(ab[0] - exact[0], ab[1] - exact[1]);
        }
        const double order = log2(off[0] / off[1]) - 1;
        ck_assert_msg(fabs(order - orders[rule]) < 0.1, "%s is of order %g", lti_rule_name(rule),
                      order);
    }
}
END_TEST

// HiPPO in one step of 2 dt is two of dt, for zoh; what is above its diagonal stays zero.
START_TEST(hippo_steps_add_up) {
    double a[N * N], b[N], one[N * N], two[N * N], square[N * N], bb[N], bb2[N];
    lti_hippo_legs(N, a, b);
    ck_assert_int_eq(lti_discretise_dense(SSM_RULE_ZOH, 0.05, N, a, b, one, bb), 0);
    ck_assert_int_eq(lti_discretise_dense(SSM_RULE_ZOH, 0.1, N, a, b, two, bb2), 0);
    lti_multiply(N, one, one, square);
    ck_assert(worst(square, two, N * N) <= 1e-12);
    for (size_t i = 0; i < N; i++) {
        double both = bb[i];
        for (size_t j = 0; j < N; j++) {
            both += one[i * N + j] * bb[j];
            ck_assert(j <= i || (one[i * N + j] == 0 && two[i * N + j] == 0));
        }
        ck_assert(fabs(both - bb2[i]) <= 1e-12);
    }
}
END_TEST

START_TEST(radii_are_found) {
    const double turn[4] = {0, -0.9, 0.9, 0};      // +-0.9 i
    const double skewed[4] = {0.5, 1e6, 0, 0.25};  // far from normal, triangular
    const double full[4] = {0.5, 1e6, 1e-9, 0.25}; // the same, and not
    const double nilpotent[4] = {1, 1, -1, -1};
    ck_assert(fabs(lti_spectral_radius(2, turn) - 0.9) <= 1e-12);
    ck_assert(lti_spectral_radius(2, skewed) == 0.5);
    const double exact = 0.375 + sqrt(0.125 * 0.125 + 1e-3);
    ck_assert(fabs(lti_spectral_radius(2, full) - exact) <= 1e-9);
    ck_assert(lti_spectral_radius(2, nilpotent) == 0);
}
END_TEST

// Euler steps out of the disc where zoh and bilinear never do, and is refused with its radius.
START_TEST(euler_is_refused_where_it_grows) {
    const float log_dt = 0, log_rate = 1, zero = 0, c[2] = {1, 0}, one = 1; // dt 1, A = -e
    const ssm_layer l = {.A_log = {&log_rate, SSM_DTYPE_F32, 1, 1},
                         .D = {&one, SSM_DTYPE_F32, 1, 1},
                         .lti = {.log_dt = {&log_dt, SSM_DTYPE_F32, 1, 1},
                                 .A_imag = {&zero, SSM_DTYPE_F32, 1, 1},
                                 .C = {c, SSM_DTYPE_F32, 1, 2}}};
    ssm_geometry g = {.kind = SSM_BLOCK_S4D, .d_model = 1, .d_state = 2};
    for (ssm_rule rule = SSM_RULE_ZOH; rule <= SSM_RULE_RK4; rule++) {
        ssm_error err = {0};
        lti_diagonal s;
        g.rule = rule;
        const int rc = lti_diagonal_init(&s, &g, &l, &err);
        if (rule != SSM_RULE_EULER) { // RK4 is stable to 2.785
            ck_assert_int_eq(rc, 0);
            lti_diagonal_dispose(&s);
            continue;
        }
        ck_assert_int_eq(rc, SSM_EUNSUPPORTED);
        ck_assert_str_eq(err.param, "discretization");
        ck_assert_msg(strstr(err.message, "spectral radius is 1.71828") != NULL, "%s", err.message);
    }
}
END_TEST

// ---- transforms

START_TEST(fft_is_the_sum) {
    double x[2 * 64], want[2 * 64], back[2 * 64], w[64];
    random_model r = {.state = 7};
    for (size_t n = 1; n <= 64; n *= 2) {
        for (size_t i = 0; i < 2 * n; i++)
            back[i] = x[i] = random_unit(&r);
        fft_twiddles(n, w);
        fft_direct(n, x, 0, want);
        fft_transform(n, w, back, 0);
        ck_assert(worst(back, want, 2 * n) <= 1e-13);
        fft_transform(n, w, back, 1);
        for (size_t i = 0; i < 2 * n; i++)
            back[i] /= (double)n;
        ck_assert(worst(back, x, 2 * n) <= 1e-14);
    }
}
END_TEST

// ---- prompts of whole models: forms, chunks, instruction sets

typedef struct answer {
    float *logits, *state; // [LENGTH][vocab]
} answer;

#if defined(__SANITIZE_ADDRESS__)
enum { LENGTH = 420 }; // the pieces below, cut short
#else
enum { LENGTH = 700 };
#endif

static size_t state_floats(const ssm_weights *w) {
    return ssm_state_conv_floats(&w->geometry) + ssm_state_ssm_floats(&w->geometry);
}

// Where a prompt runs: the slot held NaN before.
typedef struct place {
    const char *backend, *isa;
    ssm_prompt_form form;
    int32_t threads;
    int32_t before; // tokens of another prompt in the same steps
} place;

static void poison(ssm_device *d, const ssm_weights *w) {
    ssm_error err = {0};
    float *state = malloc(state_floats(w) * sizeof *state);
    for (size_t i = 0; i < state_floats(w); i++)
        state[i] = NAN;
    ck_assert_int_eq(d->backend->slot_write(d, 1, state, &err), 0);
    free(state);
}

static answer run_at(const ssm_weights *w, const place *p, const int32_t *cuts, int n_cuts) {
    const size_t vocab = (size_t)w->geometry.vocab_size;
    answer a = {malloc(LENGTH * vocab * sizeof(float)), malloc(state_floats(w) * sizeof(float))};
    const ssm_device_options o = {.n_slots = 2,
                                  .max_tokens = LENGTH + p->before,
                                  .max_rows = LENGTH,
                                  .threads = p->threads,
                                  .prompt_form = p->form};
    int32_t tokens[2 * LENGTH];
    ssm_error err = {0};
    ssm_device *d = NULL;
    const char *isa = p->isa;
    if (isa)
        setenv("SSM_CPU_ISA", isa, 1);
    const int rc = ssm_backend_find(p->backend)->open(w, &o, &d, &err);
    unsetenv("SSM_CPU_ISA");
    ck_assert_msg(rc == 0, "%s", err.message);
    poison(d, w);
    for (int32_t done = 0, i = 0; done < LENGTH; i++) {
        const int32_t left = LENGTH - done, cut = cuts[i % n_cuts], at = p->before;
        const int32_t count = cut < left ? cut : left;
        const ssm_segment segments[] = {{0, 0, at, true, SSM_WANT_NONE},
                                        {1, at, count, done == 0, SSM_WANT_ALL}};
        const ssm_plan plan = {tokens, at + count, segments + (at == 0), 1 + (at > 0)};
        for (int32_t k = 0; k < at + count; k++) {
            const int32_t t = k < at ? k + 5 : done + k - at;
            tokens[k] = (t * t + 3 * t) % w->geometry.vocab_size;
        }
        ck_assert_int_eq(d->backend->step(d, &plan, &err), 0);
        for (int32_t row = 0; row < count; row++)
            d->backend->logits_read(d, row, a.logits + (size_t)(done + row) * vocab, &err);
        done += count;
    }
    d->backend->slot_read(d, 1, a.state, &err);
    d->backend->close(d);
    return a;
}

static answer run(const ssm_weights *w, const char *backend, const char *isa, ssm_prompt_form form,
                  const int32_t *cuts, int n_cuts) {
    return run_at(w, &(place){backend, isa, form, 2, 0}, cuts, n_cuts);
}

static void dispose(answer *a) {
    free(a->logits);
    free(a->state);
}

// The largest difference over the largest magnitude.
static double relative(const float *a, const float *b, size_t n) {
    double most = 0, scale = 0;
    for (size_t i = 0; i < n; i++) {
        const double off = fabs((double)a[i] - (double)b[i]);
        scale = fmax(scale, fabs((double)b[i]));
        if (!(off <= most))
            most = off;
    }
    return most / scale;
}

static const struct {
    const char *model;
    double bound;
} models[] = {{"shakespeare-s4d", 2e-5}, {"copying-s4d", 1e-3},   {"copying-lssl", 1e-3},
              {"induction-h3", 1e-3},    {"selective-s4d", 1e-3}, {"selective-h3", 1e-3},
              {"selective-h3-256", 1e-3}};
enum { N_MODELS = sizeof models / sizeof models[0] };

static ssm_model *open_model(const char *name) {
    char path[4096];
    ssm_error err = {0};
    ssm_model *model = NULL;
    snprintf(path, sizeof path, SSM_TEST_DATA "/models/%s", name);
    const int rc = ssm_model_open(path, &model, &err);
    ck_assert_msg(rc == 0, "%s", err.message);
    return model;
}

static void check_near(const answer *a, const answer *b, const ssm_weights *w, double bound,
                       const char *model, const char *what) {
    const double logits = relative(a->logits, b->logits, LENGTH * (size_t)w->geometry.vocab_size);
    const double state = relative(a->state, b->state, state_floats(w));
    ck_assert_msg(logits <= bound, "%s, %s: logits are off by %g", model, what, logits);
    ck_assert_msg(state <= bound, "%s, %s: the state is off by %g", model, what, state);
    if (getenv("SSM_TEST_VERBOSE"))
        printf("%-18s %-28s logits %.1e state %.1e\n", model, what, logits, state);
}

// Token by token, scanned whole and in pieces: the same bits. As a convolution, whole and in pieces
// of which some are too short for one: near them, and the same bits if all are.
START_TEST(forms_agree) {
    ssm_model *model = open_model(models[_i].model);
    const ssm_weights *w = ssm_model_weights(model);
    const size_t n = LENGTH * (size_t)w->geometry.vocab_size * sizeof(float);
    const int32_t each[] = {1}, whole[] = {LENGTH}, pieces[] = {1, 193, 40, 300, 31, 64, 5};
    const int32_t shorter[] = {31}; // than any block
    const double bound = models[_i].bound;
    answer tokens = run(w, "cpu", NULL, SSM_PROMPT_SCAN, each, 1);
    answer scan = run(w, "cpu", NULL, SSM_PROMPT_SCAN, whole, 1);
    answer cut = run(w, "cpu", NULL, SSM_PROMPT_SCAN, pieces, 7);
    ck_assert(memcmp(scan.logits, tokens.logits, n) == 0);
    ck_assert(memcmp(scan.state, tokens.state, state_floats(w) * sizeof(float)) == 0);
    ck_assert(memcmp(cut.logits, tokens.logits, n) == 0);
    ck_assert(memcmp(cut.state, tokens.state, state_floats(w) * sizeof(float)) == 0);
    dispose(&scan);
    dispose(&cut);
    scan = run(w, "cpu", NULL, SSM_PROMPT_CONVOLUTION, whole, 1);
    cut = run(w, "cpu", NULL, SSM_PROMPT_CONVOLUTION, pieces, 7);
    check_near(&scan, &tokens, w, bound, models[_i].model, "convolution");
    check_near(&cut, &tokens, w, bound, models[_i].model, "convolution in pieces");
    ck_assert(memcmp(scan.logits, tokens.logits, n) != 0); // or a form is compared with itself
    dispose(&scan);
    dispose(&cut);
    scan = run(w, "cpu", NULL, SSM_PROMPT_CONVOLUTION, shorter, 1);
    ck_assert(memcmp(scan.logits, tokens.logits, n) == 0);
    ck_assert(memcmp(scan.state, tokens.state, state_floats(w) * sizeof(float)) == 0);
    dispose(&scan);
    scan = run(w, "cpu", NULL, SSM_PROMPT_AUTO, pieces, 7);
    check_near(&scan, &tokens, w, bound, models[_i].model, "as chosen");
    dispose(&scan);
    dispose(&tokens);
    ssm_model_free(model);
}
END_TEST

static const char *const isas[] = {"portable", "avx2", "avx512", "avx512vnni", "avx512bf16"};
enum { N_ISAS = sizeof isas / sizeof isas[0] };

START_TEST(instruction_sets_agree) {
    const char *isa = isas[_i % N_ISAS], *name = models[1 + _i / N_ISAS].model;
    const cpu_kernels *kernels = cpu_kernels_choose(isa);
    if (!kernels || strcmp(kernels->name, isa) != 0)
        return;
    ssm_model *model = open_model(name);
    const ssm_weights *w = ssm_model_weights(model);
    const int32_t pieces[] = {256, 100, 1, 343};
    answer want = run(w, "reference", NULL, SSM_PROMPT_AUTO, pieces, 1);
    for (ssm_prompt_form form = SSM_PROMPT_SCAN; form <= SSM_PROMPT_CONVOLUTION; form++) {
        answer got = run(w, "cpu", isa, form, pieces, 4);
        check_near(&got, &want, w, 1e-3, name, isa);
        dispose(&got);
    }
    dispose(&want);
    ssm_model_free(model);
}
END_TEST

// ---- H3's pairs in blocks: heads of any size, wherever they lie among blocks, threads and windows

static const lti_shape pairs[] = {
    {"heads of 8", SSM_BLOCK_H3, 2, 64, 16, 8, 16, SSM_RULE_BILINEAR, false},
    {"heads of 3, lanes left over", SSM_BLOCK_H3, 2, 33, 6, 3, 77, SSM_RULE_ZOH, false},
    {"one head over three blocks", SSM_BLOCK_H3, 1, 40, 8, 40, 60, SSM_RULE_ZOH, false},
    {"heads of 1, 32 pairs", SSM_BLOCK_H3, 2, 48, 64, 1, 90, SSM_RULE_ZOH, false},
    {"heads of 24, 20 pairs", SSM_BLOCK_H3, 1, 72, 40, 24, 50, SSM_RULE_BILINEAR, false},
    {"heads of 7, one pair", SSM_BLOCK_H3, 2, 35, 2, 7, 30, SSM_RULE_ZOH, false},
    {"heads of 16, 17 pairs", SSM_BLOCK_H3, 1, 80, 34, 16, 40, SSM_RULE_ZOH, false},
};
enum { N_PAIRS = sizeof pairs / sizeof pairs[0] };

static void check_bits(const answer *a, const answer *b, const ssm_weights *w, const char *what) {
    const size_t n = LENGTH * (size_t)w->geometry.vocab_size;
    ck_assert_msg(memcmp(a->logits, b->logits, n * sizeof(float)) == 0, "logits: %s", what);
    ck_assert_msg(memcmp(a->state, b->state, state_floats(w) * sizeof(float)) == 0, "state: %s",
                  what);
}

START_TEST(pairs_agree) {
    const lti_shape *s = &pairs[_i / N_ISAS];
    const char *isa = isas[_i % N_ISAS];
    const cpu_kernels *kernels = cpu_kernels_choose(isa);
    if (!kernels || strcmp(kernels->name, isa) != 0)
        return;
    random_model m;
    random_lti_init(&m, s, SSM_DTYPE_F32, (uint64_t)_i / N_ISAS + 1);
    const ssm_weights *w = &m.weights;
    const int32_t whole[] = {LENGTH}, pieces[] = {33, 1, 96, 31, 200, 64, 5, 270};
    place p = {"cpu", isa, SSM_PROMPT_SCAN, 1, 0};
    answer want = run(w, "reference", NULL, SSM_PROMPT_AUTO, whole, 1);
    answer scan = run_at(w, &p, pieces, 8);
    check_near(&scan, &want, w, 2e-5, s->name, isa);
    p.form = SSM_PROMPT_CONVOLUTION;
    answer block = run_at(w, &p, whole, 1), cut = run_at(w, &p, pieces, 8);
    check_near(&block, &want, w, 2e-5, s->name, isa);
    check_near(&cut, &want, w, 2e-5, s->name, isa);
    check_near(&cut, &scan, w, 2e-5, s->name, isa);
    ck_assert(memcmp(block.state, scan.state, state_floats(w) * sizeof(float)) != 0);
    for (p.threads = 1; p.threads <= 3; p.threads++) { // 3 and 37: heads and windows in two
        for (p.before = 0; p.before <= 37; p.before += 37) {
            answer again = run_at(w, &p, pieces, 8);
            check_bits(&again, &cut, w, "not those of one thread alone");
            dispose(&again);
        }
    }
    dispose(&want);
    dispose(&scan);
    dispose(&block);
    dispose(&cut);
    random_model_dispose(&m);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("lti");
    TCase *tc = tcase_create("forms");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, a_pole_is_a_dense_pair, 0, SSM_RULE_RK4 + 1);
    tcase_add_test(tc, rules_have_their_orders);
    tcase_add_test(tc, hippo_steps_add_up);
    tcase_add_test(tc, radii_are_found);
    tcase_add_test(tc, euler_is_refused_where_it_grows);
    tcase_add_test(tc, fft_is_the_sum);
    tcase_add_loop_test(tc, forms_agree, 0, N_MODELS);
    tcase_add_loop_test(tc, instruction_sets_agree, 0, N_ISAS * 3);
    tcase_add_loop_test(tc, pairs_agree, 0, N_ISAS * N_PAIRS);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_run_all(sr, CK_NORMAL);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
