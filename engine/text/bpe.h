// SPDX-License-Identifier: Apache-2.0
// The "model" of a tokenizer.json, type BPE: one word to its ids. bpe.c reads it, bpe_encode.c
// runs it (its essay says how).
#ifndef SSM_ENGINE_TEXT_BPE_H
#define SSM_ENGINE_TEXT_BPE_H

#include <stdatomic.h>

#include <jansson.h>

#include <ssm/tokenizer.h>

#include "engine/text/vocab.h"

// A merge of two neighbours. Empty slots have left = -1.
typedef struct merge {
    int32_t left, right;
    int32_t rank;   // lower goes first
    int32_t result; // the id of both together
} merge;

typedef struct bpe {
    vocab vocab;
    merge *merges; // open addressing by (left, right)
    size_t n_merges;
    uint64_t *junctions; // open addressing: pairs of characters that some merge can join, ~0 empty
    size_t n_junctions;
    int32_t *first, *last;   // [n_ids] first and last character of the id's string
    int32_t ascii[128];      // id of a character, -1
    int32_t byte_ids[256];   // id of "<0xNN>", -1
    _Atomic uint8_t *whole;  // [n_ids] WHOLE_*: does the id's string encode to the id alone?
    ssm_text prefix, suffix; // continuing_subword_prefix, end_of_word_suffix
    ssm_text unk_token;
    int32_t unk; // -1 if none
    bool fuse_unk, byte_fallback, ignore_merges;
} bpe;

enum { WHOLE_UNKNOWN, WHOLE_YES, WHOLE_NO };

static inline uint64_t bpe_hash_pair(int32_t a, int32_t b) {
    uint64_t h = ((uint64_t)(uint32_t)a << 32 | (uint32_t)b) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 32;
}

int bpe_create(const json_t *json, bpe **out, ssm_error *err);
void bpe_free(bpe *b);

// The merge of two ids, NULL if they do not merge.
static inline const merge *bpe_merge(const bpe *b, int32_t left, int32_t right) {
    for (size_t at = bpe_hash_pair(left, right) & (b->n_merges - 1);;
         at = (at + 1) & (b->n_merges - 1)) {
        const merge *m = &b->merges[at];
        if (m->left == left && m->right == right)
            return m;
        if (m->left < 0)
            return NULL;
    }
}

// Can any merge join a token that ends in character a with one that begins with character b?
static inline bool bpe_joins(const bpe *b, int32_t a, int32_t c) {
    const uint64_t key = (uint64_t)(uint32_t)a << 32 | (uint32_t)c;
    for (size_t at = bpe_hash_pair(a, c) & (b->n_junctions - 1);;
         at = (at + 1) & (b->n_junctions - 1)) {
        if (b->junctions[at] == key)
            return true;
        if (b->junctions[at] == UINT64_MAX)
            return false;
    }
}

// What one call works with; zero-initialise, dispose when done.
typedef struct bpe_scratch {
    struct symbol *symbols;
    size_t n, cap;
    uint64_t *heap;
    size_t heap_n, heap_cap;
    ssm_text spelling;
} bpe_scratch;
void bpe_scratch_dispose(bpe_scratch *s);

// Appends the ids of one word (valid UTF-8, not empty) to *out. 0, SSM_ENOMEM, or SSM_EFORMAT if
// the unknown token is needed but missing.
int bpe_encode(const bpe *b, bpe_scratch *s, const char *word, size_t len, ssm_ids *out,
               ssm_error *err);

#endif
