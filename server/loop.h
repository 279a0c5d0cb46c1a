// SPDX-License-Identifier: Apache-2.0
// One event loop: a thread, a uv_loop, a libmicrohttpd daemon on it, one engine port a model.
//
// Everything in it belongs to its thread but what says otherwise. Others reach it through two
// uv_async: the engines' wake-up, and control (models are ready; drain; leave).
#ifndef SSMD_LOOP_H
#define SSMD_LOOP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <microhttpd.h>
#include <uv.h>

#include <ssm/engine.h>

#include "pool.h"
#include "registry.h"

struct conn;
struct exchange;
struct completer;
struct lingering;
struct server;

typedef struct loop {
    struct server *server;
    int index;
    uv_thread_t thread; // of loops but the first
    uv_loop_t uv;
    // libmicrohttpd on this loop
    struct MHD_Daemon *mhd;
    int listen_fd;
    uv_poll_t mhd_poll;   // the daemon's epoll descriptor
    uv_timer_t mhd_timer; // MHD_get_timeout
    uv_timer_t tick;      // sweeps
    uv_prepare_t prepare;
    uv_check_t check;
    bool turn; // libmicrohttpd has something to do
    struct conn *conns;
    size_t n_conns;
    struct exchange *resumes; // suspended exchanges that have something to do
    struct conn *looks;       // from which something was read in this turn
    struct lingering *lingers;
    int n_lingers;
    // engines
    uv_async_t engine_wake;
    ssm_port *ports[REGISTRY_MAX]; // NULL until the models are loaded
    bool ready;                    // all ports are open
    struct completer *touched;     // with events since the last flush
    size_t n_jobs;                 // completers not yet freed
    size_t n_works;                // on libuv's pool, where engines may be asked, or in line
    pool_line encodes, session_calls;
    // life
    uv_async_t control;
    atomic_bool leave; // any thread: the drain's time is over
    bool draining, stopping;
    uv_timer_t drain_timer;
    uint64_t random; // state of loop_random
} loop;

int loop_init(loop *l, struct server *s, int index, int listen_fd, ssm_error *err);
int loop_listen(loop *l, ssm_error *err); // starts the daemon on listen_fd
void loop_run(loop *l);                   // until it has drained or was told to leave
void loop_end_works(loop *l);             // before the engines are freed: the pool's threads end
void loop_take_last_events(loop *l);      // after it: ends what is left
void loop_dispose(loop *l);

void loop_control(loop *l); // any thread: look at the server's state again

const char *loop_unready(const loop *l); // "loading", "draining", or NULL: it serves

void loop_turn_soon(loop *l);          // libmicrohttpd runs before the loop sleeps
uint64_t loop_random(loop *l);         // not for secrets
void loop_wake_engine_port(void *ctx); // ssm_port's wake; ctx is the loop

#endif
