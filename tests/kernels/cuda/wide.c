// SPDX-License-Identifier: Apache-2.0
// Steps whose in_proj and out_proj are wide.cuh's, at widths of published models: prompts and
// decode rows near what other kernels make of them in small steps, and the same bits at any place.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests.h"

// Three layers, so that one lies between two whose products are such; two of the widest.
static const small_shape published[] = {
    {"768 of 130m", SSM_BLOCK_MAMBA, 3, 768, 1536, 16, 4, 48, 0, 0, 211, false, false, true},
    {"1024 of 370m", SSM_BLOCK_MAMBA, 3, 1024, 2048, 16, 4, 64, 0, 0, 211, false, false, true},
    {"1536 of 790m", SSM_BLOCK_MAMBA, 3, 1536, 3072, 16, 4, 96, 0, 0, 211, false, false, true},
    {"2048 of 1.4b", SSM_BLOCK_MAMBA, 2, 2048, 4096, 16, 4, 128, 0, 0, 211, false, false, true},
    {"2560 of 2.8b", SSM_BLOCK_MAMBA, 2, 2560, 5120, 16, 4, 160, 0, 0, 211, false, false, true},
    {"4096 of falcon", SSM_BLOCK_MAMBA, 1, 4096, 8192, 16, 4, 256, 0, 0, 211, true, false, true},
};
enum { N_PUBLISHED = sizeof published / sizeof published[0], PROMPT_PARTS = 4, MOST = 1024 };
enum { LONGEST = 2048, SMALL = 48, COMPARED = 67 }; // tokens of a small step; every so many rows

static void near(const char *what, const char *of, int32_t i, float *a, float *b, size_t n,
                 double *worst) { // frees both
    const double off = distance(a, b, n);
    ck_assert_msg(off <= 2.5e-2, "%s: %s %d is off by %g", what, of, i, off); // formats[] of bf16
    *worst = off > *worst ? off : *worst;
    free(a);
    free(b);
}

// ---- prompts

static int32_t id_of(const rig *r, int32_t prompt, int32_t k) {
    return (k * 31 + prompt * 17 + k * k % 13) % r->vocab;
}

// All prompts in one step, prompt i at place (i + turn) % PROMPT_PARTS and in slot i.
static void step_prompts(rig *r, const int32_t *lengths, int32_t turn) {
    static int32_t tokens[LONGEST];
    ssm_segment segments[PROMPT_PARTS];
    int32_t n = 0;
    for (int32_t place = 0, at = 0; place < PROMPT_PARTS; place++) {
        const int32_t i = (place - turn + PROMPT_PARTS) % PROMPT_PARTS;
        if (lengths[i] == 0)
            continue;
        segments[n++] = (ssm_segment){i, at, lengths[i], true, SSM_WANT_LAST};
        for (int32_t k = 0; k < lengths[i]; k++)
            tokens[at++] = id_of(r, i, k);
    }
    rig_step(r, tokens, segments, n);
}

// The row of prompt i's logits.
static int32_t row_of(const int32_t *lengths, int32_t i, int32_t turn) {
    int32_t row = 0;
    for (int32_t place = 0; place < (i + turn) % PROMPT_PARTS; place++)
        row += lengths[(place - turn + PROMPT_PARTS) % PROMPT_PARTS] > 0;
    return row;
}

static float *alone(rig *r, int32_t i, int32_t n) {
    static int32_t ids[LONGEST];
    for (int32_t k = 0; k < n; k++)
        ids[k] = id_of(r, i, k);
    return rig_feed(r, PROMPT_PARTS, ids, n, SMALL, true);
}

static void check_prompts(rig *r, const char *what, const int32_t *lengths, double *worst) {
    float *logits[PROMPT_PARTS] = {0}, *states[PROMPT_PARTS] = {0};
    for (int32_t turn = 0; turn < 2; turn++) {
        step_prompts(r, lengths, turn);
        for (int32_t i = 0; i < PROMPT_PARTS; i++) {
            if (lengths[i] == 0)
                continue;
            float *of = rig_logits(r, row_of(lengths, i, turn)), *state = rig_state(r, i);
            if (turn == 0) {
                logits[i] = of, states[i] = state;
                continue;
            }
            ck_assert_msg(memcmp(of, logits[i], (size_t)r->vocab * sizeof *of) == 0 &&
                              memcmp(state, states[i], r->state_floats * sizeof *state) == 0,
                          "%s: prompt %d of %d tokens depends on its place", what, i, lengths[i]);
            free(of);
            free(state);
        }
    }
    for (int32_t i = 0; i < PROMPT_PARTS; i++) {
        if (lengths[i] == 0)
            continue;
        near(what, "prompt", i, logits[i], alone(r, i, lengths[i]), (size_t)r->vocab, worst);
        near(what, "the state of prompt", i, states[i], rig_state(r, PROMPT_PARTS), r->state_floats,
             worst);
    }
}

// ---- decode rows

// One token of row i in slot i, at place (i + turn) % n.
static void step_some(rig *r, int32_t n, int32_t turn, int32_t step) {
    static int32_t tokens[MOST];
    static ssm_segment segments[MOST];
    for (int32_t i = 0; i < n; i++) {
        const int32_t place = (i + turn) % n;
        segments[place] = (ssm_segment){i, place, 1, step == 0, SSM_WANT_LAST};
        tokens[place] = id_of(r, i, step);
    }
    rig_step(r, tokens, segments, n);
}

static void check_rows(rig *r, const char *what, int32_t n, double *worst) {
    enum { STEPS = 3 };
    float *logits[MOST / COMPARED + 1], *states[MOST / COMPARED + 1];
    for (int32_t turn = 0; turn <= 37; turn += 37) {
        for (int32_t step = 0; step < STEPS; step++)
            step_some(r, n, turn, step);
        for (int32_t i = 0, k = 0; i < n; i += COMPARED, k++) {
            float *of = rig_logits(r, (i + turn) % n), *state = rig_state(r, i);
            if (turn == 0) {
                logits[k] = of, states[k] = state;
                continue;
            }
            ck_assert_msg(memcmp(of, logits[k], (size_t)r->vocab * sizeof *of) == 0 &&
                              memcmp(state, states[k], r->state_floats * sizeof *state) == 0,
                          "%s: row %d of %d depends on its place", what, i, n);
            free(of);
            free(state);
        }
    }
    for (int32_t i = 0, k = 0; i < n; i += COMPARED, k++) {
        int32_t ids[STEPS];
        for (int32_t step = 0; step < STEPS; step++)
            ids[step] = id_of(r, i, step);
        near(what, "row", i, logits[k], rig_feed(r, n, ids, STEPS, 1, true), (size_t)r->vocab,
             worst);
        near(what, "the state of row", i, states[k], rig_state(r, n), r->state_floats, worst);
    }
}

START_TEST(large_steps_of_published_widths_agree) {
    static const int32_t lengths[][PROMPT_PARTS] = {
        {512, 0, 0, 0}, {300, 3, 129, 65}, {1000, 1, 2, 17}, {1024, 700, 63, 128}, {2048, 0, 0, 0}};
    // The first ones are resident_tall.cu's.
    static const int32_t counts[] = {66, 97, 128, 130, 250, 300, 449, 512, 700, 1000};
    enum { N_COUNTS = sizeof counts / sizeof counts[0], TALL = 3 };
    double worst = 0;
    small_model m;
    rig r;
    small_model_create(&m, &published[_i], SSM_DTYPE_BF16, 71);
    rig_open_for(&r, "cuda", &m.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32, MOST, MOST, LONGEST);
    for (size_t k = 0; k < sizeof lengths / sizeof lengths[0]; k++)
        check_prompts(&r, published[_i].name, lengths[k], &worst);
    for (int k = 0; k < N_COUNTS; k++)
        check_rows(&r, published[_i].name, counts[k], &worst);
    rig_close(&r);
    rig_open_for(&r, "cuda", &m.weights, SSM_DTYPE_BF16, SSM_DTYPE_F16, MOST, MOST, LONGEST);
    for (int k = 0; k < TALL; k++)
        check_rows(&r, published[_i].name, counts[k], &worst);
    printf("%s: worst %.1e\n", published[_i].name, worst);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

void wide_tests(TCase *tc, cuda_part part, int one) {
    const int first = one < 0 ? 0 : one, end = one < 0 ? N_PUBLISHED : one + 1;
    if (part == PART_ALL || part == PART_WIDE)
        tcase_add_loop_test(tc, large_steps_of_published_widths_agree, first, end);
}
