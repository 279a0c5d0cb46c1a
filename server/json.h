// SPDX-License-Identifier: Apache-2.0
// Request bodies: a pass over the raw text before jansson sees it, and getters that check types and
// ranges and name the field at fault.
//
// Why a pass of our own. jansson keeps 20 bytes and more for each byte of `[1,1,1,...]`: a body of
// 64 MiB would take 1.3 GB. json_skim walks the top-level members of a body once, in place: a list
// of ids (or of lists of ids) under one chosen key is scanned straight into int32; members that
// nobody asked for are cut out where they are large; integers that need 64 unsigned bits are
// wrapped into signed ones; and what is left is priced, so that the memory a tree would take is
// known before it is built.
#ifndef SSMD_JSON_H
#define SSMD_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include <ssm/error.h>

#include "buf.h"

typedef struct json_ids {
    bool found;    // the key's last value was a list of ids or of lists of ids
    bool nested;   // a list of lists
    int32_t *data; // all ids; malloc, the caller's
    size_t n;
    size_t *ends; // nested: where each list ends in data; malloc, the caller's
    size_t n_lists;
} json_ids;

typedef struct json_skimmer {
    const char *ids_key;                 // this member's list of ids goes to ids; NULL: none
    const char *u64_key;                 // this member may be up to 2^64 - 1
    bool (*is_known)(const char *key);   // others are reported, and cut out if large
    void (*on_unknown)(const char *key); // may be NULL
    bool u64_found;                      // out: u64_key was 2^63 or more
    uint64_t u64;
    json_ids ids;      // out
    size_t tree_bytes; // out: an upper bound for jansson's tree
} json_skimmer;

// Rewrites the body in place; *len shrinks. Returns 0, SSM_EINVAL (param = ids_key: what is wrong
// with an id), SSM_ENOMEM. Text that is not JSON is left for jansson to refuse.
int json_skim(json_skimmer *skimmer, char *body, size_t *len, ssm_error *err);
void json_ids_dispose(json_ids *ids);

// The tree of a body that must be an object; NULL with err filled (SSM_EINVAL, where it broke).
json_t *json_parse_object(const char *body, size_t len, ssm_error *err);

// A tree as compact JSON, at the speed of its strings.
void json_put_tree(buf *out, const json_t *value);

// ---- getters: absent and null leave *out as it is; 1.0 is not an integer. 0 or SSM_EINVAL.

int json_get_bool(const json_t *object, const char *key, bool *out, ssm_error *err);
int json_get_int(const json_t *object, const char *key, int64_t min, int64_t max, int64_t *out,
                 ssm_error *err);
int json_get_number(const json_t *object, const char *key, double min, double max, float *out,
                    ssm_error *err);
// Borrowed from the tree; may hold NUL bytes.
int json_get_string(const json_t *object, const char *key, const char **out, size_t *len,
                    ssm_error *err);
// Type checks alone: the value, or NULL if absent or null.
int json_get_object(const json_t *object, const char *key, const json_t **out, ssm_error *err);
int json_get_array(const json_t *object, const char *key, const json_t **out, ssm_error *err);

// "a string", "a number" ... of a value, for messages.
const char *json_type_text(const json_t *value);

#endif
