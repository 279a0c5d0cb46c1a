// SPDX-License-Identifier: Apache-2.0
// What one request allocates while it is parsed, freed at once when it is over. Zero-initialise.
// Belongs to one thread at a time.
#ifndef SSMD_ARENA_H
#define SSMD_ARENA_H

#include <stddef.h>

struct arena_block;
typedef struct arena {
    struct arena_block *blocks;
    size_t used;  // of the first block
    size_t bytes; // allocated in all
} arena;

// n objects of a size, zeroed and aligned for any type; NULL if memory is short. n * size may
// overflow: NULL too.
void *arena_alloc(arena *a, size_t n, size_t size);
char *arena_copy(arena *a, const char *text, size_t len); // NUL-terminated
void arena_adopt(arena *a, void *memory, size_t bytes);   // from malloc; freed with the arena
void arena_dispose(arena *a);

#endif
