// SPDX-License-Identifier: Apache-2.0
#include "auth.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static int add_key(auth *a, const char *key, ssm_error *err) {
    char **items = realloc(a->keys.items, (a->keys.n + 1) * sizeof *items);
    if (items) {
        a->keys.items = items;
        items[a->keys.n] = strdup(key);
    }
    if (!items || !items[a->keys.n]) {
        return ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
    }
    a->keys.n++;
    return 0;
}

// White space around a line's key is none of the key; NULL for a line to skip.
static char *key_of_line(char *line) {
    while (isspace((unsigned char)*line)) {
        line++;
    }
    size_t len = strlen(line);
    while (len > 0 && isspace((unsigned char)line[len - 1])) {
        line[--len] = '\0';
    }
    return *line && *line != '#' ? line : NULL;
}

static int read_keys(auth *a, const char *path, ssm_error *err) {
    const size_t before = a->keys.n;
    char *line = NULL;
    size_t cap = 0;
    int rc = 0;
    FILE *file = fopen(path, "re");
    if (!file) {
        return ssm_error_set(err, SSM_EIO, "api-key-file", "--api-key-file: cannot open %.200s: %s",
                             path, strerror(errno));
    }
    while (rc == 0 && getline(&line, &cap, file) >= 0) {
        const char *key = key_of_line(line);
        rc = key ? add_key(a, key, err) : 0;
    }
    if (rc == 0 && ferror(file)) {
        rc =
            ssm_error_set(err, SSM_EIO, "api-key-file", "--api-key-file: cannot read %.200s", path);
    } else if (rc == 0 && a->keys.n == before) {
        rc = ssm_error_set(err, SSM_EINVAL, "api-key-file", "--api-key-file: no key in %.200s",
                           path);
    }
    free(line);
    fclose(file);
    return rc;
}

int auth_init(auth *a, const options *o, ssm_error *err) {
    int rc = 0;
    *a = (auth){0};
    for (size_t i = 0; i < o->api_key.n && rc == 0; i++) {
        rc = *o->api_key.items[i] ? add_key(a, o->api_key.items[i], err)
                                  : ssm_error_set(err, SSM_EINVAL, "api-key", "--api-key is empty");
    }
    if (rc == 0 && o->api_key_file) {
        rc = read_keys(a, o->api_key_file, err);
    }
    return rc;
}

void auth_dispose(auth *a) {
    for (size_t i = 0; i < a->keys.n; i++) {
        free(a->keys.items[i]);
    }
    free(a->keys.items);
    *a = (auth){0};
}

// Walks all of given against key, whatever differs; only given's own length shows.
static unsigned differs(const char *given, size_t len, const char *key, size_t key_len) {
    volatile unsigned difference = len != key_len;
    for (size_t i = 0; i < len; i++) {
        difference |= (unsigned char)given[i] ^ (unsigned char)key[key_len ? i % key_len : 0];
    }
    return difference;
}

bool auth_check(const auth *a, const char *header) {
    const char *given = header && strncasecmp(header, "Bearer ", 7) == 0 ? header + 7 : "";
    given += strspn(given, " ");
    const size_t len = strlen(given);
    unsigned matches = a->keys.n == 0;
    for (size_t i = 0; i < a->keys.n; i++) {
        matches |= differs(given, len, a->keys.items[i], strlen(a->keys.items[i])) == 0;
    }
    return matches != 0;
}
