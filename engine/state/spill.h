// SPDX-License-Identifier: Apache-2.0
// The cache's disk: states that fell off the host, in rows of one file, moved by a thread.
//
// The file has no name. It is made in the folder and unlinked at once (O_TMPFILE where the file
// system has it), so that nothing is left when the process ends, however it ends, no file of
// another process can be taken for one of ours, and what it holds needs no model's hash, no weight
// type, no tenant and no tokens to be told apart by: all of that is the tree's in memory, which
// alone says what a row is. So it is empty at every start. A file that outlived its process would
// have to hold prompts, in clear, and who had them, to be of use; sessions are what survives.
//
// Each row's checksum stays in memory and is compared when the row is read: a disk that returns
// something else costs the state, not an answer.
//
// Moves are queued, run in order, and come back through on_done on the spill's thread.
#ifndef SSM_ENGINE_SPILL_H
#define SSM_ENGINE_SPILL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ssm/error.h>

#include "state_pool.h"

typedef struct spill_move {
    struct spill_move *next; // the spill's
    bool is_read;
    int32_t row;
    const state_pool *pool;    // to be written: of the state, whose last copy
    uint64_t ticket;           // is waited for here
    float *state;              // the caller's
    size_t bytes;              // of it, a row's at most
    uint64_t sum[2];           // written: filled; to be read: what it must be
    int rc;                    // 0, SSM_EIO, SSM_ECANCELED
    struct snapshot *snapshot; // the caller's, not looked at
    uint64_t began_ns;
} spill_move;

typedef struct spill spill;

// SSM_EIO: no file can be made in the folder.
int spill_open(const char *folder, size_t row_bytes, void (*on_done)(void *ctx, spill_move *move),
               void *ctx, spill **out, ssm_error *err);
void spill_submit(spill *s, spill_move *move);

// What has not begun comes back as SSM_ECANCELED; then frees. NULL is allowed.
void spill_close(spill *s);

uint64_t spill_row_bytes(const spill *s);

#endif
