// SPDX-License-Identifier: Apache-2.0
// How a next token is drawn from the model's logits.
//
// Order (llama-server's): penalties and bias, bans, top_k, typical_p, top_p, min_p, temperature,
// draw. Log-probabilities reported are of the model's own distribution, before all of it. Random
// numbers are Philox4x32-10 keyed by the seed and counted by the position of the token in its
// choice, so a seed gives the same tokens whatever else is in the batch.
#ifndef SSM_SAMPLING_H
#define SSM_SAMPLING_H

#include <stdint.h>

enum { SSM_MAX_LOGPROBS = 20 };

typedef struct ssm_logit_bias {
    int32_t id;
    float bias;
} ssm_logit_bias;

typedef struct ssm_sampling {
    float temperature;        // 0: greedy (the lowest id wins a tie)
    int32_t top_k;            // <= 0: off
    float top_p;              // 1: off
    float min_p;              // 0: off
    float typical_p;          // 1: off
    float presence_penalty;   // over generated tokens
    float frequency_penalty;  // over generated tokens
    float repetition_penalty; // over prompt and generated tokens; 1: off
    const ssm_logit_bias *bias;
    int32_t n_bias;
    const int32_t *allowed; // if n_allowed > 0, only these ids may be drawn
    int32_t n_allowed;
    const int32_t *bad_words; // concatenated; bad word i is bad_words[bad_ends[i-1] .. bad_ends[i])
    const int32_t *bad_ends;
    int32_t n_bad;
} ssm_sampling;

// temperature 1, everything else off.
void ssm_sampling_init(ssm_sampling *sampling);

#endif
