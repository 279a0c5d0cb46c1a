// SPDX-License-Identifier: Apache-2.0
// Timed choices of cuBLASLt's algorithms, shared by all processes and remembered between runs: a
// text file, a line a choice, in $XDG_CACHE_HOME/ssmd or ~/.cache/ssmd.
//
// Algorithms differ in the order of their sums and so in bits, and timing is noisy: two openings of
// one model that both time choose differently. So lines are only ever added, at the end, the oldest
// usable one of a product wins, and who has timed adds its choices, reads again and takes the
// oldest, which may be another's. What stands before one's own line stands there for everybody:
// openings that race agree as well as those that come later, after a restart, too.
//
// A line counts only for the same GPU, driver and cuBLASLt, and only if the library still takes it
// (algorithm_usable): the next one is the oldest then. A line cut short by a crash or a full disk
// is not one: an addition begins with a new line, and what is not whole to the last digit is passed
// over. Additions are on the disk before they are used. Each is one write at the file's end, which
// on a local disk is enough; over NFS it is not, so there is a lock, too. Who does not get it
// within LOCK_MS (its owner is stopped, its server away) goes on without.
//
// Where the file can't be written, or does not give back what was written, this process takes what
// can be read, and for the rest its own. What openings took stays in memory (kept) and comes before
// the file: the devices of one process agree even without it, or if it is deleted while they run.
//
// The file grows only by timing: a model has about 100 products, a line some 190 bytes, and another
// driver or cuBLASLt begins again. Nobody shortens it, for others may have read it; it may be
// deleted when no server runs. Its format has no number: earlier versions wrote such lines (and
// took the newest), and pass over empty ones.
//
// No errors come from here: a file that cannot be used costs a second or two at each start, and
// then starts may differ in bits.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "algorithms.h"

enum { LOCK_MS = 2000, MAX_LINE = 512 };

// What openings of this process took: the first of a key and a shape stays.
static struct {
    pthread_mutex_t mutex;
    struct {
        char key[ALGORITHM_KEY];
        algorithm a;
    } * items;
    int n, room;
} kept = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static bool file_path(char *out, size_t size, bool create) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char folder[512];
    int n;
    if (cache && cache[0] == '/')
        n = snprintf(folder, sizeof folder, "%s", cache);
    else if (home && home[0] == '/')
        n = snprintf(folder, sizeof folder, "%s/.cache", home);
    else
        return false;
    if (n >= (int)sizeof folder)
        return false;
    if (create)
        mkdir(folder, 0700);
    snprintf(out, size, "%s/ssmd", folder);
    if (create && mkdir(out, 0700) != 0 && errno != EEXIST)
        return false;
    return snprintf(out, size, "%s/ssmd/cuda-algorithms", folder) < (int)size;
}

void algorithms_key(char out[ALGORITHM_KEY], const char *device, int driver, size_t library) {
    snprintf(out, ALGORITHM_KEY, "%.80s %d %zu", device, driver, library);
    for (char *p = out; *p && p[1]; p++) { // the device's name becomes one word
        if (*p == ' ' && strspn(p + 1, "0123456789 ") != strlen(p + 1))
            *p = '_';
    }
}

// ---- lists

static bool grow(void **items, int n, int *room, size_t size) {
    if (n < *room)
        return true;
    const int more = *room ? 2 * *room : 64;
    void *p = realloc(*items, (size_t)more * size);
    if (!p)
        return false;
    *items = p, *room = more;
    return true;
}

static void push(algorithm_list *list, const algorithm *a) {
    if (grow((void **)&list->items, list->n, &list->room, sizeof *a))
        list->items[list->n++] = *a;
}

static bool contains(const algorithm_list *list, const algorithm *a) {
    for (int i = 0; i < list->n; i++) {
        const algorithm *b = &list->items[i];
        if (strcmp(b->shape, a->shape) == 0 && memcmp(b->bytes, a->bytes, sizeof a->bytes) == 0)
            return true;
    }
    return false;
}

bool algorithms_find(const algorithm_list *list, algorithm *a) {
    for (int i = 0; i < list->n; i++) {
        algorithm found = list->items[i];
        found.product = a->product;
        if (strcmp(found.shape, a->shape) == 0 && list->usable(list->context, &found)) {
            *a = found;
            return true;
        }
    }
    return false;
}

void algorithms_free(algorithm_list *list) {
    free(list->items);
    list->items = NULL;
    list->n = list->room = 0;
}

static void keep(const char *key, const algorithm *a) {
    for (int i = 0; i < kept.n; i++) {
        if (strcmp(kept.items[i].key, key) == 0 && strcmp(kept.items[i].a.shape, a->shape) == 0)
            return;
    }
    if (!grow((void **)&kept.items, kept.n, &kept.room, sizeof *kept.items))
        return;
    snprintf(kept.items[kept.n].key, ALGORITHM_KEY, "%s", key);
    kept.items[kept.n++].a = *a;
}

// ---- the file

static int digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// A whole line's choice, if it is the key's: "KEY SHAPE MICROSECONDS BYTES\n".
static bool parse(const char *line, const char *key, algorithm *out) {
    const size_t n = strlen(key), digits = 2 * sizeof out->bytes;
    int at = 0;
    *out = (algorithm){.product = -1};
    if (strncmp(line, key, n) != 0 || line[n] != ' ' ||
        sscanf(line + n, " %159s %f %n", out->shape, &out->microseconds, &at) < 2 || at == 0)
        return false;
    const char *hex = line + n + at;
    if (strlen(hex) != digits + 1 || hex[digits] != '\n')
        return false;
    for (size_t i = 0; i < digits; i++) {
        const int d = digit(hex[i]);
        if (d < 0)
            return false;
        out->bytes[i / 2] = (unsigned char)(out->bytes[i / 2] << 4 | d);
    }
    return true;
}

static int print(char *out, const char *key, const algorithm *a) {
    int n = snprintf(out, MAX_LINE, "%s %s %.2f ", key, a->shape, (double)a->microseconds);
    for (size_t i = 0; i < sizeof a->bytes; i++)
        n += snprintf(out + n, (size_t)(MAX_LINE - n), "%02x", a->bytes[i]);
    out[n++] = '\n';
    return n;
}

// What the process keeps, then what the file has. f: at its start, or NULL.
static void reload(algorithm_list *list, FILE *f) {
    char *line = NULL;
    size_t room = 0;
    list->n = 0;
    for (int i = 0; i < kept.n; i++) {
        if (strcmp(kept.items[i].key, list->key) == 0)
            push(list, &kept.items[i].a);
    }
    while (f && getline(&line, &room, f) > 0) {
        algorithm a;
        if (parse(line, list->key, &a))
            push(list, &a);
    }
    free(line);
}

static FILE *open_file(bool append) {
    char path[640];
    if (!file_path(path, sizeof path, append))
        return NULL;
    const int fd = append ? open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0666)
                          : open(path, O_RDONLY | O_CLOEXEC);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "r");
    if (!f && fd >= 0)
        close(fd);
    return f;
}

static void wait_lock(int fd) {
    const struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
    for (int ms = 0; flock(fd, LOCK_EX | LOCK_NB) != 0 && ms < LOCK_MS; ms += 10) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return; // no locks here
        nanosleep(&pause, NULL);
    }
}

// Adds what the list has not. Returns the file to read again, still locked, or NULL where nothing
// is new or it cannot be opened.
static FILE *append_new(const algorithm_list *list, const algorithm *chosen, int n) {
    char *text = malloc((size_t)n * MAX_LINE + 1);
    size_t size = 0;
    FILE *f = NULL;
    if (!text)
        return NULL;
    text[size++] = '\n';
    for (int i = 0; i < n; i++) {
        if (!contains(list, &chosen[i]))
            size += (size_t)print(text + size, list->key, &chosen[i]);
    }
    if (size > 1 && (f = open_file(true))) {
        wait_lock(fileno(f));
        // What failed shows when it is read.
        if (write(fileno(f), text, size) > 0)
            fdatasync(fileno(f));
        rewind(f);
    }
    free(text);
    return f;
}

// ---- openings

void algorithms_load(algorithm_list *list, const char *key, algorithm_usable *usable,
                     void *context) {
    *list = (algorithm_list){.usable = usable, .context = context};
    snprintf(list->key, sizeof list->key, "%s", key);
    FILE *f = open_file(false);
    pthread_mutex_lock(&kept.mutex);
    reload(list, f);
    pthread_mutex_unlock(&kept.mutex);
    if (f)
        fclose(f);
}

void algorithms_settle(algorithm_list *list, algorithm *chosen, int n) {
    pthread_mutex_lock(&kept.mutex);
    FILE *f = append_new(list, chosen, n);
    if (!f)
        f = open_file(false);
    reload(list, f);
    for (int i = 0; i < n; i++) {
        if (!algorithms_find(list, &chosen[i]))
            push(list, &chosen[i]); // two products may be alike
        keep(list->key, &chosen[i]);
    }
    pthread_mutex_unlock(&kept.mutex);
    if (f)
        fclose(f);
}
