// SPDX-License-Identifier: Apache-2.0
#include "registry.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "budget.h"
#include "buf.h"
#include "chat_turn.h"
#include "log.h"

#ifndef SSMD_DATA_DIR
#define SSMD_DATA_DIR "/usr/local/share/ssmd"
#endif

// The demonstration model, as seen from the executable: in a checkout (build/ssmd), beside an
// installation's bin/ wherever that was moved to, then where it was configured to go.
static char *demo_path(void) {
    static const char *const places[] = {"../config/models/shakespeare-mamba",
                                         "../share/ssmd/models/shakespeare-mamba"};
    char exe[PATH_MAX], path[PATH_MAX + 64];
    const ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    for (size_t i = 0; n > 0 && i < sizeof places / sizeof *places; i++) {
        exe[n] = '\0';
        char *slash = strrchr(exe, '/');
        if (!slash) {
            break;
        }
        snprintf(path, sizeof path, "%.*s/%s", (int)(slash - exe), exe, places[i]);
        char *found = realpath(path, NULL);
        if (found) {
            return found;
        }
    }
    return strdup(SSMD_DATA_DIR "/models/shakespeare-mamba");
}

// NAME=PATH (a name holds no slash), or PATH under its base name.
static int split_spec(const char *spec, served_model *out, ssm_error *err) {
    const char *equals = strchr(spec, '=');
    const char *slash = strchr(spec, '/');
    if (equals && (!slash || equals < slash)) {
        out->name = strndup(spec, (size_t)(equals - spec));
        out->path = strdup(equals + 1);
    } else {
        char *real = realpath(spec, NULL); // "." and "x/.." have a base name, too
        const char *path = real ? real : spec;
        size_t len = strlen(path);
        while (len > 1 && path[len - 1] == '/') {
            len--;
        }
        size_t base = len;
        while (base > 0 && path[base - 1] != '/') {
            base--;
        }
        out->name = strndup(path + base, len - base);
        out->path = strdup(spec);
        free(real);
    }
    if (!out->name || !out->path) {
        return ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
    }
    if (!*out->name || !*out->path || !utf8_is_valid(out->name, strlen(out->name))) {
        return ssm_error_set(err, SSM_EINVAL, "model",
                             "--model: PATH or NAME=PATH wanted, got '%.80s'", spec);
    }
    return 0;
}

static int add_spec(registry *r, const char *spec, ssm_error *err) {
    if (r->n == REGISTRY_MAX) {
        return ssm_error_set(err, SSM_EINVAL, "model", "--model: more than %d models",
                             REGISTRY_MAX);
    }
    served_model *m = &r->items[r->n];
    *m = (served_model){.index = r->n};
    r->n++;
    const int rc = split_spec(spec, m, err);
    for (size_t i = 0; rc == 0 && i + 1 < r->n; i++) {
        if (strcmp(r->items[i].name, m->name) == 0) {
            return ssm_error_set(err, SSM_EINVAL, "model", "--model: two models named '%.80s'",
                                 m->name);
        }
    }
    return rc;
}

int registry_init(registry *r, const options *o, ssm_error *err) {
    int rc = 0;
    *r = (registry){.any_model = o->any_model};
    for (size_t i = 0; rc == 0 && i < o->model.n; i++) {
        rc = add_spec(r, o->model.items[i], err);
    }
    if (rc == 0 && r->n == 0) {
        char *demo = demo_path();
        rc = demo ? add_spec(r, demo, err) : ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
        free(demo);
    }
    return rc;
}

void registry_engine_options(const options *o, const ssm_tokenizer *tokenizer,
                             const ssm_model_info *info, ssm_engine_options *out) {
    ssm_engine_options_init(out);
    out->device = o->device;
    out->threads = (int32_t)o->threads;
    out->pin_threads = o->pin_threads;
    out->max_sessions = (int32_t)o->max_sessions;
    out->max_queue = (int32_t)o->max_queue;
    out->step_tokens = (int32_t)o->step_tokens;
    out->chunk_tokens = (int32_t)o->chunk_tokens;
    out->cache_bytes = o->cache_bytes;
    out->cache_host_bytes = (uint64_t)o->cache_host_bytes;
    out->session_ttl = o->session_ttl;
    out->session_max = (int32_t)o->session_max;
    out->session_max_bytes = (uint64_t)o->session_max_bytes;
    out->session_key_max = (int32_t)o->session_key_max;
    out->session_key_max_bytes = (uint64_t)o->session_key_max_bytes;
    out->cache_dir = o->cache_dir && *o->cache_dir ? o->cache_dir : NULL;
    out->cache_disk_bytes = (uint64_t)o->cache_disk_bytes;
    out->checkpoint_tokens = (int32_t)o->checkpoint_tokens;
    out->state_dir = o->state_dir && *o->state_dir ? o->state_dir : NULL;
    out->state_url = o->state_url && *o->state_url ? o->state_url : NULL;
    const char *when = o->durability ? o->durability : "async";
    out->durability = strcmp(when, "sync") == 0   ? SSM_DURABILITY_SYNC
                      : strcmp(when, "none") == 0 ? SSM_DURABILITY_NONE
                                                  : SSM_DURABILITY_ASYNC;
    out->weight_dtype = (ssm_dtype)ssm_dtype_parse(o->weight_dtype);
    out->state_dtype = (ssm_dtype)ssm_dtype_parse(o->state_dtype);
    out->activation_dtype = (ssm_dtype)ssm_dtype_parse(o->activation_dtype);
    out->unpacked = strcmp(o->packed_weights, "off") == 0;
    out->poison_slots = o->poison_slots;
    const int32_t known = ssm_tokenizer_vocab_size(tokenizer);
    out->vocab_limit = known > 0 && known < info->vocab_size ? known : 0;
}

static void report_sessions(const served_model *m) {
    ssm_stats stats;
    ssm_engine_get_stats(m->engine, &stats);
    if (stats.sessions_set_aside > 0) {
        log_write(LOG_WARN,
                  "--state-dir: %llu files were damaged or no sessions of %s: renamed to *.bad",
                  (unsigned long long)stats.sessions_set_aside, m->name);
    }
}

static int load_chat(served_model *m, const options *o, ssm_error *err) {
    const int rc = ssm_chat_open(m->path, o->chat_template, &m->chat, err);
    if (rc == 0) {
        chat_turn_closing(m->chat, m->closing);
    }
    return rc;
}

void registry_report_chats(const registry *r, const options *o) {
    for (size_t i = 0; i < r->n; i++) {
        if (ssm_chat_is_plain(r->items[i].chat) && !o->chat_template) {
            log_write(
                LOG_INFO,
                "model %s has no chat template: /v1/chat/completions gives it chats in a plain "
                "form (User: ..., Assistant:) that it was not trained on; --chat-template names "
                "another",
                r->items[i].name);
        }
    }
}

static int load_one(served_model *m, const options *o, uint64_t host_bytes, ssm_error *err) {
    ssm_engine_options engine;
    int rc = ssm_model_open(m->path, &m->model, err);
    if (rc < 0) {
        return rc;
    }
    m->info = ssm_model_get_info(m->model);
    rc = ssm_tokenizer_open(m->path, &m->tokenizer, err);
    if (rc < 0) {
        return rc;
    }
    rc = load_chat(m, o, err);
    if (rc < 0) {
        return rc;
    }
    registry_engine_options(o, m->tokenizer, m->info, &engine);
    engine.host_bytes = host_bytes;
    rc = ssm_engine_create(m->model, &engine, &m->engine, err);
    m->created = time(NULL);
    if (rc == 0) {
        report_sessions(m);
    }
    return rc;
}

int registry_load(registry *r, const options *o, ssm_error *err) {
    const uint64_t share = r->n > 0 ? budget_memory() / r->n : 0;
    for (size_t i = 0; i < r->n; i++) {
        ssm_error inner = {0};
        const int rc = load_one(&r->items[i], o, share, &inner);
        if (rc < 0) {
            return ssm_error_set(err, rc, inner.param, "model %.60s (%.120s): %s", r->items[i].name,
                                 r->items[i].path, inner.message);
        }
    }
    atomic_store_explicit(&r->ready, true, memory_order_release);
    return 0;
}

bool registry_is_ready(const registry *r) {
    return atomic_load_explicit(&r->ready, memory_order_acquire);
}

const served_model *registry_find(const registry *r, const char *name) {
    for (size_t i = 0; name && i < r->n; i++) {
        if (strcmp(r->items[i].name, name) == 0) {
            return &r->items[i];
        }
    }
    return !name || r->any_model ? &r->items[0] : NULL;
}

void registry_stop(registry *r) {
    for (size_t i = 0; i < r->n; i++) {
        if (r->items[i].engine) {
            const size_t n_lost = ssm_engine_free(r->items[i].engine);
            r->items[i].engine = NULL;
            if (n_lost > 0) {
                log_write(
                    LOG_ERROR,
                    "model %s: the last turns of %zu sessions could not be written and are lost",
                    r->items[i].name, n_lost);
            }
        }
    }
}

void registry_dispose(registry *r) {
    registry_stop(r);
    for (size_t i = 0; i < r->n; i++) {
        ssm_chat_free(r->items[i].chat);
        ssm_tokenizer_free(r->items[i].tokenizer);
        ssm_model_free(r->items[i].model);
        free(r->items[i].name);
        free(r->items[i].path);
    }
    r->n = 0;
}

// ---- stores that may go away

bool registry_store_is_up(const registry *r) {
    bool is_up = true;
    for (size_t i = 0; i < r->n; i++) {
        ssm_stats stats;
        ssm_engine_get_stats(r->items[i].engine, &stats);
        is_up &= !stats.store_shared || stats.store_up;
    }
    return is_up;
}

static void watch_folder(served_model *m, const ssm_stats *stats) {
    if (stats->session_write_failures > m->store_failures) {
        log_write(LOG_WARN,
                  "model %s: --state-dir: %llu writes of sessions have failed (the last: %s)",
                  m->name, (unsigned long long)(stats->session_write_failures - m->store_failures),
                  stats->store_reason);
    }
    m->store_failures = stats->session_write_failures;
}

// It may have come back since the last time, and gone again, or the other way round: each is told.
static void watch_shared(served_model *m, const ssm_stats *stats) {
    const uint64_t seen = m->store_connects ? m->store_connects : 1; // the one of the start
    const bool has_come = stats->store_connects > seen, was_down = m->store_is_down;
    if (was_down && (stats->store_up || has_come)) {
        log_write(LOG_INFO, "model %s: the store of sessions is back", m->name);
    }
    if (!stats->store_up && (!was_down || has_come)) {
        log_write(LOG_WARN,
                  "model %s: the store of sessions cannot be reached (%s): requests at sessions "
                  "are answered 503",
                  m->name, stats->store_reason);
    } else if (stats->store_up && !was_down && has_come) {
        log_write(LOG_WARN, "model %s: the store of sessions was away for a moment (%s)", m->name,
                  stats->store_reason);
    } else if (stats->store_up && !was_down && stats->store_failures > m->store_failures) {
        log_write(LOG_WARN, "model %s: the store of sessions has refused a request: %s", m->name,
                  stats->store_reason);
    }
    if (stats->session_turns_lost > m->turns_lost) {
        log_write(LOG_WARN, "model %s: turns of sessions lost: %llu (the last: %s)", m->name,
                  (unsigned long long)(stats->session_turns_lost - m->turns_lost),
                  stats->lost_reason);
    }
    m->store_is_down = !stats->store_up;
    m->store_connects = stats->store_connects;
    m->store_failures = stats->store_failures;
    m->turns_lost = stats->session_turns_lost;
}

void registry_watch_stores(registry *r) {
    for (size_t i = 0; i < r->n; i++) {
        ssm_stats stats;
        ssm_engine_get_stats(r->items[i].engine, &stats);
        if (stats.store_shared) {
            watch_shared(&r->items[i], &stats);
        } else {
            watch_folder(&r->items[i], &stats);
        }
    }
}
