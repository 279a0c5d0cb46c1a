// SPDX-License-Identifier: Apache-2.0
// Chat templates: a conversation in JSON to the prompt that a model was trained on.
//
// ssm_template interprets the subset of Jinja that published chat templates use, with the settings
// and globals of transformers' apply_chat_template (trim_blocks, lstrip_blocks, loop controls;
// tojson, raise_exception, strftime_now, namespace, range, dict). What is outside the subset is
// refused when the template is compiled, with its line. A template can read its context and write
// text, nothing else; steps, output, memory and depth of a rendering are bounded.
//
// ssm_chat is a model's template with the special tokens that it reads. Both are immutable once
// made and may be used by any number of threads at once.
#ifndef SSM_TEMPLATE_H
#define SSM_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <ssm/error.h>
#include <ssm/tokenizer.h>

typedef struct ssm_template ssm_template;
typedef struct ssm_chat ssm_chat;

// Bounds of one rendering. 0 stands for the default: steps (evaluated nodes and 64-byte pieces of
// strings copied) 1,000,000 and 4 for each byte of context, 64 MiB of text and of values, each
// plus 32 for each byte of context.
typedef struct ssm_template_limits {
    uint64_t steps;
    size_t output, memory; // bytes
    time_t now;            // what strftime_now reads, in local time; 0: the clock
} ssm_template_limits;

// Compiles a template of at most 1 MiB (borrowed during the call). SSM_EFORMAT: a syntax error,
// SSM_EUNSUPPORTED: outside the subset; both name the line.
int ssm_template_create(const char *source, size_t len, ssm_template **out, ssm_error *err);
void ssm_template_free(ssm_template *tpl);

// Appends to *out what the template makes of a context, a JSON object whose keys are its variables.
// limits may be NULL. SSM_EINVAL: the context is not a JSON object; or the template raised an
// exception (the message is its own, param "messages"), met a value that it cannot use, or reached
// a limit (line and cause in the message, param "chat_template"). On an error *out may hold a part.
int ssm_template_render(const ssm_template *tpl, const char *context, size_t len,
                        const ssm_template_limits *limits, ssm_text *out, ssm_error *err);

// The chat template of a model's folder. choice NULL: chat_template.jinja, else chat_template of
// tokenizer_config.json (a string, or the list's "default"); else the plain form. Another choice is
// a file's path if it holds a '/' or ends in ".jinja", "plain", the name of a built-in template
// (ssm_chat_builtin lists them) or of one in the list of tokenizer_config.json. bos_token and the
// other special tokens come from tokenizer_config.json and special_tokens_map.json. SSM_EIO,
// SSM_EFORMAT, SSM_EUNSUPPORTED, SSM_ENOTFOUND (unknown name).
int ssm_chat_open(const char *folder, const char *choice, ssm_chat **out, ssm_error *err);
void ssm_chat_free(ssm_chat *chat);

// The i-th built-in template's name, NULL past the last. Static.
const char *ssm_chat_builtin(int i);

// Where the template came from, for people ("chat_template.jinja"); borrowed.
const char *ssm_chat_origin(const ssm_chat *chat);

// The plain form stands in for a base model's missing template: a line "Name: text" a message and
// a blank line after it, then "Assistant:". It has no special tokens, so that its text is to be
// encoded with SSM_ADD_SPECIAL; the text of a real template is not.
bool ssm_chat_is_plain(const ssm_chat *chat);

typedef struct ssm_chat_options {
    bool add_generation_prompt;  // end with the beginning of an assistant's turn
    bool continue_final_message; // end inside the last message, for the model to go on with it
    const char *kwargs;          // further variables, a JSON object, or NULL
    size_t kwargs_len;
    const ssm_template_limits *limits; // or NULL
} ssm_chat_options;

// Appends the prompt of a conversation to *out: messages is a JSON array of objects. Equal to
// transformers' apply_chat_template(messages, tokenize=False, ...). Errors as
// ssm_template_render's; SSM_EINVAL too if both options are set, or if there is nothing to continue
// (param "continue_final_message").
int ssm_chat_render(const ssm_chat *chat, const char *messages, size_t len,
                    const ssm_chat_options *options, ssm_text *out, ssm_error *err);

#endif
