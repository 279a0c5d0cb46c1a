// SPDX-License-Identifier: Apache-2.0
// Where sessions are kept: put, get, delete, list. One interface, a file an implementation:
//
//     store_folder.c   files in a folder
//
// A request is its caller's to make and its caller's again when it comes back through on_done, on a
// thread of the store's, in the order of submission for each session. Nothing here waits but open,
// list and close. Labels carry owners in the form in which the store keeps them (secret.h).
#ifndef SSM_ENGINE_STORE_H
#define SSM_ENGINE_STORE_H

#include "snapshot_file.h"

typedef enum store_kind { STORE_PUT, STORE_GET, STORE_DELETE } store_kind;

typedef struct store_request {
    struct store_request *next; // the store's
    store_kind kind;
    snapshot_label label; // GET, DELETE: owner and name
    snapshot_image image; // PUT: the caller's until on_done. GET: filled, the caller's
    int rc; // 0, SSM_E*. GET: SSM_ENOTFOUND, SSM_EINVAL: what was there was damaged, and is set
            // aside
    // the caller's, not looked at
    struct session *session;
    struct session_call *call;
    uint64_t version;
    uint64_t began_ns;
} store_request;

void store_request_free(store_request *r); // with its image; NULL is allowed

typedef struct store_entry { // one of the list
    const snapshot_label *label;
    session_text *text; // without pending tokens; may be taken
} store_entry;

typedef struct store store;
typedef void (*store_done)(void *ctx, store_request *request);
typedef void (*store_each)(void *ctx, const store_entry *entry);

typedef struct store_ops {
    // Calls each with every session there. *set_aside counts what is no session of this model.
    int (*list)(store *s, store_each each, void *ctx, uint64_t *set_aside, ssm_error *err);
    void (*submit)(store *s, store_request *request);
    void (*close)(store *s); // finishes what was submitted, then frees
} store_ops;

struct store { // an implementation's first member
    const store_ops *ops;
    const ssm_model *model;
    uint8_t secret[16];
    store_done on_done;
    void *ctx;
};

// A folder of this model's inside `root`, made if need be, held by one process at a time: SSM_EIO
// names the one that has it.
int store_open_folder(const ssm_model *model, const char *root, store_done on_done, void *ctx,
                      store **out, ssm_error *err);

#endif
