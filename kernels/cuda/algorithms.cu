// SPDX-License-Identifier: Apache-2.0
// Timed choices of cuBLASLt's algorithms, remembered between runs: a text file, a line a choice, in
// $XDG_CACHE_HOME/ssmd or ~/.cache/ssmd. A line counts only for the same GPU, driver and cuBLASLt;
// whoever uses one checks it again (cublasLtMatmulAlgoCheck). A file that cannot be read or written
// costs a second at the next start, nothing else: no errors come from here.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "algorithms.h"

namespace ssm {

static bool file_path(char *out, size_t size, bool create) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char folder[512];
    if (cache && cache[0] == '/')
        snprintf(folder, sizeof folder, "%s", cache);
    else if (home && home[0] == '/')
        snprintf(folder, sizeof folder, "%s/.cache", home);
    else
        return false;
    if (create)
        mkdir(folder, 0700);
    const size_t n = strlen(folder);
    snprintf(folder + n, sizeof folder - n, "/ssmd");
    if (create && mkdir(folder, 0700) != 0 && errno != EEXIST)
        return false;
    return snprintf(out, size, "%s/cuda-algorithms", folder) < (int)size;
}

void algorithms_key(char *out, size_t size, const char *device, int driver, size_t library) {
    snprintf(out, size, "%s %d %zu", device, driver, library);
    for (char *p = out; *p && p[1]; p++) { // the device's name becomes one word
        if (*p == ' ' && strspn(p + 1, "0123456789 ") != strlen(p + 1))
            *p = '_';
    }
}

static bool parse_bytes(const char *hex, void *out, size_t n) {
    for (size_t i = 0; i < n; i++) {
        unsigned byte;
        if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
            return false;
        ((unsigned char *)out)[i] = (unsigned char)byte;
    }
    return true;
}

void algorithms_load(algorithm_list *list, const char *key) {
    char path[640], line[1024];
    *list = {};
    FILE *f = file_path(path, sizeof path, false) ? fopen(path, "re") : NULL;
    if (!f)
        return;
    const size_t n = strlen(key);
    while (fgets(line, sizeof line, f) && list->n < MAX_ALGORITHMS) {
        algorithm *a = &list->items[list->n];
        int at = 0;
        if (strncmp(line, key, n) != 0 || line[n] != ' ')
            continue;
        if (sscanf(line + n, " %159s %f %n", a->shape, &a->microseconds, &at) == 2 && at > 0 &&
            strlen(line + n + at) >= 2 * sizeof a->algo &&
            parse_bytes(line + n + at, &a->algo, sizeof a->algo))
            list->n++;
    }
    fclose(f);
}

const algorithm *algorithms_find(const algorithm_list *list, const char *shape) {
    for (int i = list->n; i-- > 0;) { // the newest wins
        if (strcmp(list->items[i].shape, shape) == 0)
            return &list->items[i];
    }
    return NULL;
}

// One write a line: several processes may append at once.
void algorithms_append(const char *key, const algorithm *a) {
    char path[640], line[1024];
    if (!file_path(path, sizeof path, true))
        return;
    FILE *f = fopen(path, "ae");
    if (!f)
        return;
    int n = snprintf(line, sizeof line, "%s %s %.2f ", key, a->shape, a->microseconds);
    for (size_t i = 0; i < sizeof a->algo; i++)
        n += snprintf(line + n, sizeof line - (size_t)n, "%02x", ((unsigned char *)&a->algo)[i]);
    line[n++] = '\n';
    fwrite(line, 1, (size_t)n, f);
    fclose(f);
}

} // namespace ssm
