// SPDX-License-Identifier: Apache-2.0
// Jobs: requests inside the engine, and their choices.
//
// A job is a request that submit accepted: a copy of all it needs in one allocation's worth of
// arrays, made on the submitter's thread and handed over once; from then on only the engine thread
// touches it. It has n choices. The first runs the prompt; at the prompt's end the others continue
// from copies of its state (directly while slots are free, else from a snapshot that is held until
// the last choice has been admitted).
//
//     choice:  PENDING -> PREFILL -> DECODE -> ENDED         (the first)
//                                   DECODE -> HELD -> ENDED (of a session's turn, turn.c)
//              PENDING ------------> DECODE -> ENDED         (the others: a copy on the device)
//              PENDING -> RESTORE -> DECODE -> ENDED         (the others: from the snapshot)
//
// A job that is known whole from the cache has all its choices take the last way; one of which only
// a beginning is known starts its PREFILL there (reuse.c).
//
// A prompt of no tokens begins at a snapshot of zeros that no step had to make.
//
// choice_end is the one way into ENDED. A job is freed when all its choices have ended and no step
// in flight refers to it.
#ifndef SSM_ENGINE_JOB_H
#define SSM_ENGINE_JOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ssm/engine.h>

#include "clients.h"
#include "kernels/backend.h"
#include "state/cache.h"
#include "state/session.h"

typedef enum choice_state {
    CHOICE_PENDING, // has no slot yet
    CHOICE_PREFILL,
    CHOICE_RESTORE, // has a slot: its state is to be restored from the job's hit
    CHOICE_DECODE,
    CHOICE_HELD, // over, and its consumer has the last word: no slot, its end is in job.last
    CHOICE_ENDED,
} choice_state;

typedef struct job job;
typedef struct history history;

typedef struct choice {
    job *job;
    int32_t index;
    choice_state state;
    int32_t slot;       // -1: none
    int32_t in_flight;  // draws launched and not collected: 0 to 2
    int32_t last_token; // valid once generated > 0 and nothing is in flight
    int64_t generated;  // collected
    int64_t fed;        // of the tokens generated, those that launched steps have run
    int32_t *tokens;    // [generated] if the job keeps them
    int64_t cap_tokens;
    int32_t row;      // of its logits in the step `serial`
    uint64_t serial;  // the last step that it was in
    int64_t cut;      // tokens that its consumer wants; -1: all
    history *history; // NULL unless a penalty or a bad word needs it
} choice;

enum { JOB_MARKS = 8 };

struct job {
    job *next, *prev; // in the waiting or the running list
    uint64_t id;
    void *user;
    ssm_port *port;
    int32_t *prompt; // [n_prompt]
    size_t n_prompt;
    size_t prefilled;
    ssm_sampling sampling; // arrays owned
    int64_t max_tokens, min_tokens;
    uint64_t seed;
    int32_t logprobs;
    bool prompt_logprobs;
    int32_t *stops; // [n_stops] ids that end a choice: stop_ids, and the model's unless ignored
    int32_t n_stops;
    uint64_t client_key;
    client *client; // from admission to the queue until the job is freed
    int32_t priority;
    bool is_paused, is_running;
    bool is_done;     // its DONE has been posted
    int32_t refs;     // steps in flight that refer to it
    int32_t n_stores; // writes that its DONE waits for
    int error;
    char message[128];
    bool uses_cache;
    bool keeps_tokens;       // of its choices, as a key for their ends
    int32_t tenant[4];       // cache_salt
    bool is_fetching;        // waits for a state that is being read
    snapshot *awaited_state; // which; NULL: its session's
    snapshot *fetched;       // pinned: what has come
    int32_t n_fetches;
    snapshot *hit;           // pinned: where choices without a slot begin
    size_t cached;           // tokens of the prompt that did not run
    size_t grid;             // checkpoints at multiples of so many tokens; 0: none
    size_t marks[JOB_MARKS]; // and at these
    int32_t n_marks;
    char session_name[SSM_SESSION_NAME + 1]; // "": none
    uint64_t owner[2];
    bool is_whole, waits_not, holds;
    bool is_pinned; // at a place in the session
    ssm_session_point at;
    bool is_asked, is_expected; // shared_line.c: whether its session is there; and it was
    session *session;
    size_t base;    // tokens of the session before the prompt, which then begins with
    size_t n_old;   // tokens that were pending
    snapshot *kept; // the state at the prompt's end
    snapshot *last; // of a choice that is held, at its end; NULL: there is none
    uint8_t memo[SSM_SESSION_MEMO];
    size_t n_memo;
    uint64_t leader; // waiting for this job to run the beginning that both have; 0: none
    size_t awaited;  // up to this token
    int32_t n_follows;
    uint64_t submitted_ns, started_ns, first_token_ns;
    uint64_t completion_tokens;
    int32_t n_choices, n_open; // choices not ENDED
    choice choices[];
};

// A copy of a request; NULL if memory is short. `eos` are the model's end-of-text ids.
job *job_create(const ssm_request *request, const int32_t *eos, int32_t n_eos);
void job_free(job *j);

// Whether this id ends a choice.
bool job_is_stop(const job *j, int32_t id);

// Whether the next draw depends on tokens that the host must have seen: penalties and bad words.
bool job_needs_history(const job *j);

// 0, or SSM_EINVAL and the field at fault (request.c). Any thread.
int request_check(const ssm_request *request, const ssm_model_info *info, ssm_error *err);

// Whether the state and logits of the prompt's end are saved for choices that have no slot yet.
bool job_has_end(const job *j);

// Remembers a generated token, c->generated not yet counting it; false: no memory.
bool choice_remember(choice *c, int32_t id);

// First choice without a slot, or NULL.
choice *job_pending_choice(job *j);

#endif
