// SPDX-License-Identifier: Apache-2.0
// Which device an engine has, and how its rows are shared out.
#include "engine.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"

// "cpu", "reference", "cuda", "cuda:1".
static int parse_device(const char *name, const ssm_backend **backend, int32_t *index,
                        ssm_error *err) {
    char base[16];
    const char *colon = strchr(name, ':');
    const size_t len = colon ? (size_t)(colon - name) : strlen(name);
    *index = 0;
    char *end = NULL;
    const long i = colon ? strtol(colon + 1, &end, 10) : 0;
    const bool is_bad =
        len >= sizeof base || (colon && (end == colon + 1 || *end != '\0' || i < 0 || i > 1023));
    if (!is_bad) {
        memcpy(base, name, len);
        base[len] = '\0';
        *index = (int32_t)i;
        if ((*backend = ssm_backend_find(base)))
            return 0;
    }
    return ssm_error_set(err, SSM_EINVAL, "device", "device \"%.40s\" is not one of auto, %s", name,
                         ssm_engine_backends());
}

// The device's rows are the scheduler's slots first, then the cache's. A GPU that was not told how
// many sessions to hold is asked for what fits and shared out afterwards.
enum { CPU_SESSIONS = 64, LEAST_CACHE_ROWS = 4 };

// In a container of 256 MiB the usual 256 MiB of states would be its end.
static int64_t cpu_cache_bytes(const ssm_engine *engine) {
    const uint64_t host = engine->options.host_bytes;
    return host > 0 && host / 4 < 256 << 20 ? (int64_t)(host / 4) : 256 << 20;
}

static int32_t cache_rows(const ssm_engine *engine, bool is_gpu, int32_t sessions) {
    const int64_t bytes = engine->options.cache_bytes;
    const int64_t row = (int64_t)engine->info.saved_bytes;
    int64_t rows = bytes / row;
    if (bytes < 0) {
        rows = is_gpu ? sessions / 4 : cpu_cache_bytes(engine) / row;
        rows = rows > LEAST_CACHE_ROWS ? rows : LEAST_CACHE_ROWS;
    }
    return rows < MOST_CACHE_ROWS ? (int32_t)rows : MOST_CACHE_ROWS;
}

static int open_backend(ssm_engine *engine, ssm_device_options *d, ssm_error *err) {
    const ssm_engine_options *o = &engine->options;
    const bool is_gpu = strcmp(engine->backend->name, "cuda") == 0;
    int32_t sessions = o->max_sessions > 0 ? o->max_sessions : is_gpu ? 0 : CPU_SESSIONS;
    int32_t rows = cache_rows(engine, is_gpu, sessions);
    d->n_slots = sessions > 0 ? sessions + rows : 0;
    d->kept_rows = sessions > 0 || o->cache_bytes >= 0 ? rows : -1;
    d->max_rows = sessions > 0 ? sessions + 128 : 0;
    const int rc = engine->backend->open(ssm_model_weights(engine->model), d, &engine->device, err);
    if (rc != 0)
        return rc;
    engine->backend->info(engine->device, &engine->device_info);
    const int32_t n = engine->device_info.n_slots;
    if (sessions == 0) {
        rows = cache_rows(engine, is_gpu, n);
        sessions = rows < n / 2 ? n - rows : n - n / 2;
    }
    assert(engine->device_info.kept_rows >= n - sessions);
    assert(sessions > 0 && sessions <= n);
    engine->n_sessions = sessions;
    return 0;
}

int device_open(ssm_engine *engine, ssm_error *err) {
    const ssm_engine_options *o = &engine->options;
    ssm_device_options d = {.threads = o->threads,
                            .pin_threads = o->pin_threads,
                            .vocab_limit = o->vocab_limit,
                            .weight_dtype = o->weight_dtype,
                            .state_dtype = o->state_dtype,
                            .activation_dtype = o->activation_dtype,
                            .unpacked = o->unpacked};
    if (o->step_tokens > 0 && o->max_sessions > 0)
        d.max_tokens = o->step_tokens + o->max_sessions;
    if (engine->backend) // a test's own
        return open_backend(engine, &d, err);
    if (o->device && strcmp(o->device, "auto") != 0) {
        const int rc = parse_device(o->device, &engine->backend, &d.index, err);
        return rc != 0 ? rc : open_backend(engine, &d, err);
    }
    engine->backend = ssm_backend_find("cuda"); // a GPU if there is one
    if (engine->backend && open_backend(engine, &d, NULL) == 0)
        return 0;
    engine->backend = ssm_backend_find("cpu");
    return open_backend(engine, &d, err);
}
