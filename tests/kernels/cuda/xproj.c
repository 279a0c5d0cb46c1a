// SPDX-License-Identifier: Apache-2.0
// Steps of more than 64 rows and prompts at widths of published models, at odd counts: xproj.cu's
// forms against the reference.
#include <stdio.h>
#include <stdlib.h>

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

void xproj_tests(TCase *tc, cuda_part part, int one) {
    const int first = one < 0 ? 0 : one, end = one < 0 ? N_PUBLISHED : one + 1;
    if (part == PART_ALL || part == PART_XPROJ)
        tcase_add_loop_test(tc, many_rows_and_prompts_of_published_widths_agree, first, end);
}
