// SPDX-License-Identifier: Apache-2.0
// A model's chat template: where it is found, which special tokens it sees, and the two ends that a
// prompt can have (a new turn of the assistant, or the last message to be continued).
//
// A folder may hold the template in chat_template.jinja or in tokenizer_config.json, there as one
// string or as a list of {"name", "template"}. Without one a base model gets the plain form below,
// which no model was trained on: callers say so in their logs.
#include <ssm/json.h>
#include <ssm/template.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "template.h"

enum { MAX_FILE = 32 << 20, MAX_TOKENS_BYTES = 4096 }; // special tokens' part of a context

struct ssm_chat {
    ssm_template *tpl;
    char *source; // of the template: continue_final_message looks whether it reads the content
    char origin[64];
    bool is_plain;
    json_t *tokens; // {"bos_token": "<s>", ...}
};

// ---- built-in templates

static const struct {
    const char *name, *source;
} builtins[] = {
    {"plain", "{% for message in messages %}{{ message.role | capitalize }}: "
              "{{ message.content | trim }}\n\n{% endfor %}"
              "{% if add_generation_prompt %}Assistant:{% endif %}"},
    {"chatml", "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
               "message['content'] + '<|im_end|>\n' }}{% endfor %}"
               "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"},
    {"zephyr", "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + "
               "message['content'] + eos_token + '\n' }}{% endfor %}"
               "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"},
    {"llama-3",
     "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
     "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
     "{% if add_generation_prompt %}"
     "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"},
};

static const char *find_builtin(const char *name) {
    for (size_t i = 0; i < sizeof builtins / sizeof *builtins; i++) {
        if (strcmp(builtins[i].name, name) == 0)
            return builtins[i].source;
    }
    return NULL;
}

const char *ssm_chat_builtin(int i) {
    return i >= 0 && (size_t)i < sizeof builtins / sizeof *builtins ? builtins[i].name : NULL;
}

// ---- files

// A file's bytes, to be freed. SSM_ENOTFOUND (err untouched) if there is none.
static int read_file(const char *path, char **text, size_t *len, ssm_error *err) {
    int rc = 0;
    *text = NULL;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return SSM_ENOTFOUND;
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size > MAX_FILE) {
        rc = ssm_error_set(err, SSM_EIO, "chat_template", "cannot read %s", path);
        goto done;
    }
    *text = malloc((size_t)st.st_size + 1);
    if (!*text) {
        rc = ssm_error_set(err, SSM_ENOMEM, "chat_template", "no memory for %s", path);
        goto done;
    }
    for (*len = 0; *len < (size_t)st.st_size;) {
        const ssize_t n = read(fd, *text + *len, (size_t)st.st_size - *len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            rc = ssm_error_set(err, SSM_EIO, "chat_template", "cannot read %s", path);
        if (n <= 0)
            break;
        *len += (size_t)n;
    }
    (*text)[*len] = '\0';
done:
    if (fd >= 0)
        close(fd);
    if (rc != 0) {
        free(*text);
        *text = NULL;
    }
    return rc;
}

static int read_from(const char *folder, const char *file, char **text, size_t *len,
                     ssm_error *err) {
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, file) >= sizeof path)
        return ssm_error_set(err, SSM_EIO, "chat_template", "a path that is too long");
    return read_file(path, text, len, err);
}

// A folder's JSON object; *out NULL if there is no such file.
static int read_json(const char *folder, const char *file, json_t **out, ssm_error *err) {
    char *text = NULL;
    size_t len;
    *out = NULL;
    int rc = read_from(folder, file, &text, &len, err);
    if (rc != 0)
        return rc == SSM_ENOTFOUND ? 0 : rc;
    json_error_t at;
    *out = json_loadb(text, len, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &at);
    free(text);
    if (json_is_object(*out))
        return 0;
    json_decref(*out);
    *out = NULL;
    return ssm_error_set(err, SSM_EFORMAT, file, "%s is not a JSON object (line %d)", file,
                         at.line);
}

// ---- what a folder says

// Special tokens are strings, or objects with the string as "content".
static void take_tokens(ssm_chat *chat, const json_t *config) {
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                        "pad_token", "cls_token", "mask_token"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        json_t *token = json_object_get(config, names[i]);
        if (json_is_object(token))
            token = json_object_get(token, "content");
        if (json_is_string(token) && !json_object_get(chat->tokens, names[i]))
            json_object_set(chat->tokens, names[i], token);
    }
}

// The template of a name in "chat_template", a string or a list; name NULL: the default one.
static const json_t *find_named(const json_t *config, const char *name) {
    const json_t *all = json_object_get(config, "chat_template");
    if (json_is_string(all))
        return !name || strcmp(name, "default") == 0 ? all : NULL;
    const size_t n = json_array_size(all); // 0 if it is not one
    for (size_t i = 0; i < n; i++) {
        const json_t *row = json_array_get(all, i);
        const char *row_name = json_string_value(json_object_get(row, "name"));
        const json_t *source = json_object_get(row, "template");
        if (row_name && json_is_string(source) && strcmp(row_name, name ? name : "default") == 0)
            return source;
    }
    return NULL;
}

static int compile(ssm_chat *chat, const char *source, size_t len, const char *origin,
                   ssm_error *err) {
    snprintf(chat->origin, sizeof chat->origin, "%s", origin);
    free(chat->source);
    chat->source = malloc(len + 1);
    if (!chat->source)
        return ssm_error_set(err, SSM_ENOMEM, "chat_template", "no memory for a chat template");
    memcpy(chat->source, source, len);
    chat->source[len] = '\0';
    return ssm_template_create(source, len, &chat->tpl, err);
}

static int compile_json(ssm_chat *chat, const json_t *source, const char *origin, ssm_error *err) {
    return compile(chat, json_string_value(source), json_string_length(source), origin, err);
}

static int compile_file(ssm_chat *chat, const char *path, ssm_error *err) {
    char *text = NULL;
    size_t len;
    int rc = read_file(path, &text, &len, err);
    if (rc == SSM_ENOTFOUND)
        return ssm_error_set(err, SSM_EIO, "chat_template", "no file %s", path);
    const char *slash = strrchr(path, '/');
    if (rc == 0)
        rc = compile(chat, text, len, slash ? slash + 1 : path, err);
    free(text);
    return rc;
}

static int compile_builtin(ssm_chat *chat, const char *name, ssm_error *err) {
    char origin[48];
    snprintf(origin, sizeof origin, "built-in %s", name);
    chat->is_plain = strcmp(name, "plain") == 0;
    const char *source = find_builtin(name);
    return compile(chat, source, strlen(source), origin, err);
}

static int compile_own(ssm_chat *chat, const char *folder, const json_t *config, ssm_error *err) {
    char *text = NULL;
    size_t len;
    int rc = read_from(folder, "chat_template.jinja", &text, &len, err);
    const json_t *source = find_named(config, NULL);
    if (rc == 0)
        rc = compile(chat, text, len, "chat_template.jinja", err);
    else if (rc == SSM_ENOTFOUND && source)
        rc = compile_json(chat, source, "tokenizer_config.json", err);
    else if (rc == SSM_ENOTFOUND)
        rc = compile_builtin(chat, "plain", err);
    free(text);
    return rc;
}

static bool is_path(const char *choice) {
    const size_t len = strlen(choice);
    return strchr(choice, '/') || (len > 6 && strcmp(choice + len - 6, ".jinja") == 0);
}

static int compile_choice(ssm_chat *chat, const char *choice, const json_t *config,
                          ssm_error *err) {
    if (is_path(choice))
        return compile_file(chat, choice, err);
    const json_t *source = find_named(config, choice);
    if (source)
        return compile_json(chat, source, "tokenizer_config.json", err);
    if (find_builtin(choice))
        return compile_builtin(chat, choice, err);
    return ssm_error_set(err, SSM_ENOTFOUND, "chat_template",
                         "no chat template '%.60s' in the model or built in (a file's path holds a "
                         "'/' or ends in .jinja)",
                         choice);
}

int ssm_chat_open(const char *folder, const char *choice, ssm_chat **out, ssm_error *err) {
    json_t *config = NULL, *map = NULL;
    ssm_chat *chat = calloc(1, sizeof *chat);
    if (!chat)
        return ssm_error_set(err, SSM_ENOMEM, "chat_template", "no memory for a chat template");
    chat->tokens = json_object();
    int rc = read_json(folder, "tokenizer_config.json", &config, err);
    if (rc == 0)
        rc = read_json(folder, "special_tokens_map.json", &map, err);
    if (rc != 0)
        goto done;
    take_tokens(chat, config);
    take_tokens(chat, map);
    rc = choice && choice[0] ? compile_choice(chat, choice, config, err)
                             : compile_own(chat, folder, config, err);
done:
    json_decref(config);
    json_decref(map);
    if (rc != 0)
        ssm_chat_free(chat);
    else
        *out = chat;
    return rc;
}

void ssm_chat_free(ssm_chat *chat) {
    if (!chat)
        return;
    ssm_template_free(chat->tpl);
    json_decref(chat->tokens);
    free(chat->source);
    free(chat);
}

const char *ssm_chat_origin(const ssm_chat *chat) {
    return chat->origin;
}

bool ssm_chat_is_plain(const ssm_chat *chat) {
    return chat->is_plain;
}

// ---- rendering

static const char tag[] = "CONTINUE_FINAL_MESSAGE_TAG "; // transformers' own
enum { TAG_WORD = sizeof tag - 2 };                      // without the space

// Puts the tag behind a string value of an object.
static int append_tag(json_t *holder, const char *key, const json_t *value) {
    ssm_text tagged = {0};
    int rc = ssm_text_append(&tagged, json_string_value(value), json_string_length(value));
    if (rc == 0)
        rc = ssm_text_append(&tagged, tag, sizeof tag - 1);
    if (rc == 0 && json_object_set_new(holder, key, json_stringn(tagged.data, tagged.len)) != 0)
        rc = SSM_ENOMEM;
    ssm_text_dispose(&tagged);
    return rc;
}

// Marks the end of the last message's text.
static int mark_final(const ssm_chat *chat, json_t *messages, ssm_error *err) {
    json_t *last = json_array_get(messages, json_array_size(messages) - 1);
    json_t *content = json_object_get(last, "content");
    if (!strstr(chat->source, "content"))
        return ssm_error_set(err, SSM_EINVAL, "continue_final_message",
                             "the chat template does not read a message's content");
    if (json_is_string(content))
        return append_tag(last, "content", content);
    for (size_t i = json_array_size(content); i-- > 0;) {
        json_t *part = json_array_get(content, i);
        const json_t *text = json_object_get(part, "text");
        if (json_is_string(text))
            return append_tag(part, "text", text);
    }
    return ssm_error_set(err, SSM_EINVAL, "continue_final_message",
                         "the last message has no text to continue");
}

static size_t trimmed(const char *s, size_t len) {
    while (len > 0 && strchr(" \t\n\r\f\v", s[len - 1]) && s[len - 1])
        len--;
    return len;
}

// Cuts the text that begins at out->data[from] at its last tag, as transformers does.
static int cut_at_tag(ssm_text *out, size_t from, ssm_error *err) {
    ptrdiff_t at = -1;
    for (size_t i = from; i + TAG_WORD <= out->len; i++) {
        if (out->data[i] == tag[0] && memcmp(out->data + i, tag, TAG_WORD) == 0)
            at = (ptrdiff_t)i;
    }
    if (at < 0)
        return ssm_error_set(err, SSM_EINVAL, "continue_final_message",
                             "the chat template leaves the last message out");
    const bool keeps_space =
        (size_t)at + TAG_WORD < out->len && out->data[(size_t)at + TAG_WORD] == ' ';
    out->len = (size_t)at;
    if (!keeps_space)
        out->len = from + trimmed(out->data + from, out->len - from);
    out->data[out->len] = '\0';
    return 0;
}

static json_t *parse_kwargs(const ssm_chat_options *options, ssm_error *err) {
    if (!options->kwargs)
        return json_object();
    json_t *kwargs = json_loadb(options->kwargs, options->kwargs_len, JSON_ALLOW_NUL, NULL);
    if (json_is_object(kwargs))
        return kwargs;
    json_decref(kwargs);
    ssm_error_set(err, SSM_EINVAL, "chat_template_kwargs",
                  "chat_template_kwargs must be a JSON object");
    return NULL;
}

// What apply_chat_template gives a template: kwargs over special tokens, below the named ones.
static json_t *make_context(const ssm_chat *chat, json_t *messages, const ssm_chat_options *options,
                            ssm_error *err) {
    json_t *kwargs = parse_kwargs(options, err), *context = json_object();
    if (!kwargs || !context) {
        json_decref(kwargs);
        json_decref(context);
        return NULL;
    }
    json_object_set_new(context, "tools", json_null());
    json_object_set_new(context, "documents", json_null());
    json_object_update(context, chat->tokens);
    json_object_update(context, kwargs);
    json_object_set(context, "messages", messages);
    json_object_set_new(context, "add_generation_prompt",
                        json_boolean(options->add_generation_prompt));
    json_decref(kwargs);
    return context;
}

int ssm_chat_render(const ssm_chat *chat, const char *messages, size_t len,
                    const ssm_chat_options *options, ssm_text *out, ssm_error *err) {
    static const ssm_chat_options none;
    int rc = 0;
    json_t *context = NULL;
    const size_t from = out->len;
    if (!options)
        options = &none;
    const bool is_continued = options->continue_final_message;
    json_t *array = ssm_json_read(messages, len);
    if (!array)
        array = json_loadb(messages, len, JSON_ALLOW_NUL, NULL);
    if (!json_is_array(array)) {
        rc = ssm_error_set(err, SSM_EINVAL, "messages", "messages must be an array");
        goto done;
    }
    if (is_continued && options->add_generation_prompt) {
        rc = ssm_error_set(err, SSM_EINVAL, "continue_final_message",
                           "continue_final_message and add_generation_prompt exclude each other");
        goto done;
    }
    if (is_continued && (rc = mark_final(chat, array, err)) != 0)
        goto done;
    context = make_context(chat, array, options, err);
    if (!context) {
        rc = err && err->code ? err->code : ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
        goto done;
    }
    const size_t bytes = len + options->kwargs_len + MAX_TOKENS_BYTES;
    rc = tpl_render_tree(chat->tpl, context, bytes, options->limits, out, err);
    if (rc == 0 && is_continued)
        rc = cut_at_tag(out, from, err);
done:
    json_decref(context);
    json_decref(array);
    return rc;
}
