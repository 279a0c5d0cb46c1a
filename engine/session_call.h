// SPDX-License-Identifier: Apache-2.0
// A call of ssm/session.h on its way: its caller sleeps until it is done.
#ifndef SSM_ENGINE_SESSION_CALL_H
#define SSM_ENGINE_SESSION_CALL_H

#include "engine.h"
#include "state/snapshot_file.h"

typedef enum session_op {
    SESSION_LIST,
    SESSION_GET,
    SESSION_DELETE,
    SESSION_FORK,
    SESSION_READ,
    SESSION_WRITE,
} session_op;

struct session_call {
    session_call *next; // of those that wait for a session's state
    session_op op;
    uint64_t owner[2];
    const char *name, *target;
    ssm_session_info *infos; // LIST: malloc'd; else where to put one, or NULL
    size_t n_infos;
    snapshot_image image; // READ: filled; WRITE: its buffers are taken over on success
    int rc;
    ssm_error error;
    bool is_done; // guarded by the engine's lock, as is
    pthread_cond_t done;
};

#endif
