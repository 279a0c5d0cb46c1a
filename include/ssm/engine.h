// SPDX-License-Identifier: Apache-2.0
// The engine: one model on one device, all its sessions advanced by one thread.
//
// Objects and threads. ssm_engine_create starts the engine thread, which owns the device, the slots
// and the scheduler. A consumer (an event loop, or a program that waits) opens a ssm_port; requests
// are submitted with a port and their events come back through it. Crossing is one locked list each
// way and one wake-up: all events of one step for one port come in one ssm_batch.
//
//   may be called on            ssm_engine_create/free     the owner's thread, once
//                               submit/cancel/pause/...    any thread
//                               ssm_port_take              the port's consumer only
//                               wake callback              runs on the engine thread: only signal
//
// Life of a request: submit -> waiting -> prefill -> decode -> done. Exactly one SSM_EVENT_DONE is
// posted for every request that submit accepted, always as its last event, whatever happens to it
// (finished, cancelled, engine failed); `user` may be freed when it has been seen.
#ifndef SSM_ENGINE_H
#define SSM_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ssm/dtype.h>
#include <ssm/error.h>
#include <ssm/model.h>
#include <ssm/sampling.h>

typedef struct ssm_engine ssm_engine;
typedef struct ssm_port ssm_port;

typedef enum ssm_durability {
    SSM_DURABILITY_ASYNC = 0, // a changed session is written at once, nobody waits for it
    SSM_DURABILITY_SYNC,      // DONE and the calls of ssm/session.h come when it is on the disk
    SSM_DURABILITY_NONE,      // all are written when the engine is freed
} ssm_durability;

typedef struct ssm_engine_options {
    const char *device;   // "auto", "cpu", "reference", "cuda:0"
    int32_t threads;      // CPU: worker threads; 0: one a core that this process may use
    bool pin_threads;     // CPU: bind each worker to a core
    int32_t max_sessions; // slots; 0: 64 on a CPU, what fits on a GPU
    int32_t max_queue;    // requests waiting for their first slot; past it submit gives SSM_EBUSY
    int32_t step_tokens;  // most tokens a step: decode rows and prefill together; 0: the backend's
    int32_t chunk_tokens; // longest prefill segment of one sequence in a step; 0: step_tokens
    int32_t vocab_limit;  // ids from here on are never drawn (padding rows); 0: the model's rows
    ssm_dtype weight_dtype, state_dtype, activation_dtype; // SSM_DTYPE_AUTO: as stored, f32, f32
    // GPU: no weights a second time in 12 bits, which take room for sessions; false: where kernels
    // read such ones and they take an eighth of the free memory or less
    bool unpacked;
    int64_t cache_bytes; // device memory for saved states (prefixes, sessions); -1: the default,
                         // 256 MiB or at least four states on a CPU, a quarter of the slots that
                         // fit on a GPU; 0: none
    uint64_t host_bytes; // host memory that this engine may count on, such as a cgroup's limit: a
                         // CPU's default of cache_bytes takes a quarter at most; 0: not known
    uint64_t cache_host_bytes; // host memory for those that fall off the device; 0: none
    const char *cache_dir; // states that fall off the host go to a nameless file in this folder;
                           // NULL: they are forgotten
    uint64_t cache_disk_bytes; // of it
    int32_t checkpoint_tokens; // a prompt's state is saved every so many tokens, a multiple of it
                               // in a long one, and at its end; 0: only there
    const char *state_dir; // sessions are kept in files here and found again; NULL: they are not
    const char *state_url; // sessions are kept in a Redis or Valkey, which other processes may
                           // share: redis://[[user]:password@]host[:port][/db], unix://..; NULL:
                           // they are not. Not with SSM_DURABILITY_NONE
    ssm_durability durability;
    int64_t session_ttl; // seconds after its last turn at which a session goes; 0: never
    int32_t session_max, session_key_max;              // sessions in all, of one owner; 0: no limit
    uint64_t session_max_bytes, session_key_max_bytes; // of their states; 0: no limit
    bool poison_slots; // tests: fill a freed slot with NaN, so that a stale read shows
} ssm_engine_options;

// Defaults: device "auto", max_queue 1024, cache_bytes -1, checkpoint_tokens 256, the rest 0.
void ssm_engine_options_init(ssm_engine_options *options);

// Loads the model onto the device (blocks) and starts the engine thread. The model is borrowed and
// must outlive the engine. SSM_EINVAL names the option; SSM_ENOMEM says how many sessions would
// fit.
int ssm_engine_create(const ssm_model *model, const ssm_engine_options *options, ssm_engine **out,
                      ssm_error *err);

// Refuses new requests from now on (SSM_EDRAINING); accepted ones go on to their ends.
void ssm_engine_drain(ssm_engine *engine);

// Ends what is left (each open request gets its DONE, SSM_ECANCELED), stops the thread, frees all.
// Ports must be closed after this, and their last batches may still be taken. Returns how many
// sessions' last turns could not be brought to the store and are lost.
size_t ssm_engine_free(ssm_engine *engine);

// ---- ports

// wake(ctx) runs on the engine thread after a batch was posted: it must only signal (uv_async_send,
// a condition variable). It may come less often than batches: always take all.
int ssm_port_open(ssm_engine *engine, void (*wake)(void *ctx), void *ctx, ssm_port **out,
                  ssm_error *err);

// Cancels the port's requests, frees untaken batches. No wake runs once this has returned.
void ssm_port_close(ssm_port *port);

typedef enum ssm_event_kind {
    SSM_EVENT_STARTED, // the request got its first slot: queue time ends here
    SSM_EVENT_PROMPT,  // one prompt token's logprob (only with prompt_logprobs): position, token,
                       // ...
    SSM_EVENT_TOKEN,   // a choice's next token
    SSM_EVENT_FINISH,  // a choice ended: reason, token = the stop id or -1
    SSM_EVENT_DONE,    // the request is over: usage, times, error
} ssm_event_kind;

typedef enum ssm_finish {
    SSM_FINISH_NONE = 0,
    SSM_FINISH_STOP,      // an end-of-text or stop id was drawn; it comes as a TOKEN event first
    SSM_FINISH_LENGTH,    // max_tokens reached
    SSM_FINISH_CANCELLED, // by ssm_engine_cancel
    SSM_FINISH_ERROR,     // see the DONE event's error
} ssm_finish;

typedef struct ssm_usage {
    uint64_t prompt_tokens, cached_tokens, completion_tokens;
    uint64_t queue_ns, prefill_ns, decode_ns; // waiting; start to first token; first token to end
} ssm_usage;

typedef struct ssm_event {
    void *user; // of the request
    uint64_t request;
    ssm_event_kind kind;
    int32_t choice;
    int32_t token;
    int64_t position; // TOKEN: 0-based in the choice; PROMPT: 0-based in the prompt
    float logprob;    // natural log; NAN if not asked for (and for the prompt's first token)
    int32_t n_top; // entries of top_*, likeliest first; the drawn token not necessarily among them
    const int32_t *top_ids; // owned by the batch
    const float *top_logprobs;
    ssm_finish finish;      // FINISH
    const ssm_usage *usage; // DONE; owned by the batch
    int error;              // DONE: 0 or SSM_E*
    const char *message;    // DONE with error: owned by the batch
} ssm_event;

typedef struct ssm_batch {
    struct ssm_batch *next; // older first
    size_t n_events;
    const ssm_event *events;
} ssm_batch;

// All batches since the last call, oldest first, NULL if none; the caller's, freed as a whole list.
ssm_batch *ssm_port_take(ssm_port *port);
void ssm_batch_free(ssm_batch *batches);

// ---- requests

// A place in a session's text: so many tokens, and a hash over all of them. Equal tokens are equal
// places, whatever the session's name or history. No tokens: the session is not there yet.
typedef struct ssm_session_point {
    uint64_t tokens, chain[2];
} ssm_session_point;

enum { SSM_SESSION_MEMO = 256 };

typedef struct ssm_request {
    ssm_port *port;
    void *user;
    const int32_t
        *prompt; // ids, copied; 0 tokens: an empty state (the first token is drawn uniformly)
    size_t n_prompt;
    int32_t n;                    // choices, 1 or more; the prompt runs once
    int64_t max_tokens;           // a choice; 0: only the prompt is run (scoring)
    int64_t min_tokens;           // no end-of-text or stop id before so many
    const ssm_sampling *sampling; // copied with its arrays
    uint64_t seed;                // choice i draws with seed + i
    int32_t logprobs;             // -1: none; 0..SSM_MAX_LOGPROBS top entries a token
    bool prompt_logprobs;         // PROMPT events too, with the same number of entries
    const int32_t *stop_ids;      // copied; besides the model's end-of-text ids
    size_t n_stop_ids;
    bool ignore_eos;        // the model's end-of-text ids do not stop (stop_ids do)
    uint64_t client;        // fairness is between these: a hash of the API key or address
    int32_t priority;       // lower goes first among waiting requests
    bool cache_prompt;      // start from saved states and save new ones; not with prompt_logprobs
    uint64_t cache_salt[2]; // states are shared between requests of one salt only: a hash of all
                            // that tells tenants apart
    const char *session; // copied; NULL: none. Goes on from this session (ssm/session.h) and keeps
                         // its new state; n must be 1, prompt_logprobs off. The prompt is what
                         // comes after all of the session's tokens: from the second turn on a
                         // beginning-of-text id in front of it is left out. SSM_ENOTFOUND if it
                         // was in a shared store and went while the request waited
    uint64_t session_owner[2];
    bool session_whole;   // the prompt is the whole conversation: SSM_EMISMATCH unless it begins
                          // with the session's tokens
    bool session_no_wait; // SSM_ESESSIONBUSY if another request is at the session; else it waits
    const ssm_session_point *session_at; // copied; NULL: wherever it is. SSM_EMOVED if the session
                                         // is elsewhere when the turn begins. Whoever knows the
                                         // place knows what follows: no id is left out in front
    bool session_hold; // the consumer has the last word on the turn: a choice that ends by itself
                       // (FINISH) changes the session, and DONE comes, only after
                       // ssm_engine_finish or ssm_engine_keep; after ssm_engine_cancel it does not
} ssm_request;

// n 1, max_tokens 16, logprobs -1, cache_prompt, the rest 0.
void ssm_request_init(ssm_request *request);

// Queues a request. *id (may be NULL) is unique in the engine's life. SSM_EINVAL names the field,
// SSM_EBUSY: queue full, SSM_EDRAINING, SSM_EDEVICE: the engine has failed. Events may arrive on
// the port before this returns. Any thread; never blocks on the device.
int ssm_engine_submit(ssm_engine *engine, const ssm_request *request, uint64_t *id, ssm_error *err);

// Ends one choice, or with choice -1 the whole request, before the next step is planned: its slot
// is free within a step. Unknown or finished ids are ignored (they race with their own end). FINISH
// (SSM_FINISH_CANCELLED) and, if nothing is left, DONE follow.
void ssm_engine_cancel(ssm_engine *engine, uint64_t id, int32_t choice);

// Ends a choice of which the consumer has all it wants, its first n_tokens tokens (a stop string is
// complete, say): as a cancel, but FINISH says SSM_FINISH_STOP, and a session keeps the turn with
// exactly these tokens. A choice that has ended by itself in the meantime keeps what it had, unless
// its request has session_hold.
void ssm_engine_finish(ssm_engine *engine, uint64_t id, int32_t choice, int64_t n_tokens);

// The same for the one choice of a session's turn, leaving a note at the session for whoever
// continues it: up to SSM_SESSION_MEMO bytes (copied; more are SSM_EINVAL) that the engine does not
// read. They are in ssm_session_info, go with forks and files, and are gone after the next turn.
int ssm_engine_keep(ssm_engine *engine, uint64_t id, int64_t n_tokens, const void *memo,
                    size_t n_memo);

// A paused request keeps its slots but is left out of steps: the consumer cannot take more for now.
void ssm_engine_pause(ssm_engine *engine, uint64_t id, bool paused);

// ---- what it is and how it fares

enum { SSM_STATS_BUCKETS = 16 };
typedef struct ssm_histogram {
    uint64_t count[SSM_STATS_BUCKETS + 1]; // the last: above all bounds; not cumulative
    double sum;
} ssm_histogram;
extern const double ssm_step_seconds_bounds[SSM_STATS_BUCKETS];    // 1 ms / 4 .. doubling
extern const double ssm_batch_rows_bounds[SSM_STATS_BUCKETS];      // 1, 2, 4 ..
extern const double ssm_restore_seconds_bounds[SSM_STATS_BUCKETS]; // 10 us, 20, 50 ..

// Where a saved state is; from one to the next as room runs out.
typedef enum ssm_tier { SSM_TIER_DEVICE, SSM_TIER_HOST, SSM_TIER_DISK } ssm_tier;
enum { SSM_TIERS = 3 };

typedef struct ssm_tier_stats {
    uint64_t bytes;     // that saved states take there
    uint64_t hits;      // prompts that began from a state that was there when they came
    uint64_t moves;     // states that came there from the tier above
    uint64_t evictions; // forgotten there for room
    // From the device or the host: the copy into a slot (a GPU's from its own memory: its launch);
    // from the disk: asked for to being in host memory.
    ssm_histogram restore_seconds;
} ssm_tier_stats;

typedef struct ssm_stats {
    int32_t slots_total, slots_used;
    int32_t requests_waiting, requests_running;
    uint64_t state_bytes; // of all slots, resident
    uint64_t steps, prompt_tokens, cached_tokens, generated_tokens;
    ssm_histogram step_seconds, batch_rows;
    int32_t cache_slots_total, cache_slots_used; // device rows for saved states
    ssm_tier_stats cache[SSM_TIERS];
    uint64_t cache_misses;                       // prompts of which no saved state knew anything
    uint64_t cache_saves, cache_disk_failures;   // states
    uint64_t sessions;                           // with a state
    uint64_t sessions_set_aside;                 // files that were none of this model's, or damaged
    uint64_t sessions_expired, session_refusals; // by age; new ones, by a limit
    uint64_t session_writes, session_write_failures; // to the store
    uint64_t session_loads;                          // from it
    ssm_histogram session_load_seconds;              // asked for to here
    uint64_t session_conflicts;  // turns not kept: another process had continued the session
    uint64_t session_turns_lost; // not kept, and nobody waited to be told (SSM_DURABILITY_ASYNC)
    bool store_shared;           // it is a Redis
    int32_t store_up;            // it can be reached: 1
    uint64_t store_connects;     // to it
    uint64_t store_answers, store_failures; // requests that came back; of these without having
                                            // reached it, or refused by it
    ssm_histogram store_seconds;
    char lost_reason[160];  // why the last of session_turns_lost was
    char store_reason[160]; // why it is not up, or was not, or what it refused last; of a folder:
                            // the last write that failed
    double idle_seconds; // since the last step, 0 when there is no work: a stuck engine shows here
    bool draining, failed;
} ssm_stats;

// A consistent snapshot. Any thread.
void ssm_engine_get_stats(const ssm_engine *engine, ssm_stats *out);

// One line for people: backend, kernels chosen, threads, slots and their bytes. Borrowed.
const char *ssm_engine_describe(const ssm_engine *engine);

// Backends built in, as "cpu, cuda". Static.
const char *ssm_engine_backends(void);

// Where sessions can be kept: "folder, redis". Static.
const char *ssm_engine_stores(void);

#endif
