// SPDX-License-Identifier: Apache-2.0
// Sessions: states that have a name and outlive the requests that made them.
//
// A request that names a session (ssm_request.session) continues from its state and leaves the new
// one there; here they are listed, forked, deleted, written to files and read from them. A fork
// costs nothing: states do not change, both names own one until a turn of either replaces it.
//
// All calls may be made on any thread and block: a turn of the engine's thread does the work (up to
// one step of the model), and export and import read or write a file besides. An event loop makes
// them on a pool's thread. They must return before ssm_engine_free is called.
//
// Names are [A-Za-z0-9._-]{1,128} and belong to an owner, 128 bits that the caller derives from
// whatever identifies its clients. Another owner's session is SSM_ENOTFOUND, as one that is not
// there. A new name may be one too many: SSM_EQUOTA (the limits of ssm_engine_options).
#ifndef SSM_SESSION_H
#define SSM_SESSION_H

#include <stddef.h>
#include <stdint.h>

#include <ssm/engine.h>

enum { SSM_SESSION_NAME = 128 };

typedef struct ssm_session_info {
    char name[SSM_SESSION_NAME + 1];
    uint64_t tokens;            // so far, the last one drawn included
    uint64_t bytes;             // of its state
    int64_t created, last_used; // Unix time, seconds
    ssm_session_point at;
    size_t n_memo; // what the last turn left with ssm_engine_keep
    uint8_t memo[SSM_SESSION_MEMO];
} ssm_session_info;

// All of an owner's sessions, by name; *out is the caller's, to be freed with free.
int ssm_session_list(ssm_engine *engine, const uint64_t owner[2], ssm_session_info **out, size_t *n,
                     ssm_error *err);

int ssm_session_get(ssm_engine *engine, const uint64_t owner[2], const char *name,
                    ssm_session_info *out, ssm_error *err);

// A turn that is under way ends as it would; what it makes is dropped.
int ssm_session_delete(ssm_engine *engine, const uint64_t owner[2], const char *name,
                       ssm_error *err);

// A second session in the state of the first as of its last finished turn. SSM_EINVAL: the target
// exists already. *out may be NULL.
int ssm_session_fork(ssm_engine *engine, const uint64_t owner[2], const char *name,
                     const char *target, ssm_session_info *out, ssm_error *err);

// The session as a safetensors file, whose metadata names the model, the position and the last
// tokens; the same state gives the same bytes. Written to a temporary name beside path and renamed.
int ssm_session_export(ssm_engine *engine, const uint64_t owner[2], const char *name,
                       const char *path, ssm_error *err);

// The same into an open file, from its place on; *size (may be NULL) says how many bytes.
int ssm_session_export_fd(ssm_engine *engine, const uint64_t owner[2], const char *name, int fd,
                          uint64_t *size, ssm_error *err);

// A session from such a file; one of that name is replaced. SSM_EINVAL, and nothing changes, if the
// file is damaged, of another model or not a session at all; SSM_ESESSIONBUSY if a turn of the
// session is under way.
int ssm_session_import(ssm_engine *engine, const uint64_t owner[2], const char *name,
                       const char *path, ssm_session_info *out, ssm_error *err);

// The same without a file. *out is the caller's, to be freed with free.
int ssm_session_export_bytes(ssm_engine *engine, const uint64_t owner[2], const char *name,
                             uint8_t **out, size_t *size, ssm_error *err);
int ssm_session_import_bytes(ssm_engine *engine, const uint64_t owner[2], const char *name,
                             const uint8_t *bytes, size_t size, ssm_session_info *out,
                             ssm_error *err);

// Bytes of the largest file that import takes.
uint64_t ssm_session_max_file(const ssm_engine *engine);

#endif
