// SPDX-License-Identifier: Apache-2.0
// Memory that requests in hand may take together: bodies, their trees, ids. Any thread.
#ifndef SSMD_BUDGET_H
#define SSMD_BUDGET_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct budget {
    size_t limit;
    atomic_size_t used;
} budget;

// What the process may use at all: its cgroup's memory, or the machine's.
uint64_t budget_memory(void);

// limit 0: a quarter of budget_memory().
void budget_init(budget *b, size_t limit);
bool budget_take(budget *b, size_t bytes); // false: it would pass the limit; nothing is taken
void budget_give(budget *b, size_t bytes);

#endif
