// SPDX-License-Identifier: Apache-2.0
// Fields of a body that have a shape of their own: lists, objects, what must fit to other fields.
#include <stdio.h>
#include <string.h>

#include "parse.h"
#include "tenant.h"

enum { MAX_STOPS = 16, MAX_LIST = 1 << 16 };

// ---- strings and lists

int parse_copy_string(completion *c, const json_t *value, ssm_string *out, ssm_error *err) {
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
        rc = parse_copy_string(c, item, &list[i], err);
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

// Another format would be another answer: not ignored.
static int parse_response_format(const json_t *root, ssm_error *err) {
    const json_t *format;
    const int rc = json_get_object(root, "response_format", &format, err);
    const char *type = json_string_value(json_object_get(format, "type"));
    if (rc < 0 || !format || (type && strcmp(type, "text") == 0)) {
        return rc;
    }
    return ssm_error_set(err, SSM_EINVAL, "response_format",
                         "response_format: only the type text is supported, got '%.40s'",
                         type ? type : "none");
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

int parse_shaped(completion *c, const completion_limits *limits, const json_t *root,
                 const json_skimmer *skim, ssm_error *err) {
    int rc;
    if ((rc = parse_stream_options(c, root, err)) < 0 ||
        (rc = parse_seed(c, root, skim, err)) < 0 || (rc = parse_logit_bias(c, root, err)) < 0 ||
        (rc = parse_ignored(c, limits, root, err)) < 0 ||
        (rc = parse_response_format(root, err)) < 0 || (rc = parse_state(c, root, err)) < 0 ||
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
    return 0;
}
