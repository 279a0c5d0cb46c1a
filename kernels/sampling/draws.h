// SPDX-License-Identifier: Apache-2.0
// The results of sample calls that were not collected yet, oldest first, in memory taken once.
#ifndef SSM_KERNELS_SAMPLING_DRAWS_H
#define SSM_KERNELS_SAMPLING_DRAWS_H

#include "kernels/backend.h"

enum { DRAWS_MAX_CALLS = 16 };

typedef struct ssm_draws {
    ssm_sampled *ring; // [cap]
    size_t cap, first, used;
    int32_t calls[DRAWS_MAX_CALLS]; // draws of each call
    int first_call, n_calls;
} ssm_draws;

int ssm_draws_init(ssm_draws *draws, size_t cap); // 0 or SSM_ENOMEM
void ssm_draws_dispose(ssm_draws *draws);

// Room for one call's n draws: element i of it is ssm_draws_at(draws, first + i). SSM_EBUSY if what
// is uncollected leaves no room.
int ssm_draws_push(ssm_draws *draws, int32_t n, size_t *first, ssm_error *err);
ssm_sampled *ssm_draws_at(ssm_draws *draws, size_t i);

// Copies out and forgets the oldest call's draws; SSM_EINVAL if n is not their number.
int ssm_draws_pop(ssm_draws *draws, ssm_sampled *out, int32_t n, ssm_error *err);

#endif
