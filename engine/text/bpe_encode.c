// SPDX-License-Identifier: Apache-2.0
// Byte-pair encoding of one word, in n log n time for a word of n characters.
//
// The definition: begin with the word's characters (unknown ones as their bytes' tokens, or as the
// unknown token); while some neighbours have a merge, take the one of lowest rank, leftmost first.
//
//   1. Most words of a text are in the vocabulary and encode to that one id. Being in it is not
//      enough, so `whole` remembers the answer of each id once it has been worked out. It is a byte
//      an id, written and read with relaxed atomics: every thread that writes it writes the same.
//   2. A word falls apart at each pair of characters that no merge joins: a merge (a, b) can only
//      join where the last character of a meets the first of b, and those pairs are in a table.
//      In metaspace files without pre-tokenizer a whole document is one word; it falls apart at
//      spaces, and each part has the chance of step 1.
//   3. Short parts keep the ranks of their neighbours in an array and scan it for the lowest; long
//      ones use a heap of (rank, position) over a linked list. Heap entries whose pair has changed
//      are recognised by their rank when they come up. Both give the same: ranks are distinct
//      by pair, and ties are taken leftmost first.
//
// With a continuing-subword prefix or an end-of-word suffix a token's string is not the
// concatenation of its parts, so steps 1 and 2 are left out there.
#include "engine/text/bpe.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/unicode.h"

enum {
    SHORT_PART = 48, // symbols; beyond it the heap
    WORD_MAX = 256,  // bytes; longer strings are not looked up whole
    NO_RANK = INT32_MAX,
};

typedef struct symbol {
    int32_t id;      // -1: merged into the one before
    uint32_t offset; // where its text begins in the word
    int32_t prev, next;
} symbol;

void bpe_scratch_dispose(bpe_scratch *s) {
    free(s->symbols);
    free(s->heap);
    ssm_text_dispose(&s->spelling);
    *s = (bpe_scratch){0};
}

static int push_symbol(bpe_scratch *s, int32_t id, size_t offset) {
    if (s->n == s->cap) {
        const size_t want = s->cap ? 2 * s->cap : 256;
        symbol *bigger = realloc(s->symbols, want * sizeof *bigger);
        if (!bigger)
            return SSM_ENOMEM;
        s->symbols = bigger;
        s->cap = want;
    }
    s->symbols[s->n++] = (symbol){.id = id, .offset = (uint32_t)offset};
    return 0;
}

// ---- a word's symbols ---------------------------------------------------------------------------

typedef struct speller {
    const bpe *b;
    bpe_scratch *s;
    ssm_error *err;
    bool pending_unk; // an unknown token that waits for the next known one
    bool all_direct;  // no byte tokens, no unknown tokens
} speller;

static int flush_unk(speller *p, size_t offset) {
    if (!p->pending_unk)
        return 0;
    p->pending_unk = false;
    return push_symbol(p->s, p->b->unk, offset);
}

// An unknown character: its bytes as tokens if all of them exist, else the unknown token. That one
// is held until the next known character or the word's end, behind byte tokens too: the library
// does so.
static int spell_unknown(speller *p, const char *s, size_t n, size_t offset) {
    const bpe *b = p->b;
    p->all_direct = false;
    bool has_bytes = b->byte_fallback;
    for (size_t i = 0; has_bytes && i < n; i++)
        has_bytes = b->byte_ids[(unsigned char)s[i]] >= 0;
    if (has_bytes) {
        int rc = 0;
        for (size_t i = 0; i < n && rc == 0; i++)
            rc = push_symbol(p->s, b->byte_ids[(unsigned char)s[i]], offset);
        return rc;
    }
    if (b->unk_token.cap == 0)
        return 0; // dropped
    if (b->unk < 0)
        return ssm_error_set(p->err, SSM_EFORMAT, "model",
                             "tokenizer.json: unk_token %.60s is not in the vocabulary",
                             b->unk_token.data);
    if (p->pending_unk && !b->fuse_unk) {
        const int rc = push_symbol(p->s, b->unk, offset);
        if (rc != 0)
            return rc;
    }
    p->pending_unk = true;
    return 0;
}

static int spell_one(speller *p, const char *s, size_t n, size_t offset) {
    const int32_t id =
        n == 1 && (unsigned char)*s < 0x80 ? p->b->ascii[(int)*s] : vocab_find(&p->b->vocab, s, n);
    if (id < 0)
        return spell_unknown(p, s, n, offset);
    const int rc = flush_unk(p, offset);
    return rc != 0 ? rc : push_symbol(p->s, id, offset);
}

// One character with the prefix and suffix that its place in the word asks for.
static int spell_affixed(speller *p, const char *s, size_t n, size_t offset, bool is_last) {
    ssm_text *t = &p->s->spelling;
    t->len = 0;
    if (offset > 0 && ssm_text_append(t, p->b->prefix.data, p->b->prefix.len) != 0)
        return SSM_ENOMEM;
    if (ssm_text_append(t, s, n) != 0)
        return SSM_ENOMEM;
    if (is_last && ssm_text_append(t, p->b->suffix.data, p->b->suffix.len) != 0)
        return SSM_ENOMEM;
    return spell_one(p, t->data, t->len, offset);
}

static int spell(speller *p, const char *word, size_t len) {
    const bool affixed = p->b->prefix.len + p->b->suffix.len > 0;
    int rc = 0;
    for (size_t i = 0; i < len && rc == 0;) {
        const size_t n = utf8_width((unsigned char)word[i]);
        rc =
            affixed ? spell_affixed(p, word + i, n, i, i + n == len) : spell_one(p, word + i, n, i);
        i += n;
    }
    return rc != 0 ? rc : flush_unk(p, len);
}

// ---- merging ------------------------------------------------------------------------------------

static int32_t rank_of(const bpe *b, int32_t left, int32_t right) {
    const merge *m = bpe_merge(b, left, right);
    return m ? m->rank : NO_RANK;
}

// Merges n symbols by scanning; the ids that remain are at the front. Returns how many.
static size_t merge_short(const bpe *b, symbol *part, size_t n) {
    int32_t ids[SHORT_PART], ranks[SHORT_PART];
    assert(n <= SHORT_PART);
    for (size_t i = 0; i < n; i++)
        ids[i] = part[i].id;
    for (size_t i = 0; i + 1 < n; i++)
        ranks[i] = rank_of(b, ids[i], ids[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) {
            if (ranks[i] < ranks[best])
                best = i;
        }
        if (ranks[best] == NO_RANK)
            break;
        ids[best] = bpe_merge(b, ids[best], ids[best + 1])->result;
        n--;
        memmove(ids + best + 1, ids + best + 2, (n - best - 1) * sizeof *ids);
        if (best + 1 < n) {
            memmove(ranks + best + 1, ranks + best + 2, (n - best - 2) * sizeof *ranks);
            ranks[best] = rank_of(b, ids[best], ids[best + 1]);
        }
        if (best > 0)
            ranks[best - 1] = rank_of(b, ids[best - 1], ids[best]);
    }
    for (size_t i = 0; i < n; i++)
        part[i].id = ids[i];
    return n;
}

// A min-heap with four children a node: half the levels of a binary one, and the children of a node
// share a cache line.
static void sift_down(uint64_t *heap, size_t n, size_t at) {
    const uint64_t key = heap[at];
    for (;;) {
        const size_t child = 4 * at + 1;
        if (child >= n)
            break;
        const size_t end = child + 4 < n ? child + 4 : n;
        size_t least = child;
        for (size_t i = child + 1; i < end; i++) {
            if (heap[i] < heap[least])
                least = i;
        }
        if (heap[least] >= key)
            break;
        heap[at] = heap[least];
        at = least;
    }
    heap[at] = key;
}

static uint64_t heap_pop(bpe_scratch *s) {
    const uint64_t top = s->heap[0];
    s->heap[0] = s->heap[--s->heap_n];
    if (s->heap_n > 0)
        sift_down(s->heap, s->heap_n, 0);
    return top;
}

static void heap_push(bpe_scratch *s, uint64_t key) {
    size_t at = s->heap_n++;
    while (at > 0 && s->heap[(at - 1) / 4] > key) {
        s->heap[at] = s->heap[(at - 1) / 4];
        at = (at - 1) / 4;
    }
    s->heap[at] = key;
}

static void offer(const bpe *b, bpe_scratch *s, const symbol *part, int32_t left, int32_t right) {
    const merge *m = bpe_merge(b, part[left].id, part[right].id);
    if (m)
        heap_push(s, (uint64_t)m->rank << 32 | (uint32_t)left);
}

// Every merge takes away one symbol and offers two pairs: 3n entries at most at any time.
static int heap_reserve(bpe_scratch *s, size_t n) {
    s->heap_n = 0;
    if (3 * n <= s->heap_cap)
        return 0;
    uint64_t *bigger = realloc(s->heap, 3 * n * sizeof *bigger);
    if (!bigger)
        return SSM_ENOMEM;
    s->heap = bigger;
    s->heap_cap = 3 * n;
    return 0;
}

static void merge_top(const bpe *b, bpe_scratch *s, symbol *part, uint64_t top) {
    const int32_t at = (int32_t)(uint32_t)top;
    const int32_t next = part[at].next;
    if (part[at].id < 0 || next < 0)
        return;
    const merge *m = bpe_merge(b, part[at].id, part[next].id);
    if (!m || (uint64_t)m->rank != top >> 32)
        return; // the pair has changed since
    part[at].id = m->result;
    part[next].id = -1;
    part[at].next = part[next].next;
    if (part[at].next >= 0) {
        part[part[at].next].prev = at;
        offer(b, s, part, at, part[at].next);
    }
    if (part[at].prev >= 0)
        offer(b, s, part, part[at].prev, at);
}

// Merges n symbols by the heap; as merge_short.
static int merge_long(const bpe *b, bpe_scratch *s, symbol *part, size_t n, size_t *left) {
    int rc = heap_reserve(s, n);
    if (rc != 0)
        return rc;
    for (size_t i = 0; i < n; i++) {
        part[i].prev = (int32_t)i - 1;
        part[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
    }
    for (size_t i = 0; i + 1 < n; i++) {
        const merge *m = bpe_merge(b, part[i].id, part[i + 1].id);
        if (m)
            s->heap[s->heap_n++] = (uint64_t)m->rank << 32 | (uint32_t)i;
    }
    for (size_t i = s->heap_n / 4 + 1; i-- > 0;) {
        if (i < s->heap_n)
            sift_down(s->heap, s->heap_n, i);
    }
    while (s->heap_n > 0)
        merge_top(b, s, part, heap_pop(s));
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (part[i].id >= 0)
            part[kept++].id = part[i].id;
    }
    *left = kept;
    return 0;
}

static int push_ids(const symbol *part, size_t n, ssm_ids *out) {
    int32_t ids[64];
    for (size_t i = 0; i < n;) {
        size_t k = 0;
        while (k < 64 && i < n)
            ids[k++] = part[i++].id;
        const int rc = ssm_ids_append(out, ids, k);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int merge_part(const bpe *b, bpe_scratch *s, symbol *part, size_t n, ssm_ids *out) {
    size_t left = n;
    if (n > SHORT_PART) {
        const int rc = merge_long(b, s, part, n, &left);
        if (rc != 0)
            return rc;
    } else if (n > 1) {
        left = merge_short(b, part, n);
    }
    return push_ids(part, left, out);
}

// ---- whole strings ------------------------------------------------------------------------------

// Looks the string up: its id (or -1), and whether it is known to encode to that id alone.
static int32_t find_whole(const bpe *b, const char *s, size_t len, uint8_t *state) {
    *state = WHOLE_NO;
    const int32_t id = len <= WORD_MAX ? vocab_find(&b->vocab, s, len) : -1;
    if (id >= 0)
        *state = atomic_load_explicit(&b->whole[id], memory_order_relaxed);
    return id;
}

static void learn_whole(const bpe *b, int32_t id, const ssm_ids *out, size_t before) {
    const bool yes = out->len == before + 1 && out->data[before] == id;
    atomic_store_explicit(&b->whole[id], yes ? WHOLE_YES : WHOLE_NO, memory_order_relaxed);
}

// Where no merge joins the neighbours i-1 and i of a part, the part ends.
static size_t part_end(const bpe *b, const bpe_scratch *s, size_t start) {
    size_t i = start + 1;
    while (i < s->n && bpe_joins(b, b->last[s->symbols[i - 1].id], b->first[s->symbols[i].id]))
        i++;
    return i;
}

// Merges the symbols of a plain word part by part.
static int merge_parts(const bpe *b, bpe_scratch *s, const char *word, size_t len, bool all_direct,
                       ssm_ids *out) {
    int rc = 0;
    for (size_t i = 0, end; i < s->n && rc == 0; i = end) {
        end = part_end(b, s, i);
        const bool is_word = i == 0 && end == s->n; // looked up already
        if (all_direct && end - i > 1 && !is_word) {
            const size_t from = s->symbols[i].offset;
            const size_t to = end < s->n ? s->symbols[end].offset : len;
            uint8_t state;
            const int32_t id = find_whole(b, word + from, to - from, &state);
            if (state == WHOLE_YES) {
                rc = ssm_ids_append(out, &id, 1);
                continue;
            }
            const size_t before = out->len;
            rc = merge_part(b, s, s->symbols + i, end - i, out);
            if (rc == 0 && id >= 0 && state == WHOLE_UNKNOWN)
                learn_whole(b, id, out, before);
        } else {
            rc = merge_part(b, s, s->symbols + i, end - i, out);
        }
    }
    return rc;
}

int bpe_encode(const bpe *b, bpe_scratch *s, const char *word, size_t len, ssm_ids *out,
               ssm_error *err) {
    if (b->ignore_merges) {
        const int32_t id = vocab_find(&b->vocab, word, len);
        if (id >= 0)
            return ssm_ids_append(out, &id, 1);
    }
    const bool affixed = b->prefix.len + b->suffix.len > 0;
    uint8_t state = WHOLE_NO;
    const int32_t id = affixed ? -1 : find_whole(b, word, len, &state);
    if (state == WHOLE_YES)
        return ssm_ids_append(out, &id, 1);
    s->n = 0;
    speller p = {.b = b, .s = s, .err = err, .all_direct = true};
    int rc = spell(&p, word, len);
    if (rc != 0)
        return rc;
    const size_t before = out->len;
    if (affixed)
        rc = merge_part(b, s, s->symbols, s->n, out);
    else
        rc = merge_parts(b, s, word, len, p.all_direct, out);
    if (rc == 0 && id >= 0 && state == WHOLE_UNKNOWN)
        learn_whole(b, id, out, before);
    return rc;
}
