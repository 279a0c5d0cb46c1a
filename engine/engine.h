// SPDX-License-Identifier: Apache-2.0
// The engine's inside. Who may touch what:
//
//     guarded by `lock`       the inbox, flags, the list of ports, stats, counts for submit
//     engine thread only      jobs once taken from the inbox, slots, clients, flights, the device
//     constant after create   model info, options, backend, device info, description
//
// Lock order: a port's lock, then the engine's. The engine thread never holds its own lock while it
// takes a port's.
//
// A turn of the thread (thread.c): take the inbox; apply cancels and pauses; admit (admission.c),
// from saved states where there are any (reuse.c); plan (plan.c); launch the step and its draws
// (step.c); collect the oldest flight; hand out events (outcome.c); flush the ports. A backend that
// returns early (run_ahead) has two flights: the next step is planned and launched before the last
// one's tokens are known to the host.
#ifndef SSM_ENGINE_ENGINE_H
#define SSM_ENGINE_ENGINE_H

#include <pthread.h>

#include <ssm/engine.h>

#include "clients.h"
#include "clock.h"
#include "flight.h"
#include "histogram.h"
#include "job.h"
#include "kernels/backend.h"
#include "port.h"
#include "state/slots.h"
#include "state/snapshot_file.h"

enum {
    MAX_PORTS = 256,
    MOST_CACHE_ROWS = 1 << 20, // of the device, of the disk
    GRANULE = 64,              // tokens: prompts are cut at multiples of it from their beginnings
};

typedef struct job_list {
    job *first, *last;
    int32_t n;
} job_list;

typedef enum command_kind {
    COMMAND_SUBMIT,
    COMMAND_CANCEL,
    COMMAND_FINISH,
    COMMAND_KEEP,
    COMMAND_PAUSE,
    COMMAND_SESSION,
    COMMAND_STORED,
    COMMAND_MOVED,
} command_kind;

typedef struct session_call session_call; // sessions.c

typedef struct command {
    struct command *next;
    command_kind kind;
    job *job;           // SUBMIT: owned
    session_call *call; // SESSION: its caller waits for it
    int64_t n_tokens;   // FINISH, KEEP
    uint8_t *memo;      // KEEP: owned, malloc'd; NULL: none
    size_t n_memo;
    struct store_request *stored; // STORED: has come back
    spill_move *moved;            // MOVED: the same
    uint64_t id;
    int32_t choice;
    bool paused;
} command;

typedef struct session_counts {
    uint64_t writes, write_failures, loads, set_aside;
    uint64_t expired, refusals;                                    // quota.c
    uint64_t conflicts, turns_lost, store_answers, store_failures; // shared.c
    ssm_histogram load_seconds, store_seconds;
    char reason[160];      // of the last write that failed, to a folder
    char lost_reason[160]; // of the last turn lost
} session_counts;

struct ssm_engine {
    // constant after create
    const ssm_model *model;
    ssm_model_info info;
    ssm_engine_options options;
    const ssm_backend *backend;
    ssm_device *device;
    ssm_device_info device_info;
    int32_t n_sessions;  // slots of the scheduler; the device's rows behind them are the cache's
    size_t state_floats; // of one slot in canonical form
    char text[320];
    pthread_t thread;
    uint8_t secret[16]; // of the store, for owners
    bool has_secret;
    bool is_shared; // the store is

    // guarded by lock
    pthread_mutex_t lock;
    pthread_cond_t wake;
    command *inbox_first, **inbox_last;
    bool is_stopping, is_draining, is_failed;
    bool has_closed_ports;
    int32_t n_inbox_jobs;                       // submitted and not yet taken
    int32_t n_waiting, n_running, n_free_slots; // as of the last turn
    uint64_t next_id;
    port_list ports;
    ssm_stats stats;
    uint64_t last_step_ns; // or when work arrived on an idle engine
    bool has_work;         // something is running or waiting

    // engine thread only
    job_list waiting, running,
        ended; // ended: DONE not yet posted, or a step in flight refers to it
    slots slots;
    cache cache;
    state_pool states; // any thread
    session_table sessions;
    struct store *store;          // NULL without state_dir or state_url; set under the lock
    session *dirty, **dirty_last; // sessions to be written, oldest first
    int32_t n_stores, n_writes;   // requests at the store; of these that write
    int64_t next_sweep;           // quota.c, Unix time
    bool has_unwritten;           // durable_retry.c: a write has failed
    int64_t next_retry;           // of such a one, Unix time
    uint64_t n_lost;              // sessions whose last turn no store has, as the engine ends
    bool is_flushing;             // the engine is going away
    bool is_pausing;              // shared.c: no write begins for now
    uint64_t stamp_seed;          // shared.c
    session_counts session_counts;
    choice **active; // [n_slots], by slot
    clients clients;
    flight flights[2];
    int32_t first_flight, n_flights;
    uint64_t n_launched;      // steps
    choice **prompts;         // [n_slots] scratch of plan_build
    double seconds_per_token; // of recent steps, smoothed
    uint64_t landed_ns;       // when the last flight was collected
    float *scratch;           // state and logits of one slot, for forks and poison
};

// ---- engine.c
// ssm_engine_create on a given backend (tests: one that fails on purpose); NULL: as the options
// say.
int engine_create_on(const ssm_backend *backend, const ssm_model *model,
                     const ssm_engine_options *options, ssm_engine **out, ssm_error *err);
bool engine_add_port(ssm_engine *engine, ssm_port *port); // any thread
void engine_notice_close(ssm_engine *engine);             // any thread; a port's lock is held

// ---- device.c
// On the engine's backend if it has one, else as the options say.
int device_open(ssm_engine *engine, ssm_error *err);

// ---- inbox.c
// Queues a copy of a command; false: no memory.
bool engine_send(ssm_engine *engine, const command *template); // any thread

// ---- thread.c
void *engine_thread(void *engine);

// ---- admission.c
void list_append(job_list *list, job *j);
job *list_find(const job_list *list, uint64_t id); // NULL: none
void list_remove(job_list *list, job *j);
// The job whose choice should get the next free slot, or NULL.
job *admission_best(ssm_engine *engine);
// Gives free slots to waiting jobs and to choices that wait for one.
int admission_run(ssm_engine *engine, ssm_error *err);
void admission_give_slot(ssm_engine *engine, choice *c, int32_t slot);

// ---- reuse.c
// A job starts: looks for its longest saved beginning and says where it will save its own.
void reuse_begin(ssm_engine *engine, job *j);
// True: its longest saved beginning is on the disk; it is being fetched, and wakes the job.
bool reuse_fetch(ssm_engine *engine, job *j);
void reuse_moved(ssm_engine *engine, spill_move *move); // takes it over
// A choice got its slot: from where it goes on.
int reuse_enter(ssm_engine *engine, choice *c, ssm_error *err);
// The prompt's next place to stop: a checkpoint or its end.
size_t reuse_next_cut(const job *j);
int reuse_save_checkpoints(ssm_engine *engine, const flight *f, ssm_error *err);
void reuse_save_answer(ssm_engine *engine, choice *c);
// Holds the saved end of a prompt for choices that wait for slots; false: it is not saved.
bool reuse_hold_end(ssm_engine *engine, job *j);
void reuse_forget(ssm_engine *engine, job *j);
// Whether a waiting job had better wait for one that runs what both begin with.
bool reuse_follow(ssm_engine *engine, job *j);
void reuse_release_followers(ssm_engine *engine);

// ---- turn.c: a job with a session
// Finds its session; the job may end here.
void turn_submit(ssm_engine *engine, job *j);
bool turn_is_due(const ssm_engine *engine, const job *j);
// The turn begins: the prompt becomes what is to run after the session's state. Ends the job if its
// session is another conversation's.
void turn_begin(ssm_engine *engine, job *j);
// The prompt has just run and left its logits in a row.
int turn_keep(ssm_engine *engine, choice *c, int32_t row, ssm_error *err);
// The prompt's end was known before: the state from which it can begin again.
void turn_keep_hit(job *j);
// The choice ends by itself: true if its consumer is to have the last word. Its state is saved.
bool turn_hold(ssm_engine *engine, choice *c, ssm_finish reason);
// The choice ends: its session gets the new state or stays as it was.
void turn_end(ssm_engine *engine, choice *c, ssm_finish reason);
// The job ends.
void turn_leave(ssm_engine *engine, job *j);

// ---- sessions.c
// The session's state in buffers of its own.
int session_image(ssm_engine *engine, const session *s, snapshot_image *image, ssm_error *err);
void session_answer(ssm_engine *engine, session_call *call);
void session_finish(ssm_engine *engine, session_call *call, int rc); // its caller goes on
void session_fail(ssm_engine *engine, session_call *call, int rc, const char *message);
void session_describe(const ssm_engine *engine, const session *s, ssm_session_info *out);
session_call *session_next_call(session *s); // of those that wait for its state; NULL: none

// ---- durable.c
int durable_open(ssm_engine *engine, ssm_error *err); // before the thread starts
// An owner as sessions and the store know it. Any thread.
void durable_owner(const ssm_engine *engine, const uint64_t owner[2], uint64_t out[2]);
void durable_turn(ssm_engine *engine, job *j); // the job's session has a new state
void durable_failed(job *j, int rc);
const char *durable_unwritten(int rc); // what those are told who waited for a write
// A call has changed a session, or is to take it away; *waits: session_finish will come.
int durable_call(ssm_engine *engine, session *s, session_call *call, bool *waits);
int durable_delete(ssm_engine *engine, session *s, session_call *call, bool *waits);
bool durable_is_behind(const ssm_engine *engine); // no turn begins for now
bool durable_is_full(const ssm_engine *engine);   // more waits to be written than memory may hold
void durable_done(ssm_engine *engine, struct store_request *request); // it has come back
bool durable_flush(ssm_engine *engine); // writes what is not stored; false: nothing is under way
void durable_close(ssm_engine *engine);
// For shared.c.
struct store_request *durable_request(ssm_engine *engine, const session *s,
                                      int kind); // NULL: no memory
// To the store; s may be NULL.
void durable_send(ssm_engine *engine, session *s, struct store_request *request);
void durable_push(ssm_engine *engine, session *s); // to be written
void durable_write_some(ssm_engine *engine);
void durable_answer(ssm_engine *engine, session *s, uint64_t version, int rc, const char *message);

// ---- durable_retry.c
void durable_failed_write(ssm_engine *engine);
void durable_wrote(ssm_engine *engine);
void durable_retry(ssm_engine *engine);          // each turn: if it is time
int32_t durable_pause(const ssm_engine *engine); // seconds until then, about; 0: never
void durable_count_lost(ssm_engine *engine);     // when nothing more will be written

// ---- durable_load.c
// True: the job's session is being read, and wakes it.
bool durable_fetch(ssm_engine *engine, job *j);
// Reads a session that is away, for the calls that wait for it.
void durable_load(ssm_engine *engine, session *s);
bool durable_let_go(void *engine, snapshot *state);                              // for the cache
void durable_got(ssm_engine *engine, session *s, struct store_request *request); // it is read
// For shared.c.
// rc 0: jobs that wait for the session look again. Else they are told; SSM_ESESSIONBUSY only those
// that do not wait.
void durable_wake(ssm_engine *engine, session *s, int rc, const char *message);
// Takes the state over; NULL: no memory.
snapshot *durable_adopt(ssm_engine *engine, snapshot_image *image);
void durable_count_load(ssm_engine *engine, const struct store_request *request);

// ---- shared.c: with a store that other processes have too
int shared_open(ssm_engine *engine, ssm_error *err,
                void (*on_done)(void *engine, struct store_request *request));
// True: the job waits for its session to be claimed, or has ended.
bool shared_fetch(ssm_engine *engine, job *j);
void shared_leave(ssm_engine *engine, session *s); // a job has
void shared_prepare(ssm_engine *engine, session *s, struct store_request *put);
void shared_let_go(ssm_engine *engine, session *s); // of its state
void shared_release(ssm_engine *engine, session *s);
void shared_done(ssm_engine *engine, struct store_request *request);
uint64_t shared_stamp(ssm_engine *engine); // a new one
// Says why a request failed; returns its code, as others see it.
int shared_describe(const struct store_request *request, ssm_error *err);

// ---- shared_line.c
void shared_await(ssm_engine *engine); // the sessions of jobs that have just not been admitted
void shared_awaited(ssm_engine *engine, struct store_request *request); // it has come back
void shared_expect(ssm_engine *engine, session *s); // by the jobs that ask for it: it is there
void shared_miss(ssm_engine *engine, session *s);   // it is not: tells who expects it

// ---- shared_call.c
int shared_call(ssm_engine *engine, session_call *call, bool *waits);
void shared_called(ssm_engine *engine, struct store_request *request); // it has come back

// ---- quota.c
size_t quota_limit(const ssm_engine *engine, uint64_t sessions, uint64_t bytes); // 0: none given
int quota_check(ssm_engine *engine, const session *s, ssm_error *err);           // 0 or SSM_EQUOTA
void quota_sweep(ssm_engine *engine);                                            // if it is time to
int32_t quota_pause(const ssm_engine *engine); // seconds between sweeps; 0: there are none

// ---- plan.c
// Fills the flight with the next step's rows; false if there is nothing to run.
bool plan_build(ssm_engine *engine, flight *f);

// ---- step.c
int step_launch(ssm_engine *engine, flight *f, ssm_error *err);
int step_collect(ssm_engine *engine, flight *f, ssm_error *err);

// ---- outcome.c
void outcome_sampled(ssm_engine *engine, flight *f);
void choice_end(ssm_engine *engine, choice *c, ssm_finish reason, int32_t stop_id);
void job_end(ssm_engine *engine, job *j, ssm_finish reason, int code, const char *message);
void job_post(ssm_engine *engine, job *j, const ssm_event *event);
// Posts what DONE events are due and frees jobs that nothing refers to.
void jobs_sweep(ssm_engine *engine);

// ---- stats.c
void stats_cache(ssm_engine *engine); // the lock is held
void stats_step(ssm_engine *engine, const flight *f, double seconds);

#endif
