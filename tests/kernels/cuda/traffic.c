// SPDX-License-Identifier: Apache-2.0
// Traffic: admissions, cancellations, forks and restores at random.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests.h"

// A request is a prompt fed in pieces, then tokens one by one; they are given, so that rounding
// cannot send two runs different ways. What it comes to is its last logits.
enum { REQUESTS = 60, MOST_IDS = 90, ADMISSIONS = 10000 };

typedef struct request {
    int32_t ids[MOST_IDS], prompt, n;
    float *answer; // alone
} request;

typedef struct session {
    const request *what; // NULL: the slot is free
    int32_t done;
} session;

static void request_alone(rig *r, request *q) {
    free(rig_feed(r, 0, q->ids, q->prompt, q->prompt, true));
    for (int32_t i = q->prompt; i < q->n; i++) {
        const ssm_segment s = {0, 0, 1, false, SSM_WANT_LAST};
        rig_step(r, q->ids + i, &s, 1);
    }
    q->answer = rig_logits(r, 0);
}

static int32_t free_slot(const session *sessions) {
    const int32_t first = below(SLOTS);
    for (int32_t i = 0; i < SLOTS; i++) {
        if (!sessions[(first + i) % SLOTS].what)
            return (first + i) % SLOTS;
    }
    return -1;
}

// A live session goes on in another slot: by a copy on the device, or through the host.
static void move_session(rig *r, session *sessions, int32_t from, bool keep) {
    ssm_error err = {0};
    const int32_t to = free_slot(sessions);
    if (to < 0 || !sessions[from].what || sessions[from].done == 0)
        return;
    if (below(4) == 0) {
        float *state = rig_state(r, from);
        must(r->b->slot_write(r->d, to, state, &err), &err);
        free(state);
    } else {
        must(r->b->slots_copy(r->d, &from, &to, 1, &err), &err);
    }
    sessions[to] = sessions[from];
    if (!keep)
        sessions[from].what = NULL;
}

// One step of some of the live sessions; those that end are checked and leave.
static int traffic_step(rig *r, session *sessions, double *worst) {
    int32_t tokens[TOKENS], used = 0, at = 0, slots[SLOTS];
    ssm_segment segments[SLOTS];
    for (int32_t slot = 0; slot < SLOTS; slot++) {
        session *s = &sessions[slot];
        if (!s->what || below(8) == 0)
            continue;
        const int32_t left = s->what->prompt - s->done;
        const int32_t count = left > 0 ? 1 + below(left) : 1;
        if (at + count > TOKENS)
            break;
        segments[used] = (ssm_segment){slot, at, count, s->done == 0, SSM_WANT_LAST};
        memcpy(tokens + at, s->what->ids + s->done, (size_t)count * sizeof *tokens);
        slots[used++] = slot;
        s->done += count;
        at += count;
    }
    if (used == 0)
        return 0;
    rig_step(r, tokens, segments, used);
    int ended = 0;
    for (int32_t i = 0; i < used; i++) {
        session *s = &sessions[slots[i]];
        if (s->done < s->what->n)
            continue;
        float *logits = rig_logits(r, i);
        const double off = distance(logits, s->what->answer, (size_t)r->vocab);
        ck_assert_msg(off <= 2e-5, "an answer among others is off by %g", off);
        *worst = off > *worst ? off : *worst;
        free(logits);
        s->what = NULL;
        ended++;
    }
    return ended;
}

START_TEST(traffic_changes_no_answer) {
    const int shape = _i == 0 ? 0 : 5;
    small_model m;
    rig r;
    static request requests[REQUESTS];
    session sessions[SLOTS] = {0};
    small_model_create(&m, &shapes[shape], SSM_DTYPE_F32, 31);
    rig_open(&r, "cuda", &m.weights, SSM_DTYPE_F32, SSM_DTYPE_F32);
    for (int i = 0; i < REQUESTS; i++) {
        request *q = &requests[i];
        q->prompt = 1 + below(MOST_IDS - 13), q->n = q->prompt + 1 + below(12);
        for (int32_t k = 0; k < q->n; k++)
            q->ids[k] = below(r.vocab);
        request_alone(&r, q);
    }
    int admitted = 0, ended = 0, cancelled = 0;
    double worst = 0;
    for (int live = 1; admitted < ADMISSIONS || live > 0;) {
        for (int k = below(6); k > 0 && admitted < ADMISSIONS; k--) {
            const int32_t slot = free_slot(sessions);
            if (slot < 0)
                break;
            sessions[slot] = (session){&requests[below(REQUESTS)], 0};
            admitted++;
        }
        if (below(3) == 0)
            move_session(&r, sessions, below(SLOTS), below(2));
        const int32_t victim = below(SLOTS);
        if (below(6) == 0 && sessions[victim].what) {
            sessions[victim].what = NULL;
            cancelled++;
        }
        ended += traffic_step(&r, sessions, &worst);
        live = 0;
        for (int32_t i = 0; i < SLOTS; i++)
            live += sessions[i].what != NULL;
    }
    printf("%s: %d admissions, %d answers checked, %d cancelled, worst %.1e\n", shapes[shape].name,
           admitted, ended, cancelled, worst);
    ck_assert_int_gt(ended, ADMISSIONS / 2);
    for (int i = 0; i < REQUESTS; i++)
        free(requests[i].answer);
    rig_close(&r);
    small_model_free(&m);
}
END_TEST

void traffic_tests(TCase *tc, cuda_part part) {
    if (part == PART_ALL)
        tcase_add_loop_test(tc, traffic_changes_no_answer, 0, 2);
}
