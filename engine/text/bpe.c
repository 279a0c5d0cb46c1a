// SPDX-License-Identifier: Apache-2.0
// Reading a BPE model: vocabulary, merges, and the tables that encoding looks things up in.
#include "engine/text/bpe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/fields.h"
#include "engine/text/unicode.h"

enum { MERGES_MAX = 1 << 21 };

void bpe_free(bpe *b) {
    if (!b)
        return;
    vocab_dispose(&b->vocab);
    free(b->merges);
    free(b->junctions);
    free(b->first);
    free(b->last);
    free((void *)b->whole);
    ssm_text_dispose(&b->prefix);
    ssm_text_dispose(&b->suffix);
    ssm_text_dispose(&b->unk_token);
    free(b);
}

static int read_vocab(bpe *b, fields *f) {
    const json_t *table = fields_object(f, "vocab", true);
    if (f->code != 0)
        return f->code;
    const char *key;
    size_t len;
    json_t *value;
    json_object_keylen_foreach((json_t *)table, key, len, value) {
        if (!json_is_integer(value))
            return fields_fail(f, SSM_EFORMAT, "the id of \"%.60s\" is not an integer", key);
        const json_int_t id = json_integer_value(value);
        const int rc = vocab_add(&b->vocab, key, len, id);
        if (rc == SSM_ENOMEM)
            return f->code = rc;
        if (rc != 0)
            return fields_fail(f, SSM_EFORMAT, "id %lld of \"%.60s\" is %s", (long long)id, key,
                               id < 0 || id >= VOCAB_MAX_ID ? "out of range" : "taken twice");
    }
    return 0;
}

// The two halves of a merge, "a b" or ["a", "b"].
static bool split_merge(const json_t *item, ssm_string *a, ssm_string *b) {
    if (json_is_array(item)) {
        if (json_array_size(item) != 2 || !json_is_string(json_array_get(item, 0)) ||
            !json_is_string(json_array_get(item, 1)))
            return false;
        *a = json_text(json_array_get(item, 0));
        *b = json_text(json_array_get(item, 1));
        return true;
    }
    if (!json_is_string(item))
        return false;
    const ssm_string s = json_text(item);
    const char *space = memchr(s.data, ' ', s.len);
    if (!space || memchr(space + 1, ' ', (size_t)(s.data + s.len - space - 1)))
        return false;
    *a = (ssm_string){s.data, (size_t)(space - s.data)};
    *b = (ssm_string){space + 1, (size_t)(s.data + s.len - space - 1)};
    return true;
}

static void put_merge(bpe *b, merge m) {
    size_t at = bpe_hash_pair(m.left, m.right) & (b->n_merges - 1);
    while (b->merges[at].left >= 0 &&
           (b->merges[at].left != m.left || b->merges[at].right != m.right))
        at = (at + 1) & (b->n_merges - 1);
    b->merges[at] = m; // of two equal pairs the later counts, as in the library
}

static int read_merge(bpe *b, fields *f, const json_t *item, size_t rank, ssm_text *joined) {
    ssm_string left, right;
    if (!split_merge(item, &left, &right))
        return fields_fail(f, SSM_EFORMAT, "merge %zu is not a pair", rank);
    merge m = {.rank = (int32_t)rank,
               .left = vocab_find(&b->vocab, left.data, left.len),
               .right = vocab_find(&b->vocab, right.data, right.len)};
    if (m.left < 0 || m.right < 0 || right.len < b->prefix.len)
        return fields_fail(f, SSM_EFORMAT, "merge %zu names a token that is not in the vocabulary",
                           rank);
    if (left.len == 0 || right.len == b->prefix.len)
        return fields_fail(f, SSM_EFORMAT, "merge %zu has an empty half", rank);
    joined->len = 0;
    if (ssm_text_append(joined, left.data, left.len) != 0 ||
        ssm_text_append(joined, right.data + b->prefix.len, right.len - b->prefix.len) != 0)
        return f->code = SSM_ENOMEM;
    m.result = vocab_find(&b->vocab, joined->data, joined->len);
    if (m.result < 0)
        return fields_fail(f, SSM_EFORMAT, "the result of merge %zu is not in the vocabulary",
                           rank);
    put_merge(b, m);
    return 0;
}

static size_t table_size(size_t n) {
    size_t size = 64;
    while (size < 2 * n + 1)
        size *= 2;
    return size;
}

static int read_merges(bpe *b, fields *f) {
    const json_t *list = fields_array(f, "merges", true);
    if (f->code != 0)
        return f->code;
    if (json_array_size(list) > MERGES_MAX)
        return fields_fail(f, SSM_EFORMAT, "%zu merges are too many", json_array_size(list));
    b->n_merges = table_size(json_array_size(list));
    b->merges = malloc(b->n_merges * sizeof *b->merges);
    if (!b->merges)
        return f->code = SSM_ENOMEM;
    for (size_t i = 0; i < b->n_merges; i++)
        b->merges[i].left = -1;
    ssm_text joined = {0};
    size_t i;
    json_t *item;
    json_array_foreach((json_t *)list, i, item) {
        if (read_merge(b, f, item, i, &joined) != 0)
            break;
    }
    ssm_text_dispose(&joined);
    return f->code;
}

static int read_options(bpe *b, fields *f) {
    const json_t *dropout = fields_any(f, "dropout");
    if (dropout && (!json_is_number(dropout) || json_number_value(dropout) != 0))
        return fields_fail(f, SSM_EUNSUPPORTED, "dropout is not supported");
    const ssm_string prefix = fields_string(f, "continuing_subword_prefix", false);
    const ssm_string suffix = fields_string(f, "end_of_word_suffix", false);
    const ssm_string unk = fields_string(f, "unk_token", false);
    b->fuse_unk = fields_bool(f, "fuse_unk", false);
    b->byte_fallback = fields_bool(f, "byte_fallback", false);
    b->ignore_merges = fields_bool(f, "ignore_merges", false);
    b->unk = -1;
    if (f->code != 0)
        return f->code;
    if ((prefix.data && ssm_text_append(&b->prefix, prefix.data, prefix.len) != 0) ||
        (suffix.data && ssm_text_append(&b->suffix, suffix.data, suffix.len) != 0) ||
        (unk.data && ssm_text_append(&b->unk_token, unk.data, unk.len) != 0))
        return f->code = SSM_ENOMEM;
    return 0;
}

static void fill_characters(bpe *b) {
    for (int c = 0; c < 128; c++) {
        const char s[] = {(char)c};
        b->ascii[c] = vocab_find(&b->vocab, s, 1);
    }
    for (int c = 0; c < 256; c++) {
        char s[8];
        snprintf(s, sizeof s, "<0x%02X>", c);
        b->byte_ids[c] = vocab_find(&b->vocab, s, 6);
    }
    if (b->unk_token.cap > 0)
        b->unk = vocab_find(&b->vocab, b->unk_token.data, b->unk_token.len);
}

// first and last character of every string, and the pairs of characters at which merges join.
static int fill_junctions(bpe *b) {
    const size_t n = (size_t)b->vocab.n_ids;
    size_t count = 0;
    b->first = malloc((n + 1) * sizeof *b->first);
    b->last = malloc((n + 1) * sizeof *b->last);
    b->whole = calloc(n + 1, sizeof *b->whole);
    if (!b->first || !b->last || !b->whole)
        return SSM_ENOMEM;
    for (size_t id = 0; id < n; id++) {
        size_t len;
        const char *s = vocab_get(&b->vocab, (int32_t)id, &len);
        b->first[id] = len > 0 ? utf8_get(s) : -1;
        b->last[id] = len > 0 ? utf8_get_last(s, len) : -1;
    }
    for (size_t i = 0; i < b->n_merges; i++)
        count += b->merges[i].left >= 0;
    b->n_junctions = table_size(count);
    b->junctions = malloc(b->n_junctions * sizeof *b->junctions);
    if (!b->junctions)
        return SSM_ENOMEM;
    memset(b->junctions, 0xff, b->n_junctions * sizeof *b->junctions);
    for (size_t i = 0; i < b->n_merges; i++) {
        if (b->merges[i].left < 0)
            continue;
        const int32_t last = b->last[b->merges[i].left], first = b->first[b->merges[i].right];
        const uint64_t key = (uint64_t)(uint32_t)last << 32 | (uint32_t)first;
        size_t at = bpe_hash_pair(last, first) & (b->n_junctions - 1);
        while (b->junctions[at] != UINT64_MAX && b->junctions[at] != key)
            at = (at + 1) & (b->n_junctions - 1);
        b->junctions[at] = key;
    }
    return 0;
}

int bpe_create(const json_t *json, bpe **out, ssm_error *err) {
    // Old files leave the type out; only BPE has merges.
    const bool typed = json_object_get(json, "type") || !json_object_get(json, "merges");
    fields f = fields_open(json, "model", typed, err);
    if (f.code != 0)
        return f.code;
    if (typed && strcmp(f.type, "BPE") != 0)
        return fields_unsupported(&f);
    bpe *b = calloc(1, sizeof *b);
    if (!b)
        return SSM_ENOMEM;
    if (read_options(b, &f) != 0 || read_vocab(b, &f) != 0 || read_merges(b, &f) != 0 ||
        fields_done(&f) != 0)
        goto done;
    fill_characters(b);
    f.code = fill_junctions(b);
done:
    if (f.code != 0) {
        bpe_free(b);
        return f.code;
    }
    *out = b;
    return 0;
}
