// SPDX-License-Identifier: Apache-2.0
#include "inspect_memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_TOKENS = 256, MOST_BYTES = 64 << 10 }; // the reference is slow

static const char verse[] = // of --text
    "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\n"
    "Rough winds do shake the darling buds of May,\nAnd summer's lease hath all too short a "
    "date:\n";

// ---- the text

static int read_text(const options *o, char out[MOST_BYTES], size_t *len, ssm_error *err) {
    const char *text = o->text ? o->text : verse;
    if (o->text && o->text_file) {
        return ssm_error_set(err, SSM_EINVAL, "text", "--text and --text-file exclude each other");
    }
    if (!o->text_file) {
        *len = strlen(text) < MOST_BYTES ? strlen(text) : MOST_BYTES;
        memcpy(out, text, *len);
        return 0;
    }
    FILE *f = fopen(o->text_file, "rb");
    *len = f ? fread(out, 1, MOST_BYTES, f) : 0;
    const bool failed = !f || ferror(f);
    if (f) {
        fclose(f);
    }
    return failed ? ssm_error_set(err, SSM_EIO, "text_file", "cannot read %s: %m", o->text_file)
                  : 0;
}

static int measure_steps(memory_report *r, const ssm_model *model, const ssm_tokenizer *tokenizer,
                         const options *o, ssm_error *err) {
    ssm_ids ids = {0};
    size_t len = 0;
    if (!tokenizer) {
        return ssm_error_set(err, SSM_EINVAL, "text", "without a tokenizer.json no text is read");
    }
    char *text = malloc(MOST_BYTES);
    r->steps = calloc((size_t)r->n_layers, sizeof *r->steps);
    int rc = text && r->steps ? read_text(o, text, &len, err)
                              : ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
    if (rc == 0) {
        rc = ssm_tokenizer_encode(tokenizer, text, len, SSM_ADD_SPECIAL, &ids, err);
    }
    if (rc == 0) {
        r->n_tokens = ids.len < MOST_TOKENS ? ids.len : MOST_TOKENS;
        rc = ssm_model_get_steps(model, ids.data, r->n_tokens, r->steps, err);
    }
    ssm_ids_dispose(&ids);
    free(text);
    return rc;
}

// ---- the report

static bool is_lti(const ssm_model *model) { // no layer, so that none is measured for this
    ssm_layer_memory m;
    return ssm_model_get_memory(model, -1, &m, NULL) != SSM_EUNSUPPORTED;
}

int memory_report_make(memory_report *r, const ssm_model *model, const ssm_tokenizer *tokenizer,
                       const options *o, ssm_error *err) {
    int rc = 0;
    *r = (memory_report){.n_layers = ssm_model_get_info(model)->n_layers};
    if (!is_lti(model)) {
        return measure_steps(r, model, tokenizer, o, err);
    }
    r->layers = calloc((size_t)r->n_layers, sizeof *r->layers);
    if (!r->layers) {
        return ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
    }
    for (int32_t i = 0; rc == 0 && i < r->n_layers; i++) {
        rc = ssm_model_get_memory(model, i, &r->layers[i], err);
    }
    return rc;
}

void memory_report_dispose(memory_report *r) {
    free(r->layers);
    free(r->steps);
    *r = (memory_report){0};
}

// ---- as text

// Times as a row of marks: the more of them, the denser.
static void print_shares(const double shares[SSM_MEMORY_BINS]) {
    static const char marks[] = " .:-=+*#%@";
    for (int i = 0; i < SSM_MEMORY_BINS; i++) {
        const int level = (int)(shares[i] * 20 + 0.999);
        const char mark = marks[level > 9 ? 9 : level];
        printf(" %c%c%c", mark, mark, mark);
    }
}

static void print_reach(int32_t tokens) {
    if (tokens < 0) {
        printf("  >%6d", SSM_MEMORY_MOST);
    } else {
        printf("  %7d", tokens);
    }
}

static void print_poles(const memory_report *r) {
    printf(
        "    memory, tokens: time constants of the poles (denser: more poles), and from where on\n"
        "    a layer says less than 1%% of what it says of a token, half of its channels and all\n"
        "    layer   radius      shortest    median   longest   <1  1-3 -10 -32 -100 -316 -1k  >1k"
        "     half      all\n");
    for (int32_t i = 0; i < r->n_layers; i++) {
        const ssm_layer_memory *m = &r->layers[i];
        printf("    %5d   %.7f  %8.2f  %8.2f  %8.1f  ", i, m->radius, m->shortest, m->median,
               m->longest);
        print_shares(m->shares);
        print_reach(m->median_reach);
        print_reach(m->reach);
        printf("\n");
    }
}

static void print_three(const double q[SSM_STEP_QUANTILES]) { // 5%, 50%, 95%
    for (int i = 0; i < SSM_STEP_QUANTILES; i += 2) {
        printf(" %8.3g", q[i]);
    }
    printf(" ");
}

static void print_steps(const memory_report *r) {
    printf(
        "    memory over %zu tokens of text: steps, what a state keeps of itself in a token, and\n"
        "    tokens until half is left; 5%%, half and 95%% of a layer's are below (denser: more "
        "of them)\n"
        "    layer   step delta                  decay exp(delta A)          half-life"
        "                      <1  1-3 -10 -32 -100 -316 -1k  >1k\n",
        r->n_tokens);
    for (int32_t i = 0; i < r->n_layers; i++) {
        printf("    %5d ", i);
        print_three(r->steps[i].delta);
        print_three(r->steps[i].decay);
        print_three(r->steps[i].half_life);
        printf("   ");
        print_shares(r->steps[i].shares);
        printf("\n");
    }
}

void memory_report_print(const memory_report *r) {
    if (r->layers) {
        print_poles(r);
    } else if (r->steps) {
        print_steps(r);
    }
}

// ---- as JSON

static json_t *list_of(const double *values, int n) {
    json_t *list = json_array();
    for (int i = 0; i < n; i++) {
        json_array_append_new(list, json_real(values[i]));
    }
    return list;
}

static json_t *put_layer(const ssm_layer_memory *m) {
    return json_pack("{s:f, s:f, s:f, s:f, s:o, s:i, s:i}", "radius", m->radius, "shortest",
                     m->shortest, "median", m->median, "longest", m->longest, "shares",
                     list_of(m->shares, SSM_MEMORY_BINS), "median_reach", (int)m->median_reach,
                     "reach", (int)m->reach);
}

static json_t *put_steps(const ssm_layer_steps *s) {
    return json_pack("{s:o, s:o, s:o, s:o}", "delta", list_of(s->delta, SSM_STEP_QUANTILES),
                     "decay", list_of(s->decay, SSM_STEP_QUANTILES), "half_life",
                     list_of(s->half_life, SSM_STEP_QUANTILES), "shares",
                     list_of(s->shares, SSM_MEMORY_BINS));
}

void memory_report_put(const memory_report *r, json_t *object) {
    json_t *list = json_array();
    for (int32_t i = 0; i < r->n_layers; i++) {
        json_array_append_new(list, r->layers ? put_layer(&r->layers[i]) : put_steps(&r->steps[i]));
    }
    if (r->n_layers > 0) {
        json_object_set(object, "memory", list);
    }
    if (r->steps) {
        json_object_set_new(object, "memory_quantiles",
                            list_of(ssm_step_shares, SSM_STEP_QUANTILES));
        json_object_set_new(object, "memory_tokens", json_integer((json_int_t)r->n_tokens));
    }
    json_decref(list);
}
