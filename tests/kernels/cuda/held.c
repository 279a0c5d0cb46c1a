// SPDX-License-Identifier: Apache-2.0
// Mamba-1's fp32 states, which large steps write every second token (advance_replay.cu), among all
// that can happen to a sequence between two writes; fp16 states, written every token, beside them.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests.h"

// Wide enough for such steps from 352 rows on. One layer: its inputs do not
// depend on its state, so states can be compared to fp32's rounding though activations are bf16.
static const small_shape one_layer = {"held", SSM_BLOCK_MAMBA, 1,     64,  1536, 16, 4, 8, 0, 0,
                                      300,    false,           false, true};
static const small_shape two_layers = {
    "held, 2 layers", SSM_BLOCK_MAMBA, 2, 64, 1536, 16, 4, 8, 0, 0, 300, false, false, true};

enum { FULL = 400, WATCHED = 6, SPARE = FULL + WATCHED };
static const ssm_dtype states[] = {SSM_DTYPE_F32, SSM_DTYPE_F16};

static void open_full(rig *r, const char *backend, const small_model *m, ssm_dtype state) {
    rig_open_for(r, backend, &m->weights, SSM_DTYPE_BF16, state, SPARE, SPARE, 4096);
}

// One token of slots 0 to n - 1: slot i's of the watched is ids[i], another's its own.
static void step_full(rig *r, int32_t n, const int32_t *ids, int32_t t) {
    static int32_t tokens[FULL];
    static ssm_segment segments[FULL];
    for (int32_t i = 0; i < n; i++) {
        segments[i] = (ssm_segment){i, i, 1, t == 0, SSM_WANT_LAST};
        tokens[i] = i < WATCHED ? ids[i] : (i * 31 + t * 17) % r->vocab;
    }
    rig_step(r, tokens, segments, n);
}

static int32_t *the_same(int32_t id) {
    static int32_t ids[WATCHED];
    for (int i = 0; i < WATCHED; i++)
        ids[i] = id;
    return ids;
}

// Slot 0 runs as it comes, slot 1 is written back at random, slot 2 after every token, slot 3 is
// looked at by nobody until the end. In fp32 a token that is held and replayed leaves the bits that
// it would have left at once.
START_TEST(any_schedule_of_writes_gives_the_same_state) {
    const bool half = _i % 2;
    small_model m;
    rig r;
    ssm_error err = {0};
    small_model_create(&m, &one_layer, SSM_DTYPE_BF16, 61);
    open_full(&r, "cuda", &m, states[_i]);
    double worst = 0;
    for (int32_t t = 0; t < 14; t++) {
        float *of[3];
        step_full(&r, FULL, the_same(below(r.vocab)), t);
        for (int32_t slot = 0; slot < 3; slot++) {
            of[slot] = rig_state(&r, slot);
            if (slot == 2 || (slot == 1 && below(3) == 0))
                must(r.b->slot_write(r.d, slot, of[slot], &err), &err);
        }
        for (int32_t slot = 1; slot < 3; slot++) {
            const double off = distance(of[0], of[slot], r.state_floats);
            ck_assert_msg(off <= (half ? 2e-3 : 0), "%s state: token %d, slot %d: off by %g",
                          ssm_dtype_name(states[_i]), t, slot, off);
            worst = off > worst ? off : worst;
        }
        for (int32_t slot = 0; slot < 3; slot++)
            free(of[slot]);
    }
    float *seen = rig_state(&r, 0), *unseen = rig_state(&r, 3);
    ck_assert_msg(memcmp(seen, unseen, r.state_floats * sizeof *seen) == 0,
                  "a state that was looked at went on otherwise");
    free(seen);
    free(unseen);
    printf("%s state: schedules differ by %.1e\n", ssm_dtype_name(states[_i]), worst);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

// A fork at any phase goes on with the same bits: slot 1, of slot 0.
START_TEST(forks_at_any_phase_go_on_as_their_source) {
    small_model m;
    rig r;
    ssm_error err = {0};
    small_model_create(&m, &two_layers, SSM_DTYPE_BF16, 62);
    open_full(&r, "cuda", &m, states[_i]);
    for (int32_t phase = 0; phase < 7; phase++) {
        int32_t t = 0;
        for (; t <= phase; t++)
            step_full(&r, FULL, the_same((t * 7 + 3) % r.vocab), t);
        int32_t ids[WATCHED] = {0, 5};
        step_full(&r, FULL, ids, t++); // they part
        const int32_t src = 0, dst = 1;
        must(r.b->slots_copy(r.d, &src, &dst, 1, &err), &err);
        for (int32_t end = t + 5; t < end; t++) {
            step_full(&r, FULL, the_same((t * 11 + 5) % r.vocab), t);
            float *a = rig_logits(&r, 0), *b = rig_logits(&r, 1);
            ck_assert_msg(memcmp(a, b, (size_t)r.vocab * sizeof *a) == 0,
                          "%s state: token %d after a fork at phase %d", ssm_dtype_name(states[_i]),
                          t, phase);
            free(a);
            free(b);
        }
        float *a = rig_state(&r, 0), *b = rig_state(&r, 1);
        ck_assert_msg(memcmp(a, b, r.state_floats * sizeof *a) == 0, "phase %d: states differ",
                      phase);
        free(a);
        free(b);
    }
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

// ---- a long run of large and small steps, prompts, forks, restores and new sequences; the
// reference runs the watched slots alone

typedef struct long_run {
    pair p;
    bool live[SPARE];
} long_run;

// A token of slots 0 to n - 1, from slot `turn` on; `prompts`: more tokens of some of them.
static void step_both(long_run *l, int32_t n, bool prompts, int32_t turn) {
    static int32_t tokens[2][4096];
    static ssm_segment segments[2][SPARE];
    int32_t used[2] = {0}, at[2] = {0}, rows[2][SPARE], of[2][SPARE];
    for (int32_t place = 0; place < n; place++) {
        const int32_t slot = (place + turn) % n;
        const bool fresh = !l->live[slot] || (slot < WATCHED && below(15) == 0);
        const bool prompt = prompts && (slot < WATCHED ? below(2) == 0 : slot % 97 == 0);
        const int32_t count = prompt ? 2 + below(20) : 1;
        l->live[slot] = true;
        for (int k = 0; k < 2; k++) {
            if (k == 1 && slot >= WATCHED)
                continue;
            segments[k][used[k]] = (ssm_segment){slot, at[k], count, fresh, SSM_WANT_LAST};
            rows[k][slot] = used[k]++;
            of[k][slot] = at[k];
            at[k] += count;
        }
        for (int32_t i = 0; i < count; i++) {
            const int32_t id = below(l->p.cuda.vocab);
            tokens[0][of[0][slot] + i] = id;
            if (slot < WATCHED)
                tokens[1][of[1][slot] + i] = id;
        }
    }
    rig_step(&l->p.cuda, tokens[0], segments[0], used[0]);
    rig_step(&l->p.reference, tokens[1], segments[1], used[1]);
    for (int32_t slot = 0; slot < WATCHED && slot < n; slot++)
        compare(&l->p, rig_logits(&l->p.cuda, rows[0][slot]),
                rig_logits(&l->p.reference, rows[1][slot]), (size_t)l->p.cuda.vocab, "logits");
}

// Slot `src` out to a spare slot and back, by a copy or through the host.
static void out_and_back(long_run *l, int32_t src, bool copy) {
    const int32_t from[] = {src, FULL + src}, to[] = {FULL + src, src};
    pair *p = &l->p;
    ssm_error err = {0};
    for (int k = 0; k < 2; k++) {
        must(p->reference.b->slots_copy(p->reference.d, &from[k], &to[k], 1, &err), &err);
        if (copy) {
            must(p->cuda.b->slots_copy(p->cuda.d, &from[k], &to[k], 1, &err), &err);
            continue;
        }
        float *state = rig_state(&p->cuda, from[k]);
        must(p->cuda.b->slot_write(p->cuda.d, to[k], state, &err), &err);
        free(state);
    }
}

START_TEST(long_runs_agree_with_the_reference) {
    static long_run l;
    memset(&l, 0, sizeof l);
    l.p.tolerance = 2.5e-2;
    small_model_create(&l.p.model, &two_layers, SSM_DTYPE_BF16, 63);
    snprintf(l.p.what, sizeof l.p.what, "%s state", ssm_dtype_name(states[_i]));
    open_full(&l.p.cuda, "cuda", &l.p.model, states[_i]);
    open_full(&l.p.reference, "reference", &l.p.model, SSM_DTYPE_F32);
    for (int step = 0; step < 60; step++) {
        static const int32_t counts[] = {FULL, FULL, FULL, 370, FULL, 7, 40, 70, 1, 200};
        const int32_t n = counts[step < 4 ? 0 : below(10)];
        step_both(&l, n, step % 5 == 3, below(n));
        const int32_t src = below(WATCHED);
        compare(&l.p, rig_state(&l.p.cuda, src), rig_state(&l.p.reference, src),
                l.p.cuda.state_floats, "a state");
        if (below(3) == 0)
            out_and_back(&l, below(WATCHED), below(2));
    }
    printf("%-44s long runs, worst %.1e of %.1e\n", l.p.what, l.p.worst, l.p.tolerance);
    pair_close(&l.p);
}
END_TEST

void held_tests(TCase *tc, cuda_part part) {
    if (part == PART_QUICK)
        tcase_add_loop_test(tc, any_schedule_of_writes_gives_the_same_state, 0, 1);
    if (part != PART_ALL && part != PART_HELD)
        return;
    tcase_add_loop_test(tc, any_schedule_of_writes_gives_the_same_state, 0, 2);
    tcase_add_loop_test(tc, forks_at_any_phase_go_on_as_their_source, 0, 2);
    tcase_add_loop_test(tc, long_runs_agree_with_the_reference, 0, 2);
}
