// SPDX-License-Identifier: Apache-2.0
#include "arena.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct arena_block {
    struct arena_block *next;
    size_t size;
    void *adopted; // memory of someone else's malloc, owned from now on
    _Alignas(max_align_t) char data[];
};

enum { BLOCK = 4096 - 64, ALIGN = _Alignof(max_align_t) };

static struct arena_block *add_block(arena *a, size_t size) {
    struct arena_block *block = calloc(1, sizeof *block + size);
    if (block) {
        block->size = size;
        block->next = a->blocks;
        a->blocks = block;
        a->used = 0;
        a->bytes += sizeof *block + size;
    }
    return block;
}

void *arena_alloc(arena *a, size_t n, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX / 2) {
        return NULL;
    }
    bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    struct arena_block *block = a->blocks;
    if (!block || block->size - a->used < bytes) {
        block = add_block(a, bytes > BLOCK ? bytes : BLOCK);
        if (!block) {
            return NULL;
        }
    }
    void *at = block->data + a->used;
    a->used += bytes;
    return at;
}

char *arena_copy(arena *a, const char *text, size_t len) {
    char *copy = arena_alloc(a, len + 1, 1);
    if (copy) {
        memcpy(copy, text, len);
    }
    return copy;
}

void arena_adopt(arena *a, void *memory, size_t bytes) {
    struct arena_block *block = memory ? add_block(a, 0) : NULL;
    if (block) {
        block->adopted = memory;
        a->bytes += bytes;
    } else {
        free(memory);
    }
}

void arena_dispose(arena *a) {
    for (struct arena_block *block = a->blocks; block;) {
        struct arena_block *next = block->next;
        free(block->adopted);
        free(block);
        block = next;
    }
    *a = (arena){0};
}
