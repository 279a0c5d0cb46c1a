// SPDX-License-Identifier: Apache-2.0
// ssmd inspect PATH...: what each folder holds, as `serve` would read it, without loading it onto a
// device: architecture, sizes, bytes a session, special ids, tokenizer. What cannot be served is
// said by name, on standard error as all commands do (with --json in the object), and the exit
// status is 1.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <jansson.h>
#include <ssm/model.h>
#include <ssm/tokenizer.h>

#include "commands.h"
#include "inspect_memory.h"
#include "options.h"

// A folder, opened. tokenizer may be NULL: there is none.
struct subject {
    const char *path;
    ssm_model *model;
    ssm_tokenizer *tokenizer;
};

// 0, or what keeps it from being served, in *err. A folder without a tokenizer.json is served by
// ids; one whose tokenizer is broken is not.
static int open_subject(struct subject *s, const char *path, ssm_error *err) {
    *s = (struct subject){.path = path};
    int rc = ssm_model_open(path, &s->model, err);
    if (rc == 0) {
        rc = ssm_tokenizer_open(path, &s->tokenizer, err);
    }
    return rc == SSM_EIO && s->model ? 0 : rc;
}

static void close_subject(struct subject *s) {
    ssm_tokenizer_free(s->tokenizer);
    ssm_model_free(s->model);
}

// ---- as text

static const char *with_commas(uint64_t n, char out[32]) {
    char digits[24];
    const int len = snprintf(digits, sizeof digits, "%" PRIu64, n);
    char *end = out;
    for (int i = 0; i < len; i++) {
        if (i > 0 && (len - i) % 3 == 0) {
            *end++ = ',';
        }
        *end++ = digits[i];
    }
    *end = '\0';
    return out;
}

static const char *as_bytes(uint64_t n, char out[32]) {
    static const char *const units[] = {"bytes", "KB", "MB", "GB", "TB"};
    double x = (double)n;
    size_t unit = 0;
    while (x >= 1000 && unit + 1 < sizeof units / sizeof units[0]) {
        x /= 1000;
        unit++;
    }
    snprintf(out, 32, unit ? "%.1f %s" : "%.0f %s", x, units[unit]);
    return out;
}

static void print_id(const struct subject *s, const char *name, int32_t id) {
    size_t len = 0;
    const char *piece = s->tokenizer ? ssm_tokenizer_piece(s->tokenizer, id, &len) : NULL;
    if (id >= 0) {
        printf("    %-13s %d", name, id);
        printf(piece ? "  %.*s\n" : "\n", (int)len, piece);
    }
}

static void print_tokenizer(const struct subject *s, int32_t rows) {
    char n[32];
    if (!s->tokenizer) {
        printf("    tokenizer     none: prompts can be given as ids only\n");
        return;
    }
    const int32_t ids = ssm_tokenizer_vocab_size(s->tokenizer);
    printf("    tokenizer     %s ids", with_commas((uint64_t)ids, n));
    if (ids < rows) {
        printf("; %d padding rows, never drawn", rows - ids);
    }
    printf(ids > rows ? "; %d of them the model does not know\n" : "\n", ids - rows);
}

static void print_sizes(const ssm_model_info *m) {
    char a[32], b[32];
    printf("    architecture  %s, %d layers\n", m->architecture, m->n_layers);
    printf("    width         %d", m->d_model);
    if (m->dt_rank || m->n_groups) {
        printf(", inner %d, state %d, convolution %d", m->d_inner, m->d_state, m->d_conv);
    } else { // linear and time-invariant: channels of the model's width, h3's in heads
        printf(", state %d", m->d_state);
    }
    if (m->n_heads && !m->n_groups) {
        printf(", %d heads of %d x %d\n", m->n_heads, m->head_dim, m->head_dim);
    } else if (m->n_heads) {
        printf(", %d heads of %d in %d group%s\n", m->n_heads, m->head_dim, m->n_groups,
               m->n_groups == 1 ? "" : "s");
    } else {
        printf(m->dt_rank ? ", dt rank %d\n" : "\n", m->dt_rank);
    }
    printf("    vocabulary    %s rows, %s head\n", with_commas((uint64_t)m->vocab_size, a),
           m->tied ? "tied" : "its own");
    printf("    parameters    %s\n", with_commas(m->parameters, a));
    printf("    weights       %s as stored, projections %s\n", as_bytes(m->weight_bytes, a),
           ssm_dtype_name(m->weight_dtype));
    printf("    a session     %s with f32 states, %s with f16 or bf16, at any length\n",
           as_bytes(m->state_bytes, a), as_bytes(m->state_bytes / 2, b));
}

static void print_shape(const ssm_tensor_info *t, char *out, size_t cap) {
    size_t len = (size_t)snprintf(out, cap, "[");
    for (int32_t i = 0; i < t->n_dims && len < cap; i++) {
        len += (size_t)snprintf(out + len, cap - len, "%s%" PRId64, i ? ", " : "", t->dims[i]);
    }
    if (len < cap) {
        snprintf(out + len, cap - len, "]");
    }
}

static void print_tensors(const ssm_model *model) {
    ssm_tensor_info t;
    for (int i = 0; ssm_model_get_tensor(model, i, &t) == 0; i++) {
        char shape[192], bytes[32];
        print_shape(&t, shape, sizeof shape);
        printf("    %-5s %-18s %14s  %s\n", ssm_dtype_name(t.dtype), shape,
               with_commas(t.bytes, bytes), t.name);
    }
}

static void print_text(const struct subject *s, bool tensors) {
    const ssm_model_info *m = ssm_model_get_info(s->model);
    printf("%s\n", s->path);
    print_sizes(m);
    print_id(s, "bos", m->bos_id);
    for (int32_t i = 0; i < m->n_eos; i++) {
        print_id(s, "eos", m->eos_ids[i]);
    }
    print_id(s, "pad", m->pad_id);
    print_tokenizer(s, m->vocab_size);
    if (tensors) {
        print_tensors(s->model);
    }
}

// ---- as JSON

static json_t *id_or_null(int32_t id) {
    return id >= 0 ? json_integer(id) : json_null();
}

static json_t *list_tensors(const ssm_model *model) {
    json_t *list = json_array();
    ssm_tensor_info t;
    for (int i = 0; ssm_model_get_tensor(model, i, &t) == 0; i++) {
        json_t *shape = json_array();
        for (int32_t k = 0; k < t.n_dims; k++) {
            json_array_append_new(shape, json_integer(t.dims[k]));
        }
        json_array_append_new(list, json_pack("{s:s, s:s, s:o, s:I}", "name", t.name, "dtype",
                                              ssm_dtype_name(t.dtype), "shape", shape, "bytes",
                                              (json_int_t)t.bytes));
    }
    return list;
}

static json_t *to_json(const struct subject *s, bool tensors) {
    const ssm_model_info *m = ssm_model_get_info(s->model);
    json_t *eos = json_array();
    for (int32_t i = 0; i < m->n_eos; i++) {
        json_array_append_new(eos, json_integer(m->eos_ids[i]));
    }
    json_t *tokenizer =
        s->tokenizer ? json_pack("{s:i}", "vocab_size", (int)ssm_tokenizer_vocab_size(s->tokenizer))
                     : json_null();
    json_t *out =
        json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:b}", "path", s->path, "architecture",
                  m->architecture, "n_layers", (int)m->n_layers, "d_model", (int)m->d_model,
                  "d_inner", (int)m->d_inner, "d_state", (int)m->d_state, "d_conv", (int)m->d_conv,
                  "vocab_size", (int)m->vocab_size, "tied", (int)m->tied);
    json_t *more = m->n_heads ? json_pack("{s:i, s:i, s:i}", "n_heads", (int)m->n_heads, "head_dim",
                                          (int)m->head_dim, "n_groups", (int)m->n_groups)
                              : json_pack("{s:i}", "dt_rank", (int)m->dt_rank);
    json_t *rest =
        json_pack("{s:I, s:I, s:s, s:{s:I, s:I, s:I}, s:o, s:o, s:o, s:o}", "parameters",
                  (json_int_t)m->parameters, "weight_bytes", (json_int_t)m->weight_bytes,
                  "weight_dtype", ssm_dtype_name(m->weight_dtype), "session_bytes", "f32",
                  (json_int_t)m->state_bytes, "f16", (json_int_t)(m->state_bytes / 2), "bf16",
                  (json_int_t)(m->state_bytes / 2), "bos_id", id_or_null(m->bos_id), "eos_ids", eos,
                  "pad_id", id_or_null(m->pad_id), "tokenizer", tokenizer);
    json_object_update_new(out, more);
    json_object_update_new(out, rest);
    if (tensors) {
        json_object_set_new(out, "tensors", list_tensors(s->model));
    }
    return out;
}

static void print_json(json_t *value) {
    json_dumpf(value, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(value);
}

// ---- the command

static int inspect(const char *path, const options *o) {
    struct subject s;
    ssm_error err;
    memory_report report = {0};
    int rc = open_subject(&s, path, &err);
    if (rc == 0 && o->memory) {
        rc = memory_report_make(&report, s.model, s.tokenizer, o, &err);
    }
    if (rc == 0 && o->json) {
        json_t *all = to_json(&s, o->tensors);
        memory_report_put(&report, all);
        print_json(all);
    } else if (rc == 0) {
        print_text(&s, o->tensors);
        memory_report_print(&report);
    } else if (o->json) {
        print_json(json_pack("{s:s, s:{s:s, s:s, s:s}}", "path", path, "error", "code",
                             ssm_error_name(rc), "param", err.param, "message", err.message));
    } else {
        fprintf(stderr, "ssmd inspect: %s: %s\n", path, err.message);
    }
    memory_report_dispose(&report);
    close_subject(&s);
    return rc == 0 ? 0 : 1;
}

int cmd_inspect(int argc, char **argv) {
    options o;
    ssm_error err;
    int status = 0;
    const int rc = options_load(&o, OPTIONS_INSPECT, argc, argv, &err);
    if (rc != 0 || o.n_args == 0) {
        status = rc > 0 ? 0 : 2;
        if (rc <= 0) {
            fprintf(stderr, "ssmd inspect: %s\n",
                    rc < 0 ? err.message : "a model's folder is wanted");
        }
        goto done;
    }
    for (int i = 0; i < o.n_args; i++) {
        status |= inspect(o.args[i], &o);
    }
done:
    options_dispose(&o);
    return status;
}
