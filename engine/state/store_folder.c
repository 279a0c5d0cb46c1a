// SPDX-License-Identifier: Apache-2.0
// Sessions on disk: a folder with a file each, read and written by a thread of its own.
//
// A file is the whole session (snapshot_file.h) with its name, owner and times, under the hash of
// owner and name. It is written under a temporary name, synced, renamed, and the folder synced: at
// any moment, kill -9 included, a name stands for one whole version. Folders that are made here are
// synced into theirs, and so is the secret, without which a session has no owner.
//
// The start looks at headers and sizes alone, so that it takes the time of a directory's listing
// and the memory of its names; checksums are looked at when a file is used. One that is torn,
// foreign or of another model is set aside as NAME.bad and not looked at again; a temporary one is
// what a killed process left: it goes.
//
//     ROOT/.secret             what owners are hashed with (secret.h)
//     ROOT/MODEL/.lock         locked by the process that has the folder; holds its number
//     ROOT/MODEL/HASH.session
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files.h"
#include "hash.h"
#include "secret.h"
#include "store.h"

typedef struct folder_store {
    store base;
    char *folder;
    int lock_fd;
    pthread_t thread;
    pthread_mutex_t lock; // guards the queue
    pthread_cond_t wake;
    store_request *first, **last;
    bool is_closing;
} folder_store;

static void path_of(const folder_store *s, const char *file, const char *suffix, char out[4096]) {
    snprintf(out, 4096, "%s/%s%s", s->folder, file, suffix);
}

static void name_file(const snapshot_label *label, char out[48]) {
    const uint64_t *owner = label->owner;
    const XXH128_hash_t h = XXH3_128bits_withSeed(label->name, strlen(label->name),
                                                  owner[0] * 0x9e3779b97f4a7c15u ^ owner[1]);
    snprintf(out, 48, "%016" PRIx64 "%016" PRIx64 ".session", h.high64 ^ owner[0], h.low64);
}

static void set_aside(const folder_store *s, const char *file) {
    char path[4096], aside[4096];
    path_of(s, file, "", path);
    path_of(s, file, ".bad", aside);
    (void)rename(path, aside);
}

// ---- the thread

static int get(const folder_store *s, store_request *r, const char *file, const char *path) {
    snapshot_label found;
    bool has_label = false;
    if (access(path, F_OK) != 0 && errno == ENOENT)
        return SSM_ENOTFOUND;
    int rc = snapshot_file_read(s->base.model, path, &r->image, &found, &has_label, NULL);
    const bool is_other = rc == 0 && (!has_label || strcmp(found.name, r->label.name) != 0 ||
                                      memcmp(found.owner, r->label.owner, sizeof found.owner) != 0);
    if (is_other) {
        snapshot_image_dispose(&r->image);
        rc = SSM_EINVAL;
    }
    if (rc == SSM_EINVAL)
        set_aside(s, file);
    else if (rc == 0)
        r->label = found;
    return rc;
}

static int put(const folder_store *s, store_request *r, const char *path) {
    ssm_error err = {0};
    const int rc = snapshot_file_write(s->base.model, &r->image, &r->label, path, true, &err);
    if (rc != 0)
        snprintf(r->reason, sizeof r->reason, "%.159s", err.message);
    return rc;
}

static int run(const folder_store *s, store_request *r) {
    char file[48], path[4096];
    name_file(&r->label, file);
    path_of(s, file, "", path);
    switch (r->kind) {
    case STORE_PUT:
        return put(s, r, path);
    case STORE_GET:
        return get(s, r, file, path);
    case STORE_DELETE:
        return file_remove(path, NULL);
    default:
        return SSM_EUNSUPPORTED; // a folder is not shared
    }
}

static store_request *wait_request(folder_store *s) {
    pthread_mutex_lock(&s->lock);
    while (!s->first && !s->is_closing)
        pthread_cond_wait(&s->wake, &s->lock);
    store_request *r = s->first;
    if (r && !(s->first = r->next))
        s->last = &s->first;
    pthread_mutex_unlock(&s->lock);
    return r;
}

static void *store_thread(void *arg) {
    folder_store *s = arg;
    store_request *r;
    while ((r = wait_request(s))) {
        r->rc = run(s, r);
        s->base.on_done(s->base.ctx, r);
    }
    return NULL;
}

static void submit(store *base, store_request *r) {
    folder_store *s = (folder_store *)base;
    r->next = NULL;
    pthread_mutex_lock(&s->lock);
    *s->last = r;
    s->last = &r->next;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

// ---- what is there

static bool ends_in(const char *name, const char *suffix) {
    const size_t n = strlen(name), m = strlen(suffix);
    return n > m && strcmp(name + n - m, suffix) == 0;
}

// False: the file is set aside.
static bool list_file(const folder_store *s, const char *file, store_each each, void *ctx) {
    char path[4096], expected[48] = "";
    session_text text;
    snapshot_label label;
    path_of(s, file, "", path);
    const int rc = snapshot_file_peek(s->base.model, path, &text, &label, NULL);
    if (rc == SSM_ENOMEM || rc == SSM_EIO)
        return true; // no fault of the file's
    if (rc == 0)
        name_file(&label, expected);
    const bool is_ours = rc == 0 && strcmp(expected, file) == 0;
    if (is_ours)
        each(ctx, &(store_entry){&label, &text});
    else
        set_aside(s, file);
    session_text_dispose(&text);
    return is_ours;
}

static int list(store *base, store_each each, void *ctx, uint64_t *n_aside, ssm_error *err) {
    const folder_store *s = (const folder_store *)base;
    char path[4096];
    *n_aside = 0;
    DIR *dir = opendir(s->folder);
    if (!dir)
        return ssm_error_set(err, SSM_EIO, "state_dir", "cannot read %s: %m", s->folder);
    const struct dirent *d;
    while ((d = readdir(dir))) {
        if (ends_in(d->d_name, ".tmp")) {
            path_of(s, d->d_name, "", path);
            (void)unlink(path);
        } else if (ends_in(d->d_name, ".session")) {
            *n_aside += !list_file(s, d->d_name, each, ctx);
        }
    }
    closedir(dir);
    return 0;
}

// ---- life

static void close_folder(store *base) {
    folder_store *s = (folder_store *)base;
    pthread_mutex_lock(&s->lock);
    s->is_closing = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->wake);
    close(s->lock_fd);
    free(s->folder);
    free(s);
}

static const store_ops ops = {.list = list, .submit = submit, .close = close_folder};

static int make_folder(const char *path, ssm_error *err) {
    if (mkdir(path, 0700) == 0)
        return file_sync_folder(path, "state_dir", err);
    if (errno == EEXIST)
        return 0;
    return ssm_error_set(err, SSM_EIO, "state_dir", "cannot make the folder %.300s: %m", path);
}

// The lock goes with the process, whatever ends it.
static int take_lock(folder_store *s, ssm_error *err) {
    char path[4096], holder[24] = "";
    path_of(s, ".lock", "", path);
    s->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (s->lock_fd < 0)
        return ssm_error_set(err, SSM_EIO, "state_dir", "cannot write in %.300s: %m", s->folder);
    if (flock(s->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        const ssize_t n = pread(s->lock_fd, holder, sizeof holder - 1, 0);
        holder[n > 0 ? strspn(holder, "0123456789") : 0] = '\0';
        return ssm_error_set(err, SSM_EIO, "state_dir",
                             "the sessions in %.300s are in use by process %s", s->folder,
                             holder[0] ? holder : "unknown");
    }
    const int n = snprintf(holder, sizeof holder, "%ld\n", (long)getpid());
    if (ftruncate(s->lock_fd, 0) != 0 || pwrite(s->lock_fd, holder, (size_t)n, 0) != n)
        return ssm_error_set(err, SSM_EIO, "state_dir", "cannot write %.300s: %m", path);
    return 0;
}

static int open_all(folder_store *s, const char *root, ssm_error *err) {
    uint64_t hash[2];
    model_hash(s->base.model, hash); // a folder each, so that models may share a root
    if (asprintf(&s->folder, "%s/%016" PRIx64 "%016" PRIx64, root, hash[0], hash[1]) < 0) {
        s->folder = NULL;
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the store of sessions");
    }
    if (strlen(s->folder) > 3900)
        return ssm_error_set(err, SSM_EINVAL, "state_dir", "its path is too long");
    int rc = make_folder(root, err);
    if (rc == 0)
        rc = secret_open(root, s->base.secret, err);
    if (rc == 0)
        rc = make_folder(s->folder, err);
    if (rc == 0)
        rc = take_lock(s, err);
    if (rc == 0 && pthread_create(&s->thread, NULL, store_thread, s) != 0)
        rc = ssm_error_set(err, SSM_ENOMEM, NULL, "the store's thread could not be started");
    return rc;
}

int store_open_folder(const ssm_model *model, const char *root, store_done on_done, void *ctx,
                      store **out, ssm_error *err) {
    folder_store *s = calloc(1, sizeof *s);
    if (!s)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the store of sessions");
    s->base = (store){.ops = &ops, .model = model, .on_done = on_done, .ctx = ctx};
    s->lock_fd = -1;
    s->last = &s->first;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, NULL);
    const int rc = open_all(s, root, err);
    if (rc == 0) {
        *out = &s->base;
        return 0;
    }
    if (s->lock_fd >= 0)
        close(s->lock_fd);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->wake);
    free(s->folder);
    free(s);
    return rc;
}
