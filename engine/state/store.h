// SPDX-License-Identifier: Apache-2.0
// Where sessions are kept: put, get, delete, list. One interface, a file an implementation:
//
//     store_folder.c   files in a folder, one process at a time
//     store_redis.c    a Redis or Valkey, which several processes share
//
// A request is its caller's to make and its caller's again when it comes back through on_done, on a
// thread of the store's. A folder keeps the order of submission for each session. Of a shared store
// the engine asks one thing at a time of a session, but for RELEASE, which keeps its place. Nothing
// here waits but open, list and close. Labels carry owners in the form in which the store keeps
// them (secret.h).
//
// A shared store (is_shared) cannot be listed once and remembered: others change it. So a turn
// begins with a CLAIM, which keeps other processes from the session until a RELEASE or a PUT that
// releases, and brings the state if the caller's is not the latest. Versions are told apart by
// stamps: random numbers, a new one for each PUT, so that a session that was deleted and made again
// is another one. A PUT replaces the stamp that it was made from (base) or fails: a turn is never
// lost in silence, whoever has stalled for how long.
#ifndef SSM_ENGINE_STORE_H
#define SSM_ENGINE_STORE_H

#include "snapshot_file.h"

typedef enum store_kind {
    STORE_PUT,
    STORE_GET,
    STORE_DELETE,
    // of a shared store alone
    STORE_CLAIM,
    STORE_RELEASE, // a claim, or that it is waited for
    STORE_AWAIT,   // a request waits for it: it does not expire before CLAIM or RELEASE
    STORE_LOOK,    // GET without the state
    STORE_LIST,    // an owner's
    STORE_FORK,
    STORE_PAUSE, // comes back when the store can be reached, or after a second
} store_kind;

typedef struct store_request {
    struct store_request *next; // the store's
    store_kind kind;
    snapshot_label label; // all but PUT: owner and name; LIST: owner
    snapshot_image image; // PUT: the caller's until on_done, then what the store has left of it.
                          // GET, CLAIM: filled, the caller's
    int rc; // 0, SSM_E*. GET: SSM_ENOTFOUND, SSM_EINVAL: what was there was damaged, and is set
            // aside. Shared, all kinds: SSM_EUNAVAILABLE. PUT: SSM_ECONFLICT: another one is there;
            // SSM_ENOTFOUND: none is; import, CLAIM: SSM_ESESSIONBUSY; what makes a session:
            // SSM_EQUOTA, with count the limit
    uint64_t stamp;     // PUT, FORK: the new one's. CLAIM: what the caller has (0: nothing), then
                        // what there is; the image stays empty if it is the same
    uint64_t base;      // PUT: see above; 0: no session of that name
    bool is_import;     // PUT: whatever is there, unless it is claimed
    bool releases;      // PUT: ends the claim
    bool is_wanted;     // PUT, then: another process waits for the session
    bool is_lost;       // PUT, SSM_ENOTFOUND: and nobody has deleted it, as far as is known
    uint32_t delay_ms;  // CLAIM: begins so much later
    bool waits;         // CLAIM: for others, for a second at most
    bool is_there;      // CLAIM, SSM_ESESSIONBUSY: what was waited for
    bool is_own;        // SSM_EQUOTA: the limit of an owner
    const char *target; // FORK: SSM_EINVAL if it is there; the caller's
    ssm_session_info *infos; // LIST, LOOK, FORK: malloc'd, the caller's; without bytes
    size_t n_infos, count;
    char reason[160]; // SSM_EUNAVAILABLE; of a folder: why a PUT failed
    // the caller's, not looked at
    struct session *session;
    struct session_call *call;
    uint64_t version, job;
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

typedef struct store_status {
    bool is_up;
    uint64_t sessions; // of this model, as of the last answer
    uint64_t connects;
    char reason[160]; // why it is not up, or was not, or what it refused last
} store_status;

typedef struct store_ops {
    // Calls each with every session there. *set_aside counts what is no session of this model.
    int (*list)(store *s, store_each each, void *ctx, uint64_t *set_aside, ssm_error *err);
    void (*submit)(store *s, store_request *request);
    void (*close)(store *s); // finishes what was submitted, then frees
    // shared stores
    void (*status)(store *s, store_status *out); // any thread
} store_ops;

struct store { // an implementation's first member
    const store_ops *ops;
    const ssm_model *model;
    bool is_shared;
    uint8_t secret[16];
    store_done on_done;
    void *ctx;
};

// A folder of this model's inside `root`, made if need be, held by one process at a time: SSM_EIO
// names the one that has it.
int store_open_folder(const ssm_model *model, const char *root, store_done on_done, void *ctx,
                      store **out, ssm_error *err);

typedef struct store_limits {
    int64_t ttl;               // seconds; 0: none
    uint64_t sessions, of_one; // in all, of an owner; 0: no limit
} store_limits;

// SSM_EUNSUPPORTED: built without hiredis. SSM_EINVAL: no URL. SSM_EUNAVAILABLE says what the
// server at the other end says.
int store_open_redis(const ssm_model *model, const char *url, const store_limits *limits,
                     store_done on_done, void *ctx, store **out, ssm_error *err);

#endif
