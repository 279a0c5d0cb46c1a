// SPDX-License-Identifier: Apache-2.0
// libmicrohttpd on libuv.
//
// The daemon runs with MHD_USE_EPOLL and no thread of its own: its epoll descriptor is watched with
// uv_poll, MHD_get_timeout feeds a uv_timer, and MHD_run is its turn. Turns are taken once an
// iteration of the loop, however many things asked for one: before the loop sleeps (prepare) and
// after it has polled (check). Resuming a connection only marks it inside libmicrohttpd; it is the
// next MHD_run that acts on it, so suspended exchanges are resumed right before each turn.
//
// Engine events: one uv_async for all ports of the loop. It coalesces, so a wake takes everything
// from every port; completers are flushed step by step, and each connection is resumed once,
// however many tokens came.
//
// Shutting down: quiesce (the listening socket is closed), requests in hand go on, new ones on kept
// connections are refused; when the last exchange and the last completer are gone, or when told to
// leave, the loop stops. Every suspended connection is resumed before MHD_stop_daemon, which aborts
// otherwise.
//
// Tried and dropped: MHD_USE_INTERNAL_POLLING_THREAD with a wake-up pipe (every token crossed two
// threads), and a uv_poll a connection instead of the daemon's epoll (libmicrohttpd does not say
// which events each connection waits for in this mode).
#include "loop.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "completer.h"
#include "conn/http.h"
#include "conn/linger.h"
#include "encode.h"
#include "log.h"
#include "server.h"

// ---- libmicrohttpd's turns

void loop_turn_soon(loop *l) {
    l->turn = true;
}

static void on_mhd_timer(uv_timer_t *timer) {
    loop_turn_soon(timer->data);
}

static void schedule(loop *l) {
    MHD_UNSIGNED_LONG_LONG ms;
    if (MHD_get_timeout(l->mhd, &ms) == MHD_YES) {
        uv_timer_start(&l->mhd_timer, on_mhd_timer, ms, 0);
    } else {
        uv_timer_stop(&l->mhd_timer);
    }
}

static void resume_all(loop *l) {
    while (l->resumes) {
        exchange *ex = l->resumes;
        l->resumes = ex->next_resume;
        ex->resuming = false;
        ex->suspended = false;
        MHD_resume_connection(ex->mhd);
    }
}

static void take_turn(loop *l) {
    while (l->turn && l->mhd) {
        l->turn = false; // until a handler answers or a client is found gone meanwhile
        resume_all(l);
        MHD_run(l->mhd);
        conn_look(l);
        schedule(l);
    }
}

static bool is_idle(const loop *l) {
    for (const conn *c = l->conns; c; c = c->next) {
        if (c->ex) {
            return false;
        }
    }
    return l->n_jobs == 0;
}

static void on_prepare(uv_prepare_t *handle) {
    loop *l = handle->data;
    take_turn(l);
    if ((l->draining && is_idle(l)) || atomic_load_explicit(&l->leave, memory_order_relaxed)) {
        uv_stop(&l->uv);
    }
}

static void on_check(uv_check_t *handle) {
    take_turn(handle->data);
}

static void on_mhd_event(uv_poll_t *handle, int status, int events) {
    loop_turn_soon(handle->data);
}

static void on_tick(uv_timer_t *handle) {
    loop *l = handle->data;
    conn_sweep(l, uv_hrtime());
    if (l->index == 0 && l->ready) {
        registry_watch_stores(&l->server->models);
    }
}

static void on_mhd_log(void *cls, const char *fmt, va_list args) {
    char text[512];
    if (log_is_on(LOG_DEBUG)) {
        vsnprintf(text, sizeof text, fmt, args);
        text[strcspn(text, "\r\n")] = '\0';
        log_write(LOG_DEBUG, "libmicrohttpd: %s", text);
    }
}

int loop_listen(loop *l, ssm_error *err) {
    const options *o = l->server->o;
    const unsigned limit = (unsigned)(o->max_connections / l->server->n_loops);
    l->mhd = MHD_start_daemon(MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL,
                              NULL, http_on_request, l, MHD_OPTION_EXTERNAL_LOGGER, on_mhd_log, l,
                              MHD_OPTION_LISTEN_SOCKET, l->listen_fd, MHD_OPTION_CONNECTION_LIMIT,
                              limit ? limit : 1, MHD_OPTION_CONNECTION_TIMEOUT,
                              (unsigned)(o->header_timeout + 0.999), MHD_OPTION_NOTIFY_COMPLETED,
                              http_on_completed, l, MHD_OPTION_NOTIFY_CONNECTION, conn_on_notify, l,
                              MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_END);
    if (!l->mhd) {
        return ssm_error_set(err, SSM_EIO, NULL, "the HTTP daemon does not start");
    }
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(l->mhd, MHD_DAEMON_INFO_EPOLL_FD);
    int rc = uv_poll_init(&l->uv, &l->mhd_poll, info->epoll_fd);
    assert(rc == 0);
    l->mhd_poll.data = l;
    rc = uv_poll_start(&l->mhd_poll, UV_READABLE, on_mhd_event);
    assert(rc == 0);
    (void)rc;
    loop_turn_soon(l);
    return 0;
}

// ---- engines

void loop_wake_engine_port(void *ctx) {
    uv_async_send(&((loop *)ctx)->engine_wake);
}

static void take_events(loop *l) {
    for (size_t i = 0; i < l->server->models.n; i++) {
        ssm_batch *batches = l->ports[i] ? ssm_port_take(l->ports[i]) : NULL;
        for (const ssm_batch *b = batches; b; b = b->next) {
            for (size_t e = 0; e < b->n_events; e++) {
                completer_on_event(&b->events[e]);
            }
            completer_flush_touched(l); // a chunk a step, also when wakes were merged
        }
        ssm_batch_free(batches);
    }
    completer_flush_touched(l);
}

static void on_engine_wake(uv_async_t *handle) {
    take_events(handle->data);
}

void loop_take_last_events(loop *l) {
    take_events(l);
}

static void open_ports(loop *l) {
    const registry *r = &l->server->models;
    ssm_error err;
    if (l->ready || !registry_is_ready(r)) {
        return;
    }
    for (size_t i = 0; i < r->n; i++) {
        if (ssm_port_open(r->items[i].engine, loop_wake_engine_port, l, &l->ports[i], &err) < 0) {
            log_write(LOG_ERROR, "cannot open a port of the engine: %s", err.message);
            return;
        }
    }
    l->ready = true;
}

const char *loop_unready(const loop *l) {
    const bool draining = atomic_load_explicit(&l->server->draining, memory_order_relaxed);
    return draining ? "draining" : l->ready ? NULL : "loading";
}

// ---- control

static void begin_drain(loop *l) {
    l->draining = true;
    if (l->mhd) {
        const MHD_socket fd = MHD_quiesce_daemon(l->mhd);
        if (fd != MHD_INVALID_SOCKET) {
            close(fd);
        }
    }
    loop_turn_soon(l);
}

static void on_control(uv_async_t *handle) {
    loop *l = handle->data;
    open_ports(l);
    if (!l->draining && atomic_load_explicit(&l->server->draining, memory_order_relaxed)) {
        begin_drain(l);
    }
}

void loop_control(loop *l) {
    uv_async_send(&l->control);
}

// ---- life

uint64_t loop_random(loop *l) { // splitmix64
    uint64_t z = l->random += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t tick_ms(const options *o) {
    const double least =
        o->header_timeout < o->ping_interval ? o->header_timeout : o->ping_interval;
    return least >= 4 ? 1000 : (uint64_t)(least * 250) + 1;
}

int loop_init(loop *l, server *s, int index, int listen_fd, ssm_error *err) {
    *l = (loop){.server = s, .index = index, .listen_fd = listen_fd};
    if (getrandom(&l->random, sizeof l->random, 0) != sizeof l->random ||
        uv_loop_init(&l->uv) != 0) {
        return ssm_error_set(err, SSM_EIO, NULL, "cannot make an event loop");
    }
    uv_timer_init(&l->uv, &l->mhd_timer);
    uv_timer_init(&l->uv, &l->tick);
    uv_timer_init(&l->uv, &l->drain_timer);
    uv_prepare_init(&l->uv, &l->prepare);
    uv_check_init(&l->uv, &l->check);
    if (uv_async_init(&l->uv, &l->engine_wake, on_engine_wake) != 0 ||
        uv_async_init(&l->uv, &l->control, on_control) != 0) {
        return ssm_error_set(err, SSM_EIO, NULL, "cannot make an event loop's wake-up");
    }
    l->drain_timer.data = l->mhd_timer.data = l->tick.data = l->prepare.data = l->check.data = l;
    l->engine_wake.data = l->control.data = l;
    encode_line_init(&l->encodes, l);
    pool_line_init(&l->session_calls, l, POOL_SESSION_CALLS);
    uv_timer_start(&l->tick, on_tick, tick_ms(s->o), tick_ms(s->o));
    uv_prepare_start(&l->prepare, on_prepare);
    uv_check_start(&l->check, on_check);
    return 0;
}

// Ends what is left when the drain's time is over: clients are cut off, jobs cancelled.
static void cut_off(loop *l) {
    for (conn *c = l->conns; c; c = c->next) {
        conn_leave(c);
        conn_shutdown(c);
    }
    resume_all(l);
    MHD_run(l->mhd);
    resume_all(l); // what that turn suspended
}

static void close_handle(uv_handle_t *handle, void *arg) {
    if (!uv_is_closing(handle)) {
        uv_close(handle, NULL);
    }
}

void loop_run(loop *l) {
    open_ports(l);
    uv_run(&l->uv, UV_RUN_DEFAULT);
    l->stopping = true;
    if (l->mhd) {
        cut_off(l);
        uv_poll_stop(&l->mhd_poll);
        MHD_stop_daemon(l->mhd);
        l->mhd = NULL;
    }
    linger_stop_all(l);
}

void loop_end_works(loop *l) {
    uv_prepare_stop(&l->prepare); // it would stop the loop again
    while (l->n_works > 0) {
        uv_run(&l->uv, UV_RUN_ONCE);
    }
}

void loop_dispose(loop *l) {
    for (size_t i = 0; i < REGISTRY_MAX; i++) {
        if (l->ports[i]) {
            ssm_port_close(l->ports[i]);
        }
    }
    // Handles close last.
    uv_prepare_stop(&l->prepare);
    uv_check_stop(&l->check);
    uv_timer_stop(&l->tick);
    uv_timer_stop(&l->mhd_timer);
    uv_walk(&l->uv, close_handle, NULL);
    uv_run(&l->uv, UV_RUN_DEFAULT);
    const int rc = uv_loop_close(&l->uv);
    assert(rc == 0);
    (void)rc;
}
