// SPDX-License-Identifier: Apache-2.0
#include "metrics.h"

#include <ssm/engine.h>
#include <ssm/version.h>

#include "registry.h"

// Seconds: 1, 2.5, 5 a decade, from a millisecond to five minutes.
static const double bounds[METRICS_BUCKETS] = {.001, .0025, .005, .01, .025, .05, .1,  .25, .5,
                                               1,    2.5,   5,    10,  25,   50,  100, 200, 300};

void metrics_observe(metrics_histogram *h, uint64_t ns) {
    const double seconds = (double)ns * 1e-9;
    size_t i = 0;
    while (i < METRICS_BUCKETS && seconds > bounds[i]) {
        i++;
    }
    atomic_fetch_add_explicit(&h->count[i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum_ns, ns, memory_order_relaxed);
}

void metrics_count_request(metrics *m, int status) {
    const int i = status >= 0 && status < METRICS_STATUSES ? status : 0;
    atomic_fetch_add_explicit(&m->requests[i], 1, memory_order_relaxed);
}

// ---- the page

static void put_head(buf *out, const char *name, const char *type, const char *help) {
    buf_printf(out, "# HELP ssmd_%s %s\n# TYPE ssmd_%s %s\n", name, help, name, type);
}

// A label's value with \, " and newlines escaped as the text format asks.
static void put_label(buf *out, const char *key, const char *value) {
    buf_printf(out, "%s=\"", key);
    for (; *value; value++) {
        if (*value == '\n') {
            buf_str(out, "\\n");
            continue;
        }
        if (*value == '\\' || *value == '"') {
            buf_str(out, "\\");
        }
        buf_add(out, value, 1);
    }
    buf_str(out, "\"");
}

static void put_histogram(buf *out, const char *name, const char *help, metrics_histogram *h) {
    uint64_t total = 0;
    put_head(out, name, "histogram", help);
    for (size_t i = 0; i <= METRICS_BUCKETS; i++) {
        total += atomic_load_explicit(&h->count[i], memory_order_relaxed);
        if (i < METRICS_BUCKETS) {
            buf_printf(out, "ssmd_%s_bucket{le=\"%g\"} %llu\n", name, bounds[i],
                       (unsigned long long)total);
        }
    }
    buf_printf(out, "ssmd_%s_bucket{le=\"+Inf\"} %llu\nssmd_%s_sum %.9g\nssmd_%s_count %llu\n",
               name, (unsigned long long)total, name,
               (double)atomic_load_explicit(&h->sum_ns, memory_order_relaxed) * 1e-9, name,
               (unsigned long long)total);
}

// The labels of a sample of a model's, and of a tier's if there is one; not closed.
static void put_labels(buf *out, const char *model, const char *tier) {
    buf_str(out, "{");
    put_label(out, "model", model);
    if (tier) {
        buf_printf(out, ",tier=\"%s\"", tier);
    }
}

static void put_engine_histogram(buf *out, const char *name, const char *model, const char *tier,
                                 const ssm_histogram *h, const double *at) {
    uint64_t total = 0;
    for (size_t i = 0; i <= SSM_STATS_BUCKETS; i++) {
        total += h->count[i];
        buf_printf(out, "ssmd_%s_bucket", name);
        put_labels(out, model, tier);
        if (i < SSM_STATS_BUCKETS) {
            buf_printf(out, ",le=\"%g\"} %llu\n", at[i], (unsigned long long)total);
        } else {
            buf_printf(out, ",le=\"+Inf\"} %llu\n", (unsigned long long)total);
        }
    }
    buf_printf(out, "ssmd_%s_sum", name);
    put_labels(out, model, tier);
    buf_printf(out, "} %.9g\nssmd_%s_count", h->sum, name);
    put_labels(out, model, tier);
    buf_printf(out, "} %llu\n", (unsigned long long)total);
}

// A gauge or counter of the engines: a line a model. Fields are uint64_t or int32_t.
#define ROW(metric, kind, member, text)                                                            \
    { metric, kind, text, offsetof(ssm_stats, member), sizeof((ssm_stats *)NULL)->member }
static const struct engine_metric {
    const char *name, *type, *help;
    size_t offset, size;
} engine_metrics[] = {
    ROW("requests_running", "gauge", requests_running, "Requests that hold a slot."),
    ROW("requests_waiting", "gauge", requests_waiting, "Requests waiting for their first slot."),
    ROW("prompt_tokens_total", "counter", prompt_tokens, "Prompt tokens taken in."),
    ROW("cached_prompt_tokens_total", "counter", cached_tokens,
        "Prompt tokens that a kept state saved."),
    ROW("cache_misses_total", "counter", cache_misses,
        "Prompts of which no saved state knew anything."),
    ROW("cache_saves_total", "counter", cache_saves, "States saved."),
    ROW("cache_disk_failures_total", "counter", cache_disk_failures,
        "Saved states lost to a disk that failed or was full."),
    ROW("cache_slots_total", "gauge", cache_slots_total, "Device rows for saved states."),
    ROW("cache_slots_used", "gauge", cache_slots_used, "Device rows that hold one."),
    ROW("sessions", "gauge", sessions, "Sessions kept."),
    ROW("sessions_set_aside", "gauge", sessions_set_aside,
        "Sessions in the store that were damaged or of another model."),
    ROW("sessions_expired_total", "counter", sessions_expired, "Sessions deleted for their age."),
    ROW("session_refusals_total", "counter", session_refusals,
        "Sessions refused for being one too many."),
    ROW("session_writes_total", "counter", session_writes, "Sessions written to the store."),
    ROW("session_write_failures_total", "counter", session_write_failures,
        "Sessions that could not be written."),
    ROW("session_loads_total", "counter", session_loads, "Sessions read back from the store."),
    ROW("session_turns_lost_total", "counter", session_turns_lost,
        "Turns that were answered and could not be kept."),
    ROW("session_conflicts_total", "counter", session_conflicts,
        "Turns not kept because another server had continued the session."),
    ROW("generation_tokens_total", "counter", generated_tokens, "Tokens generated."),
    ROW("steps_total", "counter", steps, "Steps of the engine."),
    ROW("slots_total", "gauge", slots_total, "State slots."),
    ROW("slots_used", "gauge", slots_used, "State slots in use."),
};

static uint64_t metric_value(const struct engine_metric *m, const ssm_stats *stats) {
    const char *field = (const char *)stats + m->offset;
    return m->size == 8 ? *(const uint64_t *)(const void *)field
                        : (uint64_t) * (const int32_t *)(const void *)field;
}

// ---- by where saved states are

static const char *const tiers[SSM_TIERS] = {"device", "host", "disk"};

// Of the device's rows all, in use or not: they are resident.
static uint64_t state_bytes(const ssm_stats *stats, int tier) {
    return tier == SSM_TIER_DEVICE ? stats->state_bytes : stats->cache[tier].bytes;
}

static const struct tier_metric {
    const char *name, *type, *help;
    size_t offset; // in ssm_tier_stats
    int first;     // tier that can have it
} tier_metrics[] = {
    {"cache_bytes", "gauge", "Bytes that saved states take.", offsetof(ssm_tier_stats, bytes),
     SSM_TIER_DEVICE},
    {"cache_hits_total", "counter",
     "Prompts of which a saved state knew something, by where it was when they came.",
     offsetof(ssm_tier_stats, hits), SSM_TIER_DEVICE},
    {"cache_moves_total", "counter", "Saved states moved there from the tier above for room.",
     offsetof(ssm_tier_stats, moves), SSM_TIER_HOST},
    {"cache_evictions_total", "counter", "Saved states forgotten there for room.",
     offsetof(ssm_tier_stats, evictions), SSM_TIER_DEVICE},
};

static void put_sample(buf *out, const char *name, const char *model, int tier, uint64_t value) {
    buf_printf(out, "ssmd_%s", name);
    put_labels(out, model, tiers[tier]);
    buf_printf(out, "} %llu\n", (unsigned long long)value);
}

static void put_tiers(buf *out, const struct registry *models, const ssm_stats *stats) {
    put_head(out, "state_bytes", "gauge",
             "Bytes for states, by where they are; the device's are all its rows, used or not.");
    for (size_t i = 0; i < models->n; i++) {
        for (int t = 0; t < SSM_TIERS; t++) {
            put_sample(out, "state_bytes", models->items[i].name, t, state_bytes(&stats[i], t));
        }
    }
    for (size_t row = 0; row < sizeof tier_metrics / sizeof *tier_metrics; row++) {
        const struct tier_metric *m = &tier_metrics[row];
        put_head(out, m->name, m->type, m->help);
        for (size_t i = 0; i < models->n; i++) {
            for (int t = m->first; t < SSM_TIERS; t++) {
                const char *at = (const char *)&stats[i].cache[t] + m->offset;
                put_sample(out, m->name, models->items[i].name, t,
                           *(const uint64_t *)(const void *)at);
            }
        }
    }
    put_head(out, "cache_restore_seconds", "histogram",
             "A saved state into a slot, from the device or the host; from the disk, asked for to "
             "being in memory.");
    for (size_t i = 0; i < models->n; i++) {
        for (int t = 0; t < SSM_TIERS; t++) {
            put_engine_histogram(out, "cache_restore_seconds", models->items[i].name, tiers[t],
                                 &stats[i].cache[t].restore_seconds, ssm_restore_seconds_bounds);
        }
    }
}

static void put_rows(buf *out, const struct registry *models, const ssm_stats *stats,
                     const struct engine_metric *rows, size_t n_rows) {
    for (const struct engine_metric *m = rows; m < rows + n_rows; m++) {
        put_head(out, m->name, m->type, m->help);
        for (size_t i = 0; i < models->n; i++) {
            buf_printf(out, "ssmd_%s", m->name);
            put_labels(out, models->items[i].name, NULL);
            buf_printf(out, "} %llu\n", (unsigned long long)metric_value(m, &stats[i]));
        }
    }
}

// Of servers whose sessions are in a Redis: nothing else is away or back.
static void put_stores(buf *out, const struct registry *models, const ssm_stats *stats) {
    static const struct engine_metric rows[] = {
        ROW("store_up", "gauge", store_up, "Whether Redis, where sessions are, can be reached."),
        ROW("store_connects_total", "counter", store_connects, "Connections made to Redis."),
        ROW("store_requests_total", "counter", store_answers, "Requests to Redis."),
        ROW("store_failures_total", "counter", store_failures,
            "Of these, those that it refused or that could not reach it."),
    };
    if (models->n == 0 || !stats[0].store_shared) {
        return;
    }
    put_rows(out, models, stats, rows, sizeof rows / sizeof *rows);
    put_head(out, "store_seconds", "histogram", "A request to Redis, states and waiting included.");
    for (size_t i = 0; i < models->n; i++) {
        put_engine_histogram(out, "store_seconds", models->items[i].name, NULL,
                             &stats[i].store_seconds, ssm_step_seconds_bounds);
    }
}
#undef ROW

static void put_engines(buf *out, const struct registry *models, const ssm_stats *stats) {
    put_rows(out, models, stats, engine_metrics, sizeof engine_metrics / sizeof *engine_metrics);
    put_stores(out, models, stats);
    put_tiers(out, models, stats);
    put_head(out, "session_load_seconds", "histogram", "A session asked for to its state here.");
    for (size_t i = 0; i < models->n; i++) {
        put_engine_histogram(out, "session_load_seconds", models->items[i].name, NULL,
                             &stats[i].session_load_seconds, ssm_step_seconds_bounds);
    }
    put_head(out, "step_duration_seconds", "histogram", "Duration of one step of the engine.");
    for (size_t i = 0; i < models->n; i++) {
        put_engine_histogram(out, "step_duration_seconds", models->items[i].name, NULL,
                             &stats[i].step_seconds, ssm_step_seconds_bounds);
    }
    put_head(out, "batch_rows", "histogram", "Rows (decode rows and prompt pieces) in a step.");
    for (size_t i = 0; i < models->n; i++) {
        put_engine_histogram(out, "batch_rows", models->items[i].name, NULL, &stats[i].batch_rows,
                             ssm_batch_rows_bounds);
    }
}

static void put_server(metrics *m, buf *out) {
    put_head(out, "build_info", "gauge", "Version, commit and backends; always 1.");
    buf_printf(out, "ssmd_build_info{version=\"%s\",commit=\"%s\",backends=\"%s\"} 1\n",
               SSM_VERSION, ssm_version_commit(), ssm_engine_backends());
    put_head(out, "connections", "gauge", "Connections open.");
    buf_printf(out, "ssmd_connections %lld\n",
               (long long)atomic_load_explicit(&m->connections, memory_order_relaxed));
    put_head(out, "requests_total", "counter",
             "Requests answered, by status; 499: the client left first.");
    for (int i = 0; i < METRICS_STATUSES; i++) {
        const uint64_t n = atomic_load_explicit(&m->requests[i], memory_order_relaxed);
        if (n > 0 || i == 200) {
            buf_printf(out, "ssmd_requests_total{status=\"%d\"} %llu\n", i, (unsigned long long)n);
        }
    }
    put_histogram(out, "time_to_first_token_seconds", "Request in hand to its first token.",
                  &m->time_to_first_token);
    put_histogram(out, "time_per_output_token_seconds",
                  "Mean time between tokens, first token to end, a completion.",
                  &m->time_per_output_token);
    put_histogram(out, "request_duration_seconds", "Completions, request begun to answer sent.",
                  &m->request_duration);
    put_histogram(out, "queue_time_seconds", "Waiting for a slot.", &m->queue_time);
}

void metrics_write(metrics *m, const struct registry *models, buf *out) {
    ssm_stats stats[REGISTRY_MAX];
    put_server(m, out);
    if (!registry_is_ready(models)) {
        return; // there are no engines yet
    }
    for (size_t i = 0; i < models->n; i++) {
        ssm_engine_get_stats(models->items[i].engine, &stats[i]);
    }
    put_engines(out, models, stats);
}
