// SPDX-License-Identifier: Apache-2.0
#include "engine.h"

#include <string.h>

#include "state/store.h"

void stats_step(ssm_engine *engine, const flight *f, double seconds) {
    int32_t n_draws = 0;
    for (int32_t i = 0; i < f->n_entries; i++)
        n_draws += f->entries[i].kind == ENTRY_DRAW;
    pthread_mutex_lock(&engine->lock);
    ssm_stats *s = &engine->stats;
    s->steps++;
    s->prompt_tokens += (uint64_t)f->n_prompt_tokens;
    s->generated_tokens += (uint64_t)n_draws;
    histogram_add(&s->step_seconds, ssm_step_seconds_bounds, seconds);
    histogram_add(&s->batch_rows, ssm_batch_rows_bounds, f->n_segments + f->n_restores);
    engine->last_step_ns = engine_now_ns();
    pthread_mutex_unlock(&engine->lock);
}

// Of a row of the cache's beside its slot.
static uint64_t logits_bytes(const ssm_engine *engine) {
    return engine->info.saved_bytes - engine->info.state_bytes;
}

void stats_cache(ssm_engine *engine) {
    const cache *c = &engine->cache;
    ssm_stats *s = &engine->stats;
    s->cached_tokens = c->counts.cached_tokens;
    s->cache_slots_total = c->o.n_slots;
    s->cache_slots_used = c->o.n_slots - c->n_free;
    s->sessions = engine->sessions.n_alive;
    s->sessions_set_aside = engine->session_counts.set_aside;
    s->sessions_expired = engine->session_counts.expired;
    s->session_refusals = engine->session_counts.refusals;
    s->session_writes = engine->session_counts.writes;
    s->session_write_failures = engine->session_counts.write_failures;
    s->session_loads = engine->session_counts.loads;
    s->session_load_seconds = engine->session_counts.load_seconds;
    s->session_conflicts = engine->session_counts.conflicts;
    s->session_turns_lost = engine->session_counts.turns_lost;
    s->store_answers = engine->session_counts.store_answers;
    s->store_failures = engine->session_counts.store_failures;
    s->store_seconds = engine->session_counts.store_seconds;
    memcpy(s->store_reason, engine->session_counts.reason, sizeof s->store_reason);
    memcpy(s->lost_reason, engine->session_counts.lost_reason, sizeof s->lost_reason);
    memcpy(s->cache, c->counts.tier, sizeof s->cache);
    s->cache[SSM_TIER_DEVICE].bytes =
        (uint64_t)s->cache_slots_used * (engine->device_info.slot_bytes + logits_bytes(engine));
    s->cache[SSM_TIER_HOST].bytes = cache_host_bytes(c);
    s->cache[SSM_TIER_DISK].bytes = cache_disk_bytes(c);
    s->cache_misses = c->counts.misses;
    s->cache_saves = c->counts.saves;
    s->cache_disk_failures = c->counts.disk_failures;
}

// A shared store knows more than this process.
static void ask_store(const ssm_engine *engine, ssm_stats *out) {
    store_status status;
    if (!engine->is_shared || !engine->store)
        return;
    engine->store->ops->status(engine->store, &status);
    out->store_shared = true;
    out->store_up = status.is_up;
    out->store_connects = status.connects;
    out->sessions = status.sessions;
    memcpy(out->store_reason, status.reason, sizeof out->store_reason);
}

void ssm_engine_get_stats(const ssm_engine *const_engine, ssm_stats *out) {
    ssm_engine *engine = (ssm_engine *)const_engine; // the lock is no part of what const promises
    pthread_mutex_lock(&engine->lock);
    *out = engine->stats;
    ask_store(engine, out);
    out->slots_total = engine->slots.total;
    out->slots_used = engine->slots.total - engine->n_free_slots;
    out->requests_waiting = engine->n_waiting + engine->n_inbox_jobs;
    out->requests_running = engine->n_running;
    out->state_bytes = engine->device_info.slot_bytes * (uint64_t)engine->device_info.n_slots +
                       logits_bytes(engine) * (uint64_t)engine->device_info.kept_rows;
    out->draining = engine->is_draining;
    out->failed = engine->is_failed;
    out->idle_seconds = engine->has_work || engine->inbox_first
                            ? (double)(engine_now_ns() - engine->last_step_ns) * 1e-9
                            : 0;
    pthread_mutex_unlock(&engine->lock);
}
