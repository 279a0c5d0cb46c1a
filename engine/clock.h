// SPDX-License-Identifier: Apache-2.0
// The time that only goes on: for how long something took, and for how long since.
#ifndef SSM_ENGINE_CLOCK_H
#define SSM_ENGINE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t engine_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#endif
