// SPDX-License-Identifier: Apache-2.0
// ssmd inspect --memory: how far back each layer remembers. An s4d, s4 or h3 model's poles say it;
// what another remembers depends on the text, and is said of one (--text, --text-file).
#ifndef SSMD_INSPECT_MEMORY_H
#define SSMD_INSPECT_MEMORY_H

#include <jansson.h>

#include <ssm/memory.h>
#include <ssm/model.h>
#include <ssm/tokenizer.h>

#include "options.h"

typedef struct memory_report {
    int32_t n_layers;         // 0: nothing was asked for
    ssm_layer_memory *layers; // or
    ssm_layer_steps *steps;   // of a text
    size_t n_tokens;
} memory_report;

// 0, or an error that names what was wrong with model or text. The tokenizer may be NULL.
int memory_report_make(memory_report *r, const ssm_model *model, const ssm_tokenizer *tokenizer,
                       const options *o, ssm_error *err);
void memory_report_dispose(memory_report *r);

// Nothing, if nothing was asked for.
void memory_report_print(const memory_report *r);
void memory_report_put(const memory_report *r, json_t *object); // "memory", "memory_tokens"

#endif
