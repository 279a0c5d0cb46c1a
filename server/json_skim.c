// SPDX-License-Identifier: Apache-2.0
// The pass over a raw body that json.h describes: a cursor over bytes, no recursion, no allocation
// but the ids themselves (their number is counted first).
//
// Members that nobody asked for go to jansson too, for their syntax, unless they would cost more
// than CUT_BYTES there. What nests deeper than CUT_DEPTH is jansson's to refuse (its own limit is
// 2,048, and it stops there).
//
// It is lax where jansson is strict: only strings and brackets are followed, everything kept is
// parsed again. Where it gives up, the text is broken and jansson stops at the same place or
// before it, so the price that was counted until there bounds the tree. Only lists of ids are cut
// out unseen by jansson; they are read by the grammar to the letter.
//
// Members are compacted to the front as they are passed: the write position never overtakes the
// read position, because what replaces a value ("[]", "0") is never longer.
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

struct cursor {
    const char *at, *end;
};

static void skip_space(struct cursor *c) {
    while (c->at < c->end &&
           (*c->at == ' ' || *c->at == '\n' || *c->at == '\r' || *c->at == '\t')) {
        c->at++;
    }
}

static bool skip_char(struct cursor *c, char want) {
    skip_space(c);
    if (c->at < c->end && *c->at == want) {
        c->at++;
        return true;
    }
    return false;
}

// From the opening quote past the closing one.
static bool skip_string(struct cursor *c) {
    const char *at = c->at + 1, *quote = at - 1;
    while (at < c->end) {
        if (quote < at) { // else the one that was found is still ahead: no byte is looked at thrice
            quote = memchr(at, '"', (size_t)(c->end - at));
        }
        if (!quote) {
            break;
        }
        const char *escape = memchr(at, '\\', (size_t)(quote - at));
        if (!escape) {
            c->at = quote + 1;
            return true;
        }
        at = escape + 2; // which may be past the end
    }
    c->at = c->end;
    return false;
}

// What jansson 2.14 keeps beside the text itself, rounded up, per opening of a list or an object,
// member and element (mallinfo2: 48 for a 1, 88 for a "", 144 for a [], 240 for a {}, 125 for a
// member).
enum { LIST_BYTES = 160, OBJECT_BYTES = 320, MEMBER_BYTES = 160, ELEMENT_BYTES = 112 };

enum { CUT_BYTES = 1 << 20, CUT_DEPTH = 1024 };

static size_t price_of(char c) {
    switch (c) {
    case '[':
        return LIST_BYTES;
    case '{':
        return OBJECT_BYTES;
    case ':':
        return MEMBER_BYTES;
    case ',':
        return ELEMENT_BYTES;
    default:
        return 0;
    }
}

// Past one value of any kind; adds its price, and gives how deep it nests.
static bool skip_value(struct cursor *c, size_t *price, size_t *deepest) {
    size_t depth = 0;
    skip_space(c);
    const char *start = c->at;
    while (c->at < c->end) {
        const char now = *c->at;
        if (now == '"') {
            if (!skip_string(c)) {
                return false;
            }
            if (depth == 0) {
                return true;
            }
            continue;
        }
        if (depth == 0 && (now == ',' || now == '}' || now == ']')) {
            return c->at > start; // the end of a number or a word
        }
        *price += price_of(now);
        depth += now == '[' || now == '{';
        *deepest = depth > *deepest ? depth : *deepest;
        c->at++;
        if (now == ']' || now == '}') {
            depth--;
            if (depth == 0) {
                return true;
            }
        }
    }
    return false;
}

// ---- lists of ids

enum ids_result { IDS_OK, IDS_NOT, IDS_TYPE, IDS_RANGE, IDS_MEMORY };

// One integer by JSON's grammar, in [0, INT32_MAX].
static enum ids_result scan_id(struct cursor *c, int32_t *out) {
    int64_t value = 0;
    skip_space(c);
    const bool minus = c->at < c->end && *c->at == '-';
    c->at += minus;
    const char *first = c->at;
    while (c->at < c->end && *c->at >= '0' && *c->at <= '9') {
        value = value > INT32_MAX ? value : value * 10 + (*c->at - '0');
        c->at++;
    }
    const size_t digits = (size_t)(c->at - first);
    if (digits == 0 || (digits > 1 && *first == '0') ||
        (c->at < c->end && (*c->at == '.' || *c->at == 'e' || *c->at == 'E'))) {
        return IDS_TYPE;
    }
    if (value > INT32_MAX || (minus && value != 0)) {
        return IDS_RANGE;
    }
    *out = (int32_t)value;
    return IDS_OK;
}

// The cursor stands after '['. Ids are appended to ids->data, whose room was counted.
static enum ids_result scan_flat(struct cursor *c, json_ids *ids) {
    if (skip_char(c, ']')) {
        return IDS_OK;
    }
    do {
        const enum ids_result rc = scan_id(c, &ids->data[ids->n]);
        if (rc != IDS_OK) {
            return rc;
        }
        ids->n++;
    } while (skip_char(c, ','));
    return skip_char(c, ']') ? IDS_OK : IDS_TYPE;
}

static enum ids_result scan_nested(struct cursor *c, json_ids *ids) {
    do {
        if (!skip_char(c, '[')) {
            return IDS_TYPE;
        }
        const enum ids_result rc = scan_flat(c, ids);
        if (rc != IDS_OK) {
            return rc;
        }
        ids->ends[ids->n_lists++] = ids->n;
    } while (skip_char(c, ','));
    return skip_char(c, ']') ? IDS_OK : IDS_TYPE;
}

// How many numbers and lists [c->at, end of the value) can hold at most.
static void count_room(struct cursor c, size_t *numbers, size_t *lists) {
    *numbers = 1;
    *lists = 0;
    for (size_t depth = 1; c.at < c.end && depth > 0 && *c.at != '"'; c.at++) {
        *numbers += *c.at == ',';
        *lists += *c.at == '[';
        depth += *c.at == '[';
        depth -= *c.at == ']';
    }
}

// The cursor stands on '['. IDS_NOT leaves it there: a list of strings, jansson's.
static enum ids_result scan_ids(struct cursor *c, json_ids *ids) {
    struct cursor in = {c->at + 1, c->end};
    size_t numbers, lists;
    skip_space(&in);
    if (in.at == in.end || *in.at == '"') {
        return IDS_NOT;
    }
    count_room(in, &numbers, &lists);
    json_ids_dispose(ids); // an earlier member of the same name
    ids->data = malloc(numbers * sizeof *ids->data);
    ids->ends = malloc((lists + 1) * sizeof *ids->ends);
    if (!ids->data || !ids->ends) {
        return IDS_MEMORY;
    }
    ids->nested = *in.at == '[';
    const enum ids_result rc = ids->nested ? scan_nested(&in, ids) : scan_flat(&in, ids);
    ids->found = rc == IDS_OK;
    c->at = in.at;
    return rc;
}

void json_ids_dispose(json_ids *ids) {
    free(ids->data);
    free(ids->ends);
    *ids = (json_ids){0};
}

static int ids_error(const json_skimmer *s, enum ids_result rc, const char *at, const char *end,
                     ssm_error *err) {
    switch (rc) {
    case IDS_RANGE:
        return ssm_error_set(err, SSM_EINVAL, s->ids_key, "%s: a token id is out of range",
                             s->ids_key);
    case IDS_MEMORY:
        return ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
    default:
        return ssm_error_set(err, SSM_EINVAL, s->ids_key,
                             "%s: a list holds strings, or integers, or lists of integers, not "
                             "'%.*s'",
                             s->ids_key, (int)(end - at < 20 ? end - at : 20), at);
    }
}

// ---- members

// An integer in [2^63, 2^64): jansson has no place for it.
static bool read_u64(const char *at, size_t len, uint64_t *out) {
    uint64_t value = 0;
    if (len < 19 || len > 20 || *at == '0') {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        if (at[i] < '0' || at[i] > '9' || __builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(at[i] - '0'), &value)) {
            return false;
        }
    }
    *out = value;
    return value > INT64_MAX;
}

// A number runs until the comma: without the space before it.
static size_t trimmed(const char *from, const char *to) {
    while (to > from && (to[-1] == ' ' || to[-1] == '\n' || to[-1] == '\r' || to[-1] == '\t')) {
        to--;
    }
    return (size_t)(to - from);
}

static bool key_is(const char *key, const char *want) {
    return want && strcmp(key, want) == 0;
}

struct writer {
    char *at;
};

static void keep(struct writer *w, const char *from, const char *to) {
    memmove(w->at, from, (size_t)(to - from));
    w->at += to - from;
}

// The cursor stands on a member's value, after the colon; what is to be kept of it is written.
// Returns 0, a negative code, or 1: broken, the rest is jansson's.
static int pass_value(json_skimmer *s, struct cursor *c, struct writer *w, const char *key,
                      ssm_error *err) {
    skip_space(c);
    const char *start = c->at;
    const bool wanted = key_is(key, s->ids_key);
    if (wanted && start < c->end && *start == '[') {
        const enum ids_result rc = scan_ids(c, &s->ids);
        if (rc == IDS_OK) {
            keep(w, "[]", "[]" + 2); // a list is never shorter than this
            return 0;
        }
        if (rc != IDS_NOT) {
            return ids_error(s, rc, c->at, c->end, err);
        }
    }
    if (wanted) {
        json_ids_dispose(&s->ids); // the last member of a name counts
    }
    size_t price = 0, deepest = 0;
    if (!skip_value(c, &price, &deepest)) {
        return 1;
    }
    if (*key && !s->is_known(key)) {
        if (s->on_unknown) {
            s->on_unknown(key);
        }
        if (price > CUT_BYTES && deepest < CUT_DEPTH) {
            keep(w, "0", "0" + 1); // no value is shorter
            return 0;
        }
    }
    if (key_is(key, s->u64_key)) {
        s->u64_found = read_u64(start, trimmed(start, c->at), &s->u64);
        if (s->u64_found) {
            keep(w, "0", "0" + 1);
            return 0;
        }
    }
    s->tree_bytes += price;
    keep(w, start, c->at);
    return 0;
}

// The key between its quotes, "" if it has escapes or is longer than any name of ours.
static void read_key(const char *from, const char *to, char *out, size_t size) {
    const size_t len = (size_t)(to - from);
    out[0] = '\0';
    if (len < size && !memchr(from, '\\', len) && !memchr(from, '\0', len)) {
        memcpy(out, from, len);
        out[len] = '\0';
    }
}

int json_skim(json_skimmer *s, char *body, size_t *len, ssm_error *err) {
    s->ids = (json_ids){0};
    s->u64_found = false;
    s->tree_bytes = OBJECT_BYTES;
    if (*len == 0) {
        return 0; // and body may be NULL
    }
    struct cursor c = {body, body + *len};
    struct writer w = {body};
    const char *kept = body; // everything before it has been written
    int rc = 0;
    if (!skip_char(&c, '{')) {
        size_t price = 0, deepest = 0;
        skip_value(&c, &price, &deepest);
        s->tree_bytes += price + 3 * *len;
        return 0;
    }
    do {
        char key[80];
        skip_space(&c);
        const char *quote = c.at;
        if (c.at >= c.end || *c.at != '"' || !skip_string(&c)) {
            break;
        }
        read_key(quote + 1, c.at - 1, key, sizeof key);
        if (!skip_char(&c, ':')) {
            break;
        }
        s->tree_bytes += MEMBER_BYTES;
        keep(&w, kept, c.at);
        kept = c.at;
        rc = pass_value(s, &c, &w, key, err);
        if (rc == 0) {
            kept = c.at;
        }
    } while (rc == 0 && skip_char(&c, ','));
    if (rc < 0) {
        json_ids_dispose(&s->ids);
        return rc;
    }
    keep(&w, kept, c.end);
    *len = (size_t)(w.at - body);
    s->tree_bytes += 3 * *len; // strings: jansson's scratch buffer doubles, then a copy
    return 0;
}
