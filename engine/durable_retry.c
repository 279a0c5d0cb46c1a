// SPDX-License-Identifier: Apache-2.0
// Durability: what a folder did not take.
//
// A disk is full for an hour and has room again. A session whose write has failed is where it was,
// in memory, and nothing would write it before its next turn, but a cache that wants its room,
// which would ask for it over and over. So after a failure the cache asks in vain, every
// RETRY_SECONDS one such session is tried, whichever is first in the table, and when a write
// succeeds all of them are: a disk that stays full is asked for one state at a time.
// SSM_DURABILITY_NONE writes only what the cache asks for, so there it may ask again after so long.
// A shared store says itself when it is back (shared.c).
//
// As the engine ends each is tried once more. What fails then is lost, and counted.
#include "engine.h"

#include <time.h>

enum { RETRY_SECONDS = 3 };

static bool is_behind(const session *s) {
    return s->state && s->stored != s->version;
}

// All that the store is without, or one; false: there is none.
static bool push(ssm_engine *engine, bool all) {
    bool is_pushed = false;
    for (size_t i = 0; i < SESSION_BUCKETS && (all || !is_pushed); i++) {
        for (session *s = engine->sessions.buckets[i]; s && (all || !is_pushed); s = s->next) {
            if (!is_behind(s))
                continue;
            durable_push(engine, s);
            is_pushed = true;
        }
    }
    return is_pushed;
}

void durable_failed_write(ssm_engine *engine) {
    engine->has_unwritten = !engine->is_shared && !engine->is_flushing;
    engine->next_retry = (int64_t)time(NULL) + RETRY_SECONDS;
}

void durable_wrote(ssm_engine *engine) {
    if (!engine->has_unwritten || engine->is_flushing)
        return;
    engine->has_unwritten = false;
    if (engine->options.durability != SSM_DURABILITY_NONE)
        push(engine, true);
}

int32_t durable_pause(const ssm_engine *engine) {
    return engine->has_unwritten ? RETRY_SECONDS : 0;
}

void durable_retry(ssm_engine *engine) {
    if (!engine->has_unwritten || engine->n_writes > 0 || (int64_t)time(NULL) < engine->next_retry)
        return;
    engine->next_retry = (int64_t)time(NULL) + RETRY_SECONDS;
    engine->has_unwritten =
        engine->options.durability != SSM_DURABILITY_NONE && push(engine, false);
    durable_write_some(engine);
}

void durable_count_lost(ssm_engine *engine) {
    for (size_t i = 0; i < SESSION_BUCKETS && engine->store; i++) {
        for (const session *s = engine->sessions.buckets[i]; s; s = s->next)
            engine->n_lost += is_behind(s);
    }
}
