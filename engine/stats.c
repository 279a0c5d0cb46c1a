// SPDX-License-Identifier: Apache-2.0
#include "engine.h"

const double ssm_step_seconds_bounds[SSM_STATS_BUCKETS] = {
    0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032,
    0.064,   0.128,  0.256, 0.512, 1.024, 2.048, 4.096, 8.192};
const double ssm_batch_rows_bounds[SSM_STATS_BUCKETS] = {
    1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};

void histogram_add(ssm_histogram *h, const double *bounds, double value) {
    int i = 0;
    while (i < SSM_STATS_BUCKETS && value > bounds[i])
        i++;
    h->count[i]++;
    h->sum += value;
}

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

void stats_cache(ssm_engine *engine) {
    const cache *c = &engine->cache;
    ssm_stats *s = &engine->stats;
    s->cached_tokens = c->counts.cached_tokens;
    s->cache_slots_total = c->o.n_slots;
    s->cache_slots_used = c->o.n_slots - c->n_free;
    s->cache_host_bytes = cache_host_bytes(c);
    s->sessions = engine->sessions.n_alive;
    s->sessions_set_aside = engine->session_counts.set_aside;
    s->sessions_expired = engine->session_counts.expired;
    s->session_refusals = engine->session_counts.refusals;
    s->session_writes = engine->session_counts.writes;
    s->session_write_failures = engine->session_counts.write_failures;
    s->session_loads = engine->session_counts.loads;
    s->session_load_seconds = engine->session_counts.load_seconds;
    s->cache_hits = c->counts.hits;
    s->cache_misses = c->counts.misses;
    s->cache_saves = c->counts.saves;
    s->cache_evictions = c->counts.evictions;
    s->cache_demotions = c->counts.demotions;
    s->cache_disk_bytes = cache_disk_bytes(c);
    s->cache_disk_writes = c->counts.disk_writes;
    s->cache_disk_hits = c->counts.disk_hits;
    s->cache_disk_failures = c->counts.disk_failures;
    s->cache_fetch_seconds = engine->fetch_seconds;
}

void ssm_engine_get_stats(const ssm_engine *const_engine, ssm_stats *out) {
    ssm_engine *engine = (ssm_engine *)const_engine; // the lock is no part of what const promises
    pthread_mutex_lock(&engine->lock);
    *out = engine->stats;
    out->slots_total = engine->slots.total;
    out->slots_used = engine->slots.total - engine->n_free_slots;
    out->requests_waiting = engine->n_waiting + engine->n_inbox_jobs;
    out->requests_running = engine->n_running;
    out->state_bytes = engine->device_info.slot_bytes * (uint64_t)engine->device_info.n_slots;
    out->draining = engine->is_draining;
    out->failed = engine->is_failed;
    out->idle_seconds = engine->has_work || engine->inbox_first
                            ? (double)(engine_now_ns() - engine->last_step_ns) * 1e-9
                            : 0;
    pthread_mutex_unlock(&engine->lock);
}
