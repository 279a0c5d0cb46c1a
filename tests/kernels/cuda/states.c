// SPDX-License-Identifier: Apache-2.0
// States of slots: what is left in them, forks and snapshots, copies beside steps.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests.h"

// A freed slot full of NaN must not be read by the next user, and a failed neighbour stays alone.
START_TEST(poison_stays_where_it_is) {
    small_model m;
    rig r;
    ssm_error err = {0};
    small_model_create(&m, &shapes[_i], SSM_DTYPE_BF16, 4);
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_BF16, SSM_DTYPE_F16);
    float *poison = malloc(r.state_floats * sizeof *poison);
    for (size_t i = 0; i < r.state_floats; i++)
        poison[i] = NAN;
    for (int32_t s = 0; s < 8; s++)
        must(r.b->slot_write(r.d, s, poison, &err), &err);
    int32_t tokens[80];
    for (int i = 0; i < 80; i++)
        tokens[i] = below(r.vocab);
    const ssm_segment segments[] = {
        {0, 0, 1, true, SSM_WANT_LAST},   {1, 1, 2, true, SSM_WANT_LAST},
        {2, 3, 3, true, SSM_WANT_LAST},   {3, 6, 70, true, SSM_WANT_LAST},
        {7, 76, 4, false, SSM_WANT_LAST},
    };
    rig_step(&r, tokens, segments, 5);
    for (int32_t i = 0; i < 5; i++) {
        float *logits = rig_logits(&r, i), *state = rig_state(&r, segments[i].slot);
        const bool clean = isfinite(distance(logits, logits, (size_t)r.vocab)) &&
                           isfinite(distance(state, state, r.state_floats));
        ck_assert_msg(clean == (i < 4), "%s: segment %d", shapes[_i].name, i);
        free(logits);
        free(state);
    }
    // they go on side by side, past where states are written
    for (int step = 0; step < 20; step++) {
        ssm_segment rows[5];
        for (int32_t i = 0; i < 5; i++)
            rows[i] = (ssm_segment){segments[i].slot, i, 1, false, SSM_WANT_LAST};
        rig_step(&r, tokens + step, rows, 5);
    }
    // and the failed one's slot is given to somebody else
    const ssm_segment next = {7, 0, 3, true, SSM_WANT_LAST};
    for (int32_t i = 0; i < 5; i++) {
        if (i == 4)
            rig_step(&r, tokens, &next, 1);
        float *logits = rig_logits(&r, i % 4), *state = rig_state(&r, segments[i].slot);
        ck_assert_msg(isfinite(distance(logits, logits, (size_t)r.vocab)) &&
                          isfinite(distance(state, state, r.state_floats)),
                      "%s: segment %d, later", shapes[_i].name, i);
        free(logits);
        free(state);
    }
    for (int step = 0; step < 20; step++) {
        const ssm_segment s = {7, 0, 1, false, SSM_WANT_LAST};
        rig_step(&r, tokens + step, &s, 1);
    }
    float *logits = rig_logits(&r, 0);
    ck_assert(isfinite(distance(logits, logits, (size_t)r.vocab)));
    free(logits);
    free(poison);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

START_TEST(forks_and_snapshots_go_on_as_their_source) {
    small_model m;
    rig r;
    ssm_error err = {0};
    int32_t ids[40];
    small_model_create(&m, &shapes[_i], SSM_DTYPE_BF16, 5);
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_BF16, SSM_DTYPE_F16);
    for (int i = 0; i < 40; i++)
        ids[i] = below(r.vocab);
    free(rig_feed(&r, 3, ids, 37, 37, true));
    const int32_t src[] = {3, 3, 3}, dst[] = {0, 39, 7};
    must(r.b->slots_copy(r.d, src, dst, 3, &err), &err);
    float *state = rig_state(&r, 3);
    must(r.b->slot_write(r.d, 11, state, &err), &err);
    float *again = rig_state(&r, 11);
    ck_assert(memcmp(state, again, r.state_floats * sizeof *state) == 0);
    const int32_t slots[] = {3, 0, 39, 7, 11};
    float *first = NULL;
    for (int i = 0; i < 5; i++) {
        for (int step = 0; step < 3; step++) {
            const ssm_segment s = {slots[i], 0, 1, false, SSM_WANT_LAST};
            rig_step(&r, &ids[37 + step], &s, 1);
        }
        float *logits = rig_logits(&r, 0);
        if (i == 0)
            first = logits;
        ck_assert(memcmp(logits, first, (size_t)r.vocab * sizeof *first) == 0);
        if (i > 0)
            free(logits);
    }
    free(first);
    free(state);
    free(again);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

// States go out while their slots are used again at once, and come back before anybody has waited:
// more of them than there are staging buffers, so that each is waited for on the device. Each takes
// its logits along, from a row that is kept and used again at once too, while a step writes all
// rows that a step may.
START_TEST(copies_beside_steps_keep_their_order) {
    enum { N = 24, SPOILT = N, STEPPING = N + 1, LONG = 150 }; // 150 rows of logits fill up to 192
    small_model m;
    ssm_error err = {0};
    ssm_device_info info;
    int32_t ids[LONG];
    uint64_t out[N], in[N];
    float *want[N], *want_logits[N];
    small_model_create(&m, &shapes[_i], SSM_DTYPE_BF16, 6);
    rig r = rig_open_with("cuda", &m.weights,
                          (ssm_device_options){.n_slots = SLOTS,
                                               .max_rows = ROWS,
                                               .kept_rows = N,
                                               .max_tokens = TOKENS,
                                               .weight_dtype = SSM_DTYPE_BF16,
                                               .state_dtype = SSM_DTYPE_F32});
    r.b->info(r.d, &info);
    ck_assert_int_eq(info.kept_rows, N);
    const size_t states = r.state_floats * sizeof(float);
    const size_t logits = (size_t)r.vocab * sizeof(float), bytes = states + logits;
    char *host = r.b->host_alloc(r.d, N * bytes);
    ck_assert_ptr_nonnull(host);
    for (int i = 0; i < LONG; i++)
        ids[i] = below(r.vocab);
    for (int32_t i = 0; i < N; i++) {
        const int32_t first = 0, row = info.max_rows + i;
        want_logits[i] = rig_feed(&r, i, ids + i, 5 + i, 5 + i, true);
        must(r.b->logits_copy(r.d, &first, &row, 1, &err), &err);
        want[i] = rig_state(&r, i);
    }
    free(rig_feed(&r, SPOILT, ids + SPOILT, 40, 40, true));
    for (int round = 0; round < 4; round++) {
        for (int32_t i = 0; i < N; i++) {
            float *to = (float *)(void *)(host + (size_t)i * bytes);
            const int32_t spoilt = SPOILT, first = 0, row = info.max_rows + i;
            must(r.b->slot_export(r.d, i, row, to, &out[i], &err), &err);
            must(r.b->slots_copy(r.d, &spoilt, &i, 1, &err), &err);
            must(r.b->logits_copy(r.d, &first, &row, 1, &err), &err);
        }
        rig_step(&r, ids, &(ssm_segment){STEPPING, 0, LONG, true, SSM_WANT_ALL}, 1);
        for (int32_t i = 0; i < N; i++) {
            const float *from = (const float *)(const void *)(host + (size_t)i * bytes);
            must(r.b->slot_import(r.d, i, info.max_rows + i, from, out[i], &in[i], &err), &err);
        }
        rig_step(&r, ids, &(ssm_segment){STEPPING, 0, LONG, true, SSM_WANT_ALL}, 1);
        for (int32_t i = 0; i < N; i++) {
            const char *image = host + (size_t)i * bytes;
            must(r.b->ticket_wait(r.d, in[i], &err), &err);
            must(r.b->ticket_wait(r.d, out[i], &err), &err);
            ck_assert_msg(memcmp(image, want[i], states) == 0, "%s: out %d", shapes[_i].name, i);
            ck_assert_msg(memcmp(image + states, want_logits[i], logits) == 0, "%s: logits out %d",
                          shapes[_i].name, i);
        }
        memset(host, 0xff, N * bytes); // it has been read
        for (int32_t i = 0; i < N; i++) {
            float *state = rig_state(&r, i), *kept = rig_logits(&r, info.max_rows + i);
            ck_assert_msg(memcmp(state, want[i], states) == 0, "%s: in %d", shapes[_i].name, i);
            ck_assert_msg(memcmp(kept, want_logits[i], logits) == 0, "%s: logits in %d",
                          shapes[_i].name, i);
            free(state);
            free(kept);
        }
    }
    int32_t from[N], to[N];
    for (int32_t i = 0; i < N; i++)
        from[i] = info.max_rows + i, to[i] = N - 1 - i;
    must(r.b->logits_copy(r.d, from, to, N, &err), &err);
    for (int32_t i = 0; i < N; i++) {
        float *row = rig_logits(&r, to[i]);
        ck_assert_msg(memcmp(row, want_logits[i], logits) == 0, "%s: row %d", shapes[_i].name, i);
        free(row);
        free(want[i]);
        free(want_logits[i]);
    }
    r.b->host_free(r.d, host);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

void states_tests(TCase *tc, cuda_part part) {
    if (part == PART_QUICK)
        tcase_add_loop_test(tc, poison_stays_where_it_is, 0, 1);
    if (part == PART_ALL || part == PART_FEW)
        tcase_add_loop_test(tc, poison_stays_where_it_is, 0, N_SHAPES);
    if (part == PART_ALL) {
        tcase_add_loop_test(tc, forks_and_snapshots_go_on_as_their_source, 0, N_SHAPES);
        tcase_add_loop_test(tc, copies_beside_steps_keep_their_order, 0, N_SHAPES);
    }
}
