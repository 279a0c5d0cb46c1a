// SPDX-License-Identifier: Apache-2.0
// Added tokens are found leftmost first, the longest of those that begin at one place, without
// overlaps. Ids follow the library: a token that the model's vocabulary (or an earlier entry) knows
// has that id; any other gets the next free one after the model's, whatever number the file writes
// beside it (a well-formed file writes the same).
//
// single_word, lstrip and rstrip are judged after the search, as there: a match that is refused
// still uses up its bytes, and white space that one token's rstrip took may still hold the next
// match.
#include "engine/text/added.h"

#include <stdlib.h>
#include <string.h>

#include "engine/text/fields.h"
#include "engine/text/unicode.h"

void added_dispose(added *a) {
    vocab_dispose(&a->table);
    free(a->tokens);
    aho_dispose(&a->plain);
    aho_dispose(&a->normalized);
    *a = (added){0};
}

void spans_dispose(spans *s) {
    free(s->list);
    *s = (spans){0};
}

static int32_t next_id(const added *a, const vocab *model) {
    const int32_t size = model->count;
    return a->table.count > 0 && a->table.n_ids - 1 >= size ? a->table.n_ids : size;
}

static int read_token(added *a, const json_t *json, const vocab *model, ssm_error *err) {
    fields f = fields_open(json, "added_tokens", false, err);
    const ssm_string content = fields_string(&f, "content", true);
    fields_size(&f, "id", (size_t)VOCAB_MAX_ID - 1);
    added_token t = {.single_word = fields_bool(&f, "single_word", false),
                     .left_strip = fields_bool(&f, "lstrip", false),
                     .right_strip = fields_bool(&f, "rstrip", false),
                     .special = fields_bool(&f, "special", false)};
    t.normalized = fields_bool(&f, "normalized", !t.special);
    if (fields_done(&f) != 0)
        return f.code;
    if (content.len == 0)
        return 0;
    t.id = vocab_find(model, content.data, content.len);
    if (t.id < 0) {
        size_t len;
        t.id = next_id(a, model);
        if (vocab_get(model, t.id, &len))
            return fields_fail(&f, SSM_EFORMAT, "id %d of \"%.60s\" belongs to the model", t.id,
                               content.data);
    }
    const int rc = vocab_add(&a->table, content.data, content.len, t.id);
    if (rc == SSM_EFORMAT)
        return fields_fail(&f, SSM_EFORMAT, "\"%.60s\" or its id is there twice", content.data);
    if (rc == 0)
        a->tokens[a->n++] = t;
    return rc;
}

static int insert(added *a, size_t i, const normalizer *n, matcher *m, ssm_text *form,
                  ssm_error *err) {
    size_t len;
    const char *s = vocab_get(&a->table, a->tokens[i].id, &len);
    if (!a->tokens[i].normalized)
        return aho_add(&a->plain, s, len, (int32_t)i);
    bool kept_start;
    const int rc = normalizer_run(n, m, s, len, form, &kept_start, err);
    if (rc != 0)
        return rc;
    if (form->len == 0)
        return ssm_error_set(err, SSM_EUNSUPPORTED, "added_tokens",
                             "tokenizer.json: added token \"%.60s\" normalizes to nothing", s);
    return aho_add(&a->normalized, form->data, form->len, (int32_t)i);
}

// Special tokens go in first: of two that normalise to the same the first counts.
static int build(added *a, const normalizer *n, ssm_error *err) {
    ssm_text form = {0};
    matcher *m = NULL;
    int rc = matcher_create(&m);
    for (int special = 1; special >= 0; special--) {
        for (size_t i = 0; i < a->n && rc == 0; i++) {
            if (a->tokens[i].special == (special == 1))
                rc = insert(a, i, n, m, &form, err);
        }
    }
    if (rc == 0)
        rc = aho_build(&a->plain);
    if (rc == 0)
        rc = aho_build(&a->normalized);
    matcher_free(m);
    ssm_text_dispose(&form);
    return rc;
}

int added_init(added *a, const json_t *json, const vocab *model, const normalizer *n,
               ssm_error *err) {
    *a = (added){0};
    if (!json || json_is_null(json))
        return 0;
    if (!json_is_array(json))
        return ssm_error_set(err, SSM_EFORMAT, "added_tokens",
                             "tokenizer.json: added_tokens is not an array");
    a->tokens = calloc(json_array_size(json) + 1, sizeof *a->tokens);
    int rc = a->tokens ? 0 : SSM_ENOMEM;
    size_t i;
    json_t *item;
    json_array_foreach((json_t *)json, i, item) {
        if (rc == 0)
            rc = read_token(a, item, model, err);
    }
    if (rc == 0)
        rc = build(a, n, err);
    if (rc != 0)
        added_dispose(a);
    return rc;
}

static int push_span(spans *out, size_t start, size_t end, int32_t id) {
    if (out->n == out->cap) {
        const size_t want = out->cap ? 2 * out->cap : 16;
        span *bigger = realloc(out->list, want * sizeof *bigger);
        if (!bigger)
            return SSM_ENOMEM;
        out->list = bigger;
        out->cap = want;
    }
    out->list[out->n++] = (span){start, end > start ? end - start : 0, id};
    return 0;
}

// The next match at or after `from`: its token's index and range, or -1.
static int32_t find(const aho *tokens, const char *s, size_t len, size_t from, size_t *start,
                    size_t *end) {
    int32_t found = -1, state = 0;
    for (size_t i = from; i < len; i++) {
        if (state == 0) { // nothing begun: on to a byte that begins a token
            while (i < len && !tokens->starts[(unsigned char)s[i]])
                i++;
            if (i == len)
                break;
        }
        state = aho_step(tokens, state, (unsigned char)s[i]);
        const int32_t hit = tokens->nodes[state].match;
        if (hit >= 0) {
            const size_t begin = i + 1 - tokens->nodes[hit].depth;
            if (found < 0 || begin <= *start) {
                found = tokens->nodes[hit].value;
                *start = begin;
                *end = i + 1;
            }
        }
        // What is begun now begins behind the match: nothing further left or longer can come.
        if (found >= 0 && i + 1 - tokens->nodes[state].depth > *start)
            break;
    }
    return found;
}

static bool stands_alone(const char *s, size_t len, size_t start, size_t end) {
    return (start == 0 || !is_word(utf8_get_last(s, start))) &&
           (end == len || !is_word(utf8_get(s + end)));
}

int added_split(const added *a, const aho *tokens, const char *s, size_t len, spans *out) {
    out->n = 0;
    size_t done = 0;      // text before it has been given out
    size_t blank_end = 0; // the white space before it has been walked through already
    int rc = 0;
    for (size_t at = 0, start = 0, end = 0; tokens->n > 0 && rc == 0; at = end) {
        const int32_t i = find(tokens, s, len, at, &start, &end);
        if (i < 0)
            break;
        const added_token *t = &a->tokens[i];
        if (t->single_word && !stands_alone(s, len, start, end))
            continue;
        size_t from = start, to = end;
        if (t->left_strip)
            from = start > done ? white_space_before(s, done, start) : done;
        if (t->right_strip) {
            if (end >= blank_end)
                blank_end = white_space_end(s, len, end);
            to = blank_end;
        }
        if (done < from)
            rc = push_span(out, done, from, -1);
        if (rc == 0)
            rc = push_span(out, from, to, t->id);
        done = to;
    }
    if (rc == 0 && done < len)
        rc = push_span(out, done, len, -1);
    return rc;
}
