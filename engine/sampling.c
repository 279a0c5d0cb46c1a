// SPDX-License-Identifier: Apache-2.0
#include <ssm/sampling.h>

#include <string.h>

void ssm_sampling_init(ssm_sampling *sampling) {
    memset(sampling, 0, sizeof *sampling);
    sampling->temperature = 1.0f;
    sampling->top_p = 1.0f;
    sampling->typical_p = 1.0f;
    sampling->repetition_penalty = 1.0f;
}
