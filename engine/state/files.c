// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // mkostemps
#include "files.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_PIECES = 8 };

static int write_all(int fd, const struct iovec *pieces, int n) {
    struct iovec left[MAX_PIECES], *at = left;
    assert(n <= MAX_PIECES);
    memcpy(left, pieces, (size_t)n * sizeof *pieces);
    while (n > 0) {
        ssize_t done = writev(fd, at, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -1;
        for (; n > 0 && (size_t)done >= at->iov_len; n--, at++)
            done -= (ssize_t)at->iov_len;
        if (n > 0) {
            at->iov_base = (char *)at->iov_base + done;
            at->iov_len -= (size_t)done;
        }
    }
    return 0;
}

// A name is on the disk once its folder is.
static int sync_folder(const char *path) {
    char folder[4096];
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') // of a folder's own name
        n--;
    while (n > 0 && path[n - 1] != '/')
        n--;
    snprintf(folder, sizeof folder, "%.*s", n > 0 ? (int)n : 1, n > 0 ? path : ".");
    const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    const int rc = fsync(fd);
    close(fd);
    return rc;
}

// What errno says of a write.
static int write_code(void) {
    return errno == ENOSPC || errno == EDQUOT ? SSM_EDISKFULL : SSM_EIO;
}

int file_sync_folder(const char *path, const char *param, ssm_error *err) {
    if (sync_folder(path) == 0 || errno == EACCES)
        return 0;
    return ssm_error_set(err, SSM_EIO, param, "%m: cannot sync the folder of %s", path);
}

int file_replace(const char *path, const struct iovec *pieces, int n, bool sync, ssm_error *err) {
    char temporary[4096];
    if (snprintf(temporary, sizeof temporary, "%s.XXXXXX.tmp", path) >= (int)sizeof temporary)
        return ssm_error_set(err, SSM_EINVAL, NULL, "the path of a session's file is too long");
    const int fd = mkostemps(temporary, 4, O_CLOEXEC);
    if (fd < 0)
        return ssm_error_set(err, write_code(), NULL, "%m: cannot write %s", temporary);
    int rc = write_all(fd, pieces, n);
    if (rc == 0 && sync)
        rc = fsync(fd);
    if (close(fd) != 0)
        rc = -1;
    if (rc == 0)
        rc = rename(temporary, path);
    if (rc != 0) {
        rc = ssm_error_set(err, write_code(), NULL, "%m: cannot write %s", path);
        unlink(temporary);
        return rc;
    }
    return sync ? file_sync_folder(path, NULL, err) : 0;
}

int file_write(int fd, const struct iovec *pieces, int n, ssm_error *err) {
    if (write_all(fd, pieces, n) != 0)
        return ssm_error_set(err, write_code(), NULL, "a session's state could not be written: %m");
    return 0;
}

int file_remove(const char *path, ssm_error *err) {
    if ((unlink(path) != 0 && errno != ENOENT) || sync_folder(path) != 0)
        return ssm_error_set(err, SSM_EIO, NULL, "cannot remove %s: %m", path);
    return 0;
}
