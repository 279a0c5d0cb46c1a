// SPDX-License-Identifier: Apache-2.0
// Steps of more than 64 rows and prompts at widths of published models, at odd counts: xproj.cu's
// forms against the reference. Prompts that conv_xproj.cu or scan_wgmma.cu take: the same bits at
// any place and beside a decode row, which sends the first another way, and near what they come to
// alone.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests.h"

// Published d_inner and dt_rank. The reference is slow, so d_model is small.
static const small_shape published[] = {
    {"1536 of 130m", SSM_BLOCK_MAMBA, 1, 128, 1536, 16, 4, 48, 0, 0, 203, false, false, true},
    {"2048 of 370m", SSM_BLOCK_MAMBA, 1, 128, 2048, 16, 4, 64, 0, 0, 203, false, false, true},
    {"3072 of 790m", SSM_BLOCK_MAMBA, 1, 128, 3072, 16, 4, 96, 0, 0, 203, false, false, true},
    {"4096 of 1.4b", SSM_BLOCK_MAMBA, 1, 128, 4096, 16, 4, 128, 0, 0, 203, false, false, true},
    {"5120 of 2.8b", SSM_BLOCK_MAMBA, 1, 128, 5120, 16, 4, 160, 0, 0, 203, false, false, true},
    {"8192 of falcon", SSM_BLOCK_MAMBA, 1, 128, 8192, 16, 4, 256, 0, 0, 203, true, false, true},
};
enum { N_PUBLISHED = sizeof published / sizeof published[0], MOST = 1024, LONGEST = 2048 };
enum { REFERENCED = 131 }; // every so many rows are run by the reference

// A token of n sequences, or of every `each`-th of them: tokens follow from their numbers.
static void step_rows(rig *r, int32_t n, int32_t each, int32_t step) {
    static int32_t tokens[MOST];
    static ssm_segment segments[MOST];
    int32_t used = 0;
    for (int32_t i = 0; i < n; i += each, used++) {
        segments[used] = (ssm_segment){(i * 7 + n) % MOST, used, 1, step == 0, SSM_WANT_LAST};
        tokens[used] = (i * 31 + step * 17 + n) % r->vocab;
    }
    rig_step(r, tokens, segments, used);
}

static void compare_rows(pair *p, int32_t n) {
    for (int32_t step = 0; step < 2; step++) {
        step_rows(&p->cuda, n, 1, step);
        step_rows(&p->reference, n, REFERENCED, step);
        for (int32_t i = 0; i < n; i += REFERENCED)
            compare(p, rig_logits(&p->cuda, i), rig_logits(&p->reference, i / REFERENCED),
                    (size_t)p->cuda.vocab, "a row's logits");
    }
}

// The device reads each beginning of a text at once, the reference goes from one's end to the next.
static void compare_prompts(pair *p, int count) {
    static const int32_t lengths[] = {65, 127, 257, 1000, 2047};
    static int32_t ids[LONGEST];
    for (int i = 0; i < LONGEST; i++)
        ids[i] = below(p->cuda.vocab);
    for (int k = 0, done = 0; k < count; done = lengths[k++]) {
        float *whole = rig_feed(&p->cuda, 1, ids, lengths[k], LONGEST, true);
        const int32_t more = lengths[k] - done;
        compare(p, whole, rig_feed(&p->reference, 0, ids + done, more, LONGEST, done == 0),
                (size_t)p->cuda.vocab, "a prompt's logits");
        compare(p, rig_state(&p->cuda, 1), rig_state(&p->reference, 0), p->cuda.state_floats,
                "a prompt's state");
    }
}

START_TEST(many_rows_and_prompts_of_published_widths_agree) {
    static const int32_t counts[] = {65, 127, 129, 200, 257, 500, 700, 1000};
    static const int prompts[N_PUBLISHED] = {5, 4, 4, 5, 4, 3};
    pair p = {.tolerance = 2.5e-2}; // as formats[] of bf16
    small_model_create(&p.model, &published[_i], SSM_DTYPE_BF16, (uint64_t)_i + 5);
    snprintf(p.what, sizeof p.what, "%s, large steps", published[_i].name);
    rig_open_for(&p.cuda, "cuda", &p.model.weights, SSM_DTYPE_BF16, SSM_DTYPE_F16, MOST, MOST,
                 LONGEST);
    rig_open_for(&p.reference, "reference", &p.model.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32, MOST,
                 MOST, LONGEST);
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++)
        compare_rows(&p, counts[c]);
    compare_prompts(&p, prompts[_i]);
    printf("%-40s worst %.1e\n", p.what, p.worst);
    pair_close(&p);
}
END_TEST

// ---- conv_xproj.cu, scan_wgmma.cu

enum { MOST_PROMPTS = 12, MOST_TOKENS = 16384, BOTH_SLOTS = 40 };

// Prompts apart from each other in tiles of 72, prompts that must share tiles, tiles of 128 and 64;
// every other plan with fp16 states.
static const struct joint_plan {
    int shape, n;
    int32_t lengths[MOST_PROMPTS];
} joint_plans[] = {
    {4, 5, {700, 2, 901, 65, 190}},
    {4, 12, {150, 149, 151, 3, 160, 147, 146, 73, 145, 300, 310, 152}},
    {0, 5, {5000, 4097, 3, 4100, 700}},
    {4, 5, {2000, 3, 1500, 65, 400}},
    {4, 5, {5000, 4097, 3, 4100, 1600}},
    // scan_wgmma.cu's forms, in their order: 320 channels a block, 256, 192, 128 twice
    {4, 8, {300, 1, 17, 64, 333, 2, 16, 47}},
    {3, 8, {15, 301, 1, 32, 33, 160, 3, 700}},
    {2, 8, {2, 65, 400, 18, 31, 1, 256, 129}},
    {4, 3, {700, 5, 161}},
    {1, 8, {16, 90, 1, 257, 513, 4, 30, 79}},
};
enum { N_JOINT = sizeof joint_plans / sizeof joint_plans[0] };

static int32_t token_of(const rig *r, int32_t prompt, int32_t k, bool fresh) {
    return (k * 31 + prompt * 17 + fresh) % r->vocab;
}

// Prompt i at the (i + turn)th place and in slot (3 i + turn) % BOTH_SLOTS; in front of all, `row`
// of a sequence of its own.
static void step_joint(rig *r, const struct joint_plan *plan, int turn, bool row, bool fresh) {
    int32_t *tokens = malloc(MOST_TOKENS * sizeof *tokens), at = 0;
    ssm_segment segments[MOST_PROMPTS + 1];
    int n = 0;
    if (row) {
        segments[n++] = (ssm_segment){BOTH_SLOTS, 0, 1, fresh, SSM_WANT_LAST};
        tokens[at++] = 7;
    }
    for (int place = 0; place < plan->n; place++) {
        const int i = (place - turn + plan->n) % plan->n;
        const int32_t count = plan->lengths[i];
        segments[n++] = (ssm_segment){(3 * i + turn) % BOTH_SLOTS, at, count, fresh, SSM_WANT_LAST};
        for (int32_t k = 0; k < count; k++)
            tokens[at++] = token_of(r, i, k, fresh);
    }
    rig_step(r, tokens, segments, n);
    free(tokens);
}

static float *joint_alone(rig *r, const struct joint_plan *plan, int i) { // in small steps
    int32_t *ids = malloc((size_t)plan->lengths[i] * sizeof *ids);
    float *last = NULL;
    for (int fresh = 1; fresh >= 0; fresh--) {
        for (int32_t k = 0; k < plan->lengths[i]; k++)
            ids[k] = token_of(r, i, k, fresh);
        free(last);
        last = rig_feed(r, 0, ids, plan->lengths[i], 200, fresh);
    }
    free(ids);
    return last;
}

START_TEST(prompts_of_a_large_step_are_the_same_bits_in_any_company) {
    const struct joint_plan *plan = &joint_plans[_i];
    float *logits[MOST_PROMPTS], *states[MOST_PROMPTS];
    small_model m;
    rig r;
    small_model_create(&m, &published[plan->shape], SSM_DTYPE_BF16, 61);
    rig_open_for(&r, "cuda", &m.weights, SSM_DTYPE_BF16, _i % 2 ? SSM_DTYPE_F16 : SSM_DTYPE_F32,
                 BOTH_SLOTS + 1, 64, MOST_TOKENS);
    for (int turn = 0; turn < 4; turn++) { // the last with a decode row
        const bool row = turn == 3;
        step_joint(&r, plan, turn, row, true);
        step_joint(&r, plan, turn, row, false);
        for (int i = 0; i < plan->n; i++) {
            float *of = rig_logits(&r, (i + turn) % plan->n + row);
            float *state = rig_state(&r, (3 * i + turn) % BOTH_SLOTS);
            if (turn == 0) {
                logits[i] = of, states[i] = state;
                continue;
            }
            ck_assert_msg(memcmp(of, logits[i], (size_t)r.vocab * sizeof *of) == 0 &&
                              memcmp(state, states[i], r.state_floats * sizeof *state) == 0,
                          "plan %d, turn %d: prompt %d depends on its place or company", _i, turn,
                          i);
            free(of);
            free(state);
        }
    }
    double worst = 0;
    for (int i = 0; i < plan->n; i++) {
        float *alone = joint_alone(&r, plan, i), *state = rig_state(&r, 0);
        const double off = distance(logits[i], alone, (size_t)r.vocab),
                     far = distance(states[i], state, r.state_floats);
        ck_assert_msg(off <= 2.5e-2 && far <= 2.5e-2, // as formats[] of bf16
                      "plan %d: prompt %d of %d tokens is off by %g, its state by %g", _i, i,
                      plan->lengths[i], off, far);
        worst = off > worst ? off : worst;
        worst = far > worst ? far : worst;
        free(alone);
        free(state);
        free(logits[i]);
        free(states[i]);
    }
    printf("%s, prompts together %d: worst %.1e\n", published[plan->shape].name, _i, worst);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

void xproj_tests(TCase *tc, cuda_part part, int one) {
    const int first = one < 0 ? 0 : one, end = one < 0 ? N_PUBLISHED : one + 1;
    if (part == PART_ALL || part == PART_XPROJ)
        tcase_add_loop_test(tc, many_rows_and_prompts_of_published_widths_agree, first, end);
    if (one < 0 && (part == PART_ALL || part == PART_XPROJ))
        tcase_add_loop_test(tc, prompts_of_a_large_step_are_the_same_bits_in_any_company, 0,
                            N_JOINT);
}
