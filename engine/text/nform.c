// SPDX-License-Identifier: Apache-2.0
// Decomposition and composition are utf8proc's, a character at a time; the canonical ordering
// between them is our own: utf8proc orders marks by swapping neighbours, which takes time quadratic
// in a run of marks, and a run of marks can be a whole request. Here each run is ordered by a
// counting sort over the combining classes (short ones by insertion), in linear time.
//
// Text below U+0300 is its own NFC and, below U+0080, its own everything: such stretches are
// copied.
#include "engine/text/nform.h"

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "engine/text/unicode.h"

enum { SHORT_RUN = 16, CLASSES = 256 };

// Stable sort of one run of characters with non-zero combining classes. spare: room for n.
static void order_run(int32_t *run, size_t n, int32_t *spare) {
    if (n <= SHORT_RUN) {
        for (size_t i = 1; i < n; i++) {
            const int32_t c = run[i];
            const int k = utf8proc_get_property(c)->combining_class;
            size_t j = i;
            for (; j > 0 && utf8proc_get_property(run[j - 1])->combining_class > k; j--)
                run[j] = run[j - 1];
            run[j] = c;
        }
        return;
    }
    size_t start[CLASSES + 1] = {0};
    for (size_t i = 0; i < n; i++)
        start[utf8proc_get_property(run[i])->combining_class + 1]++;
    for (int k = 0; k < CLASSES; k++)
        start[k + 1] += start[k];
    for (size_t i = 0; i < n; i++)
        spare[start[utf8proc_get_property(run[i])->combining_class]++] = run[i];
    memcpy(run, spare, n * sizeof *run);
}

static void order(int32_t *text, size_t n, int32_t *spare) {
    size_t i = 0;
    while (i < n) {
        if (utf8proc_get_property(text[i])->combining_class == 0) {
            i++;
            continue;
        }
        size_t j = i + 1;
        while (j < n && utf8proc_get_property(text[j])->combining_class != 0)
            j++;
        if (j - i > 1)
            order_run(text + i, j - i, spare);
        i = j;
    }
}

typedef struct points {
    int32_t *data;
    size_t len, cap;
} points;

static int decompose(const char *s, size_t len, bool compat, points *out) {
    const utf8proc_option_t options =
        (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0));
    int last = 0;
    for (size_t i = 0; i < len; i += utf8_width((unsigned char)s[i])) {
        if (out->cap - out->len < 32) { // the longest decomposition has 18
            const size_t want = out->cap ? 2 * out->cap : len + 64;
            int32_t *bigger = realloc(out->data, want * sizeof *bigger);
            if (!bigger)
                return SSM_ENOMEM;
            out->data = bigger;
            out->cap = want;
        }
        const int32_t c = utf8_get(s + i);
        if (c < 0x80) {
            out->data[out->len++] = c;
            continue;
        }
        const utf8proc_ssize_t n =
            utf8proc_decompose_char(c, out->data + out->len, 32, options, &last);
        if (n < 0 || n > 32)
            return SSM_EINTERNAL;
        out->len += (size_t)n;
    }
    return 0;
}

static int encode(const int32_t *text, size_t n, ssm_text *out) {
    char bytes[256];
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        used += utf8_put(text[i], bytes + used);
        if (used > sizeof bytes - 4 || i + 1 == n) {
            const int rc = ssm_text_append(out, bytes, used);
            if (rc != 0)
                return rc;
            used = 0;
        }
    }
    return 0;
}

// The normal form of text that holds characters which may change.
static int append_slow(const char *s, size_t len, bool compat, bool compose, ssm_text *out) {
    points text = {0};
    int32_t *spare = NULL;
    int rc = decompose(s, len, compat, &text);
    if (rc != 0)
        goto done;
    spare = malloc((text.len + 1) * sizeof *spare);
    if (!spare) {
        rc = SSM_ENOMEM;
        goto done;
    }
    order(text.data, text.len, spare);
    if (compose) {
        const utf8proc_ssize_t n =
            utf8proc_normalize_utf32(text.data, (utf8proc_ssize_t)text.len,
                                     (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
        if (n < 0) {
            rc = SSM_EINTERNAL;
            goto done;
        }
        text.len = (size_t)n;
    }
    rc = encode(text.data, text.len, out);
done:
    free(text.data);
    free(spare);
    return rc;
}

int nform_append(const char *s, size_t len, bool compat, bool compose, ssm_text *out) {
    // Bytes below `quick` belong to characters that no form changes by themselves. A character may
    // still combine with what follows it, so the stretch that is copied ends one character early.
    const unsigned char quick = compose && !compat ? 0xcc : 0x80;
    size_t i = 0, at = 0;
    while (at < len) {
        for (i = at; i < len && (unsigned char)s[i] < quick; i += utf8_width((unsigned char)s[i]))
            ;
        if (i == len)
            return ssm_text_append(out, s + at, len - at);
        if (i > at) {
            do
                i--;
            while (((unsigned char)s[i] & 0xc0) == 0x80);
        }
        int rc = ssm_text_append(out, s + at, i - at);
        if (rc != 0)
            return rc;
        // The stretch that may change ends before two plain characters in a row.
        size_t end = i, plain = 0;
        while (end < len && plain < 2) {
            plain = end > i && (unsigned char)s[end] < 0x80 ? plain + 1 : 0;
            end += utf8_width((unsigned char)s[end]);
        }
        if (plain == 2)
            end--;
        rc = append_slow(s + i, end - i, compat, compose, out);
        if (rc != 0)
            return rc;
        at = end;
    }
    return 0;
}
