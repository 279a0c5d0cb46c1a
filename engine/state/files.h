// SPDX-License-Identifier: Apache-2.0
// Files that are whole or not there. A disk without room for one: SSM_EDISKFULL.
#ifndef SSM_ENGINE_FILES_H
#define SSM_ENGINE_FILES_H

#include <stdbool.h>
#include <sys/uio.h>

#include <ssm/error.h>

// Writes a whole file beside path, its pieces in order, and renames it; with sync it is on the disk
// when this returns.
int file_replace(const char *path, const struct iovec *pieces, int n, bool sync, ssm_error *err);

// Into an open file, from its place on.
int file_write(int fd, const struct iovec *pieces, int n, ssm_error *err);

// What was made in the folder of `path` is on the disk; param: of an error. A folder that may not
// be read cannot be synced and is passed over.
int file_sync_folder(const char *path, const char *param, ssm_error *err);

int file_remove(const char *path, ssm_error *err); // and syncs the folder; none there is no error

#endif
