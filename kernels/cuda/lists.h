// SPDX-License-Identifier: Apache-2.0
// A step's lists (lists.cu) and the staging block that they are written into.
#ifndef SSM_KERNELS_CUDA_LISTS_H
#define SSM_KERNELS_CUDA_LISTS_H

#include "cuda.h"

namespace ssm {

struct block {
    char *host, *device; // where the lists are written; where kernels will find them
    size_t used, capacity;
};

// Slots whose states are made whole before a step.
struct folds {
    span *spans;
    batch b;
};

struct decode_lists { // on the host
    int32_t *tokens, *held, *starts;
    row *rows;
};

// Whether a plan is decode rows alone, which a graph can take.
bool lists_are_decode(const device *d, const ssm_plan *plan);
// What comes first in such a step's block, by the bucket alone; out: what is captured.
decode_lists lists_lay_decode(const device *d, block *b, int32_t bucket, batch *out);

// Write a plan's lists. Each moves its slots on (ring_at, held): once for every step, in the steps'
// order.
void lists_decode(device *d, const ssm_plan *plan, int32_t bucket, block *b, folds *f);
bool lists_mixed(device *d, const ssm_plan *plan, block *b, batch *out, folds *f); // false: no room

} // namespace ssm

#endif
