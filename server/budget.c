// SPDX-License-Identifier: Apache-2.0
#include "budget.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// A file that holds one number; "max" and what cannot be read count as no limit.
static uint64_t read_limit(const char *path) {
    char text[64] = "";
    FILE *file = fopen(path, "re");
    if (file) {
        const size_t n = fread(text, 1, sizeof text - 1, file);
        text[n] = '\0';
        fclose(file);
    }
    char *end;
    const unsigned long long limit = strtoull(text, &end, 10);
    return end == text || limit == 0 ? UINT64_MAX : limit;
}

// The limit of the process's own cgroup (version 2), of the root that a container sees, and of
// version 1's memory controller, whichever is the lowest.
static uint64_t cgroup_limit(void) {
    char line[512], path[600];
    uint64_t limit = read_limit("/sys/fs/cgroup/memory.max");
    const uint64_t v1 = read_limit("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    limit = v1 < limit ? v1 : limit;
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "0::/", 4) == 0 && line[4]) {
            snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.max", line + 3);
            const uint64_t own = read_limit(path);
            limit = own < limit ? own : limit;
        }
    }
    if (file) {
        fclose(file);
    }
    return limit;
}

uint64_t budget_memory(void) {
    const uint64_t machine = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    const uint64_t group = cgroup_limit();
    return group < machine ? group : machine;
}

void budget_init(budget *b, size_t limit) {
    b->limit = limit > 0 ? limit : (size_t)(budget_memory() / 4);
    atomic_init(&b->used, 0);
}

bool budget_take(budget *b, size_t bytes) {
    size_t used = atomic_load_explicit(&b->used, memory_order_relaxed);
    do {
        if (bytes > b->limit || used > b->limit - bytes) {
            return false;
        }
    } while (!atomic_compare_exchange_weak_explicit(&b->used, &used, used + bytes,
                                                    memory_order_relaxed, memory_order_relaxed));
    return true;
}

void budget_give(budget *b, size_t bytes) {
    const size_t before = atomic_fetch_sub_explicit(&b->used, bytes, memory_order_relaxed);
    assert(before >= bytes);
    (void)before;
}
