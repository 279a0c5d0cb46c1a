// SPDX-License-Identifier: Apache-2.0
// Random plans that mix decode rows and prompts, steps of any number of rows and long prompts: near
// the reference, and the same bits twice.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests.h"

// A random plan: each chosen slot once; prompts and decode rows as they come.
static int32_t random_plan(int32_t vocab, bool *live, bool decode_only, int32_t *tokens,
                           ssm_segment *segments) {
    const int32_t n = 1 + below(decode_only ? SLOTS : 9);
    int32_t at = 0, used = 0;
    bool taken[SLOTS] = {0};
    for (int32_t i = 0; i < n; i++) {
        const int32_t slot = below(SLOTS);
        const int32_t lengths[] = {1, 1, 1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 100};
        const int32_t count = decode_only ? 1 : lengths[below(16)];
        if (taken[slot] || at + count > TOKENS)
            continue;
        taken[slot] = true;
        const bool fresh = !live[slot] || below(8) == 0;
        const ssm_want want = decode_only ? SSM_WANT_LAST : (ssm_want)below(3);
        live[slot] = true;
        segments[used++] = (ssm_segment){slot, at, count, fresh,
                                         want == SSM_WANT_ALL && count > 17 ? SSM_WANT_LAST : want};
        for (int32_t k = 0; k < count; k++)
            tokens[at++] = below(vocab);
    }
    return used;
}

static int32_t rows_of(const ssm_segment *s) {
    return s->want == SSM_WANT_ALL ? s->count : s->want == SSM_WANT_LAST;
}

static void run_plan(pair *p, bool *live, bool decode_only) {
    int32_t tokens[TOKENS];
    ssm_segment segments[SLOTS];
    const int32_t n = random_plan(p->cuda.vocab, live, decode_only, tokens, segments);
    rig_step(&p->cuda, tokens, segments, n);
    rig_step(&p->reference, tokens, segments, n);
    for (int32_t i = 0, row = 0; i < n; i++) {
        for (int32_t k = 0; k < rows_of(&segments[i]); k++, row++)
            compare(p, rig_logits(&p->cuda, row), rig_logits(&p->reference, row),
                    (size_t)p->cuda.vocab, "logits");
    }
    for (int32_t i = 0; i < n; i += 3)
        compare(p, rig_state(&p->cuda, segments[i].slot),
                rig_state(&p->reference, segments[i].slot), p->cuda.state_floats, "a state");
}

START_TEST(random_plans_agree_with_the_reference) {
    pair p;
    bool live[SLOTS] = {0};
    pair_open(&p, _i / N_FORMATS, _i % N_FORMATS);
    for (int round = 0; round < 6; round++)
        run_plan(&p, live, round % 2);
    printf("%-44s worst %.1e of %.1e\n", p.what, p.worst, p.tolerance);
    pair_close(&p);
}
END_TEST

// Steps of any number of rows, at sizes that give every product, convolution and advance kernel a
// full card: rows are independent, so the reference runs every 13th alone.
START_TEST(many_rows_agree_with_the_reference) {
    const ssm_dtype states[] = {SSM_DTYPE_F32, SSM_DTYPE_F16};
    const int32_t counts[] = {1, 2, 5, 8, 9, 14, 16, 20, 33, 48, 61, 64, 65, 100, 257, 579, 600};
    pair p = {.tolerance = 2.5e-2};
    small_model_create(&p.model, &wide[_i / 2], SSM_DTYPE_BF16, 21);
    snprintf(p.what, sizeof p.what, "%s, %s state", wide[_i / 2].name,
             ssm_dtype_name(states[_i % 2]));
    rig_open_for(&p.cuda, "cuda", &p.model.weights, SSM_DTYPE_BF16, states[_i % 2], MANY, MANY,
                 MANY);
    rig_open_for(&p.reference, "reference", &p.model.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32, MANY,
                 MANY, MANY);
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        if (wide[_i / 2].d_model > 512 && (counts[c] < 8 || counts[c] > 20))
            continue; // for the products of 9 to 16 rows; the reference takes its time
        for (int32_t step = 0; step < 3; step++) {
            rig_step_rows(&p.cuda, counts[c], 1, step);
            rig_step_rows(&p.reference, counts[c], EACH, step);
        }
        for (int32_t i = 0, row = 0; i < counts[c]; i += EACH, row++) {
            const int32_t slot = (i * 7 + counts[c]) % MANY;
            compare(&p, rig_logits(&p.cuda, i), rig_logits(&p.reference, row), (size_t)p.cuda.vocab,
                    "logits");
            compare(&p, rig_state(&p.cuda, slot), rig_state(&p.reference, slot),
                    p.cuda.state_floats, "a state");
        }
    }
    printf("%-44s worst %.1e of %.1e\n", p.what, p.worst, p.tolerance);
    pair_close(&p);
}
END_TEST

// The same steps twice, from the same states: the same bits.
START_TEST(many_rows_twice_are_the_same_bits) {
    small_model m;
    rig r;
    small_model_create(&m, &wide[_i], SSM_DTYPE_BF16, 22);
    rig_open_for(&r, "cuda", &m.weights, SSM_DTYPE_BF16, SSM_DTYPE_F16, MANY, MANY, MANY);
    const int32_t counts[] = {7, 16, 64, 200, 600};
    for (int c = 0; c < 5; c++) {
        const int32_t rows[] = {0, counts[c] / 2, counts[c] - 1};
        float *first[3];
        for (int round = 0; round < 4; round++) {
            for (int32_t step = 0; step < 3; step++)
                rig_step_rows(&r, counts[c], 1, step);
            for (int k = 0; k < 3; k++) {
                float *logits = rig_logits(&r, rows[k]);
                if (round == 0) {
                    first[k] = logits;
                    continue;
                }
                ck_assert_msg(memcmp(logits, first[k], (size_t)r.vocab * sizeof *logits) == 0,
                              "%s: row %d of %d differs from run to run", wide[_i].name, rows[k],
                              counts[c]);
                free(logits);
            }
        }
        for (int k = 0; k < 3; k++)
            free(first[k]);
    }
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

// Prompts long enough to be cut into pieces, many enough not to be, each twice from where it stood:
// near the reference, and the same bits when all is done again.
static int32_t long_plan(int32_t vocab, int which, bool fresh, int32_t *tokens,
                         ssm_segment *segments) {
    static const int32_t lengths[4][8] = {{700}, {65, 300, 1, 2, 17}, {3, 63, 500, 129}, {0}};
    int32_t at = 0, n = 0;
    for (; n < SLOTS; n++) {
        const int32_t count = which < 3 ? lengths[which][n] : n < 36 ? 18 + n % 2 : 0;
        if (count == 0)
            break;
        segments[n] = (ssm_segment){n, at, count, fresh, SSM_WANT_LAST};
        for (int32_t k = 0; k < count; k++, at++)
            tokens[at] = (at * 31 + which * 17 + fresh) % vocab;
    }
    return n;
}

// So many channels that one prompt fills a card, or four do (scan_roles.cu's forms), or eight
// (scan_wgmma.cu); no multiple of any block's. The second: of blocks of 16.
const small_shape broad = {.name = "mamba broad",
                           .kind = SSM_BLOCK_MAMBA,
                           .n_layers = 1,
                           .d_model = 64,
                           .d_inner = 4104,
                           .d_state = 16,
                           .d_conv = 4,
                           .dt_rank = 80,
                           .vocab_size = 300,
                           .biases = true,
                           .tied = true};

static const small_shape middle = {.name = "mamba middle",
                                   .kind = SSM_BLOCK_MAMBA,
                                   .n_layers = 1,
                                   .d_model = 64,
                                   .d_inner = 1528,
                                   .d_state = 16,
                                   .d_conv = 4,
                                   .dt_rank = 48,
                                   .vocab_size = 300,
                                   .biases = true,
                                   .tied = true};

enum { N_LONG = 11 };

START_TEST(long_prompts_agree_with_the_reference) {
    const small_shape *all[N_LONG] = {&middle,    &middle,    &broad,     &broad,
                                      &shapes[0], &shapes[3], &shapes[4], &shapes[5],
                                      &shapes[6], &wide[0],   &wide[1]};
    pair p = {.tolerance = 2.5e-2};
    small_model_create(&p.model, all[_i], SSM_DTYPE_BF16, 41);
    snprintf(p.what, sizeof p.what, "%s, long", all[_i]->name);
    rig_open(&p.cuda, "cuda", &p.model.weights, SSM_DTYPE_BF16,
             _i < 4 && _i % 2 ? SSM_DTYPE_F16 : SSM_DTYPE_F32);
    rig_open(&p.reference, "reference", &p.model.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32);
    int32_t tokens[TOKENS];
    ssm_segment segments[SLOTS];
    float *first[SLOTS];
    const int plans = _i < 4 ? 2 : 4; // the reference is slow
    for (int which = 0; which < plans; which++) {
        for (int round = 0; round < 4; round++) { // from nothing, going on; again
            const int32_t n = long_plan(p.cuda.vocab, which, round % 2 == 0, tokens, segments);
            rig_step(&p.cuda, tokens, segments, n);
            if (round < 2)
                rig_step(&p.reference, tokens, segments, n);
            for (int32_t i = 0; i < n; i += 1 + n / 8) {
                float *state = rig_state(&p.cuda, i);
                if (round == 1) {
                    first[i] = rig_state(&p.cuda, i);
                } else if (round == 3) {
                    ck_assert_msg(memcmp(state, first[i], p.cuda.state_floats * sizeof *state) == 0,
                                  "%s: plan %d, prompt %d differs from run to run", p.what, which,
                                  i);
                    free(first[i]);
                }
                if (round >= 2) {
                    free(state);
                    continue;
                }
                compare(&p, state, rig_state(&p.reference, i), p.cuda.state_floats, "a state");
                compare(&p, rig_logits(&p.cuda, i), rig_logits(&p.reference, i),
                        (size_t)p.cuda.vocab, "logits");
            }
        }
    }
    printf("%-44s worst %.1e of %.1e\n", p.what, p.worst, p.tolerance);
    pair_close(&p);
}
END_TEST

enum { PROMPTS = -1 }; // in place of a number of rows

// Every form of a step once, as little work as can be: for tools that slow kernels down. The first
// two are of few rows.
START_TEST(each_form_of_a_step_agrees) {
    static const int32_t counts[2][4] = {{1, 2, 4, 7}, {12, 20, PROMPTS}};
    pair p;
    pair_open(&p, _i % 2 ? 5 : 0, 1);
    for (size_t c = 0; c < 4 && counts[_i / 2][c] != 0; c++) {
        const bool prompts = counts[_i / 2][c] == PROMPTS;
        const int32_t n = prompts ? 3 : counts[_i / 2][c];
        for (int step = 0; step < 2; step++) {
            int32_t tokens[TOKENS], at = 0;
            ssm_segment segments[SLOTS];
            for (int32_t i = 0; i < n; i++) {
                const int32_t count = !prompts || i == 0 ? 1 : i == 1 ? 3 : 70;
                segments[i] = (ssm_segment){i, at, count, step == 0, SSM_WANT_LAST};
                for (int32_t k = 0; k < count; k++)
                    tokens[at++] = below(p.cuda.vocab);
            }
            rig_step(&p.cuda, tokens, segments, n);
            rig_step(&p.reference, tokens, segments, n);
        }
        compare(&p, rig_logits(&p.cuda, n - 1), rig_logits(&p.reference, n - 1),
                (size_t)p.cuda.vocab, "logits");
        compare(&p, rig_state(&p.cuda, n - 1), rig_state(&p.reference, n - 1), p.cuda.state_floats,
                "a state");
    }
    printf("%-44s each form, worst %.1e of %.1e\n", p.what, p.worst, p.tolerance);
    pair_close(&p);
}
END_TEST

void plans_tests(TCase *tc, cuda_part part, int one) {
    if (part == PART_QUICK) {
        tcase_add_loop_test(tc, random_plans_agree_with_the_reference, 1, 2);
        tcase_add_loop_test(tc, random_plans_agree_with_the_reference, 5 * N_FORMATS + 3,
                            5 * N_FORMATS + 4);
    } else if (part == PART_RACE) {
        tcase_add_loop_test(tc, each_form_of_a_step_agrees, one < 0 ? 0 : one,
                            one < 0 ? 4 : one + 1);
    } else if (part == PART_ALL) {
        tcase_add_loop_test(tc, each_form_of_a_step_agrees, 0, 4);
        tcase_add_loop_test(tc, random_plans_agree_with_the_reference, 0, N_SHAPES * N_FORMATS);
        tcase_add_loop_test(tc, many_rows_agree_with_the_reference, 0, 2 * N_WIDE);
        tcase_add_loop_test(tc, many_rows_twice_are_the_same_bits, 0, N_WIDE);
    }
}

void prompts_tests(TCase *tc, cuda_part part) {
    if (part == PART_ALL)
        tcase_add_loop_test(tc, long_prompts_agree_with_the_reference, 0, N_LONG);
}
