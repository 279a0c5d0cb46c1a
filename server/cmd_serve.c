// SPDX-License-Identifier: Apache-2.0
// ssmd serve: starts everything, waits, takes everything down again.
//
// Order of a start, and why. The port is bound first: a port that is taken should be known before a
// model is read for minutes. Then the models load on a thread of their own. Listening waits for
// them up to LOAD_GRACE_MS: a small model is there in a fraction of it and no client ever sees a
// 503; with a large one the server listens after that second and says 503 with Retry-After, so
// that health checks and balancers see a process that lives and is not ready.
//
// Signals: the first SIGTERM or SIGINT drains, the second leaves at once (_exit: nothing of ours on
// disk needs an orderly end). While the models load there is nothing to drain, and the load
// cannot be broken off: the first signal leaves at once, too. While engines write the last sessions
// no loop runs, and the second signal ends the process as the system has it.
//
// Order of an end: loops stop (sockets closed, completers orphaned), tasks on libuv's pool end,
// which may ask an engine; engines are freed (every open request gets its DONE), the last events
// are taken so that every completer is freed, ports and loops close.
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <ssm/version.h>

#include "commands.h"
#include "encode.h"
#include "listen.h"
#include "log.h"
#include "loop.h"
#include "server.h"

enum { LOAD_GRACE_MS = 1000 };

typedef struct serving {
    server server;
    options options;
    loop *loops;
    int *fds;
    int n_fds, n_started; // loops with a thread, after the first, which runs here
    int port;
    // loading
    uv_thread_t loader;
    bool loader_started;
    uv_mutex_t lock; // guards load_done, load_rc, load_error
    uv_cond_t loaded;
    bool load_done, load_seen;
    int load_rc;
    ssm_error load_error;
    uv_async_t load_wake; // on the first loop
    bool has_wake;
    // signals, on the first loop
    uv_signal_t signals[2];
    int n_signals;
    int status;
} serving;

// glibc raises the size from which on blocks are mapped, and go back when they are freed, to that
// of any such block that was; smaller ones stay in its heaps. Behind some texts of 4 MB these held
// 120 MB that nobody used, in one run of two: 213 MB at most for 93 (test_concurrency).
static void give_large_blocks_back(void) {
#ifdef M_MMAP_THRESHOLD
    mallopt(M_MMAP_THRESHOLD, 4 << 20);
#endif
}

static void raise_file_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static void control_all(serving *s) {
    for (int i = 0; i < s->server.n_loops; i++) {
        loop_control(&s->loops[i]);
    }
}

// ---- loading

static void load(void *arg) {
    serving *s = arg;
    ssm_error err = {0};
    const int rc = registry_load(&s->server.models, &s->options, &err);
    uv_mutex_lock(&s->lock);
    s->load_rc = rc;
    s->load_error = err;
    s->load_done = true;
    uv_cond_signal(&s->loaded);
    uv_mutex_unlock(&s->lock);
    uv_async_send(&s->load_wake);
}

// Waits for the grace at most. False: still loading.
static bool wait_for_load(serving *s) {
    const uint64_t deadline = uv_hrtime() + LOAD_GRACE_MS * 1000000ull;
    uv_mutex_lock(&s->lock);
    for (uint64_t now; !s->load_done && (now = uv_hrtime()) < deadline;) {
        uv_cond_timedwait(&s->loaded, &s->lock, deadline - now);
    }
    const bool done = s->load_done;
    uv_mutex_unlock(&s->lock);
    return done;
}

static void say_listening(const serving *s, bool ready) {
    char url[128];
    const registry *r = &s->server.models;
    listen_url(s->options.host, s->port, url, sizeof url);
    if (!ready) {
        printf("ssmd %s: listening on %s while the model loads\n", SSM_VERSION, url);
        fflush(stdout);
        return;
    }
    printf("ssmd %s: serving", SSM_VERSION);
    for (size_t i = 0; i < r->n; i++) {
        printf("%s %s (%s)", i ? "," : "", r->items[i].name,
               ssm_engine_describe(r->items[i].engine));
    }
    printf(" on %s\n", url);
    printf("try:  curl %s/v1/completions -H 'Content-Type: application/json' -d '{\"prompt\": "
           "\"ROMEO:\", \"max_tokens\": 64}'\n",
           url);
    fflush(stdout);
    registry_report_chats(r, &s->options);
}

static int report_load(serving *s) {
    if (s->load_rc < 0) {
        fprintf(stderr, "ssmd serve: %s\n", s->load_error.message);
        s->status = 1;
        return -1;
    }
    if (!s->load_seen) {
        s->load_seen = true;
        say_listening(s, true);
    }
    return 0;
}

static void leave_all(serving *s) {
    for (int i = 0; i < s->server.n_loops; i++) {
        atomic_store(&s->loops[i].leave, true);
    }
    control_all(s);
}

static void on_load_wake(uv_async_t *handle) {
    serving *s = handle->data;
    uv_mutex_lock(&s->lock);
    const bool done = s->load_done;
    uv_mutex_unlock(&s->lock);
    if (!done || s->load_seen) {
        return;
    }
    if (report_load(s) < 0) {
        leave_all(s);
    } else {
        control_all(s); // each loop opens its ports
    }
}

// ---- signals

static void on_drain_timeout(uv_timer_t *timer) {
    loop *l = timer->data;
    serving *s = (serving *)l->server;
    log_write(LOG_WARN, "the drain's %.0f s are over: what still runs is cut off",
              s->options.drain_timeout);
    leave_all(s);
}

static void on_signal(uv_signal_t *handle, int number) {
    serving *s = handle->data;
    if (!s->load_seen) {
        _exit(0);
    }
    if (atomic_exchange(&s->server.draining, true)) {
        log_write(LOG_WARN, "second signal: leaving at once");
        _exit(128 + number);
    }
    log_write(LOG_INFO, "draining: running work has %.0f s, a second signal leaves at once",
              s->options.drain_timeout);
    uv_timer_start(&s->loops[0].drain_timer, on_drain_timeout,
                   (uint64_t)(s->options.drain_timeout * 1000), 0);
    control_all(s);
}

static void start_signals(serving *s) {
    static const int numbers[] = {SIGTERM, SIGINT};
    for (int i = 0; i < 2; i++) {
        if (uv_signal_init(&s->loops[0].uv, &s->signals[i]) != 0) {
            return;
        }
        s->n_signals = i + 1;
        s->signals[i].data = s;
        uv_signal_start(&s->signals[i], on_signal, numbers[i]);
    }
}

// No loop runs from here on to be told of a signal: by default it ends the process.
static void stop_signals(serving *s) {
    for (int i = 0; i < s->n_signals; i++) {
        uv_signal_stop(&s->signals[i]);
    }
}

// ---- loops

static void run_loop(void *arg) {
    loop_run(arg);
}

static int bind_ports(serving *s, ssm_error *err) {
    const int n = (int)s->options.loops;
    s->port = (int)s->options.port;
    s->fds = calloc((size_t)n, sizeof *s->fds);
    if (!s->fds) {
        return ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
    }
    // A port that someone else's SO_REUSEPORT socket has must not be shared with a stranger.
    if (n > 1 && s->port != 0) {
        const int probe = listen_bind(s->options.host, &s->port, false, err);
        if (probe < 0) {
            return probe;
        }
        close(probe);
    }
    for (int i = 0; i < n; i++) {
        const int fd = listen_bind(s->options.host, &s->port, n > 1, err);
        if (fd < 0) {
            return fd;
        }
        s->fds[s->n_fds++] = fd;
    }
    return 0;
}

static int make_loops(serving *s, ssm_error *err) {
    const int n = (int)s->options.loops;
    int rc = 0;
    s->loops = calloc((size_t)n, sizeof *s->loops);
    if (!s->loops) {
        return ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
    }
    s->server.loops = s->loops;
    for (int i = 0; rc == 0 && i < n; i++) {
        rc = loop_init(&s->loops[i], &s->server, i, s->fds[i], err);
        s->server.n_loops = rc == 0 ? i + 1 : i;
    }
    s->server.n_loops = rc == 0 ? n : s->server.n_loops;
    return rc;
}

static int start_daemons(serving *s, ssm_error *err) {
    int rc = 0;
    for (int i = 0; rc == 0 && i < s->server.n_loops; i++) {
        rc = listen_start(s->fds[i], err);
        if (rc == 0) {
            rc = loop_listen(&s->loops[i], err);
        }
        if (rc == 0) {
            s->fds[i] = -1; // the daemon's
        }
    }
    return rc;
}

static int start(serving *s, ssm_error *err) {
    int rc = registry_init(&s->server.models, &s->options, err);
    if (rc < 0 || (rc = auth_init(&s->server.auth, &s->options, err)) < 0 ||
        (rc = bind_ports(s, err)) < 0 || (rc = make_loops(s, err)) < 0) {
        return rc;
    }
    uv_async_init(&s->loops[0].uv, &s->load_wake, on_load_wake);
    s->load_wake.data = s;
    if (uv_thread_create(&s->loader, load, s) != 0) {
        return ssm_error_set(err, SSM_EIO, NULL, "cannot start a thread");
    }
    s->loader_started = true;
    const bool loaded = wait_for_load(s);
    if (loaded && s->load_rc < 0) {
        *err = s->load_error;
        return s->load_rc;
    }
    rc = start_daemons(s, err);
    if (rc == 0 && loaded) {
        rc = report_load(s);
    } else if (rc == 0) {
        say_listening(s, false);
    }
    return rc;
}

static void run(serving *s) {
    const int n = s->server.n_loops;
    start_signals(s);
    while (s->n_started + 1 < n) {
        loop *next = &s->loops[s->n_started + 1];
        if (uv_thread_create(&next->thread, run_loop, next) != 0) {
            break;
        }
        s->n_started++;
    }
    if (s->n_started + 1 < n) { // the kernel gives connections to loops that nobody runs
        log_write(LOG_ERROR, "--loops: thread %d of %d cannot be started", s->n_started + 1, n);
        s->status = 1;
        leave_all(s);
    }
    loop_run(&s->loops[0]);
    for (int i = 1; i <= s->n_started; i++) {
        uv_thread_join(&s->loops[i].thread);
    }
    for (int i = s->n_started + 1; i < n; i++) {
        loop_run(&s->loops[i]); // to its end, which has come
    }
}

static void stop(serving *s) {
    if (s->loader_started) {
        uv_thread_join(&s->loader);
    }
    for (int i = 0; i < s->server.n_loops; i++) {
        loop_end_works(&s->loops[i]);
    }
    stop_signals(s);
    registry_stop(&s->server.models);
    for (int i = 0; i < s->server.n_loops; i++) {
        loop_take_last_events(&s->loops[i]);
        loop_dispose(&s->loops[i]);
    }
    for (int i = 0; i < s->n_fds; i++) {
        if (s->fds[i] >= 0) {
            close(s->fds[i]);
        }
    }
    registry_dispose(&s->server.models);
    auth_dispose(&s->server.auth);
    free(s->loops);
    free(s->fds);
}

int cmd_serve(int argc, char **argv) {
    static serving s; // large, and one a process
    ssm_error err = {0};
    int rc = options_load(&s.options, OPTIONS_SERVE, argc, argv, &err);
    if (rc == 0 && s.options.n_args > 0) {
        rc = ssm_error_set(&err, SSM_EINVAL, NULL, "'%.60s' is no option", s.options.args[0]);
    }
    if (rc != 0) {
        if (rc < 0) {
            fprintf(stderr, "ssmd serve: %s\n", err.message);
        }
        options_dispose(&s.options);
        return rc < 0 ? 2 : 0;
    }
    signal(SIGPIPE, SIG_IGN);
    give_large_blocks_back();
    raise_file_limit();
    pool_size((int)s.options.loops);
    log_set_level(s.options.log_level);
    log_set_output(s.options.log_to);
    s.server.o = &s.options;
    budget_init(&s.server.budget, (size_t)s.options.max_request_memory);
    s.server.spools =
        (spool_room){.folders = {s.options.state_dir, "/tmp"}, .budget = &s.server.budget};
    uv_mutex_init(&s.lock);
    uv_cond_init(&s.loaded);
    rc = start(&s, &err);
    if (rc == 0) {
        run(&s);
    } else {
        fprintf(stderr, "ssmd serve: %s\n", err.message);
        s.status = 1;
    }
    stop(&s);
    uv_cond_destroy(&s.loaded);
    uv_mutex_destroy(&s.lock);
    options_dispose(&s.options);
    return s.status;
}
