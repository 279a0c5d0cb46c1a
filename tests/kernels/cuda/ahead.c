// SPDX-License-Identifier: Apache-2.0
// The host far ahead of the device: plans and draws that change from step to step, all asked for
// without a look at the device, come to the same bits as one at a time.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests.h"

enum { STEPS = 24, BEHIND = 6, MOST = 400, SPARE = 9 }; // BEHIND: uncollected calls
static const small_shape published = {"ahead", SSM_BLOCK_MAMBA, 6,     768, 1536, 16, 4, 48, 0, 0,
                                      1003,    false,           false, true};

typedef struct history {
    rig *r;
    int32_t n, drawn[STEPS][MOST];
    bool live[MOST + SPARE];
} history;

// A token of n of the slots, others in every step; half of those that ran go on with what was drawn
// for them. Every seventh step, three tokens of one: no graph is launched.
static void step_on(history *h, int32_t step) {
    int32_t tokens[MOST + 2], at = 0;
    ssm_segment segments[MOST];
    ssm_error err = {0};
    for (int32_t k = 0; k < h->n; k++) {
        const int32_t slot = (k + step * 5) % (h->n + SPARE), vocab = h->r->vocab;
        const int32_t count = k == 0 && step % 7 == 3 ? 3 : 1;
        const bool known = count > 1 || !h->live[slot] || (k + step) % 2;
        segments[k] = (ssm_segment){slot, at, count, !h->live[slot], SSM_WANT_LAST};
        for (int32_t i = 0; i < count; i++)
            tokens[at++] = known ? (slot * 31 + step * 17 + i) % vocab : SSM_TOKEN_SAMPLED;
        h->live[slot] = true;
    }
    const ssm_plan plan = {tokens, at, segments, h->n};
    must(h->r->b->step(h->r->d, &plan, &err), &err);
}

// From other rows, with other numbers, and from another half of the ids in every second step.
static void draw_on(history *h, int32_t step) {
    static const ssm_sampling params = {
        .temperature = 1, .top_p = 1, .typical_p = 1, .repetition_penalty = 1};
    static int32_t ids[1003];
    ssm_sample samples[MOST];
    ssm_error err = {0};
    for (int32_t i = 0; i < 1003; i++)
        ids[i] = i;
    for (int32_t k = 0; k < h->n; k++)
        samples[k] = (ssm_sample){.row = (k + step) % h->n,
                                  .slot = ((k + step) % h->n + step * 5) % (h->n + SPARE),
                                  .target = -1,
                                  .n_top = -1,
                                  .seed = (uint64_t)(step * 1000 + k),
                                  .params = &params,
                                  .banned = ids + (step * 251 + k) % 500,
                                  .n_banned = step % 2 ? 500 : 0};
    must(h->r->b->sample(h->r->d, samples, h->n, &err), &err);
}

static void collect_from(history *h, int32_t step) {
    ssm_sampled out[MOST];
    ssm_error err = {0};
    must(h->r->b->collect(h->r->d, out, h->n, &err), &err);
    for (int32_t k = 0; k < h->n; k++)
        h->drawn[step][k] = out[k].token;
}

static history *run(rig *r, int32_t n, int behind) {
    history *h = calloc(1, sizeof *h);
    h->r = r, h->n = n;
    for (int32_t step = 0; step < STEPS; step++) {
        step_on(h, step);
        draw_on(h, step);
        if (step >= behind)
            collect_from(h, step - behind);
        if (behind == 0)
            free(rig_logits(r, 0)); // waits
    }
    for (int32_t step = STEPS - behind; step < STEPS; step++)
        collect_from(h, step);
    return h;
}

START_TEST(steps_asked_for_ahead_are_those_one_at_a_time) {
    static const int32_t counts[] = {1, 3, 8, 40, 64, MOST};
    const int32_t n = counts[_i], slots = n + SPARE;
    small_model m;
    rig r;
    small_model_create(&m, &published, SSM_DTYPE_BF16, 71);
    rig_open_for(&r, "cuda", &m.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32, slots, n, 2 * MOST);
    history *one = run(&r, n, 0);
    float *states[MOST + SPARE];
    for (int32_t slot = 0; slot < slots; slot++)
        states[slot] = rig_state(&r, slot);
    for (int again = 0; again < 3; again++) {
        history *ahead = run(&r, n, BEHIND);
        for (int32_t step = 0; step < STEPS; step++)
            ck_assert_msg(
                memcmp(one->drawn[step], ahead->drawn[step], (size_t)n * sizeof **one->drawn) == 0,
                "%d rows: step %d drew other tokens", n, step);
        for (int32_t slot = 0; slot < slots; slot++) {
            float *state = rig_state(&r, slot);
            ck_assert_msg(memcmp(state, states[slot], r.state_floats * sizeof *state) == 0,
                          "%d rows: slot %d came to another state", n, slot);
            free(state);
        }
        free(ahead);
    }
    for (int32_t slot = 0; slot < slots; slot++)
        free(states[slot]);
    free(one);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

void ahead_tests(TCase *tc, cuda_part part) {
    if (part == PART_ALL || part == PART_AHEAD)
        tcase_add_loop_test(tc, steps_asked_for_ahead_are_those_one_at_a_time, 0, 6);
}
