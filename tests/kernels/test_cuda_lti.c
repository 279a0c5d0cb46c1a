// SPDX-License-Identifier: Apache-2.0
// S4D, S4 and H3 on a CUDA device: random models of odd shapes against the reference in plans that
// mix decode rows and prompts; prompts in every form and in any pieces; rows alone and in company;
// snapshots that change backends; trained models long enough that their memory is full.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/device.h"
#include "engine/model/model.h"
#include "random_lti.h"

static const lti_shape shapes[] = {
    {"s4d", SSM_BLOCK_S4D, 3, 384, 64, 0, 500, SSM_RULE_ZOH, false},
    {"s4d, 64 pairs", SSM_BLOCK_S4D, 2, 64, 128, 0, 16, SSM_RULE_BILINEAR, false},
    {"s4d, 128 pairs", SSM_BLOCK_S4D, 1, 33, 256, 0, 70, SSM_RULE_ZOH, false},
    {"s4d, 16 pairs", SSM_BLOCK_S4D, 2, 100, 32, 0, 33, SSM_RULE_ZOH, false},
    {"s4d odd", SSM_BLOCK_S4D, 2, 37, 10, 0, 77, SSM_RULE_BILINEAR, false},
    {"s4d, one pair", SSM_BLOCK_S4D, 1, 5, 2, 0, 9, SSM_RULE_ZOH, false},
    {"s4d, 150 pairs", SSM_BLOCK_S4D, 1, 20, 300, 0, 40, SSM_RULE_ZOH, false},
    {"s4", SSM_BLOCK_S4, 2, 64, 64, 0, 16, SSM_RULE_BILINEAR, false},
    {"s4 odd", SSM_BLOCK_S4, 2, 37, 13, 0, 77, SSM_RULE_ZOH, false},
    {"s4, state 100", SSM_BLOCK_S4, 1, 24, 100, 0, 30, SSM_RULE_BILINEAR, false},
    {"s4, state 300", SSM_BLOCK_S4, 1, 5, 300, 0, 30, SSM_RULE_BILINEAR, false},
    {"s4, full A", SSM_BLOCK_S4, 2, 40, 24, 0, 50, SSM_RULE_ZOH, true},
    {"h3", SSM_BLOCK_H3, 2, 64, 16, 8, 16, SSM_RULE_BILINEAR, false},
    {"h3 odd", SSM_BLOCK_H3, 2, 33, 6, 3, 77, SSM_RULE_ZOH, false},
    {"h3, one wide head", SSM_BLOCK_H3, 1, 40, 8, 40, 60, SSM_RULE_ZOH, false},
    {"h3, heads of one", SSM_BLOCK_H3, 2, 48, 64, 1, 90, SSM_RULE_ZOH, false},
    {"h3, 20 pairs", SSM_BLOCK_H3, 1, 96, 40, 16, 90, SSM_RULE_BILINEAR, false},
};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0], SLOTS = 40, ROWS = 168, TOKENS = 1500 };

static random_model dice = {.state = 1};

static int32_t below(int32_t n) {
    return (int32_t)((random_unit(&dice) + 1) / 2 * n) % n;
}

// ---- a backend with a model on it

static rig rig_open_for(const char *backend, const ssm_weights *w, ssm_dtype type,
                        ssm_prompt_form form, int32_t slots, int32_t tokens) {
    return rig_open_with(backend, w,
                         (ssm_device_options){.n_slots = slots,
                                              .max_rows = slots > ROWS ? slots : ROWS,
                                              .max_tokens = tokens,
                                              .threads = 2,
                                              .weight_dtype = type,
                                              .prompt_form = form});
}

static rig rig_open(const char *backend, const ssm_weights *w, ssm_dtype type, ssm_prompt_form form,
                    int32_t slots) {
    return rig_open_for(backend, w, type, form, slots, TOKENS);
}

// |a - b| / |b|; NaN if anything is not finite. Frees both.
static double apart(float *a, float *b, size_t n) {
    const double off = distance(a, b, n);
    free(a);
    free(b);
    return off;
}

// ---- against the reference
//
// fp32: sums in another order, and states of 0.9999 that keep their rounding for ten thousand
// tokens. 16-bit: what goes into each product is rounded to 8 or 11 bits; H3's y is itself a
// product of q, k and v, which come of such inputs: twice that.
static const struct {
    ssm_dtype type;
    ssm_prompt_form form;
    double tolerance;
} ways[] = {{SSM_DTYPE_F32, SSM_PROMPT_SCAN, 2e-5},
            {SSM_DTYPE_F32, SSM_PROMPT_CONVOLUTION, 2e-5},
            {SSM_DTYPE_BF16, SSM_PROMPT_AUTO, 2.5e-2},
            {SSM_DTYPE_F16, SSM_PROMPT_AUTO, 3e-3}};
enum { N_WAYS = sizeof ways / sizeof ways[0] };

static int32_t random_plan(int32_t vocab, bool *live, bool decode_only, int32_t *tokens,
                           ssm_segment *segments) {
    static const int32_t lengths[] = {1, 1, 1, 2, 3, 5, 31, 33, 63, 64, 65, 128, 200, 259, 640};
    const int32_t n = 1 + below(decode_only ? SLOTS : 7);
    int32_t at = 0, used = 0;
    bool taken[SLOTS] = {0};
    for (int32_t i = 0; i < n; i++) {
        const int32_t slot = below(SLOTS);
        const int32_t count =
            decode_only ? 1 : lengths[below((int32_t)(sizeof lengths / sizeof lengths[0]))];
        if (taken[slot] || at + count > TOKENS)
            continue;
        const bool fresh = !live[slot] || below(8) == 0;
        taken[slot] = live[slot] = true;
        const ssm_want want = decode_only || count > 17 ? SSM_WANT_LAST : (ssm_want)below(3);
        segments[used++] = (ssm_segment){slot, at, count, fresh, want};
        for (int32_t k = 0; k < count; k++)
            tokens[at++] = below(vocab);
    }
    return used;
}

static void agree(double off, double tolerance, const char *model, const char *what) {
    ck_assert_msg(off <= tolerance, "%s: %s off by %g (%g allowed)", model, what, off, tolerance);
}

START_TEST(random_plans_agree_with_the_reference) {
    const lti_shape *s = &shapes[_i / N_WAYS];
    const ssm_dtype type = ways[_i % N_WAYS].type;
    const bool products = s->kind == SSM_BLOCK_H3 && type != SSM_DTYPE_F32;
    const double tolerance = ways[_i % N_WAYS].tolerance * (products ? 2 : 1);
    random_model m;
    random_lti_init(&m, s, type, (uint64_t)_i + 1);
    rig cuda = rig_open("cuda", &m.weights, type, ways[_i % N_WAYS].form, SLOTS);
    rig reference = rig_open("reference", &m.weights, type, SSM_PROMPT_AUTO, SLOTS);
    bool live[SLOTS] = {0};
    double worst[2] = {0};
    for (int round = 0; round < 6; round++) {
        int32_t tokens[TOKENS];
        ssm_segment segments[SLOTS];
        const int32_t n = random_plan(cuda.vocab, live, round % 2, tokens, segments);
        rig_step(&cuda, tokens, segments, n);
        rig_step(&reference, tokens, segments, n);
        for (int32_t i = 0, row = 0; i < n; i++) {
            const int32_t rows = segments[i].want == SSM_WANT_ALL
                                     ? segments[i].count
                                     : segments[i].want == SSM_WANT_LAST;
            for (int32_t k = 0; k < rows; k++, row++) {
                const double off =
                    apart(rig_logits(&cuda, row), rig_logits(&reference, row), (size_t)cuda.vocab);
                agree(off, tolerance, s->name, "logits");
                worst[0] = fmax(worst[0], off);
            }
            const double off = apart(rig_state(&cuda, segments[i].slot),
                                     rig_state(&reference, segments[i].slot), cuda.state_floats);
            agree(off, tolerance, s->name, "a state");
            worst[1] = fmax(worst[1], off);
        }
    }
    printf("%-18s %-5s worst logits %.1e, state %.1e of %.1e\n", s->name, ssm_dtype_name(type),
           worst[0], worst[1], tolerance);
    rig_close(&cuda);
    rig_close(&reference);
    random_model_dispose(&m);
}
END_TEST

// Steps of any number of rows; the reference runs every 13th alone.
START_TEST(many_rows_agree_with_the_reference) {
    static const int of[] = {0, 1, 7, 12, 0};
    static const int32_t counts[] = {1, 2, 3, 8, 9, 16, 33, 64, 129, 257, 600};
    const lti_shape *s = &shapes[of[_i]];
    const ssm_dtype type = _i < 4 ? SSM_DTYPE_F32 : SSM_DTYPE_BF16; // its product has a gate within
    const double tolerance = _i < 4 ? 2e-5 : 2.5e-2;
    random_model m;
    random_lti_init(&m, s, type, 21);
    rig cuda = rig_open("cuda", &m.weights, type, SSM_PROMPT_AUTO, MANY);
    rig reference = rig_open("reference", &m.weights, type, SSM_PROMPT_AUTO, MANY);
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        for (int32_t step = 0; step < 3; step++) {
            rig_step_rows(&cuda, counts[c], 1, step);
            rig_step_rows(&reference, counts[c], EACH, step);
        }
        for (int32_t i = 0, row = 0; i < counts[c]; i += EACH, row++) {
            const int32_t slot = (i * 7 + counts[c]) % MANY;
            agree(apart(rig_logits(&cuda, i), rig_logits(&reference, row), (size_t)cuda.vocab),
                  tolerance, s->name, "logits of many rows");
            agree(apart(rig_state(&cuda, slot), rig_state(&reference, slot), cuda.state_floats),
                  tolerance, s->name, "a state of many rows");
        }
    }
    printf("%-18s %-5s rows alone and among 600: within %.1e\n", s->name, ssm_dtype_name(type),
           tolerance);
    rig_close(&cuda);
    rig_close(&reference);
    random_model_dispose(&m);
}
END_TEST

// ---- without an oracle

START_TEST(a_row_does_not_see_its_neighbours) {
    random_model m;
    random_lti_init(&m, &shapes[_i], SSM_DTYPE_BF16, 3);
    rig r = rig_open("cuda", &m.weights, SSM_DTYPE_BF16, SSM_PROMPT_AUTO, NEIGHBOURS);
    rig_check_neighbours(&r, shapes[_i].name, 4, below);
    rig_close(&r);
    random_model_dispose(&m);
}
END_TEST

// A freed slot full of NaN must not be read by the next user, and a failed neighbour stays alone.
START_TEST(poison_stays_where_it_is) {
    random_model m;
    random_lti_init(&m, &shapes[_i / 2], SSM_DTYPE_BF16, 4);
    rig r = rig_open("cuda", &m.weights, SSM_DTYPE_BF16,
                     _i % 2 ? SSM_PROMPT_CONVOLUTION : SSM_PROMPT_SCAN, SLOTS);
    float *poison = malloc(r.state_floats * sizeof *poison);
    for (size_t i = 0; i < r.state_floats; i++)
        poison[i] = NAN;
    for (int32_t s = 0; s < 8; s++)
        rig_restore(&r, s, poison);
    int32_t tokens[400];
    for (int i = 0; i < 400; i++)
        tokens[i] = below(r.vocab);
    const ssm_segment segments[] = {
        {0, 0, 1, true, SSM_WANT_LAST},    {1, 1, 2, true, SSM_WANT_LAST},
        {2, 3, 3, true, SSM_WANT_LAST},    {3, 6, 370, true, SSM_WANT_LAST},
        {7, 376, 4, false, SSM_WANT_LAST},
    };
    rig_step(&r, tokens, segments, 5);
    for (int32_t i = 0; i < 5; i++) {
        float *logits = rig_logits(&r, i), *state = rig_state(&r, segments[i].slot);
        double sum = 0;
        for (int32_t k = 0; k < r.vocab; k++)
            sum += fabs((double)logits[k]);
        for (size_t k = 0; k < r.state_floats; k++)
            sum += fabs((double)state[k]);
        ck_assert_msg((bool)isfinite(sum) == (i < 4), "%s: segment %d", shapes[_i / 2].name, i);
        free(logits);
        free(state);
    }
    free(poison);
    rig_close(&r);
    random_model_dispose(&m);
}
END_TEST

// ---- trained models: every form, pieces, and backends that go on from each other's snapshots

static const struct {
    const char *name;
    double bound; // of the largest magnitude
} models[] = {{"shakespeare-s4d", 2e-5},  {"copying-s4d", 1e-3},      {"selective-s4d", 1e-3},
              {"copying-lssl", 1e-3},     {"induction-h3", 1e-3},     {"selective-h3", 1e-3},
              {"selective-h3-256", 1e-3}, {"selective-s4d-256", 1e-3}};
enum { N_MODELS = sizeof models / sizeof models[0] };

static ssm_model *open_model(const char *name) {
    char path[4096];
    ssm_error err = {0};
    ssm_model *model = NULL;
    snprintf(path, sizeof path, SSM_TEST_DATA "/models/%s", name);
    must(ssm_model_open(path, &model, &err), &err);
    return model;
}

// The largest difference over the largest magnitude; NaN counts. Frees a.
static double relative(float *a, const float *b, size_t n) {
    double most = 0, scale = 0;
    for (size_t i = 0; i < n; i++) {
        const double off = fabs((double)a[i] - (double)b[i]);
        scale = fmax(scale, fabs((double)b[i]));
        if (!(off <= most))
            most = off;
    }
    free(a);
    return most / scale;
}

enum { LENGTH = 8300 };

static void make_ids(int32_t *ids, int32_t n, int32_t vocab) {
    for (int64_t i = 0; i < n; i++)
        ids[i] = (int32_t)((i * i + 3 * i) % 4999 % vocab);
}

START_TEST(forms_agree) {
    ssm_model *model = open_model(models[_i].name);
    const ssm_weights *w = ssm_model_weights(model);
    static const int32_t pieces[] = {LENGTH, 2500, 640, 193, 64, 31};
    static const char *const names[] = {"as chosen", "scan", "convolution"};
    int32_t ids[LENGTH];
    make_ids(ids, LENGTH, w->geometry.vocab_size);
    rig r = rig_open_for("cuda", w, SSM_DTYPE_F32, SSM_PROMPT_SCAN, 4, LENGTH);
    float *logits = rig_feed(&r, 1, ids, LENGTH, 1, true), *state = rig_state(&r, 1);
    float *scanned = rig_feed(&r, 0, ids, LENGTH, LENGTH, true);
    const size_t bytes = (size_t)r.vocab * sizeof *scanned;
    rig_close(&r);
    for (ssm_prompt_form form = SSM_PROMPT_AUTO; form <= SSM_PROMPT_CONVOLUTION; form++) {
        double worst[2] = {0};
        r = rig_open_for("cuda", w, SSM_DTYPE_F32, form, 4, LENGTH);
        for (int i = 0; i < 6; i++) {
            float *got = rig_feed(&r, i % 4, ids, LENGTH, pieces[i], true);
            if (i == 0 && form == SSM_PROMPT_CONVOLUTION)
                ck_assert_msg(memcmp(got, scanned, bytes) != 0, "%s: no convolution ran",
                              models[_i].name);
            const double off = relative(got, logits, (size_t)r.vocab);
            const double moved = relative(rig_state(&r, i % 4), state, r.state_floats);
            agree(off, models[_i].bound, models[_i].name, names[form]);
            agree(moved, models[_i].bound, models[_i].name, "the state after it");
            worst[0] = fmax(worst[0], off), worst[1] = fmax(worst[1], moved);
        }
        printf("%-18s %-12s logits %.1e, state %.1e of %.1e\n", models[_i].name, names[form],
               worst[0], worst[1], models[_i].bound);
        rig_close(&r);
    }
    free(logits);
    free(state);
    free(scanned);
    ssm_model_free(model);
}
END_TEST

// A session moves to the other backend in the middle and comes to what it would have come to.
START_TEST(snapshots_change_backends) {
    enum { HALF = 300, REST = 37 };
    ssm_model *model = open_model(models[_i].name);
    const ssm_weights *w = ssm_model_weights(model);
    int32_t ids[HALF + REST];
    make_ids(ids, HALF + REST, w->geometry.vocab_size);
    rig cuda = rig_open("cuda", w, SSM_DTYPE_F32, SSM_PROMPT_AUTO, 4);
    rig cpu = rig_open("cpu", w, SSM_DTYPE_F32, SSM_PROMPT_AUTO, 4);
    rig *from[] = {&cuda, &cpu}, *to[] = {&cpu, &cuda};
    for (int way = 0; way < 2; way++) {
        free(rig_feed(from[way], 0, ids, HALF, HALF, true));
        float *snapshot = rig_state(from[way], 0);
        rig_restore(to[way], 2, snapshot);
        float *back = rig_state(to[way], 2);
        ck_assert_msg(memcmp(snapshot, back, cuda.state_floats * sizeof *back) == 0,
                      "%s: a snapshot comes back changed", models[_i].name);
        float *stayed = rig_feed(from[way], 0, ids + HALF, REST, 1, false);
        const double off =
            relative(rig_feed(to[way], 2, ids + HALF, REST, 5, false), stayed, (size_t)cuda.vocab);
        agree(off, models[_i].bound, models[_i].name, "after a move");
        free(snapshot);
        free(back);
        free(stayed);
    }
    rig_close(&cuda);
    rig_close(&cpu);
    ssm_model_free(model);
}
END_TEST

START_TEST(half_states_are_refused) {
    random_model m;
    ssm_error err = {0};
    ssm_device *d = NULL;
    random_lti_init(&m, &shapes[_i], SSM_DTYPE_F32, 1);
    const ssm_device_options o = {.n_slots = 1, .state_dtype = SSM_DTYPE_F16};
    ck_assert_int_eq(ssm_backend_find("cuda")->open(&m.weights, &o, &d, &err), SSM_EUNSUPPORTED);
    ck_assert_str_eq(err.param, "state_dtype");
    random_model_dispose(&m);
}
END_TEST

int main(int argc, char **argv) {
    random_model m;
    random_lti_init(&m, &shapes[5], SSM_DTYPE_F32, 1);
    const int missing = device_missing(&m.weights);
    random_model_dispose(&m);
    if (missing)
        return missing;
    Suite *suite = suite_create("cuda lti");
    TCase *tc = suite_case(suite, "device");
    const char *part = argc > 1 ? argv[1] : "all"; // of the tests
    const bool all = strcmp(part, "all") == 0;
    if (strcmp(part, "quick") == 0) { // under a sanitizer: one of each kind
        static const int few[] = {0, 8, 13};
        for (int i = 0; i < 3; i++) {
            tcase_add_loop_test(tc, random_plans_agree_with_the_reference, few[i] * N_WAYS,
                                few[i] * N_WAYS + 2);
            tcase_add_loop_test(tc, poison_stays_where_it_is, 2 * few[i], 2 * few[i] + 2);
        }
    }
    if (all || strcmp(part, "plans") == 0)
        tcase_add_loop_test(tc, random_plans_agree_with_the_reference, 0, N_SHAPES * N_WAYS);
    if (all || strcmp(part, "rows") == 0) {
        tcase_add_loop_test(tc, many_rows_agree_with_the_reference, 0, 5);
        tcase_add_loop_test(tc, a_row_does_not_see_its_neighbours, 0, N_SHAPES);
        tcase_add_loop_test(tc, poison_stays_where_it_is, 0, 2 * N_SHAPES);
        tcase_add_loop_test(tc, half_states_are_refused, 0, 1);
    }
    if (all || strcmp(part, "trained") == 0) {
        tcase_add_loop_test(tc, forms_agree, 0, N_MODELS);
        tcase_add_loop_test(tc, snapshots_change_backends, 0, N_MODELS);
    }
    return suite_run(suite);
}
