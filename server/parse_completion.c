// SPDX-License-Identifier: Apache-2.0
// The body of POST /v1/completions and /v1/chat/completions into a struct completion: every field's
// type and range. What only a chat has is in parse_chat.c.
//
// Simple fields are rows of a table; what has a shape of its own has a function. A field that is
// wrong is named in the error. Fields that nobody knows are named once in the log and ignored, as
// peers do.
#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parse.h"
#include "tenant.h"
#include "unknown.h"

enum { MAX_STOPS = 16, MAX_N = 128, MAX_LIST = 1 << 16 };

enum field_type { FIELD_BOOL, FIELD_INT32, FIELD_INT64, FIELD_FLOAT, FIELD_OTHER };

#define AT(member) offsetof(completion, member)

static const struct field {
    const char *key;
    enum field_type type;
    size_t offset;
    double min, max;
} fields[] = {
    {"max_tokens", FIELD_INT64, AT(max_tokens), 0, INT32_MAX},
    {"min_tokens", FIELD_INT64, AT(min_tokens), 0, INT32_MAX},
    {"temperature", FIELD_FLOAT, AT(sampling.temperature), 0, 2},
    {"top_p", FIELD_FLOAT, AT(sampling.top_p), 0, 1},
    {"min_p", FIELD_FLOAT, AT(sampling.min_p), 0, 1},
    {"typical_p", FIELD_FLOAT, AT(sampling.typical_p), 0, 1},
    {"top_k", FIELD_INT32, AT(sampling.top_k), -1, INT32_MAX},
    {"presence_penalty", FIELD_FLOAT, AT(sampling.presence_penalty), -2, 2},
    {"frequency_penalty", FIELD_FLOAT, AT(sampling.frequency_penalty), -2, 2},
    {"repetition_penalty", FIELD_FLOAT, AT(sampling.repetition_penalty), 0.01, 10},
    {"n", FIELD_INT32, AT(n), 1, MAX_N},
    {"logprobs", FIELD_INT32, AT(logprobs), 0, SSM_MAX_LOGPROBS},
    {"priority", FIELD_INT32, AT(priority), INT32_MIN, INT32_MAX},
    {"stream", FIELD_BOOL, AT(stream), 0, 0},
    {"echo", FIELD_BOOL, AT(echo), 0, 0},
    {"ignore_eos", FIELD_BOOL, AT(ignore_eos), 0, 0},
    {"include_stop_str_in_output", FIELD_BOOL, AT(include_stop), 0, 0},
    {"return_token_ids", FIELD_BOOL, AT(return_token_ids), 0, 0},
    {"return_tokens_as_token_ids", FIELD_BOOL, AT(tokens_as_ids), 0, 0},
    {"timings", FIELD_BOOL, AT(timings), 0, 0},
    {"skip_special_tokens", FIELD_BOOL, AT(skip_special), 0, 0},
    {"add_special_tokens", FIELD_BOOL, AT(add_special), 0, 0},
    {"cache_prompt", FIELD_BOOL, AT(cache_prompt), 0, 0},
    // with functions of their own
    {.key = "model", .type = FIELD_OTHER},
    {.key = "prompt", .type = FIELD_OTHER},
    {.key = "best_of", .type = FIELD_OTHER},
    {.key = "stream_options", .type = FIELD_OTHER},
    {.key = "stop", .type = FIELD_OTHER},
    {.key = "seed", .type = FIELD_OTHER},
    {.key = "logit_bias", .type = FIELD_OTHER},
    {.key = "suffix", .type = FIELD_OTHER},
    {.key = "user", .type = FIELD_OTHER},
    {.key = "metadata", .type = FIELD_OTHER},
    {.key = "stop_token_ids", .type = FIELD_OTHER},
    {.key = "allowed_token_ids", .type = FIELD_OTHER},
    {.key = "bad_words", .type = FIELD_OTHER},
    {.key = "cache_salt", .type = FIELD_OTHER},
    {.key = "session", .type = FIELD_OTHER},
};

static bool is_known(const char *key) {
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (strcmp(fields[i].key, key) == 0) {
            return true;
        }
    }
    return false;
}

// A chat has no such field, or one of another type.
static bool is_text_only(const char *key) {
    static const char *const keys[] = {"prompt", "logprobs", "echo", "best_of", "suffix"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        if (strcmp(keys[i], key) == 0) {
            return true;
        }
    }
    return false;
}

static bool is_known_in_chat(const char *key) {
    return parse_chat_knows(key) || (is_known(key) && !is_text_only(key));
}

static int no_memory(ssm_error *err) {
    return ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
}

static int parse_field(completion *c, const struct field *f, const json_t *root, ssm_error *err) {
    void *at = (char *)c + f->offset;
    int64_t number = 0;
    int rc;
    switch (f->type) {
    case FIELD_BOOL:
        return json_get_bool(root, f->key, at, err);
    case FIELD_INT64:
        return json_get_int(root, f->key, (int64_t)f->min, (int64_t)f->max, at, err);
    case FIELD_INT32:
        number = *(int32_t *)at;
        rc = json_get_int(root, f->key, (int64_t)f->min, (int64_t)f->max, &number, err);
        *(int32_t *)at = (int32_t)number;
        return rc;
    case FIELD_FLOAT:
        return json_get_number(root, f->key, f->min, f->max, at, err);
    default:
        return 0;
    }
}

// ---- strings and lists

static int copy_string(completion *c, const json_t *value, ssm_string *out, ssm_error *err) {
    out->len = json_string_length(value);
    out->data = arena_copy(&c->arena, json_string_value(value), out->len);
    return out->data ? 0 : no_memory(err);
}

// A list of strings that are not empty, at most `most` of them; with `single`, one string too.
static int parse_strings(completion *c, const json_t *root, const char *key, size_t most,
                         bool single, ssm_string **out, size_t *n, ssm_error *err) {
    const json_t *value = json_object_get(root, key);
    if (!value || json_is_null(value)) {
        return 0;
    }
    const bool one = single && json_is_string(value);
    if (!one && !json_is_array(value)) {
        return ssm_error_set(err, SSM_EINVAL, key, "%s must be %sa list of strings, got %s", key,
                             single ? "a string or " : "", json_type_text(value));
    }
    const size_t count = one ? 1 : json_array_size(value);
    if (count > most) {
        return ssm_error_set(err, SSM_EINVAL, key, "%s may hold at most %zu strings, got %zu", key,
                             most, count);
    }
    ssm_string *list = arena_alloc(&c->arena, count, sizeof *list);
    int rc = list ? 0 : no_memory(err);
    for (size_t i = 0; rc == 0 && i < count; i++) {
        const json_t *item = one ? value : json_array_get(value, i);
        if (!json_is_string(item) || json_string_length(item) == 0) {
            return ssm_error_set(err, SSM_EINVAL, key,
                                 "%s must hold strings that are not empty, got %s", key,
                                 json_is_string(item) ? "\"\"" : json_type_text(item));
        }
        rc = copy_string(c, item, &list[i], err);
    }
    *out = list;
    *n = count;
    return rc;
}

static int parse_ids(completion *c, const json_t *root, const char *key, const int32_t **out,
                     size_t *n, ssm_error *err) {
    const json_t *value;
    int rc = json_get_array(root, key, &value, err);
    if (rc < 0 || !value) {
        return rc;
    }
    const size_t count = json_array_size(value);
    int32_t *ids = count <= MAX_LIST ? arena_alloc(&c->arena, count, sizeof *ids) : NULL;
    if (!ids) {
        return count > MAX_LIST ? ssm_error_set(err, SSM_EINVAL, key, "%s may hold at most %d ids",
                                                key, MAX_LIST)
                                : no_memory(err);
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(value, i);
        const json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id > INT32_MAX) {
            return ssm_error_set(err, SSM_EINVAL, key, "%s must hold token ids, got %s", key,
                                 json_is_integer(item) ? "one out of range" : json_type_text(item));
        }
        ids[i] = (int32_t)id;
    }
    *out = ids;
    *n = count;
    return 0;
}

// ---- fields of their own kind

static int parse_model(completion *c, const json_t *root, ssm_error *err) {
    size_t len = 0;
    const char *name = NULL;
    const int rc = json_get_string(root, "model", &name, &len, err);
    if (rc == 0 && name) {
        c->model = arena_copy(&c->arena, name, len);
        return c->model ? 0 : no_memory(err);
    }
    return rc;
}

static int take_id_prompts(completion *c, json_ids *ids, ssm_error *err) {
    const size_t count = ids->nested ? ids->n_lists : 1;
    c->prompts = arena_alloc(&c->arena, count, sizeof *c->prompts);
    if (!c->prompts) {
        return no_memory(err);
    }
    if (!ids->nested && ids->n == 0) {
        return ssm_error_set(err, SSM_EINVAL, "prompt", "prompt is an empty list");
    }
    for (size_t i = 0; i < count; i++) {
        const size_t begin = ids->nested && i > 0 ? ids->ends[i - 1] : 0;
        const size_t end = ids->nested ? ids->ends[i] : ids->n;
        c->prompts[i] = (completion_prompt){.ids = ids->data + begin, .n_ids = end - begin};
    }
    c->n_prompts = count;
    arena_adopt(&c->arena, ids->data, ids->n * sizeof *ids->data);
    ids->data = NULL;
    return 0;
}

static int take_text_prompts(completion *c, const json_t *value, ssm_error *err) {
    const bool one = json_is_string(value);
    const size_t count = one ? 1 : json_array_size(value);
    int rc = 0;
    c->prompts = arena_alloc(&c->arena, count, sizeof *c->prompts);
    if (!c->prompts) {
        return no_memory(err);
    }
    for (size_t i = 0; rc == 0 && i < count; i++) {
        const json_t *item = one ? value : json_array_get(value, i);
        ssm_string text = {0};
        if (!json_is_string(item)) {
            return ssm_error_set(err, SSM_EINVAL, "prompt",
                                 "prompt: a list holds strings, or integers, or lists of integers, "
                                 "not strings and %s",
                                 json_type_text(item));
        }
        rc = copy_string(c, item, &text, err);
        c->prompts[i] = (completion_prompt){.text = text.data, .text_len = text.len};
    }
    c->n_prompts = count;
    return rc;
}

static int parse_prompt(completion *c, const completion_limits *limits, const json_t *root,
                        json_ids *ids, ssm_error *err) {
    const json_t *value = json_object_get(root, "prompt");
    int rc;
    if (ids->found) {
        rc = take_id_prompts(c, ids, err);
    } else if (!value || json_is_null(value)) {
        rc = ssm_error_set(err, SSM_EINVAL, "prompt", "prompt is missing");
    } else if (json_is_string(value) || (json_is_array(value) && json_array_size(value) > 0)) {
        rc = take_text_prompts(c, value, err);
    } else {
        rc = ssm_error_set(err, SSM_EINVAL, "prompt",
                           "prompt must be a string, a list of strings, a list of token ids or a "
                           "list of such lists, got %s",
                           json_is_array(value) ? "an empty list" : json_type_text(value));
    }
    if (rc == 0 && c->n_prompts > limits->max_prompts) {
        rc = ssm_error_set(err, SSM_EINVAL, "prompt",
                           "prompt holds %zu prompts, at most %zu are taken", c->n_prompts,
                           limits->max_prompts);
    }
    return rc;
}

static int parse_best_of(completion *c, const json_t *root, ssm_error *err) {
    int64_t best_of = 0;
    const int rc = json_get_int(root, "best_of", 0, MAX_N, &best_of, err);
    if (rc < 0) {
        return rc;
    }
    if (best_of != 0 && best_of < c->n) {
        return ssm_error_set(err, SSM_EINVAL, "best_of",
                             "best_of must be 0 or at least n (%d), got %d", c->n, (int)best_of);
    }
    if (best_of > c->n && c->stream) {
        return ssm_error_set(err, SSM_EINVAL, "best_of",
                             "best_of above n cannot be streamed: the best is known at the end");
    }
    c->best_of = best_of ? (int32_t)best_of : c->n;
    return 0;
}

static int parse_stream_options(completion *c, const json_t *root, ssm_error *err) {
    const json_t *value;
    int rc = json_get_object(root, "stream_options", &value, err);
    if (rc < 0) {
        return rc;
    }
    if (value) {
        rc = json_get_bool(value, "include_usage", &c->include_usage, err);
    }
    if (rc == 0 && value) {
        rc = json_get_bool(value, "continuous_usage_stats", &c->continuous_usage, err);
    }
    if (rc < 0 && value) {
        const ssm_error inner = *err; // the member's name, as clients see it: stream_options.NAME
        char param[sizeof inner.param];
        snprintf(param, sizeof param, "stream_options.%.40s", inner.param);
        ssm_error_set(err, rc, param, "stream_options.%s", inner.message);
    }
    return rc;
}

static int parse_seed(completion *c, const json_t *root, const json_skimmer *skim, ssm_error *err) {
    int64_t seed = 0;
    const json_t *value = json_object_get(root, "seed");
    const int rc = json_get_int(root, "seed", INT64_MIN, INT64_MAX, &seed, err);
    c->has_seed = value && !json_is_null(value);
    c->seed = skim->u64_found ? skim->u64 : (uint64_t)seed;
    return rc;
}

static int parse_logit_bias(completion *c, const json_t *root, ssm_error *err) {
    const json_t *value;
    const int rc = json_get_object(root, "logit_bias", &value, err);
    if (rc < 0 || !value) {
        return rc;
    }
    const size_t count = json_object_size(value);
    c->biases = count <= MAX_LIST ? arena_alloc(&c->arena, count, sizeof *c->biases) : NULL;
    if (!c->biases) {
        return count > MAX_LIST ? ssm_error_set(err, SSM_EINVAL, "logit_bias",
                                                "logit_bias may hold at most %d entries", MAX_LIST)
                                : no_memory(err);
    }
    for (void *it = json_object_iter((json_t *)value); it;
         it = json_object_iter_next((json_t *)value, it)) {
        const char *key = json_object_iter_key(it);
        const json_t *bias = json_object_iter_value(it);
        const double number = json_number_value(bias);
        if (!json_is_number(bias) || !(number >= -100 && number <= 100) || !*key) {
            return ssm_error_set(
                err, SSM_EINVAL, "logit_bias",
                "logit_bias must map token ids or texts to numbers between -100 and "
                "100 (at '%.40s')",
                key);
        }
        completion_bias *b = &c->biases[c->n_biases++];
        *b = (completion_bias){.key_len = strlen(key), .bias = (float)number};
        b->key = arena_copy(&c->arena, key, b->key_len);
        if (!b->key) {
            return no_memory(err);
        }
    }
    return 0;
}

// Of a chat, suffix is an unknown field like any other.
static int parse_ignored(const completion *c, const completion_limits *limits, const json_t *root,
                         ssm_error *err) {
    static const char *const strings[] = {"user", "suffix"};
    const size_t n_strings = c->chat.is_chat ? 1 : 2;
    const char *text[2] = {NULL};
    size_t len[2] = {0};
    const json_t *metadata;
    int rc = json_get_object(root, "metadata", &metadata, err);
    for (size_t i = 0; rc == 0 && i < n_strings; i++) {
        rc = json_get_string(root, strings[i], &text[i], &len[i], err);
    }
    if (rc == 0 && len[1] > 0 && !limits->any_model) {
        rc = ssm_error_set(err, SSM_EINVAL, "suffix",
                           "suffix is not supported: these models only continue a text");
    }
    return rc;
}

static int parse_state(completion *c, const json_t *root, ssm_error *err) {
    const char *session = NULL, *salt = NULL;
    size_t session_len = 0, salt_len = 0;
    int rc = json_get_string(root, "cache_salt", &salt, &salt_len, err);
    if (rc == 0) {
        rc = json_get_string(root, "session", &session, &session_len, err);
    }
    if (rc < 0) {
        return rc;
    }
    if (salt) {
        c->cache_salt.len = salt_len;
        c->cache_salt.data = arena_copy(&c->arena, salt, salt_len);
    }
    if (session) {
        c->session = arena_copy(&c->arena, session, session_len);
    }
    if ((salt && !c->cache_salt.data) || (session && !c->session)) {
        return no_memory(err);
    }
    if (session && (strlen(c->session) != session_len || !tenant_is_session(c->session))) {
        return ssm_error_set(err, SSM_EINVAL, "session",
                             "session must be 1 to 128 characters of A-Z a-z 0-9 . _ -");
    }
    if (session && (c->n_prompts != 1 || c->best_of != 1)) {
        return ssm_error_set(err, SSM_EINVAL, "session",
                             "a session goes on with one prompt and one choice");
    }
    if (session && c->echo && c->logprobs >= 0) {
        return ssm_error_set(err, SSM_EINVAL, "session",
                             "a session cannot echo its prompt's logprobs");
    }
    return 0;
}

// What is asked to be answered: a prompt or a conversation, and what goes with each.
static int parse_subject(completion *c, const completion_limits *limits, const json_t *root,
                         json_ids *ids, ssm_error *err) {
    if (c->chat.is_chat) {
        c->best_of = c->n;
        return parse_chat(c, root, err);
    }
    const int rc = parse_prompt(c, limits, root, ids, err);
    return rc < 0 ? rc : parse_best_of(c, root, err);
}

static int parse_tree(completion *c, const completion_limits *limits, const json_t *root,
                      json_skimmer *skim, ssm_error *err) {
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < sizeof fields / sizeof *fields; i++) {
        if (!c->chat.is_chat || !is_text_only(fields[i].key)) {
            rc = parse_field(c, &fields[i], root, err);
        }
    }
    const json_t *adds = json_object_get(root, "add_special_tokens");
    c->has_add_special = adds && !json_is_null(adds);
    if (rc < 0 || (rc = parse_model(c, root, err)) < 0 ||
        (rc = parse_subject(c, limits, root, &skim->ids, err)) < 0 ||
        (rc = parse_stream_options(c, root, err)) < 0 ||
        (rc = parse_seed(c, root, skim, err)) < 0 || (rc = parse_logit_bias(c, root, err)) < 0 ||
        (rc = parse_ignored(c, limits, root, err)) < 0 || (rc = parse_state(c, root, err)) < 0 ||
        (rc = parse_strings(c, root, "stop", MAX_STOPS, true, &c->stops, &c->n_stops, err)) < 0 ||
        (rc = parse_strings(c, root, "bad_words", MAX_LIST, false, &c->bad_words, &c->n_bad_words,
                            err)) < 0 ||
        (rc = parse_ids(c, root, "stop_token_ids", &c->stop_ids, &c->n_stop_ids, err)) < 0 ||
        (rc = parse_ids(c, root, "allowed_token_ids", &c->allowed, &c->n_allowed, err)) < 0) {
        return rc;
    }
    if (c->allowed && c->n_allowed == 0) {
        return ssm_error_set(err, SSM_EINVAL, "allowed_token_ids", "allowed_token_ids is empty");
    }
    if (c->min_tokens > c->max_tokens) {
        return ssm_error_set(err, SSM_EINVAL, "min_tokens",
                             "min_tokens is larger than max_tokens (%lld)",
                             (long long)c->max_tokens);
    }
    return 0;
}

void completion_init(completion *c) {
    *c = (completion){.n = 1,
                      .best_of = 1,
                      .max_tokens = 16,
                      .logprobs = -1,
                      .skip_special = true,
                      .add_special = true,
                      .cache_prompt = true};
    ssm_sampling_init(&c->sampling);
}

static int parse_body(completion *c, json_skimmer *skim, const completion_limits *limits,
                      const completion_memory *memory, buf *body, ssm_error *err) {
    json_t *root = NULL;
    int rc = json_skim(skim, body->data, &body->len, err);
    if (rc < 0) {
        return rc;
    }
    const size_t price = skim->tree_bytes + skim->ids.n * sizeof(int32_t);
    if (memory->most > 0 && price > memory->most) { // to come again later would not help
        json_ids_dispose(&skim->ids);
        return ssm_error_set(err, SSM_EINVAL, c->chat.is_chat ? "messages" : NULL,
                             "to be read, the body needs %zu MiB of the %zu MiB that all requests "
                             "have together (--max-request-memory)",
                             (price >> 20) + 1, memory->most >> 20);
    }
    if (!memory->take(memory->ctx, price)) {
        json_ids_dispose(&skim->ids);
        return ssm_error_set(err, SSM_ENOMEM, NULL,
                             "too much request memory is in use, try again later");
    }
    root = json_parse_object(body->data, body->len, err);
    rc = root ? parse_tree(c, limits, root, skim, err) : SSM_EINVAL;
    json_decref(root);
    json_ids_dispose(&skim->ids);
    memory->give(memory->ctx, price);
    if (rc < 0) {
        completion_dispose(c);
    }
    return rc;
}

int completion_parse(completion *c, const completion_limits *limits,
                     const completion_memory *memory, buf *body, ssm_error *err) {
    json_skimmer skim = {
        .ids_key = "prompt", .u64_key = "seed", .is_known = is_known, .on_unknown = unknown_note};
    completion_init(c);
    return parse_body(c, &skim, limits, memory, body, err);
}

int completion_parse_chat(completion *c, const completion_limits *limits,
                          const completion_memory *memory, buf *body, ssm_error *err) {
    json_skimmer skim = {
        .u64_key = "seed", .is_known = is_known_in_chat, .on_unknown = unknown_note};
    completion_init(c);
    c->chat.is_chat = true;
    c->chat.add_generation_prompt = true;
    c->max_tokens = limits->chat_max_tokens;
    return parse_body(c, &skim, limits, memory, body, err);
}

void completion_dispose(completion *c) {
    arena_dispose(&c->arena);
    *c = (completion){0};
}
