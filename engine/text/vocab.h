// SPDX-License-Identifier: Apache-2.0
// A table of strings with ids, both ways: one arena of bytes, one array by id, one open-addressing
// hash. Filled once, then read by any number of threads.
#ifndef SSM_ENGINE_TEXT_VOCAB_H
#define SSM_ENGINE_TEXT_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ssm/tokenizer.h>

// Ids end here: twenty times the largest vocabulary in use, and small enough that a lying file
// cannot ask for much memory.
#define VOCAB_MAX_ID ((int32_t)1 << 22)

typedef struct vocab_entry {
    size_t start; // into bytes
    uint32_t len;
    bool present;
} vocab_entry;

typedef struct vocab {
    ssm_text bytes;
    vocab_entry *entries; // [n_ids]
    int32_t n_ids;        // highest id + 1
    int32_t cap_ids;
    int32_t count;  // ids present
    int32_t *slots; // [n_slots] id + 1, 0 if empty
    size_t n_slots; // a power of two
} vocab;

void vocab_dispose(vocab *v);

// Copies the string in. SSM_EFORMAT if the id is out of range or taken, or the string is known.
int vocab_add(vocab *v, const char *s, size_t len, int64_t id);

int32_t vocab_find(const vocab *v, const char *s, size_t len); // -1 if absent

// The string of an id, NULL if it has none.
const char *vocab_get(const vocab *v, int32_t id, size_t *len);

#endif
