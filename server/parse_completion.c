// SPDX-License-Identifier: Apache-2.0
// The body of POST /v1/completions and /v1/chat/completions into a struct completion: every field's
// type and range. What only a chat has is in parse_chat.c, prompts are in parse_prompt.c.
//
// Simple fields are rows of a table; what has a shape of its own has a function (parse_shaped.c). A
// field that is wrong is named in the error. Fields that nobody knows are named once in the log and
// ignored, as peers do.
#include <string.h>

#include "parse.h"
#include "unknown.h"

enum { MAX_N = 128 };

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
    {.key = "response_format", .type = FIELD_OTHER},
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
        (rc = parse_shaped(c, limits, root, skim, err)) < 0) {
        return rc;
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
