// SPDX-License-Identifier: Apache-2.0
// Steps of few rows at widths of published models (solo*.cu, few.cu, skinny.cu): against the
// reference, in turns with steps of many rows, and bit for bit whatever is around a row.
//
// What depends on what is around a row is told apart: the convolution's inputs (the product of
// in_proj's x), states (x_proj, the advance) or logits alone (z, out_proj, lm_head); from run to
// run, by slot, by company or by place in the step.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests.h"

// Widths of published models, a layer or two: the kernels of small decode buckets are made for
// them. Against the reference, and the same bits in other slots and other company.
static const small_shape published[] = {
    {"mamba 768", SSM_BLOCK_MAMBA, 2, 768, 1536, 16, 4, 48, 0, 0, 1003, false, false, true},
    {"mamba 1024", SSM_BLOCK_MAMBA, 2, 1024, 2048, 16, 4, 64, 0, 0, 515, false, true, false},
    {"mamba 1536", SSM_BLOCK_MAMBA, 2, 1536, 3072, 16, 4, 96, 0, 0, 515, false, false, true},
    {"mamba 2048", SSM_BLOCK_MAMBA, 1, 2048, 4096, 16, 4, 128, 0, 0, 515, false, false, true},
    {"mamba 2560", SSM_BLOCK_MAMBA, 1, 2560, 5120, 16, 4, 160, 0, 0, 6000, false, false, true},
    {"falcon 1024", SSM_BLOCK_MAMBA, 1, 1024, 2048, 16, 4, 64, 0, 0, 515, true, false, false},
    {"mamba2 768", SSM_BLOCK_MAMBA2, 2, 768, 1536, 128, 4, 0, 24, 1, 1003, false, false, true},
    {"mamba2 2560", SSM_BLOCK_MAMBA2, 1, 2560, 5120, 128, 4, 0, 80, 1, 515, false, false, true},
    {"mamba2 groups", SSM_BLOCK_MAMBA2, 1, 1024, 2048, 128, 4, 0, 32, 8, 515, false, true, false},
    {"mamba 1024, no biases", SSM_BLOCK_MAMBA, 3, 1024, 2048, 16, 4, 64, 0, 0, 515, false, false,
     true},
    {"mamba 768, conv of 3", SSM_BLOCK_MAMBA, 5, 768, 1536, 16, 3, 48, 0, 0, 515, false, false,
     false},
    {"mamba2 2048", SSM_BLOCK_MAMBA2, 2, 2048, 4096, 128, 4, 0, 64, 1, 515, false, false, true},
    {"mamba2 1536, conv of 3", SSM_BLOCK_MAMBA2, 4, 1536, 3072, 128, 3, 0, 48, 1, 515, false, false,
     true},
    {"mamba2 1024", SSM_BLOCK_MAMBA2, 3, 1024, 2048, 128, 4, 0, 32, 1, 515, false, false, true},
    {"falcon 4096", SSM_BLOCK_MAMBA, 2, 4096, 8192, 16, 4, 256, 0, 0, 515, true, false, false},
    {"mamba 4096", SSM_BLOCK_MAMBA, 1, 4096, 8192, 16, 3, 256, 0, 0, 515, false, false, true},
    {"codestral 4096", SSM_BLOCK_MAMBA2, 2, 4096, 8192, 128, 4, 0, 128, 8, 515, false, false,
     false},
};
enum { N_PUBLISHED = sizeof published / sizeof published[0], FEW_STEPS = 3 };
enum { FIRST_LARGEST = 14 }; // of 4,096 channels on, whose reference takes as long as all others'

// n rows for FEW_STEPS steps: row i in slot first + i, tokens[step][i].
static void few_rows(rig *r, int32_t n, int32_t first, int32_t tokens[FEW_STEPS][8]) {
    for (int step = 0; step < FEW_STEPS; step++) {
        ssm_segment segments[8];
        for (int32_t i = 0; i < n; i++)
            segments[i] = (ssm_segment){(first + i) % SLOTS, i, 1, step == 0, SSM_WANT_LAST};
        rig_step(r, tokens[step], segments, n);
    }
}

// Sequence 0 was row 0 among n; the same bits as the last row, in other slots, among others.
static void same_elsewhere(pair *p, int32_t n, int32_t tokens[FEW_STEPS][8], const float *logits,
                           const float *state) {
    int32_t others[FEW_STEPS][8];
    for (int step = 0; step < FEW_STEPS; step++) {
        for (int32_t i = 0; i < n; i++)
            others[step][i] = i == n - 1 ? tokens[step][0] : below(p->cuda.vocab);
    }
    few_rows(&p->cuda, n, 23, others);
    float *again = rig_logits(&p->cuda, n - 1), *after = rig_state(&p->cuda, 23 + n - 1);
    ck_assert_msg(memcmp(again, logits, (size_t)p->cuda.vocab * sizeof *again) == 0,
                  "%s, %d rows: logits depend on slot or company", p->what, n);
    ck_assert_msg(memcmp(after, state, p->cuda.state_floats * sizeof *after) == 0,
                  "%s, %d rows: the state depends on slot or company", p->what, n);
    free(again);
    free(after);
}

START_TEST(few_rows_of_published_widths_agree) {
    const small_shape *shape = &published[_i];
    pair p = {0};
    int32_t tokens[FEW_STEPS][8];
    small_model_create(&p.model, shape, SSM_DTYPE_BF16, (uint64_t)_i + 1);
    rig_open(&p.reference, "reference", &p.model.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32);
    for (int i = 0; i < FEW_STEPS * 8; i++)
        tokens[i / 8][i % 8] = below(shape->vocab_size);
    few_rows(&p.reference, 8, 0, tokens);
    // bf16 weights, f32 and f16 states; then without packed ones, whose heads are others
    for (int i = 0; i < (shape->d_model <= 1024 ? 3 : 2); i++) {
        const number_format *format = &formats[i == 1 ? 3 : 1];
        p.tolerance = format->tolerance;
        snprintf(p.what, sizeof p.what, "%s, %s state%s", shape->name,
                 ssm_dtype_name(format->state), i == 2 ? ", unpacked" : "");
        p.cuda = rig_open_with("cuda", &p.model.weights,
                               (ssm_device_options){.n_slots = SLOTS,
                                                    .max_rows = ROWS,
                                                    .max_tokens = TOKENS,
                                                    .weight_dtype = SSM_DTYPE_BF16,
                                                    .state_dtype = format->state,
                                                    .unpacked = i == 2});
        for (int32_t n = 1; n <= 8; n = n == 4 ? 8 : n + 1) {
            few_rows(&p.cuda, n, 3, tokens);
            for (int32_t k = 0; k < n; k++) {
                compare(&p, rig_logits(&p.cuda, k), rig_logits(&p.reference, k),
                        (size_t)p.cuda.vocab, "logits");
                compare(&p, rig_state(&p.cuda, 3 + k), rig_state(&p.reference, k),
                        p.cuda.state_floats, "a state");
            }
            float *logits = rig_logits(&p.cuda, 0), *state = rig_state(&p.cuda, 3);
            same_elsewhere(&p, n, tokens, logits, state);
            free(logits);
            free(state);
        }
        rig_close(&p.cuda);
        printf("%-40s worst %.1e\n", p.what, p.worst);
    }
    rig_close(&p.reference);
    small_model_free(&p.model);
}
END_TEST

// Steps of many rows, which hold entries back, and of few, which write states at once, in turns:
// the first rows are in all of them. Against the reference after every turn. (Of 4,096 channels two
// rows are many.)
static const struct {
    int shape, many, few;
} held_turns[] = {{6, 12, 3}, {7, 12, 3}, {7, 12, 1}, {16, 2, 1}};
enum { N_HELD_TURNS = sizeof held_turns / sizeof held_turns[0] };
START_TEST(many_rows_and_few_take_turns) {
    static const int lengths[] = {5, 4, 13, 1, 2, 17, 3};
    const small_shape *shape = &published[held_turns[_i / 2].shape];
    const int32_t many = held_turns[_i / 2].many, few = held_turns[_i / 2].few;
    pair p = {.tolerance = 2.5e-2};
    const ssm_dtype state = _i % 2 ? SSM_DTYPE_F16 : SSM_DTYPE_F32;
    small_model_create(&p.model, shape, SSM_DTYPE_BF16, 5);
    snprintf(p.what, sizeof p.what, "%s, %s state, %d and %d", shape->name, ssm_dtype_name(state),
             many, few);
    rig_open(&p.reference, "reference", &p.model.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32);
    rig_open(&p.cuda, "cuda", &p.model.weights, SSM_DTYPE_BF16, state);
    int step = 0;
    for (size_t turn = 0; turn < sizeof lengths / sizeof lengths[0]; turn++) {
        const int32_t n = turn % 2 ? few : many;
        for (int i = 0; i < lengths[turn]; i++, step++) {
            int32_t tokens[12];
            ssm_segment segments[12];
            for (int32_t k = 0; k < n; k++) {
                tokens[k] = below(shape->vocab_size);
                segments[k] = (ssm_segment){k, k, 1, step == 0, SSM_WANT_LAST};
            }
            rig_step(&p.cuda, tokens, segments, n);
            rig_step(&p.reference, tokens, segments, n);
        }
        for (int32_t k = 0; k < n; k++) {
            compare(&p, rig_logits(&p.cuda, k), rig_logits(&p.reference, k), (size_t)p.cuda.vocab,
                    "logits");
            compare(&p, rig_state(&p.cuda, k), rig_state(&p.reference, k), p.cuda.state_floats,
                    "a state");
        }
    }
    printf("%-40s worst %.1e\n", p.what, p.worst);
    rig_close(&p.cuda);
    rig_close(&p.reference);
    small_model_free(&p.model);
}
END_TEST

// Steps of one row, which solo.cu and solo_large.cu take where they can, and of two, which they
// never do, in turns: of the same sequence, which starts anew in between.
static const int turn_shapes[] = {0, 9, 10, 2, 7, 12, 14, 16};
enum { N_TURNS = sizeof turn_shapes / sizeof turn_shapes[0] };
START_TEST(one_row_and_two_take_turns) {
    const small_shape *shape = &published[turn_shapes[_i / 2]];
    pair p = {.tolerance = 2.5e-2};
    const ssm_dtype state = _i % 2 ? SSM_DTYPE_F16 : SSM_DTYPE_F32;
    small_model_create(&p.model, shape, SSM_DTYPE_BF16, 6);
    snprintf(p.what, sizeof p.what, "%s, %s state, one and two", shape->name,
             ssm_dtype_name(state));
    rig_open(&p.reference, "reference", &p.model.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32);
    rig_open(&p.cuda, "cuda", &p.model.weights, SSM_DTYPE_BF16, state);
    for (int step = 0; step < 14; step++) {
        const int32_t n = step % 5 > 2 ? 2 : 1;
        int32_t tokens[2];
        ssm_segment segments[2];
        for (int32_t k = 0; k < n; k++) {
            tokens[k] = below(shape->vocab_size);
            segments[k] = (ssm_segment){
                5 + k, k, 1, step == 0 || step == 9 || (k == 1 && step == 3), SSM_WANT_LAST};
        }
        rig_step(&p.cuda, tokens, segments, n);
        rig_step(&p.reference, tokens, segments, n);
        for (int32_t k = 0; k < n; k++) {
            compare(&p, rig_logits(&p.cuda, k), rig_logits(&p.reference, k), (size_t)p.cuda.vocab,
                    "logits");
            compare(&p, rig_state(&p.cuda, 5 + k), rig_state(&p.reference, 5 + k),
                    p.cuda.state_floats, "a state");
        }
    }
    printf("%-40s worst %.1e\n", p.what, p.worst);
    rig_close(&p.cuda);
    rig_close(&p.reference);
    small_model_free(&p.model);
}
END_TEST

// ---- the same bits whatever is around a row

enum { LOOK_ROWS = 8, LOOK_ROUNDS = 40, LOOK_MOST = 1 << 20 }; // floats: fewer rounds of larger
typedef enum look { LOOK_AGAIN, LOOK_SLOT, LOOK_COMPANY, LOOK_PLACE, LOOKS } look;
static const char *const look_names[LOOKS] = {"again", "slot", "company", "place"};

typedef struct outcome { // of one sequence
    float *logits, *state;
} outcome;

typedef struct difference {
    int sequences, conv, ssm, logits; // looked at; with other bits in this part, counted once each
    int64_t first;                    // of a part's numbers; -1: none
    double most;                      // of the logits' distances
} difference;

// Sequence k of n is row (k + turn) of the step, in slot first + k.
static void look_run(rig *r, int32_t n, int32_t steps, int32_t turn, int32_t first,
                     int32_t tokens[FEW_STEPS][8], outcome out[LOOK_ROWS]) {
    for (int32_t step = 0; step < steps; step++) {
        ssm_segment segments[LOOK_ROWS];
        int32_t ids[LOOK_ROWS];
        for (int32_t k = 0; k < n; k++) {
            const int32_t row = (k + turn) % n;
            segments[row] = (ssm_segment){(first + k) % SLOTS, row, 1, step == 0, SSM_WANT_LAST};
            ids[row] = tokens[step][k];
        }
        rig_step(r, ids, segments, n);
    }
    for (int32_t k = 0; k < n; k++) {
        out[k].logits = rig_logits(r, (k + turn) % n);
        out[k].state = rig_state(r, (first + k) % SLOTS);
    }
}

static void look_free(outcome *all, int32_t n) {
    for (int32_t k = 0; k < n; k++) {
        free(all[k].logits);
        free(all[k].state);
    }
}

// Counts numbers of other bits, and the first of them.
static int64_t other_bits(const float *a, const float *b, size_t n, int64_t *first) {
    int64_t count = 0;
    for (size_t i = 0; i < n; i++) {
        if (memcmp(&a[i], &b[i], sizeof *a) != 0 && count++ == 0)
            *first = (int64_t)i;
    }
    return count;
}

static void look_at(const rig *r, size_t conv, const outcome *a, const outcome *b, difference *d) {
    int64_t first[3] = {0};
    const int64_t counts[] = {
        other_bits(a->state, b->state, conv, &first[0]),
        other_bits(a->state + conv, b->state + conv, r->state_floats - conv, &first[1]),
        other_bits(a->logits, b->logits, (size_t)r->vocab, &first[2]),
    };
    int *const parts[] = {&d->conv, &d->ssm, &d->logits};
    d->sequences++;
    for (int i = 2; i >= 0; i--) {
        *parts[i] += counts[i] > 0;
        if (counts[i] > 0)
            d->first = first[i];
    }
    const double off = distance(a->logits, b->logits, (size_t)r->vocab);
    d->most = off <= d->most ? d->most : off;
}

static difference look_for(rig *r, size_t conv, look what, int32_t n, int32_t steps,
                           int32_t tokens[FEW_STEPS][8], const outcome *before) {
    difference d = {.first = -1};
    for (int round = 0; round < (r->state_floats < LOOK_MOST ? LOOK_ROUNDS : 10); round++) {
        int32_t ids[FEW_STEPS][8];
        outcome now[LOOK_ROWS];
        const int32_t turn = what == LOOK_PLACE ? 1 + below(n - 1) : 0;
        const int32_t first = what == LOOK_SLOT ? below(SLOTS) : 3;
        for (int i = 0; i < FEW_STEPS * 8; i++)
            ids[i / 8][i % 8] =
                what == LOOK_COMPANY && i % 8 != round % n ? below(r->vocab) : tokens[i / 8][i % 8];
        look_run(r, n, steps, turn, first, ids, now);
        for (int32_t k = 0; k < n; k++) {
            if (what != LOOK_COMPANY || k == round % n)
                look_at(r, conv, &before[k], &now[k], &d);
        }
        look_free(now, n);
    }
    return d;
}

START_TEST(rows_are_the_same_bits_whatever_is_around_them) {
    const small_shape *shape = &published[_i];
    small_model m;
    int32_t tokens[FEW_STEPS][8];
    int different = 0;
    small_model_create(&m, shape, SSM_DTYPE_BF16, (uint64_t)_i + 1);
    const size_t conv = ssm_state_conv_floats(&m.weights.geometry);
    for (int i = 0; i < FEW_STEPS * 8; i++)
        tokens[i / 8][i % 8] = below(shape->vocab_size);
    rig r;
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32);
    for (int i = 0; i < 4; i++) {
        const int32_t n = i < 2 ? 1 : LOOK_ROWS, steps = i % 2 ? FEW_STEPS : 1;
        outcome before[LOOK_ROWS];
        look_run(&r, n, steps, 0, 3, tokens, before);
        for (look what = LOOK_AGAIN; what < (n == 1 ? LOOK_COMPANY : LOOKS); what++) {
            const difference d = look_for(&r, conv, what, n, steps, tokens, before);
            const int worst = d.logits > d.ssm ? d.logits : d.ssm;
            different += worst > d.conv ? worst : d.conv;
            if (worst > 0 || d.conv > 0)
                printf("%-13s %d rows, steps %d, %-7s of %d: conv %d, ssm %d, logits %d differ; "
                       "first number %lld, logits by %.1e\n",
                       shape->name, n, steps, look_names[what], d.sequences, d.conv, d.ssm,
                       d.logits, (long long)d.first, d.most);
        }
        look_free(before, n);
    }
    rig_close(&r);
    small_model_free(&m);
    ck_assert_msg(different == 0, "%s: bits depend on what is around a row", shape->name);
}
END_TEST

void few_tests(TCase *tc, TCase *largest, TCase *states, cuda_part part, int one) {
    const int first = one < 0 ? 0 : one, end = one < 0 ? N_PUBLISHED : one + 1;
    for (int i = first; i < end && (part == PART_ALL || part == PART_FEW); i++) {
        TCase *of = i < FIRST_LARGEST ? tc : largest;
        tcase_add_loop_test(of, rows_are_the_same_bits_whatever_is_around_them, i, i + 1);
        tcase_add_loop_test(of, few_rows_of_published_widths_agree, i, i + 1);
    }
    for (int i = 0; i < N_TURNS; i++) {
        if (part == PART_ALL || (part == PART_FEW && (one < 0 || one == turn_shapes[i])))
            tcase_add_loop_test(turn_shapes[i] < FIRST_LARGEST ? tc : largest,
                                one_row_and_two_take_turns, 2 * i, 2 * i + 2);
    }
    for (int i = 0; i < N_HELD_TURNS; i++) { // Mamba-2's
        if (part == PART_ALL || (part == PART_FEW && one == held_turns[i].shape))
            tcase_add_loop_test(states, many_rows_and_few_take_turns, 2 * i, 2 * i + 2);
    }
}
