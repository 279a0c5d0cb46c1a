// SPDX-License-Identifier: Apache-2.0
// Sessions that other processes have too: what durable.c and sessions.c do, with a shared store
// (store.h).
//
// The table knows only the sessions that this process has jobs of, or states; what others do shows
// in the store alone. So calls are asked of the store, each in one request (shared_call.c), and a
// turn begins with a claim:
//
//     no job -> claiming -> claimed: turns run, one after the other -> written (and given up)
//
// While a session is claimed nobody else can change it. A copy kept from earlier is used if its
// stamp is the store's, else what the store sent is; a session that is gone there is gone here. No
// turn begins before the last one's state is in the store: what others see is never behind what
// this process goes on from, and a state that was not taken can be dropped without a turn on it.
// That is so with ASYNC, too, where only the answer does not wait; NONE is refused.
//
// The write that the last job of a session leaves gives the claim up. A write fails when another
// process has changed the session (this one had stalled for longer than its lease): the turn is
// told SSM_ECONFLICT, what is kept here is dropped. When the session was deleted meanwhile, the
// turn ends as it would and what it made is dropped, as in one process. When it is gone and is not
// known to be deleted (it expired behind a store that was away for too long, or the store has lost
// it), the turn is told SSM_ENOTFOUND: written all the same it could bring back what was deleted
// there while this process was cut off. When the store cannot be reached, SYNC says so and drops it
// too, as whether it is there can only be seen there; ASYNC has promised more than that to nobody:
// it keeps the state, and the session to itself, and tries again until the engine ends. What ASYNC
// drops nobody waits to be told of: it is counted, for the log.
//
// A process whose own jobs follow each other at a session gives way when another one waits for it
// and it has had TURN_NS: it gives the claim up and asks for it again after YIELD_MS, by when
// whoever waits has asked.
//
// Who finds a session claimed elsewhere asks the store again and again (waits), or is told
// SSM_ESESSIONBUSY at once. What waits for a slot: shared_line.c. Limits and expiry are the store's
// own.
#include "engine.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "session_call.h"
#include "state/store.h"

enum { TURN_NS = 1000000000, YIELD_MS = 400 };

static const char unreachable[] = "the store of sessions cannot be reached, try again";

int shared_describe(const store_request *r, ssm_error *err) {
    switch (r->rc) {
    case SSM_EQUOTA:
        return r->is_own ? ssm_error_set(err, r->rc, "session",
                                         "an API key may have %zu sessions, not more", r->count)
                         : ssm_error_set(err, r->rc, "session",
                                         "the server keeps %zu sessions, and no more", r->count);
    case SSM_EINVAL: // what was there was damaged
        return ssm_error_set(err, SSM_EIO, NULL, "the session could not be read");
    case SSM_ESESSIONBUSY:
        return ssm_error_set(err, r->rc, NULL, "another request is at this session");
    case SSM_ECONFLICT:
        return ssm_error_set(err, r->rc, NULL,
                             "another server has continued the session meanwhile: this turn is "
                             "not kept");
    case SSM_EUNAVAILABLE:
        return ssm_error_set(err, r->rc, NULL, "%s", unreachable);
    case SSM_ENOTFOUND: // under a turn
        return ssm_error_set(
            err, r->rc, "session",
            "the session is gone (expired, deleted or lost) meanwhile: this turn is not kept");
    default:
        return ssm_error_set(err, r->rc, NULL, "%s", ssm_error_text(r->rc));
    }
}

uint64_t shared_stamp(ssm_engine *engine) { // splitmix64 of what getrandom began
    uint64_t z = engine->stamp_seed += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return z ? z : 1;
}

// ---- a session's copy here

static void forget_copy(ssm_engine *engine, session *s) {
    assert(!s->holder && !s->is_dirty && !s->is_writing);
    engine->sessions.n_alive -= session_is_alive(s) && s->is_listed;
    session_reset(s, &engine->cache);
}

static int take_copy(ssm_engine *engine, session *s, store_request *r) {
    snapshot *state = durable_adopt(engine, &r->image);
    if (!state)
        return SSM_ENOMEM;
    engine->sessions.n_alive += !session_is_alive(s) && s->is_listed;
    session_set(s, &engine->cache, state, &r->image.text);
    s->created = r->label.created;
    s->last_used = r->label.last_used;
    s->stored = s->version;
    s->stamp = r->stamp;
    durable_count_load(engine, r);
    return 0;
}

void shared_let_go(ssm_engine *engine, session *s) {
    forget_copy(engine, s);
    if (s->refs == 1 && s->is_listed) // the table's
        sessions_delete(&engine->sessions, &engine->cache, s);
}

// ---- claims

void shared_release(ssm_engine *engine, session *s) {
    store_request *r = durable_request(engine, s, STORE_RELEASE);
    s->is_claimed = s->is_awaited = false;
    if (r) // else it lapses
        durable_send(engine, s, r);
}

static bool is_wanted(const session *s) {
    return s->n_jobs > 0 || s->is_dirty || s->is_writing;
}

bool shared_fetch(ssm_engine *engine, job *j) {
    session *s = j->session;
    const bool is_behind = s->is_dirty || s->is_writing;
    if (s->is_claimed && !is_behind)
        return false;
    j->is_fetching = true;
    if (s->is_claiming || is_behind) // it is woken
        return true;
    store_request *r = durable_request(engine, s, STORE_CLAIM);
    if (!r) {
        job_end(engine, j, SSM_FINISH_ERROR, SSM_ENOMEM, "no memory for the session");
        return true;
    }
    r->stamp = s->state ? s->stamp : 0;
    r->waits = !j->waits_not;
    r->delay_ms = s->has_yielded ? YIELD_MS : 0;
    s->has_yielded = false;
    s->is_claiming = true;
    durable_send(engine, s, r);
    return true;
}

void shared_leave(ssm_engine *engine, session *s) {
    durable_write_some(engine);
    if ((s->is_claimed || (s->is_awaited && !s->is_claiming)) && !is_wanted(s))
        shared_release(engine, s);
}

// Time goes by and nothing is wrong: a job waits for another process.
static void say_alive(ssm_engine *engine) {
    pthread_mutex_lock(&engine->lock);
    engine->last_step_ns = engine_now_ns();
    pthread_mutex_unlock(&engine->lock);
}

static void answer_calls(ssm_engine *engine, session *s, int rc, const char *message) {
    session_call *call = s->calls, *next; // one may come to wait again
    s->calls = NULL;
    for (; call; call = next) {
        next = call->next;
        if (rc != 0)
            session_fail(engine, call, rc, message);
        else
            session_answer(engine, call);
    }
}

static void on_claim(ssm_engine *engine, session *s, store_request *r) {
    ssm_error err = {0};
    s->is_claiming = false;
    if (r->rc == 0 && r->image.state)
        r->rc = take_copy(engine, s, r);
    else if ((r->rc == 0 && r->stamp == 0) || r->rc == SSM_EINVAL)
        forget_copy(engine, s);
    s->is_claimed = r->rc == 0;
    s->is_awaited = s->is_awaited && !s->is_claimed;
    s->claimed_ns = engine_now_ns();
    assert(!s->is_claimed || r->stamp == 0 || (s->state && s->stamp == r->stamp));
    if (r->rc == SSM_ESESSIONBUSY)
        say_alive(engine);
    engine->session_counts.set_aside += r->rc == SSM_EINVAL;
    engine->session_counts.refusals += r->rc == SSM_EQUOTA;
    const int rc = r->rc == 0 ? 0 : shared_describe(r, &err);
    s->refs++; // the last job may take it away
    if (r->rc == SSM_ESESSIONBUSY && r->is_there)
        shared_expect(engine, s);
    else if (r->rc == 0 && r->stamp == 0)
        shared_miss(engine, s);
    durable_wake(engine, s, rc, err.message);
    const bool may_be_claimed = rc == SSM_ENOMEM || rc == SSM_EUNAVAILABLE;
    if (may_be_claimed || ((s->is_claimed || s->is_awaited) && !is_wanted(s)))
        shared_release(engine, s);
    sessions_unref(&engine->sessions, &engine->cache, s);
}

// ---- writes

// What is sent again may be there already, its answer lost: it has the stamp that it had.
void shared_prepare(ssm_engine *engine, session *s, store_request *r) {
    if (s->tried != s->version)
        s->tried_stamp = shared_stamp(engine);
    s->tried = s->version;
    r->base = s->stamp;
    r->stamp = s->tried_stamp;
    r->releases = s->n_jobs == 0;
}

static void pause_writes(ssm_engine *engine) {
    store_request *r = engine->is_pausing ? NULL : calloc(1, sizeof *r);
    if (!r)
        return;
    r->kind = STORE_PAUSE;
    engine->is_pausing = true;
    durable_send(engine, NULL, r);
}

// A write that may be tried again, as nobody has been told that it failed.
static bool is_kept(const ssm_engine *engine, const store_request *r) {
    return (r->rc == SSM_EUNAVAILABLE || r->rc == SSM_ENOMEM) && !engine->is_flushing &&
           engine->options.durability == SSM_DURABILITY_ASYNC;
}

static void on_put(ssm_engine *engine, session *s, store_request *r) {
    ssm_error err = {0};
    const bool is_gone = r->rc == SSM_ENOTFOUND && !r->is_lost, is_again = is_kept(engine, r);
    const int rc = r->rc == 0 || is_gone ? 0 : shared_describe(r, &err);
    s->is_writing = false;
    engine->n_writes--;
    engine->session_counts.writes += r->rc == 0;
    engine->session_counts.write_failures += rc != 0;
    engine->session_counts.conflicts += rc == SSM_ECONFLICT;
    if (r->rc == 0) {
        s->stored = r->version;
        s->stamp = r->stamp;
        s->is_claimed = s->is_claimed && !r->releases;
        s->has_yielded = s->is_claimed && r->is_wanted && engine_now_ns() - s->claimed_ns > TURN_NS;
    } else if (is_again) {
        pause_writes(engine);
        durable_push(engine, s);
    } else {
        engine->n_lost += engine->is_flushing && rc != 0;
        if (rc != 0 && engine->options.durability == SSM_DURABILITY_ASYNC) {
            engine->session_counts.turns_lost++;
            snprintf(engine->session_counts.lost_reason, sizeof engine->session_counts.lost_reason,
                     "%.159s", err.message);
        }
        forget_copy(engine, s);
    }
    s->refs++;
    if (s->has_yielded)
        shared_release(engine, s);
    durable_answer(engine, s, r->version, rc, err.message);
    durable_wake(engine, s, is_again ? rc : 0, err.message);
    answer_calls(engine, s, is_again ? rc : 0, err.message);
    if (s->is_claimed && ((r->rc != 0 && !is_again) || !is_wanted(s)))
        shared_release(engine, s);
    sessions_unref(&engine->sessions, &engine->cache, s);
}

// ---- all that comes back

void shared_done(ssm_engine *engine, store_request *r) {
    session *s = r->session;
    if (r->kind != STORE_PAUSE) {
        engine->session_counts.store_answers++;
        engine->session_counts.store_failures += r->rc == SSM_EUNAVAILABLE;
        histogram_add(&engine->session_counts.store_seconds, ssm_step_seconds_bounds,
                      (double)(engine_now_ns() - r->began_ns) * 1e-9);
    }
    if (r->call)
        shared_called(engine, r);
    else if (r->kind == STORE_CLAIM)
        on_claim(engine, s, r);
    else if (r->kind == STORE_PUT)
        on_put(engine, s, r);
    else if (r->kind == STORE_AWAIT)
        shared_awaited(engine, r);
    else if (r->kind == STORE_PAUSE)
        engine->is_pausing = false;
}

int shared_open(ssm_engine *engine, ssm_error *err, void (*on_done)(void *, store_request *)) {
    const ssm_engine_options *o = &engine->options;
    if (o->state_dir)
        return ssm_error_set(err, SSM_EINVAL, "state_url",
                             "state_url and state_dir: sessions are kept in one place");
    if (o->durability == SSM_DURABILITY_NONE)
        return ssm_error_set(err, SSM_EINVAL, "durability",
                             "durability none keeps sessions from the other servers: async or sync "
                             "is wanted with state_url");
    const size_t all = quota_limit(engine, (uint64_t)o->session_max, o->session_max_bytes);
    const size_t own = quota_limit(engine, (uint64_t)o->session_key_max, o->session_key_max_bytes);
    const store_limits limits = {.ttl = o->session_ttl,
                                 .sessions = all < SIZE_MAX ? all : 0,
                                 .of_one = own < SIZE_MAX ? own : 0};
    if (getrandom(&engine->stamp_seed, sizeof engine->stamp_seed, 0) != sizeof engine->stamp_seed)
        return ssm_error_set(err, SSM_EIO, NULL, "no random numbers: %m");
    const int rc = store_open_redis(engine->model, o->state_url, &limits, on_done, engine,
                                    &engine->store, err);
    engine->is_shared = rc == 0;
    return rc;
}
