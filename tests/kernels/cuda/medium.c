// SPDX-License-Identifier: Apache-2.0
// Steps of 3 to 64 rows at widths of published models (few.cu, resident.cu, medium.cu): against the
// reference, and bit for bit the same again, in other slots, at another place, in other company.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests.h"

static const small_shape published[] = {
    {"mamba 768", SSM_BLOCK_MAMBA, 3, 768, 1536, 16, 4, 48, 0, 0, 1003, false, false, true},
    {"mamba 1024", SSM_BLOCK_MAMBA, 2, 1024, 2048, 16, 4, 64, 0, 0, 515, false, false, false},
    {"mamba 1536", SSM_BLOCK_MAMBA, 2, 1536, 3072, 16, 4, 96, 0, 0, 515, false, false, true},
    {"mamba 2048", SSM_BLOCK_MAMBA, 2, 2048, 4096, 16, 4, 128, 0, 0, 515, false, false, true},
    {"mamba 2560", SSM_BLOCK_MAMBA, 2, 2560, 5120, 16, 4, 160, 0, 0, 600, false, false, true},
    {"mamba 768, short", SSM_BLOCK_MAMBA, 2, 768, 1536, 16, 3, 48, 0, 0, 515, false, false, true},
    {"mamba 1024, biases", SSM_BLOCK_MAMBA, 2, 1024, 2048, 16, 4, 64, 0, 0, 515, false, true,
     false},
    {"falcon 1024", SSM_BLOCK_MAMBA, 1, 1024, 2048, 16, 4, 64, 0, 0, 515, true, false, false},
    {"mamba2 768", SSM_BLOCK_MAMBA2, 2, 768, 1536, 128, 4, 0, 24, 1, 515, false, false, true},
    {"mamba2 2560", SSM_BLOCK_MAMBA2, 2, 2560, 5120, 128, 4, 0, 80, 1, 515, false, false, true},
    {"mamba2 1024", SSM_BLOCK_MAMBA2, 2, 1024, 2048, 128, 4, 0, 32, 1, 515, false, false, true},
    {"mamba2 1536, short", SSM_BLOCK_MAMBA2, 2, 1536, 3072, 128, 3, 0, 48, 1, 515, false, false,
     true},
    {"mamba2 2048", SSM_BLOCK_MAMBA2, 2, 2048, 4096, 128, 4, 0, 64, 1, 515, false, false, true},
    {"mamba2 groups", SSM_BLOCK_MAMBA2, 2, 1024, 2048, 128, 4, 0, 32, 8, 515, false, true, false},
    {"falcon 4096", SSM_BLOCK_MAMBA, 1, 4096, 8192, 16, 4, 256, 0, 0, 515, true, false, false},
    {"codestral 4096", SSM_BLOCK_MAMBA2, 1, 4096, 8192, 128, 4, 0, 128, 8, 515, false, false,
     false},
};
enum {
    N_PUBLISHED = sizeof published / sizeof published[0],
    MOST = 64, // rows
    SPARE = 9, // slots that no row has
    STEPS = 5,
    REFERENCED = 9, // every so many sequences are run by the reference
    // Mamba-2's states are written every 16 tokens (replay.cu): all phases, and each twice.
    PHASES = 16,
    MOST_STEPS = PHASES * 2 + STEPS
};

typedef int32_t step_tokens[MOST_STEPS][MOST];
// Sequence k begins in step k % spread; some once more in step 2.
typedef struct {
    int steps, spread;
} schedule;
static const schedule at_once = {STEPS, 1}, spread_out = {MOST_STEPS, PHASES};

// Sequences 0, each, 2 each, ... below n: sequence k is in slot (first + k) % slots and, once all
// have begun, in row (k / each + turn) % rows.
static void run(rig *r, const schedule *s, int32_t n, int32_t each, int32_t turn, int32_t first,
                step_tokens tokens) {
    const int32_t rows = (n + each - 1) / each;
    for (int step = 0; step < s->steps; step++) {
        ssm_segment segments[MOST];
        int32_t ids[MOST], there = 0;
        for (int32_t row = 0; row < rows; row++) {
            const int32_t sequence = (row + rows - turn) % rows * each,
                          begin = sequence % s->spread;
            if (step < begin)
                continue;
            segments[there] =
                (ssm_segment){(first + sequence) % (MOST + SPARE), there, 1,
                              step == begin || (step == 2 && sequence % 5 == 4), SSM_WANT_LAST};
            ids[there++] = tokens[step][sequence];
        }
        if (there > 0)
            rig_step(r, ids, segments, there);
    }
}

static void same_bits(const pair *p, float *a, float *b, size_t n, const char *of,
                      const char *where, int32_t rows) {
    ck_assert_msg(memcmp(a, b, n * sizeof *a) == 0, "%s, %d rows: %s of other bits %s", p->what,
                  rows, of, where);
    free(a);
    free(b);
}

// All sequences a second time: one row on and in other slots.
static void same_again(pair *p, const schedule *s, int32_t n, step_tokens tokens, int32_t turn,
                       int32_t first, const char *where) {
    float *logits[MOST], *states[MOST];
    run(&p->cuda, s, n, 1, 0, 3, tokens);
    for (int32_t k = 0; k < n; k++)
        logits[k] = rig_logits(&p->cuda, k), states[k] = rig_state(&p->cuda, 3 + k);
    run(&p->cuda, s, n, 1, turn, first, tokens);
    for (int32_t k = 0; k < n; k++) {
        same_bits(p, rig_logits(&p->cuda, (k + turn) % n), logits[k], (size_t)p->cuda.vocab,
                  "logits", where, n);
        same_bits(p, rig_state(&p->cuda, (first + k) % (MOST + SPARE)), states[k],
                  p->cuda.state_floats, "a state", where, n);
    }
}

// Sequence 0, then among others.
static void same_in_company(pair *p, const schedule *s, int32_t n, step_tokens tokens) {
    step_tokens others;
    for (int i = 0; i < MOST_STEPS * MOST; i++)
        others[i / MOST][i % MOST] = i % MOST == 0 ? tokens[i / MOST][0] : below(p->cuda.vocab);
    run(&p->cuda, s, n, 1, 0, 3, tokens);
    float *logits = rig_logits(&p->cuda, 0), *state = rig_state(&p->cuda, 3);
    run(&p->cuda, s, n, 1, n - 1, 5, others);
    same_bits(p, rig_logits(&p->cuda, n - 1), logits, (size_t)p->cuda.vocab, "logits", "in company",
              n);
    same_bits(p, rig_state(&p->cuda, 5), state, p->cuda.state_floats, "a state", "in company", n);
}

// Steps of so many rows against the reference, and in all ways that are to give the same bits.
static void rows_agree(const small_shape *shape, uint64_t seed, const schedule *s,
                       const int32_t *counts, int n_counts) {
    pair p = {0};
    static step_tokens tokens;
    small_model_create(&p.model, shape, SSM_DTYPE_BF16, seed);
    rig_open_for(&p.reference, "reference", &p.model.weights, SSM_DTYPE_BF16, SSM_DTYPE_F32,
                 MOST + SPARE, MOST, TOKENS);
    for (int i = 0; i < MOST_STEPS * MOST; i++)
        tokens[i / MOST][i % MOST] = below(shape->vocab_size);
    run(&p.reference, s, MOST, REFERENCED, 0, 0, tokens);
    for (int f = 1; f <= 3; f += 2) { // bf16 weights, f32 and f16 states
        p.tolerance = formats[f].tolerance, p.worst = 0;
        snprintf(p.what, sizeof p.what, "%s, %s state, %d steps", shape->name,
                 ssm_dtype_name(formats[f].state), s->steps);
        rig_open_for(&p.cuda, "cuda", &p.model.weights, SSM_DTYPE_BF16, formats[f].state,
                     MOST + SPARE, MOST, TOKENS);
        for (int i = 0; i < n_counts; i++) {
            const int32_t n = counts[i];
            run(&p.cuda, s, n, 1, 0, 3, tokens);
            for (int32_t k = 0; k < n; k += REFERENCED) {
                compare(&p, rig_logits(&p.cuda, k), rig_logits(&p.reference, k / REFERENCED),
                        (size_t)p.cuda.vocab, "logits");
                compare(&p, rig_state(&p.cuda, 3 + k), rig_state(&p.reference, k),
                        p.cuda.state_floats, "a state");
            }
            same_again(&p, s, n, tokens, 0, 3, "again");
            same_again(&p, s, n, tokens, 1 + below(n - 1), below(MOST + SPARE), "elsewhere");
            same_in_company(&p, s, n, tokens);
        }
        rig_close(&p.cuda);
        printf("%-40s worst %.1e\n", p.what, p.worst);
    }
    rig_close(&p.reference);
    small_model_free(&p.model);
}

START_TEST(medium_rows_of_published_widths_agree) {
    static const int32_t counts[] = {64, 9, 24, 33, 5, 3};
    rows_agree(&published[_i], (uint64_t)_i + 11, &at_once, counts,
               sizeof counts / sizeof counts[0]);
}
END_TEST

START_TEST(rows_agree_whatever_their_states_are_still_without) {
    static const int32_t counts[] = {64, 20, 9};
    rows_agree(&published[_i], (uint64_t)_i + 31, &spread_out, counts,
               sizeof counts / sizeof counts[0]);
}
END_TEST

void medium_tests(TCase *tc, cuda_part part, int one) {
    const int first = one < 0 ? 0 : one, end = one < 0 ? N_PUBLISHED : one + 1;
    if (part != PART_ALL && part != PART_MEDIUM)
        return;
    tcase_add_loop_test(tc, medium_rows_of_published_widths_agree, first, end);
    for (int i = first; i < end; i++) {
        if (published[i].kind == SSM_BLOCK_MAMBA2)
            tcase_add_loop_test(tc, rows_agree_whatever_their_states_are_still_without, i, i + 1);
    }
}
