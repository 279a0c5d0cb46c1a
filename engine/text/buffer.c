// SPDX-License-Identifier: Apache-2.0
// The two growing arrays of <ssm/tokenizer.h>.
#include <ssm/tokenizer.h>

#include <stdlib.h>
#include <string.h>

// Room for n more elements of the given size (plus one spare for a NUL); doubles, so that appends
// cost constant time each.
static int grow(void **data, size_t *cap, size_t len, size_t n, size_t size) {
    if (n > SIZE_MAX / 4 / size - len)
        return SSM_ENOMEM;
    const size_t need = len + n + 1;
    if (need <= *cap)
        return 0;
    size_t want = *cap < 32 ? 64 : 2 * *cap;
    if (want < need)
        want = need;
    void *bigger = realloc(*data, want * size);
    if (!bigger)
        return SSM_ENOMEM;
    *data = bigger;
    *cap = want;
    return 0;
}

void ssm_ids_dispose(ssm_ids *ids) {
    free(ids->data);
    *ids = (ssm_ids){0};
}

void ssm_text_dispose(ssm_text *text) {
    free(text->data);
    *text = (ssm_text){0};
}

int ssm_ids_append(ssm_ids *ids, const int32_t *data, size_t n) {
    void *p = ids->data;
    const int rc = grow(&p, &ids->cap, ids->len, n, sizeof *data);
    if (rc != 0)
        return rc;
    ids->data = p;
    if (n > 0)
        memcpy(ids->data + ids->len, data, n * sizeof *data);
    ids->len += n;
    return 0;
}

int ssm_text_append(ssm_text *text, const char *data, size_t n) {
    void *p = text->data;
    const int rc = grow(&p, &text->cap, text->len, n, 1);
    if (rc != 0)
        return rc;
    text->data = p;
    if (n > 0)
        memcpy(text->data + text->len, data, n);
    text->len += n;
    text->data[text->len] = '\0';
    return 0;
}
