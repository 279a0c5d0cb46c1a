// SPDX-License-Identifier: Apache-2.0
// What is peculiar to the body of POST /v1/chat/completions.
//
// Messages are checked one by one and written down again as JSON in the form that templates expect:
// `developer` is `system`, text parts are one string (joined by newlines), null content is empty,
// arguments of tool calls are objects. Everything else in a message is passed on as it is: a
// template may read it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parse.h"

bool parse_chat_knows(const char *key) {
    static const char *const keys[] = {
        // read below
        "messages", "max_completion_tokens", "logprobs", "top_logprobs", "tools", "tool_choice",
        "functions", "function_call", "modalities", "add_generation_prompt",
        "continue_final_message", "chat_template_kwargs",
        // of no meaning to such a model
        "store", "prediction", "service_tier", "reasoning_effort", "audio", "web_search_options",
        "moderation", "verbosity", "prompt_cache_key", "prompt_cache_retention",
        "prompt_cache_options", "safety_identifier", "parallel_tool_calls"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        if (strcmp(keys[i], key) == 0) {
            return true;
        }
    }
    return false;
}

// A text of malloc's becomes the arena's.
static int adopt(completion *c, char *text, size_t bytes, ssm_error *err) {
    const size_t before = c->arena.bytes;
    arena_adopt(&c->arena, text, bytes);
    return c->arena.bytes > before ? 0 : no_memory(err);
}

// ---- one message

// "messages[3].role", for errors.
struct place {
    size_t message;
    const char *field;
    ssm_error *err;
};

static int fail_at(const struct place *at, const char *what) {
    char param[64];
    snprintf(param, sizeof param, "messages[%zu].%s", at->message, at->field);
    return ssm_error_set(at->err, SSM_EINVAL, param, "%s %s", param, what);
}

static int check_role(json_t *message, struct place *at) {
    static const char *const roles[] = {"system",    "developer", "user",
                                        "assistant", "tool",      "function"};
    const json_t *role = json_object_get(message, "role");
    at->field = "role";
    for (size_t i = 0; json_is_string(role) && i < sizeof roles / sizeof *roles; i++) {
        if (strcmp(json_string_value(role), roles[i]) != 0) {
            continue;
        }
        if (i == 1 && json_object_set_new(message, "role", json_string("system")) < 0) {
            return no_memory(at->err);
        }
        return 0;
    }
    return fail_at(at, "must be system, developer, user, assistant or tool");
}

// The text of one part of a content.
static const json_t *part_text(const json_t *part, struct place *at, int *rc) {
    const char *type = json_string_value(json_object_get(part, "type"));
    const bool is_refusal = type && strcmp(type, "refusal") == 0;
    const json_t *text = json_object_get(part, is_refusal ? "refusal" : "text");
    char what[128];
    if (!type) {
        *rc = fail_at(at, "must be a string or a list of parts, each with a type");
    } else if (!is_refusal && strcmp(type, "text") != 0) {
        snprintf(what, sizeof what, "holds a part of type '%.40s': these models read text alone",
                 type);
        *rc = fail_at(at, what);
    } else if (!json_is_string(text)) {
        *rc = fail_at(at, "holds a text part without a text");
    }
    return *rc == 0 ? text : NULL;
}

static int join_parts(json_t *message, const json_t *parts, struct place *at) {
    buf text = {0};
    int rc = 0;
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *part = part_text(json_array_get(parts, i), at, &rc);
        if (rc < 0) {
            break;
        }
        buf_add(&text, "\n", i > 0);
        buf_add(&text, json_string_value(part), json_string_length(part));
    }
    if (rc == 0 && (text.failed ||
                    json_object_set_new(message, "content",
                                        json_stringn(text.len ? text.data : "", text.len)) < 0)) {
        rc = no_memory(at->err);
    }
    buf_dispose(&text);
    return rc;
}

static int check_content(json_t *message, struct place *at) {
    const json_t *content = json_object_get(message, "content");
    const char *role = json_string_value(json_object_get(message, "role"));
    at->field = "content";
    if (json_is_string(content)) {
        return 0;
    }
    if (json_is_array(content)) {
        return join_parts(message, content, at);
    }
    if ((!content || json_is_null(content)) && strcmp(role, "assistant") == 0) {
        return json_object_set_new(message, "content", json_string("")) < 0 ? no_memory(at->err)
                                                                            : 0;
    }
    return fail_at(at, content && !json_is_null(content)
                           ? "must be a string or a list of parts"
                           : "is missing: only an assistant's may be null");
}

// OpenAI's clients send the arguments of a call as a text that holds JSON; templates read objects.
static int open_arguments(json_t *message, struct place *at) {
    json_t *calls = json_object_get(message, "tool_calls");
    at->field = "tool_calls";
    if (!calls || json_is_null(calls)) {
        json_object_del(message, "tool_calls"); // templates ask whether it is there
        return 0;
    }
    if (!json_is_array(calls)) {
        return fail_at(at, "must be a list");
    }
    for (size_t i = 0; i < json_array_size(calls); i++) {
        json_t *function = json_object_get(json_array_get(calls, i), "function");
        const json_t *text = json_object_get(function, "arguments");
        if (!json_is_string(text)) {
            continue;
        }
        json_t *arguments =
            json_loadb(json_string_value(text), json_string_length(text), JSON_ALLOW_NUL, NULL);
        if (arguments && json_object_set_new(function, "arguments", arguments) < 0) {
            return no_memory(at->err);
        }
    }
    return 0;
}

static int parse_messages(completion *c, const json_t *root, ssm_error *err) {
    const json_t *list;
    int rc = json_get_array(root, "messages", &list, err);
    if (rc < 0) {
        return rc;
    }
    if (!list || json_array_size(list) == 0) {
        return ssm_error_set(err, SSM_EINVAL, "messages",
                             list ? "messages is empty: a conversation has one message at least"
                             : json_object_get(root, "prompt")
                                 ? "messages is missing: a prompt goes to /v1/completions"
                                 : "messages is missing");
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        struct place at = {.message = i, .field = "role", .err = err};
        json_t *message = json_array_get(list, i);
        if (!json_is_object(message)) {
            return ssm_error_set(err, SSM_EINVAL, "messages", "messages[%zu] must be an object", i);
        }
        if ((rc = check_role(message, &at)) < 0 || (rc = check_content(message, &at)) < 0 ||
            (rc = open_arguments(message, &at)) < 0) {
            return rc;
        }
    }
    buf text = {0};
    json_put_tree(&text, list);
    if (text.failed) {
        buf_dispose(&text);
        return no_memory(err);
    }
    c->chat.messages = text.data;
    c->chat.messages_len = text.len;
    return adopt(c, text.data, text.cap, err);
}

// ---- the rest

static int parse_kwargs(completion *c, const json_t *root, ssm_error *err) {
    const json_t *kwargs;
    const int rc = json_get_object(root, "chat_template_kwargs", &kwargs, err);
    if (rc < 0 || !kwargs) {
        return rc;
    }
    char *text = json_dumps(kwargs, JSON_COMPACT);
    if (!text) {
        return no_memory(err);
    }
    c->chat.kwargs = text;
    c->chat.kwargs_len = strlen(text);
    return adopt(c, text, c->chat.kwargs_len + 1, err);
}

static int parse_ends(completion *c, const json_t *root, ssm_error *err) {
    const json_t *begin = json_object_get(root, "add_generation_prompt");
    int rc = json_get_bool(root, "continue_final_message", &c->chat.continue_final_message, err);
    if (rc == 0) {
        rc = json_get_bool(root, "add_generation_prompt", &c->chat.add_generation_prompt, err);
    }
    if (rc == 0 && c->chat.continue_final_message && (!begin || json_is_null(begin))) {
        c->chat.add_generation_prompt = false;
    }
    return rc;
}

static int parse_logprobs(completion *c, const json_t *root, ssm_error *err) {
    bool wanted = false;
    int64_t top = -1;
    int rc = json_get_bool(root, "logprobs", &wanted, err);
    if (rc == 0) {
        rc = json_get_int(root, "top_logprobs", 0, SSM_MAX_LOGPROBS, &top, err);
    }
    if (rc == 0 && top > 0 && !wanted) {
        rc = ssm_error_set(err, SSM_EINVAL, "top_logprobs", "top_logprobs needs logprobs: true");
    }
    if (rc == 0 && wanted) {
        c->logprobs = top > 0 ? (int32_t)top : 0;
    }
    return rc;
}

// tools, unless tool_choice says "none"; functions and function_call likewise.
static int refuse_tools(const json_t *root, const char *key, const char *choice, ssm_error *err) {
    const json_t *list;
    const char *chosen = json_string_value(json_object_get(root, choice));
    const int rc = json_get_array(root, key, &list, err);
    if (rc < 0 || !list || json_array_size(list) == 0 || (chosen && strcmp(chosen, "none") == 0)) {
        return rc;
    }
    return ssm_error_set(err, SSM_EINVAL, key, "%s is not supported yet (%s \"none\" ignores it)",
                         key, choice);
}

static int parse_modalities(const json_t *root, ssm_error *err) {
    const json_t *list;
    const int rc = json_get_array(root, "modalities", &list, err);
    for (size_t i = 0; rc == 0 && i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        if (!name || strcmp(name, "text") != 0) {
            return ssm_error_set(err, SSM_EINVAL, "modalities",
                                 "modalities: these models write text alone");
        }
    }
    return rc;
}

int parse_chat(completion *c, const json_t *root, ssm_error *err) {
    int rc = parse_messages(c, root, err);
    if (rc < 0 || (rc = parse_kwargs(c, root, err)) < 0 || (rc = parse_ends(c, root, err)) < 0 ||
        (rc = parse_logprobs(c, root, err)) < 0 ||
        (rc = refuse_tools(root, "tools", "tool_choice", err)) < 0 ||
        (rc = refuse_tools(root, "functions", "function_call", err)) < 0 ||
        (rc = parse_modalities(root, err)) < 0) {
        return rc;
    }
    c->prompts = arena_alloc(&c->arena, 1, sizeof *c->prompts);
    if (!c->prompts) {
        return no_memory(err);
    }
    c->prompts[0].text = ""; // until it is rendered
    c->n_prompts = 1;
    return json_get_int(root, "max_completion_tokens", 0, INT32_MAX, &c->max_tokens, err);
}

// ---- the prompt

int completion_render(completion *c, const served_model *model, ssm_error *err) {
    ssm_text text = {0};
    const ssm_chat_options ends = {.add_generation_prompt = c->chat.add_generation_prompt,
                                   .continue_final_message = c->chat.continue_final_message,
                                   .kwargs = c->chat.kwargs,
                                   .kwargs_len = c->chat.kwargs_len};
    const int rc =
        ssm_chat_render(model->chat, c->chat.messages, c->chat.messages_len, &ends, &text, err);
    if (rc < 0 || text.len == 0) {
        ssm_text_dispose(&text);
        return rc;
    }
    c->prompts[0].text = text.data;
    c->prompts[0].text_len = text.len;
    return adopt(c, text.data, text.cap, err);
}

bool completion_adds_special(const completion *c, const served_model *model) {
    if (c->chat.is_chat && !c->has_add_special) {
        return ssm_chat_is_plain(model->chat);
    }
    return c->add_special;
}
