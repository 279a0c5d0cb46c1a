// SPDX-License-Identifier: Apache-2.0
#include "spool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { CHARGE_STEP = 1 << 20 };

// A file without a name; where the file system knows no such thing, one whose name is taken away
// at once.
static int open_unnamed(const char *folder) {
    char path[4096];
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL) &&
        snprintf(path, sizeof path, "%s/upload.XXXXXX.tmp", folder) < (int)sizeof path) {
        fd = mkostemps(path, 4, O_CLOEXEC);
        if (fd >= 0) {
            (void)unlink(path);
        }
    }
    return fd;
}

static int open_file(const spool_room *room, bool *in_memory) {
    int fd = -1;
    for (size_t i = 0; i < 2 && fd < 0; i++) {
        fd = room->folders[i] ? open_unnamed(room->folders[i]) : -1;
    }
    *in_memory = fd < 0;
    return fd >= 0 ? fd : memfd_create("ssmd-state", MFD_CLOEXEC);
}

int spool_open(spool_room *room, spool **out, ssm_error *err) {
    spool *s = *out = calloc(1, sizeof *s);
    if (!s) {
        return ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
    }
    if (atomic_fetch_add(&room->n, 1) >= SPOOLS_MOST) {
        atomic_fetch_sub(&room->n, 1);
        free(s);
        *out = NULL;
        return ssm_error_set(err, SSM_ENOMEM, NULL,
                             "%d states are on their way already, try again later", SPOOLS_MOST);
    }
    s->room = room;
    s->fd = open_file(room, &s->in_memory);
    if (s->fd < 0) {
        spool_close(s);
        *out = NULL;
        return ssm_error_set(err, SSM_EIO, NULL, "no temporary file for a state: %m");
    }
    return 0;
}

void spool_close(spool *s) {
    if (!s) {
        return;
    }
    if (s->fd >= 0) {
        close(s->fd);
    }
    if (s->charged > 0) {
        budget_give(s->room->budget, s->charged);
    }
    atomic_fetch_sub(&s->room->n, 1);
    free(s);
}

int spool_reserve(spool *s, uint64_t size, ssm_error *err) {
    if (!s->in_memory || size <= s->charged) {
        return 0;
    }
    const size_t more = (size_t)size - s->charged + CHARGE_STEP;
    if (!budget_take(s->room->budget, more)) {
        return ssm_error_set(err, SSM_ENOMEM, NULL,
                             "too much request memory is in use, try again later");
    }
    s->charged += more;
    return 0;
}

int spool_write(spool *s, const char *data, size_t len, ssm_error *err) {
    const int rc = spool_reserve(s, s->size + len, err);
    while (rc == 0 && len > 0) {
        const ssize_t n = write(s->fd, data, len);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            const bool is_full = errno == ENOSPC || errno == EDQUOT;
            return ssm_error_set(err, is_full ? SSM_EDISKFULL : SSM_EIO, NULL,
                                 "a state could not be written to a file: %m");
        }
        data += n;
        len -= (size_t)n;
        s->size += (uint64_t)n;
    }
    return rc;
}

void spool_path(const spool *s, char out[SPOOL_PATH]) {
    snprintf(out, SPOOL_PATH, "/proc/self/fd/%d", s->fd);
}
