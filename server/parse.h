// SPDX-License-Identifier: Apache-2.0
// Between the two files that parse request bodies.
#ifndef SSMD_PARSE_H
#define SSMD_PARSE_H

#include "completion.h"
#include "json.h"

// What only a chat has: messages, tools and the like, its own limits and log-probabilities.
int parse_chat(completion *c, const json_t *root, ssm_error *err);
bool parse_chat_knows(const char *key);

#endif
