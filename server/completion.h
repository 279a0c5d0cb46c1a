// SPDX-License-Identifier: Apache-2.0
// A completion request, validated: what POST /v1/completions, /v1/chat/completions and `ssmd
// generate` ask for. A chat is a completion of one prompt, which the model's template makes of the
// messages (completion_render), and an answer of another form.
//
// completion_parse makes it from a body (types and ranges: nothing of the model is needed),
// completion_bind checks it against a model and turns texts into ids. Everything it points to lives
// in its arena.
#ifndef SSMD_COMPLETION_H
#define SSMD_COMPLETION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ssm/engine.h>
#include <ssm/text.h>

#include "arena.h"
#include "buf.h"
#include "registry.h"

typedef struct completion_prompt {
    const char *text; // NULL: given as ids
    size_t text_len;
    const int32_t *ids; // of a text: filled by whoever tokenizes
    size_t n_ids;
    bool goes_on; // behind a session's tokens: there may be none
} completion_prompt;

typedef struct completion_bias {
    const char *key; // an id in digits, or a text
    size_t key_len;
    float bias;
} completion_bias;

typedef struct completion_chat {
    bool is_chat;
    const char *messages; // JSON, as the template sees them
    size_t messages_len;
    const char *kwargs; // JSON, or NULL
    size_t kwargs_len;
    bool add_generation_prompt, continue_final_message;
} completion_chat;

typedef struct completion {
    arena arena;
    completion_chat chat;
    const char *model; // NULL: the first
    completion_prompt *prompts;
    size_t n_prompts;
    int32_t n, best_of; // best_of >= n
    int64_t max_tokens, min_tokens;
    ssm_sampling sampling; // its arrays are filled by completion_bind
    int32_t logprobs;      // -1: none
    bool stream, include_usage, continuous_usage;
    bool echo, ignore_eos, include_stop, return_token_ids, tokens_as_ids, timings;
    bool skip_special, add_special, has_add_special;
    bool cache_prompt;
    ssm_string cache_salt; // data NULL: none
    const char *session;   // NULL: none
    bool has_seed;
    uint64_t seed;
    int32_t priority;
    ssm_string *stops;
    size_t n_stops;
    const int32_t *stop_ids;
    size_t n_stop_ids;
    const int32_t *allowed;
    size_t n_allowed;
    completion_bias *biases;
    size_t n_biases;
    ssm_string *bad_words;
    size_t n_bad_words;
} completion;

typedef struct completion_limits {
    size_t max_prompts;
    size_t max_prompt_tokens; // 0: none
    bool any_model;           // suffix is ignored instead of refused
    int64_t chat_max_tokens;  // of a chat that names no limit
} completion_limits;

void completion_init(completion *c); // the defaults of the API

// The body is changed in place. take_memory(ctx, bytes) is asked before a tree of so many bytes is
// built (false: SSM_ENOMEM); give_memory when it is gone. On failure *c holds nothing.
typedef struct completion_memory {
    bool (*take)(void *ctx, size_t bytes);
    void (*give)(void *ctx, size_t bytes);
    void *ctx;
    size_t most; // what take can ever give; 0: not known. A tree of more is SSM_EINVAL
} completion_memory;
int completion_parse(completion *c, const completion_limits *limits,
                     const completion_memory *memory, buf *body, ssm_error *err);
int completion_parse_chat(completion *c, const completion_limits *limits,
                          const completion_memory *memory, buf *body, ssm_error *err);
int completion_bind(completion *c, const served_model *model, ssm_error *err);

// The prompt of a chat becomes the text of its one prompt. Linear, but a long conversation takes a
// while: any thread, as long as no one else touches *c.
int completion_render(completion *c, const served_model *model, ssm_error *err);

// Whether tokenizing adds special tokens: a template writes its own.
bool completion_adds_special(const completion *c, const served_model *model);

// After tokenizing: what of a prompt's ids is wrong for a model. An empty prompt becomes the
// beginning-of-text token, if the model has one.
int completion_check_prompt(completion *c, const served_model *model,
                            const completion_limits *limits, completion_prompt *prompt,
                            ssm_error *err);

void completion_dispose(completion *c);

#endif
