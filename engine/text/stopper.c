// SPDX-License-Identifier: Apache-2.0
// Stop strings over a stream of text.
//
// The automaton's state after each byte is the longest end of the text that begins some stop
// string; its length is what must be held back. Bytes are released as soon as they fall out of it.
// The first byte that completes a string ends the stream: the earliest end, and of the strings
// that end there the longest, which began earliest. Held bytes are a suffix of the text seen so far
// and a prefix of a stop string, so that they need not be copied on every push: they are kept in
// one buffer no longer than the longest string.
//
// Stop strings are whole characters, so that what is held or released never is half of one, unless
// the caller's strings or pieces are.
#include <ssm/text.h>

#include <stdlib.h>
#include <string.h>

#include "engine/text/aho.h"

struct ssm_stopper {
    aho strings;
    int32_t state;
    bool include, stopped;
    ssm_text held; // text that may begin a stop string: nodes[state].depth bytes
};

int ssm_stopper_create(const ssm_string *stops, size_t n, bool include, ssm_stopper **out) {
    ssm_stopper *s = calloc(1, sizeof *s);
    if (!s)
        return SSM_ENOMEM;
    s->include = include;
    int rc = n > INT32_MAX ? SSM_EINVAL : 0;
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = stops[i].len == 0 ? SSM_EINVAL
                               : aho_add(&s->strings, stops[i].data, stops[i].len, (int32_t)i);
    if (rc == 0)
        rc = aho_build(&s->strings);
    if (rc != 0) {
        ssm_stopper_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

void ssm_stopper_free(ssm_stopper *s) {
    if (!s)
        return;
    aho_dispose(&s->strings);
    ssm_text_dispose(&s->held);
    free(s);
}

// Releases all but the last `keep` bytes of held + text.
static int release(ssm_stopper *s, const char *text, size_t len, size_t keep, ssm_text *out) {
    const size_t total = s->held.len + len;
    const size_t go = total - keep;
    const size_t from_held = go < s->held.len ? go : s->held.len;
    int rc = ssm_text_append(out, s->held.data, from_held);
    if (rc == 0)
        rc = ssm_text_append(out, text, go - from_held);
    if (rc != 0)
        return rc;
    if (from_held > 0)
        memmove(s->held.data, s->held.data + from_held, s->held.len - from_held);
    s->held.len -= from_held;
    return ssm_text_append(&s->held, text + (go - from_held), len - (go - from_held));
}

static int on_match(ssm_stopper *s, const char *text, size_t len, int32_t node, ssm_text *out) {
    const aho_node *n = &s->strings.nodes[node];
    const int rc = release(s, text, len, s->include ? 0 : n->depth, out);
    s->held.len = 0;
    s->stopped = true;
    return rc != 0 ? rc : n->value + 1;
}

int ssm_stopper_push(ssm_stopper *s, const char *text, size_t len, ssm_text *out) {
    if (s->stopped)
        return 0;
    if (s->strings.n == 0)
        return ssm_text_append(out, text, len);
    for (size_t i = 0; i < len; i++) {
        s->state = aho_step(&s->strings, s->state, (unsigned char)text[i]);
        const int32_t match = s->strings.nodes[s->state].match;
        if (match >= 0)
            return on_match(s, text, i + 1, match, out);
    }
    return release(s, text, len, s->strings.nodes[s->state].depth, out);
}

int ssm_stopper_finish(ssm_stopper *s, ssm_text *out) {
    if (s->stopped)
        return 0;
    const int rc = ssm_text_append(out, s->held.data, s->held.len);
    s->held.len = 0;
    s->state = 0;
    return rc;
}

size_t ssm_stopper_held(const ssm_stopper *s) {
    return s->held.len;
}
