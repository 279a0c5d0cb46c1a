// SPDX-License-Identifier: Apache-2.0
// A completion's prompts: texts, or ids that the skimmer has read.
#include "parse.h"

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
        rc = parse_copy_string(c, item, &text, err);
        c->prompts[i] = (completion_prompt){.text = text.data, .text_len = text.len};
    }
    c->n_prompts = count;
    return rc;
}

int parse_prompt(completion *c, const completion_limits *limits, const json_t *root, json_ids *ids,
                 ssm_error *err) {
    const json_t *value = json_object_get(root, "prompt");
    int rc;
    if (ids->found) {
        rc = take_id_prompts(c, ids, err);
    } else if (!value || json_is_null(value)) {
        rc = ssm_error_set(
            err, SSM_EINVAL, "prompt", "prompt is missing%s",
            json_object_get(root, "messages") ? ": messages go to /v1/chat/completions" : "");
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
