// SPDX-License-Identifier: Apache-2.0
// Copies between slots, and between rows of logits, that are asked for one by one and made
// together.
//
// On a GPU a copy of one state is half a dozen kernels, each over before the host has launched the
// next, and a step of hundreds of streams ends several prompts and answers, each with a state to
// save. So their copies wait for each other, and are made by one call for slots and one for rows,
// once a step, before it. Whoever is about to change what they read, or to use what they write,
// has them made first. So has a copy that depends on one that waits, which is why the pairs of a
// call never depend on each other. One that would be overwritten before anybody has read it is not
// made at all: streams that begin together end together, in a step that saves more states than the
// cache has rows. (mamba-130m, 512 streams over HTTP, between tokens at p99.9: each made when asked
// for 61 ms on an H100, without a cache 16; made together 8.4 on an H200, without a cache 6.7.)
#ifndef SSM_ENGINE_COPIES_H
#define SSM_ENGINE_COPIES_H

#include "kernels/backend.h"

enum { MOST_COPIES = 256 };

typedef struct copy_pairs {
    int32_t src[MOST_COPIES], dst[MOST_COPIES];
    int32_t n;
} copy_pairs;

typedef struct copies {
    const ssm_backend *backend;
    ssm_device *device;
    copy_pairs slots, rows;
} copies;

// rc is the device's, of copies that were made.
int copies_add_slot(copies *c, int32_t src, int32_t dst, ssm_error *err);
int copies_add_row(copies *c, int32_t src, int32_t dst, ssm_error *err);
int copies_make(copies *c, ssm_error *err); // all

#endif
