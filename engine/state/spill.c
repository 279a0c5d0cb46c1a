// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // O_TMPFILE, preadv
#include "spill.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "hash.h"

struct spill {
    int fd;
    size_t row_bytes;
    void (*on_done)(void *ctx, spill_move *move);
    void *ctx;
    pthread_t thread;
    pthread_mutex_t lock; // guards the queue
    pthread_cond_t wake;
    spill_move *first, **last;
    bool is_closing;
};

uint64_t spill_row_bytes(const spill *s) {
    return s->row_bytes;
}

// ---- the thread

// One piece at its place in the file, whole.
static int transfer(const spill *s, bool is_read, char *bytes, size_t n, uint64_t at) {
    while (n > 0) {
        const ssize_t done =
            is_read ? pread(s->fd, bytes, n, (off_t)at) : pwrite(s->fd, bytes, n, (off_t)at);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return SSM_EIO;
        bytes += done;
        at += (uint64_t)done;
        n -= (size_t)done;
    }
    return 0;
}

static int run(const spill *s, spill_move *m) {
    int rc = m->ticket ? ssm_ticket_wait(m->pool->backend, m->pool->device, m->ticket, NULL) : 0;
    if (rc == 0)
        rc = transfer(s, m->is_read, (char *)m->state, m->bytes,
                      (uint64_t)m->row * spill_row_bytes(s));
    if (rc != 0)
        return rc;
    const XXH128_hash_t h = XXH3_128bits(m->state, m->bytes);
    const uint64_t sum[2] = {h.high64, h.low64};
    if (m->is_read)
        return memcmp(sum, m->sum, sizeof sum) == 0 ? 0 : SSM_EIO;
    memcpy(m->sum, sum, sizeof sum);
    return 0;
}

static spill_move *wait_move(spill *s, bool *is_closing) {
    pthread_mutex_lock(&s->lock);
    while (!s->first && !s->is_closing)
        pthread_cond_wait(&s->wake, &s->lock);
    spill_move *m = s->first;
    if (m && !(s->first = m->next))
        s->last = &s->first;
    *is_closing = s->is_closing;
    pthread_mutex_unlock(&s->lock);
    return m;
}

static void *spill_thread(void *arg) {
    spill *s = arg;
    spill_move *m;
    bool is_closing;
    while ((m = wait_move(s, &is_closing))) {
        m->rc = is_closing ? SSM_ECANCELED : run(s, m);
        s->on_done(s->ctx, m);
    }
    return NULL;
}

void spill_submit(spill *s, spill_move *m) {
    m->next = NULL;
    pthread_mutex_lock(&s->lock);
    *s->last = m;
    s->last = &m->next;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

// ---- life

static int open_file(const char *folder) {
    char path[4096];
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL))
        return fd;
    snprintf(path, sizeof path, "%.4000s/ssmd-cache-XXXXXX", folder);
    fd = mkostemp(path, O_CLOEXEC);
    if (fd >= 0)
        unlink(path);
    return fd;
}

int spill_open(const char *folder, size_t row_bytes, void (*on_done)(void *ctx, spill_move *move),
               void *ctx, spill **out, ssm_error *err) {
    spill *s = calloc(1, sizeof *s);
    if (!s)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the cache's disk");
    *s = (spill){.fd = open_file(folder), .row_bytes = row_bytes, .on_done = on_done, .ctx = ctx};
    s->last = &s->first;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wake, NULL);
    int rc = 0;
    if (s->fd < 0)
        rc = ssm_error_set(err, SSM_EIO, "cache_dir", "no file can be made in %.300s: %m", folder);
    else if (pthread_create(&s->thread, NULL, spill_thread, s) != 0)
        rc = ssm_error_set(err, SSM_ENOMEM, NULL, "the thread of the cache's disk cannot start");
    if (rc == 0) {
        *out = s;
        return 0;
    }
    if (s->fd >= 0)
        close(s->fd);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->wake);
    free(s);
    return rc;
}

void spill_close(spill *s) {
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->is_closing = true;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->wake);
    close(s->fd);
    free(s);
}
