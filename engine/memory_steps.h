// SPDX-License-Identifier: Apache-2.0
// What ssm/memory.h says of layers, for its two halves and their tests.
#ifndef SSM_ENGINE_MEMORY_STEPS_H
#define SSM_ENGINE_MEMORY_STEPS_H

#include <ssm/memory.h>

#include "kernels/weights.h"

int memory_bin(double tokens); // of SSM_MEMORY_BINS

// ssm_model_get_steps for weights of a selective model and n >= 1 tokens of its vocabulary.
int memory_steps(const ssm_weights *w, const int32_t *tokens, size_t n, ssm_layer_steps *out,
                 ssm_error *err);

#endif
