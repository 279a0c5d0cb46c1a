// SPDX-License-Identifier: Apache-2.0
// States that are written every 16 tokens (replay.cu).
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests.h"

// One layer: its inputs do not depend on its state, so states can be compared to fp32's rounding
// though activations are bf16.
static const small_shape held_back[] = {
    {"replay", SSM_BLOCK_MAMBA2, 1, 256, 512, 128, 4, 0, 8, 1, 300, false, false, true},
    {"replay, 3 groups", SSM_BLOCK_MAMBA2, 1, 128, 384, 128, 4, 0, 6, 3, 300, false, true, false},
};

static void step_one(rig *r, int32_t slot, int32_t id, bool fresh) {
    const ssm_segment s = {slot, 0, 1, fresh, SSM_WANT_LAST};
    rig_step(r, &id, &s, 1);
}

// Slot 0 runs as it comes, slot 1 is written back at random, slot 2 after every token: its base
// takes each token by itself.
START_TEST(any_schedule_of_writes_gives_the_same_state) {
    const bool half = _i % 2;
    small_model m;
    rig r;
    ssm_error err = {0};
    small_model_create(&m, &held_back[_i / 2], SSM_DTYPE_BF16, 41);
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_BF16, half ? SSM_DTYPE_F16 : SSM_DTYPE_F32);
    const double tolerance = half ? 2e-3 : 1e-5;
    double worst = 0;
    for (int t = 0; t < 70; t++) {
        const int32_t id = below(r.vocab);
        float *states[3];
        for (int32_t slot = 0; slot < 3; slot++) {
            step_one(&r, slot, id, t == 0);
            states[slot] = rig_state(&r, slot);
            if (slot == 2 || (slot == 1 && below(5) == 0))
                must(r.b->slot_write(r.d, slot, states[slot], &err), &err);
        }
        for (int32_t slot = 1; slot < 3; slot++) {
            const double off = distance(states[0], states[slot], r.state_floats);
            ck_assert_msg(off <= tolerance, "%s: token %d, slot %d: state off by %g",
                          held_back[_i / 2].name, t, slot, off);
            worst = off > worst ? off : worst;
        }
        for (int32_t slot = 0; slot < 3; slot++)
            free(states[slot]);
    }
    printf("%-44s schedules differ by %.1e of %.1e\n", held_back[_i / 2].name, worst, tolerance);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

// A fork at any phase goes on with the same bits, and so does a state that was looked at.
START_TEST(forks_at_any_phase_go_on_as_their_source) {
    small_model m;
    rig r;
    ssm_error err = {0};
    small_model_create(&m, &shapes[_i], SSM_DTYPE_BF16, 42);
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_BF16, _i % 2 ? SSM_DTYPE_F32 : SSM_DTYPE_F16);
    for (int32_t phase = 0; phase < 18; phase++) {
        int32_t ids[60];
        for (int i = 0; i < 60; i++)
            ids[i] = below(r.vocab);
        free(rig_feed(&r, 0, ids, 5, 5, true));
        for (int t = 0; t < phase; t++)
            step_one(&r, 0, ids[5 + t], false);
        const int32_t src = 0, dst = 9;
        must(r.b->slots_copy(r.d, &src, &dst, 1, &err), &err);
        for (int t = 0; t < 20; t++) {
            const ssm_segment rows[] = {{0, 0, 1, false, SSM_WANT_LAST},
                                        {9, 1, 1, false, SSM_WANT_LAST}};
            const int32_t two[] = {ids[30 + t], ids[30 + t]};
            rig_step(&r, two, rows, 2);
            float *a = rig_logits(&r, 0), *b = rig_logits(&r, 1);
            ck_assert_msg(memcmp(a, b, (size_t)r.vocab * sizeof *a) == 0,
                          "%s: %d tokens after a fork at phase %d", shapes[_i].name, t, phase);
            free(a);
            free(b);
            free(rig_state(&r, 9));
        }
    }
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

// Decode rows beside prompts, prompts that go on after decoding, forks, restores and new sequences,
// over several writes of every state.
START_TEST(long_runs_agree_with_the_reference) {
    const int shape = 5 + _i / 2;
    pair p;
    bool live[SLOTS] = {0};
    ssm_error err = {0};
    pair_open(&p, shape, _i % 2 ? 3 : 1);
    for (int step = 0; step < 60; step++) {
        int32_t tokens[TOKENS], n = 0, at = 0;
        ssm_segment segments[SLOTS];
        for (int32_t slot = 0; slot < 12; slot++) {
            if (below(6) == 0)
                continue;
            const bool fresh = !live[slot] || below(60) == 0;
            const int32_t count = fresh ? 1 + below(40) : below(40) == 0 ? 2 + below(20) : 1;
            segments[n++] = (ssm_segment){slot, at, count, fresh, SSM_WANT_LAST};
            for (int32_t k = 0; k < count; k++)
                tokens[at++] = below(p.cuda.vocab);
            live[slot] = true;
        }
        if (n == 0)
            continue;
        rig_step(&p.cuda, tokens, segments, n);
        rig_step(&p.reference, tokens, segments, n);
        for (int32_t i = 0; i < n; i++)
            compare(&p, rig_logits(&p.cuda, i), rig_logits(&p.reference, i), (size_t)p.cuda.vocab,
                    "logits");
        const int32_t src = segments[below(n)].slot, dst = 12 + below(4);
        compare(&p, rig_state(&p.cuda, src), rig_state(&p.reference, src), p.cuda.state_floats,
                "a state");
        if (below(4) == 0) { // out to another slot and back, in turn by each way
            const int32_t from[] = {src, dst}, to[] = {dst, src};
            for (int k = 0; k < 2; k++) {
                must(p.reference.b->slots_copy(p.reference.d, &from[k], &to[k], 1, &err), &err);
                if (k == step % 2) {
                    must(p.cuda.b->slots_copy(p.cuda.d, &from[k], &to[k], 1, &err), &err);
                    continue;
                }
                float *state = rig_state(&p.cuda, from[k]);
                must(p.cuda.b->slot_write(p.cuda.d, to[k], state, &err), &err);
                free(state);
            }
        }
    }
    printf("%-44s long runs, worst %.1e of %.1e\n", p.what, p.worst, p.tolerance);
    pair_close(&p);
}
END_TEST

void replay_tests(TCase *tc, cuda_part part) {
    if (part == PART_QUICK)
        tcase_add_loop_test(tc, any_schedule_of_writes_gives_the_same_state, 0, 2);
    if (part != PART_ALL)
        return;
    tcase_add_loop_test(tc, any_schedule_of_writes_gives_the_same_state, 0, 4);
    tcase_add_loop_test(tc, forks_at_any_phase_go_on_as_their_source, 0, N_SHAPES);
    tcase_add_loop_test(tc, long_runs_agree_with_the_reference, 0, 6);
}
