// SPDX-License-Identifier: Apache-2.0
// Steps of thousands of tokens, and of more rows than the kernels for few take: prompts as alone,
// near; and every row and prompt the same bits at any place.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests.h"

enum { LARGE = 14336, PROMPTS = 8 };

typedef struct large_plan {
    int32_t lengths[PROMPTS];
} large_plan;

// Of 570, 1,966, 3,894, 7,922 and 13,078 tokens: from scans in pieces to a full card.
static const large_plan large_plans[] = {
    {{300, 1, 64, 65, 3, 128, 2, 7}},           {{1000, 1, 63, 700, 2, 129, 5, 66}},
    {{2100, 900, 1, 600, 31, 3, 2, 257}},       {{4097, 2000, 1, 1500, 64, 3, 127, 130}},
    {{6000, 3500, 1, 2047, 1000, 128, 2, 400}},
};
enum { N_LARGE = sizeof large_plans / sizeof large_plans[0] };
enum { N_BROAD = 2 }; // the last ones, with channels for the kernels of the largest steps (conv.cu)

// All prompts in one step, prompt i at the (i + turn)th place and in slot (5 i + turn) % SLOTS.
static void step_all(rig *r, const large_plan *plan, int32_t turn, bool fresh) {
    int32_t *tokens = malloc(LARGE * sizeof *tokens);
    ssm_segment segments[PROMPTS];
    for (int32_t place = 0, at = 0; place < PROMPTS; place++) {
        const int32_t i = (place - turn + PROMPTS) % PROMPTS, count = plan->lengths[i];
        segments[place] = (ssm_segment){(5 * i + turn) % SLOTS, at, count, fresh, SSM_WANT_LAST};
        for (int32_t k = 0; k < count; k++, at++)
            tokens[at] = (k * 31 + i * 17 + fresh) % r->vocab;
    }
    rig_step(r, tokens, segments, PROMPTS);
    free(tokens);
}

static float *prompt_alone(rig *r, int32_t i, int32_t count) { // both times, in small steps
    int32_t *ids = malloc((size_t)count * sizeof *ids);
    float *last = NULL;
    for (int fresh = 1; fresh >= 0; fresh--) {
        for (int32_t k = 0; k < count; k++)
            ids[k] = (k * 31 + i * 17 + fresh) % r->vocab;
        free(last);
        last = rig_feed(r, 0, ids, count, 200, fresh);
    }
    free(ids);
    return last;
}

START_TEST(large_steps_are_as_alone_and_the_same_bits_at_any_place) {
    const int which = _i < 2 * N_LARGE ? _i % N_LARGE : N_LARGE - N_BROAD + _i % N_LARGE;
    const large_plan *plan = &large_plans[which];
    const small_shape *shape = _i < N_LARGE ? &shapes[0] : _i < 2 * N_LARGE ? &shapes[3] : &broad;
    small_model m;
    rig r;
    small_model_create(&m, shape, SSM_DTYPE_BF16, 51);
    rig_open_for(&r, "cuda", &m.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32, SLOTS, ROWS, LARGE);
    float *logits[PROMPTS], *states[PROMPTS];
    double worst = 0;
    for (int32_t turn = 0; turn < 3; turn++) {
        step_all(&r, plan, turn, true);
        step_all(&r, plan, turn, false);
        for (int32_t i = 0; i < PROMPTS; i++) {
            float *of = rig_logits(&r, (i + turn) % PROMPTS);
            float *state = rig_state(&r, (5 * i + turn) % SLOTS);
            if (turn == 0) {
                logits[i] = of, states[i] = state;
                continue;
            }
            ck_assert_msg(memcmp(of, logits[i], (size_t)r.vocab * sizeof *of) == 0,
                          "%s, plan %d: prompt %d's logits depend on its place", shape->name, which,
                          i);
            ck_assert_msg(memcmp(state, states[i], r.state_floats * sizeof *state) == 0,
                          "%s, plan %d: prompt %d's state depends on its place", shape->name, which,
                          i);
            free(of);
            free(state);
        }
    }
    for (int32_t i = 0; i < PROMPTS; i++) {
        float *alone = prompt_alone(&r, i, plan->lengths[i]), *state = rig_state(&r, 0);
        const double off = distance(logits[i], alone, (size_t)r.vocab),
                     far = distance(states[i], state, r.state_floats);
        ck_assert_msg(off <= 2.5e-2 && far <= 2.5e-2, // as formats[] of bf16
                      "%s, plan %d: prompt %d of %d tokens is off by %g, its state by %g",
                      shape->name, which, i, plan->lengths[i], off, far);
        worst = off > worst ? off : worst;
        worst = far > worst ? far : worst;
        free(alone);
        free(state);
        free(logits[i]);
        free(states[i]);
    }
    printf("%s, large plan %d: worst %.1e\n", shape->name, which, worst);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

// n rows, the i-th at place (i + turn) % n: tokens and slots are the row's, whatever the place.
static void step_rows(rig *r, int32_t n, int32_t turn, int32_t step) {
    static int32_t tokens[MANY];
    static ssm_segment segments[MANY];
    for (int32_t place = 0; place < n; place++) {
        const int32_t i = (place - turn % n + n) % n;
        segments[place] = (ssm_segment){i, place, 1, step == 0 || i % 5 == 4, SSM_WANT_LAST};
        tokens[place] = (i * 31 + step * 17) % r->vocab;
    }
    rig_step(r, tokens, segments, n);
}

START_TEST(many_rows_are_the_same_bits_at_any_place) {
    static const int32_t counts[] = {96, 130, 257, 591}, turns[] = {0, 1, 37};
    static const ssm_dtype states[] = {SSM_DTYPE_F16, SSM_DTYPE_F32};
    const small_shape *shape = _i < 2 ? &wide[0] : &shapes[3];
    small_model m;
    rig r;
    small_model_create(&m, shape, SSM_DTYPE_BF16, 52);
    rig_open_for(&r, "cuda", &m.weights, SSM_DTYPE_BF16, states[_i % 2], MANY, MANY, MANY);
    for (int c = 0; c < 4; c++) {
        float *first[MANY / EACH + 1];
        for (int turn = 0; turn < 3; turn++) {
            for (int32_t step = 0; step < 4; step++)
                step_rows(&r, counts[c], turns[turn], step);
            for (int32_t i = 0; i < counts[c]; i += EACH) {
                float *logits = rig_logits(&r, (i + turns[turn]) % counts[c]);
                if (turn == 0) {
                    first[i / EACH] = logits;
                    continue;
                }
                ck_assert_msg(memcmp(logits, first[i / EACH], (size_t)r.vocab * sizeof *logits) ==
                                  0,
                              "%s, %s state: row %d of %d depends on its place", shape->name,
                              ssm_dtype_name(states[_i % 2]), i, counts[c]);
                free(logits);
            }
        }
        for (int32_t i = 0; i < counts[c]; i += EACH)
            free(first[i / EACH]);
    }
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

void large_tests(TCase *tc, cuda_part part) {
    if (part != PART_ALL)
        return;
    tcase_add_loop_test(tc, large_steps_are_as_alone_and_the_same_bits_at_any_place, 0,
                        2 * N_LARGE + N_BROAD);
    tcase_add_loop_test(tc, many_rows_are_the_same_bits_at_any_place, 0, 4);
}
