// SPDX-License-Identifier: Apache-2.0
// ssmd bench: prefill and decode of a model, or of a published geometry with random weights, as a
// table with the bytes that must move and the shares of the machine's ceilings, or as JSON. With
// --compare OLD.json it exits with 1 if a row has become slower than an earlier run's.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>
#include <ssm/bench.h>
#include <ssm/version.h>

#include "commands.h"
#include "options.h"

struct benching {
    options options;
    ssm_model *model;
    char name[128]; // of the model, for people
    int32_t batches[SSM_BENCH_MAX_ROWS], prompts[SSM_BENCH_MAX_ROWS];
    int32_t n_batches, n_prompts;
    ssm_bench_result result;
    bool has_terminal;
};

// ---- what to run

// "1,8,64"; "0" alone: none.
static int parse_list(const char *name, const char *text, int32_t *out, int32_t *n,
                      ssm_error *err) {
    *n = 0;
    if (strcmp(text, "0") == 0) {
        return 0;
    }
    for (const char *p = text;; p++) {
        char *end;
        const long x = strtol(p, &end, 10);
        if (end == p || x < 1 || x > 1 << 20 || *n == SSM_BENCH_MAX_ROWS ||
            (*end != ',' && *end != '\0')) {
            return ssm_error_set(err, SSM_EINVAL, name,
                                 "--%s takes numbers from 1 on with commas between, not '%.60s'",
                                 name, text);
        }
        out[(*n)++] = (int32_t)x;
        if (*end == '\0') {
            return 0;
        }
        p = end;
    }
}

static int open_model(struct benching *b, ssm_error *err) {
    const options *o = &b->options;
    if (o->model.n > 0) {
        const char *spec = o->model.items[0], *equals = strchr(spec, '=');
        snprintf(b->name, sizeof b->name, "%s", spec);
        return ssm_model_open(equals ? equals + 1 : spec, &b->model, err);
    }
    const ssm_dtype wanted = (ssm_dtype)ssm_dtype_parse(o->weight_dtype);
    const bool in_files = wanted == SSM_DTYPE_F32 || wanted == SSM_DTYPE_F16;
    snprintf(b->name, sizeof b->name, "%s, random weights", o->geometry);
    return ssm_model_random(o->geometry, in_files ? wanted : SSM_DTYPE_BF16, 1, &b->model, err);
}

static void on_progress(void *ctx, const char *what) {
    const struct benching *b = ctx;
    if (b->has_terminal) {
        fprintf(stderr, "\r\033[K%s ...", what);
        fflush(stderr);
    }
}

static int run(struct benching *b, ssm_error *err) {
    const options *o = &b->options;
    ssm_engine_options engine;
    ssm_engine_options_init(&engine);
    engine.device = o->device;
    engine.threads = (int32_t)o->threads;
    engine.pin_threads = o->pin_threads;
    engine.weight_dtype = (ssm_dtype)ssm_dtype_parse(o->weight_dtype);
    engine.state_dtype = (ssm_dtype)ssm_dtype_parse(o->state_dtype);
    engine.activation_dtype = (ssm_dtype)ssm_dtype_parse(o->activation_dtype);
    engine.unpacked = strcmp(o->packed_weights, "off") == 0;
    const ssm_bench_options bench = {.engine = &engine,
                                     .batches = b->batches,
                                     .n_batches = b->n_batches,
                                     .prompts = b->prompts,
                                     .n_prompts = b->n_prompts,
                                     .seconds = o->seconds,
                                     .progress = on_progress,
                                     .ctx = b};
    b->has_terminal = isatty(STDERR_FILENO) == 1;
    const int rc = ssm_bench_run(b->model, &bench, &b->result, err);
    if (b->has_terminal) {
        fprintf(stderr, "\r\033[K");
    }
    return rc;
}

// ---- printing

static const char *phase_of(const ssm_bench_row *row) {
    return row->is_prefill ? "prefill" : "decode";
}

static void print_table(const struct benching *b) {
    const ssm_bench_result *r = &b->result;
    printf("%s on %s; loaded in %.2f s\n", b->name, r->device, r->load_seconds);
    if (r->read_bytes_per_second > 0) {
        printf("ceilings: read %.1f GB/s, products %.3g Gflop/s\n", r->read_bytes_per_second / 1e9,
               r->product_flops_per_second / 1e9);
    }
    printf("%-8s %8s %8s %10s %10s %11s %10s %7s %9s\n", "phase", "sessions", "tokens", "ms",
           "best ms", "tokens/s", "MB", "read", "products");
    for (int32_t i = 0; i < r->n_rows; i++) {
        const ssm_bench_row *row = &r->rows[i];
        printf("%-8s %8d %8d %10.3f %10.3f %11.1f %10.1f %6.1f%% %8.1f%%\n", phase_of(row),
               row->sessions, row->tokens, row->median_ms, row->best_ms, row->tokens_per_second,
               row->bytes / 1e6, 100 * row->read_share, 100 * row->product_share);
    }
}

static json_t *row_json(const ssm_bench_row *row) {
    return json_pack("{s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "phase",
                     phase_of(row), "sessions", row->sessions, "tokens", row->tokens, "steps",
                     row->steps, "median_ms", row->median_ms, "best_ms", row->best_ms,
                     "tokens_per_second", row->tokens_per_second, "bytes", row->bytes, "flops",
                     row->flops, "read_share", row->read_share, "product_share",
                     row->product_share);
}

static json_t *result_json(const struct benching *b) {
    const ssm_bench_result *r = &b->result;
    struct utsname machine = {0};
    char date[32] = "";
    const time_t t = time(NULL);
    struct tm utc;
    if (gmtime_r(&t, &utc)) {
        strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &utc);
    }
    (void)uname(&machine);
    json_t *rows = json_array();
    for (int32_t i = 0; i < r->n_rows; i++) {
        json_array_append_new(rows, row_json(&r->rows[i]));
    }
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:f, s:f, s:f, s:o}", "version", SSM_VERSION,
                     "commit", ssm_version_commit(), "date", date, "machine", machine.machine,
                     "model", b->name, "device", r->device, "load_seconds", r->load_seconds,
                     "read_bytes_per_second", r->read_bytes_per_second, "product_flops_per_second",
                     r->product_flops_per_second, "rows", rows);
}

// ---- comparing

static const json_t *find_row(const json_t *rows, const ssm_bench_row *row) {
    size_t i;
    json_t *old;
    json_array_foreach(rows, i, old) {
        const char *phase = json_string_value(json_object_get(old, "phase"));
        if (phase && strcmp(phase, phase_of(row)) == 0 &&
            json_integer_value(json_object_get(old, "sessions")) == row->sessions &&
            json_integer_value(json_object_get(old, "tokens")) == row->tokens) {
            return old;
        }
    }
    return NULL;
}

// Best times are compared: a busy machine makes medians worse, seldom best ones. The number of rows
// slower by more than the tolerance, or an error.
static int compare(const struct benching *b, ssm_error *err) {
    const options *o = &b->options;
    json_error_t broken;
    json_t *old = json_load_file(o->compare, 0, &broken);
    const json_t *rows = json_object_get(old, "rows");
    if (!json_is_array(rows)) {
        json_decref(old);
        return ssm_error_set(err, SSM_EFORMAT, "compare", "%.200s is no result of bench --json: %s",
                             o->compare, old ? "it has no rows" : broken.text);
    }
    int slower = 0;
    for (int32_t i = 0; i < b->result.n_rows; i++) {
        const ssm_bench_row *row = &b->result.rows[i];
        const json_t *was = find_row(rows, row);
        const double before = was ? json_number_value(json_object_get(was, "best_ms")) : 0;
        if (before <= 0) {
            fprintf(stderr, "%s %d x %d: not in %s\n", phase_of(row), row->sessions, row->tokens,
                    o->compare);
            continue;
        }
        const double change = 100 * (row->best_ms / before - 1);
        const bool is_slower = !(change <= o->tolerance);
        slower += is_slower;
        fprintf(stderr, "%s %d x %d: %.3f ms, was %.3f ms, %+.1f%%%s\n", phase_of(row),
                row->sessions, row->tokens, row->best_ms, before, change,
                is_slower ? " SLOWER" : "");
    }
    json_decref(old);
    return slower;
}

static int print_result(const struct benching *b) {
    if (!b->options.json) {
        print_table(b);
        return 0;
    }
    json_t *json = result_json(b);
    const int rc = json ? json_dumpf(json, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) : -1;
    putchar('\n');
    json_decref(json);
    return rc;
}

// 0, the number of slower rows, or an error.
static int bench(struct benching *b, ssm_error *err) {
    int rc = parse_list("batches", b->options.batches, b->batches, &b->n_batches, err);
    if (rc == 0) {
        rc = parse_list("prompts", b->options.prompts, b->prompts, &b->n_prompts, err);
    }
    if (rc == 0) {
        rc = open_model(b, err);
    }
    if (rc == 0) {
        rc = run(b, err);
    }
    if (rc == 0 && print_result(b) != 0) {
        rc = ssm_error_set(err, SSM_EIO, NULL, "the result could not be written");
    }
    return rc == 0 && b->options.compare ? compare(b, err) : rc;
}

int cmd_bench(int argc, char **argv) {
    struct benching *b = calloc(1, sizeof *b);
    if (!b) {
        return 1;
    }
    ssm_error err = {0};
    int rc = options_load(&b->options, OPTIONS_BENCH, argc, argv, &err);
    int status = rc > 0 ? 0 : 2; // --help and the like, or wrong options
    if (rc == 0) {
        rc = bench(b, &err);
        status = rc != 0;
    }
    if (rc < 0) {
        fprintf(stderr, "ssmd bench: %s\n", err.message);
    }
    ssm_model_free(b->model);
    options_dispose(&b->options);
    free(b);
    return status;
}
