// SPDX-License-Identifier: Apache-2.0
// Between the files that make a completion of a body.
#ifndef SSMD_PARSE_H
#define SSMD_PARSE_H

#include "completion.h"
#include "json.h"

static inline int no_memory(ssm_error *err) {
    return ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
}

// ---- parse_chat.c

// What only a chat has: messages, tools and the like, its own limits and log-probabilities.
int parse_chat(completion *c, const json_t *root, ssm_error *err);
bool parse_chat_knows(const char *key);

// ---- parse_prompt.c

int parse_prompt(completion *c, const completion_limits *limits, const json_t *root, json_ids *ids,
                 ssm_error *err); // takes the ids over

// ---- parse_shaped.c

// Those of the fields that have a shape of their own and do not say what is to be answered.
int parse_shaped(completion *c, const completion_limits *limits, const json_t *root,
                 const json_skimmer *skim, ssm_error *err);
int parse_copy_string(completion *c, const json_t *value, ssm_string *out, ssm_error *err);

#endif
