// SPDX-License-Identifier: Apache-2.0
// Jobs in line, and their sessions in a shared store.
//
// A job claims its session when there is a slot for it: a claim at once would keep other processes,
// which may have slots, from the session, and bring states into memory for all the queue. But what
// was there when the request was accepted must be there when its turn comes, as in one process,
// where no session goes that a request is at. So a job that is left in line asks the store to keep
// its session (AWAIT), which also says whether there is one: it does not expire from there on, and
// is let go with the session's last job. Whoever waits for another process' claim does the same by
// asking for it. A job that gets a slot at once asks for nothing but the claim.
//
// It may be gone all the same: deleted, or lost with the store. A prompt that goes on from it would
// then begin another one, and nobody the wiser; its job is told SSM_ENOTFOUND. Not so one that has
// the whole conversation with it, or was pinned (SSM_EMOVED tells that one in turn_begin). A store
// that cannot be reached cannot keep the session either: SSM_EUNAVAILABLE, as of a claim.
#include "engine.h"

#include "state/store.h"

static void ask(ssm_engine *engine, job *j) {
    store_request *r = durable_request(engine, j->session, STORE_AWAIT);
    if (!r) // then in the next turn
        return;
    r->job = j->id;
    j->is_asked = j->session->is_awaited = true;
    durable_send(engine, j->session, r);
}

void shared_await(ssm_engine *engine) {
    for (job *j = engine->waiting.first; j; j = j->next) {
        const session *s = j->session;
        if (!s || j->is_fetching || s->is_claiming)
            continue;
        if (!s->is_claimed && (!j->is_asked || !s->is_awaited)) {
            ask(engine, j);
        } else if (!j->is_asked) {
            j->is_asked = true;
            j->is_expected = session_is_alive(s);
        }
    }
}

void shared_awaited(ssm_engine *engine, store_request *r) {
    ssm_error err = {0};
    job *j = list_find(&engine->waiting, r->job);
    if (!j)
        return;
    if (r->rc == 0)
        j->is_expected = true;
    else if (r->rc != SSM_ENOTFOUND)
        job_end(engine, j, SSM_FINISH_ERROR, shared_describe(r, &err), err.message);
}

void shared_expect(ssm_engine *engine, session *s) {
    for (job *j = engine->waiting.first; j; j = j->next)
        j->is_expected |= j->session == s && j->is_fetching;
}

void shared_miss(ssm_engine *engine, session *s) {
    job *next;
    for (job *j = engine->waiting.first; j; j = next) {
        next = j->next;
        if (j->session == s && j->is_expected && !j->is_pinned && !j->is_whole)
            job_end(engine, j, SSM_FINISH_ERROR, SSM_ENOTFOUND,
                    "the session is gone: it was deleted, or lost, while the request waited");
    }
}
