// SPDX-License-Identifier: Apache-2.0
// The "post_processor" of a tokenizer.json: the ids put around a text.
#ifndef SSM_ENGINE_TEXT_POSTPROCESSOR_H
#define SSM_ENGINE_TEXT_POSTPROCESSOR_H

#include <jansson.h>

#include <ssm/tokenizer.h>

typedef struct postprocessor {
    ssm_ids before, after;
    bool is_template; // the file says what goes around a text, even if that is nothing
} postprocessor;

// json: the file's value, or NULL. n_ids: ids must be below it.
int postprocessor_init(postprocessor *p, const json_t *json, int32_t n_ids, ssm_error *err);
void postprocessor_dispose(postprocessor *p);

#endif
