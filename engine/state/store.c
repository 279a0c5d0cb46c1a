// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "store.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "files.h"

typedef struct entry {
    struct entry *next;
    char file[48]; // in the folder
    bool is_delete;
    snapshot_image image;
    snapshot_label label;
    void *tag;
} entry;

struct store {
    const ssm_model *model;
    char *folder;
    void (*on_stored)(void *ctx, void *tag, int rc);
    void *ctx;
    pthread_t thread;
    pthread_mutex_t lock; // guards the queue
    pthread_cond_t wake;
    entry *first, **last;
    bool is_closing;
};

static void free_entry(entry *e) {
    snapshot_image_dispose(&e->image);
    free(e);
}

static void path_of(const store *s, const char *file, const char *suffix, char out[4096]) {
    snprintf(out, 4096, "%s/%s%s", s->folder, file, suffix);
}

static void name_file(const uint64_t owner[2], const char *name, char out[48]) {
    const XXH128_hash_t h =
        XXH3_128bits_withSeed(name, strlen(name), owner[0] * 0x9e3779b97f4a7c15u ^ owner[1]);
    snprintf(out, 48, "%016" PRIx64 "%016" PRIx64 ".session", h.high64 ^ owner[0], h.low64);
}

// ---- the thread

static int run_entry(const store *s, const entry *e) {
    char path[4096];
    path_of(s, e->file, "", path);
    if (e->is_delete)
        return file_remove(path, NULL);
    return snapshot_file_write(s->model, &e->image, &e->label, path, true, NULL);
}

static entry *wait_entry(store *s) {
    pthread_mutex_lock(&s->lock);
    while (!s->first && !s->is_closing)
        pthread_cond_wait(&s->wake, &s->lock);
    entry *e = s->first;
    if (e) {
        s->first = e->next;
        if (!s->first)
            s->last = &s->first;
    }
    pthread_mutex_unlock(&s->lock);
    return e;
}

static void *store_thread(void *arg) {
    store *s = arg;
    entry *e;
    while ((e = wait_entry(s))) {
        const int rc = run_entry(s, e);
        if (e->tag)
            s->on_stored(s->ctx, e->tag, rc);
        free_entry(e);
    }
    return NULL;
}

// ---- the queue

// An older version that nobody waits for need not be written.
static void drop_older(store *s, const char *file) {
    for (entry **at = &s->first; *at;) {
        entry *e = *at;
        if (e->tag || strcmp(e->file, file) != 0) {
            at = &e->next;
            continue;
        }
        *at = e->next;
        if (s->last == &e->next)
            s->last = at;
        free_entry(e);
    }
}

static void push(store *s, entry *e) {
    pthread_mutex_lock(&s->lock);
    drop_older(s, e->file);
    *s->last = e;
    s->last = &e->next;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

int store_put(store *s, snapshot_image *image, const snapshot_label *label, void *tag) {
    entry *e = calloc(1, sizeof *e);
    if (!e)
        return SSM_ENOMEM;
    name_file(label->owner, label->name, e->file);
    e->image = *image;
    *image = (snapshot_image){0};
    e->label = *label;
    e->tag = tag;
    push(s, e);
    return 0;
}

int store_delete(store *s, const uint64_t owner[2], const char *name, void *tag) {
    entry *e = calloc(1, sizeof *e);
    if (!e)
        return SSM_ENOMEM;
    name_file(owner, name, e->file);
    e->is_delete = true;
    e->tag = tag;
    push(s, e);
    return 0;
}

// ---- reading what is there

static bool ends_in(const char *name, const char *suffix) {
    const size_t n = strlen(name), m = strlen(suffix);
    return n > m && strcmp(name + n - m, suffix) == 0;
}

static bool load_file(store *s, const char *file, store_each each, void *ctx) {
    char path[4096], aside[4096], expected[48] = "";
    snapshot_image image;
    snapshot_label label;
    bool has_label = false;
    path_of(s, file, "", path);
    const int rc = snapshot_file_read(s->model, path, &image, &label, &has_label, NULL);
    if (rc == SSM_ENOMEM || rc == SSM_EIO)
        return true; // no fault of the file's
    if (rc == 0 && has_label)
        name_file(label.owner, label.name, expected);
    const bool is_ours = rc == 0 && has_label && strcmp(expected, file) == 0;
    if (is_ours)
        each(ctx, &image, &label);
    snapshot_image_dispose(&image);
    if (!is_ours) {
        path_of(s, file, ".bad", aside);
        (void)rename(path, aside);
    }
    return is_ours;
}

int store_load(store *s, store_each each, void *ctx, uint64_t *set_aside, ssm_error *err) {
    char path[4096];
    *set_aside = 0;
    DIR *dir = opendir(s->folder);
    if (!dir)
        return ssm_error_set(err, SSM_EIO, "state_dir", "cannot read %s: %m", s->folder);
    const struct dirent *d;
    while ((d = readdir(dir))) {
        if (ends_in(d->d_name, ".tmp")) {
            path_of(s, d->d_name, "", path);
            (void)unlink(path);
        } else if (ends_in(d->d_name, ".session")) {
            *set_aside += !load_file(s, d->d_name, each, ctx);
        }
    }
    closedir(dir);
    return 0;
}

// ---- life

int store_open(const ssm_model *model, const char *folder,
               void (*on_stored)(void *ctx, void *tag, int rc), void *ctx, store **out,
               ssm_error *err) {
    store *s = calloc(1, sizeof *s);
    if (!s || !(s->folder = strdup(folder))) {
        free(s);
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the store of sessions");
    }
    s->model = model;
    s->on_stored = on_stored;
    s->ctx = ctx;
    s->last = &s->first;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, NULL);
    int rc = 0;
    if (strlen(folder) > 3900 || (mkdir(folder, 0700) != 0 && errno != EEXIST))
        rc = ssm_error_set(err, SSM_EIO, "state_dir", "cannot make the folder %.300s: %m", folder);
    else if (access(folder, R_OK | W_OK | X_OK) != 0)
        rc = ssm_error_set(err, SSM_EIO, "state_dir", "cannot write in %.300s: %m", folder);
    else if (pthread_create(&s->thread, NULL, store_thread, s) != 0)
        rc = ssm_error_set(err, SSM_ENOMEM, NULL, "the store's thread could not be started");
    if (rc == 0) {
        *out = s;
        return 0;
    }
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->wake);
    free(s->folder);
    free(s);
    return rc;
}

void store_close(store *s) {
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->is_closing = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->wake);
    free(s->folder);
    free(s);
}
