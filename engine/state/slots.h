// SPDX-License-Identifier: Apache-2.0
// Which rows of the device's state arrays are free: a stack, so that warm slots are used again
// first. Engine thread only.
#ifndef SSM_ENGINE_SLOTS_H
#define SSM_ENGINE_SLOTS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct slots {
    int32_t *free; // [total], the first n_free are valid
    bool *is_used; // [total]
    int32_t total, n_free;
} slots;

int slots_init(slots *s, int32_t total); // 0 or SSM_ENOMEM
void slots_dispose(slots *s);
int32_t slots_take(slots *s); // a slot, or -1
void slots_give(slots *s, int32_t slot);

#endif
