// SPDX-License-Identifier: Apache-2.0
// The models that a process serves, each with its tokenizer and its engine.
//
// registry_init checks names (main thread); registry_load opens everything and blocks, on any one
// thread; from the moment registry_is_ready says so the registry is immutable and any thread may
// read it.
#ifndef SSMD_REGISTRY_H
#define SSMD_REGISTRY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <time.h>

#include <ssm/engine.h>
#include <ssm/model.h>
#include <ssm/template.h>
#include <ssm/tokenizer.h>

#include "chat_note.h"
#include "options.h"

enum { REGISTRY_MAX = 64 };

typedef struct served_model {
    char *name, *path; // owned
    ssm_model *model;
    const ssm_model_info *info;
    ssm_tokenizer *tokenizer;
    ssm_chat *chat;
    char closing[CHAT_NOTE_PART + 1]; // what the template writes behind an answer (chat_turn.h)
    ssm_engine *engine;
    time_t created;
    size_t index;       // in the registry, and of its port in a loop
    bool store_is_down; // as the log knows; the first loop's, as is
    uint64_t store_failures, store_connects, turns_lost;
} served_model;

typedef struct registry {
    served_model items[REGISTRY_MAX];
    size_t n;
    bool any_model;
    atomic_bool ready;
} registry;

// Names and paths from --model, or the demonstration model if there is none.
int registry_init(registry *r, const options *o, ssm_error *err);
int registry_load(registry *r, const options *o, ssm_error *err);
// Once they are loaded: whose chats have no template of their own.
void registry_report_chats(const registry *r, const options *o);
bool registry_is_ready(const registry *r);
void registry_stop(registry *r); // frees the engines: their requests end
void registry_dispose(registry *r);

// Whether all models' sessions can be reached, as far as they are kept elsewhere.
bool registry_store_is_up(const registry *r);
// Logs what has changed since the last time. The first loop's thread, once it is ready.
void registry_watch_stores(registry *r);

// NULL name: the first; an unknown name: NULL, or the first with --any-model.
const served_model *registry_find(const registry *r, const char *name);

// What --device and the like say, as an engine takes it. vocab_limit is the tokenizer's.
void registry_engine_options(const options *o, const ssm_tokenizer *tokenizer,
                             const ssm_model_info *info, ssm_engine_options *out);

#endif
