// SPDX-License-Identifier: Apache-2.0
// How many sessions there may be, and for how long.
//
// A new session is refused when there are as many as may be, in all or of its owner: a name is a
// promise, so none is taken back for another's sake; what makes room is DELETE and age. Asked for
// when a request arrives, not when its answer is there, so that nothing is generated in vain; a
// record without a state, a first turn under way, counts. All sessions of a model have one size, so
// a limit in bytes is one in sessions. A shared store counts likewise, from a claim on
// (redis_lease.c).
//
// A session that no turn has changed for session_ttl seconds goes, from the store too, unless a
// request is at it. The table is walked every sixteenth of that time, within 1 and 60 seconds.
#include "engine.h"

#include <time.h>

enum { LEAST_PAUSE = 1, MOST_PAUSE = 60, WALKS = 16 };

size_t quota_limit(const ssm_engine *engine, uint64_t sessions, uint64_t bytes) {
    const uint64_t each = engine->state_floats * sizeof(float);
    uint64_t limit = sessions > 0 ? sessions : UINT64_MAX;
    if (bytes > 0 && bytes / each < limit)
        limit = bytes / each;
    return limit < SIZE_MAX ? (size_t)limit : SIZE_MAX;
}

int quota_check(ssm_engine *engine, const session *s, ssm_error *err) {
    const ssm_engine_options *o = &engine->options;
    const session_table *t = &engine->sessions;
    if (session_is_alive(s) || engine->is_shared) // a shared store counts itself
        return 0;
    const size_t all = quota_limit(engine, (uint64_t)o->session_max, o->session_max_bytes);
    const size_t own = quota_limit(engine, (uint64_t)o->session_key_max, o->session_key_max_bytes);
    if (t->n <= all && sessions_of(t, s->owner) <= own)
        return 0;
    engine->session_counts.refusals++;
    if (t->n > all)
        return ssm_error_set(err, SSM_EQUOTA, "session",
                             "the server keeps %zu sessions, and no more", all);
    return ssm_error_set(err, SSM_EQUOTA, "session", "an API key may have %zu sessions, not more",
                         own);
}

static bool is_over(const ssm_engine *engine, const session *s, int64_t now) {
    return session_is_alive(s) && s->n_jobs == 0 && !s->calls && !s->is_loading &&
           now - s->last_used > engine->options.session_ttl;
}

int32_t quota_pause(const ssm_engine *engine) {
    const int64_t ttl = engine->options.session_ttl;
    const int64_t pause = ttl / WALKS;
    if (ttl == 0 || engine->is_shared)
        return 0;
    return pause < LEAST_PAUSE ? LEAST_PAUSE : pause > MOST_PAUSE ? MOST_PAUSE : (int32_t)pause;
}

void quota_sweep(ssm_engine *engine) {
    const int64_t now = (int64_t)time(NULL);
    if (engine->options.session_ttl == 0 || engine->is_shared || now < engine->next_sweep)
        return;
    engine->next_sweep = now + quota_pause(engine);
    for (size_t i = 0; i < SESSION_BUCKETS; i++) {
        session *next;
        for (session *s = engine->sessions.buckets[i]; s; s = next) {
            bool waits;
            next = s->next;
            if (!is_over(engine, s, now) || durable_delete(engine, s, NULL, &waits) != 0)
                continue;
            engine->session_counts.expired++;
            engine->sessions.n_alive--;
            sessions_delete(&engine->sessions, &engine->cache, s);
        }
    }
}
