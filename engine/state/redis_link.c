// SPDX-License-Identifier: Apache-2.0
#ifdef SSM_HIREDIS
#include "redis_link.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONNECT_MS = 2000, ANSWER_MS = 5000, LEAST_PAUSE_MS = 50, MOST_PAUSE_MS = 1000 };

#define SECRET_KEY "ssmd:secret"

typedef struct due { // an answer
    redis_link *link;
    link_answer fn;
    void *ctx;
} due;

static void connect_now(redis_link *link);

// ---- hiredis on libuv

typedef struct watch {
    uv_poll_t handle;
    redisAsyncContext *ac; // NULL: going
    int events;
} watch;

static void on_poll(uv_poll_t *handle, int status, int events) {
    watch *w = handle->data;
    const int now = status < 0 ? w->events : events; // hiredis finds the error where it reads
    if (w->ac && (now & UV_READABLE))
        redisAsyncHandleRead(w->ac);
    if (w->ac && (now & UV_WRITABLE))
        redisAsyncHandleWrite(w->ac);
}

static void set_events(watch *w, int events) {
    w->events = events;
    if (events)
        uv_poll_start(&w->handle, events, on_poll);
    else
        uv_poll_stop(&w->handle);
}

static void add_read(void *arg) {
    set_events(arg, ((watch *)arg)->events | UV_READABLE);
}

static void del_read(void *arg) {
    set_events(arg, ((watch *)arg)->events & ~UV_READABLE);
}

static void add_write(void *arg) {
    set_events(arg, ((watch *)arg)->events | UV_WRITABLE);
}

static void del_write(void *arg) {
    set_events(arg, ((watch *)arg)->events & ~UV_WRITABLE);
}

static void on_closed(uv_handle_t *handle) {
    free(handle->data);
}

static void cleanup(void *arg) {
    watch *w = arg;
    w->ac = NULL;
    uv_close((uv_handle_t *)&w->handle, on_closed);
}

static bool attach(redis_link *link, redisAsyncContext *ac) {
    watch *w = calloc(1, sizeof *w);
    if (!w || uv_poll_init(link->loop, &w->handle, ac->c.fd) != 0) {
        free(w);
        return false;
    }
    w->handle.data = w;
    w->ac = ac;
    ac->ev.data = w;
    ac->ev.addRead = add_read;
    ac->ev.delRead = del_read;
    ac->ev.addWrite = add_write;
    ac->ev.delWrite = del_write;
    ac->ev.cleanup = cleanup;
    return true;
}

// ---- down

static void on_timer(uv_timer_t *timer) {
    connect_now(timer->data);
}

// The connection is gone already or never was.
static void went_down(redis_link *link, const char *reason) {
    if (reason)
        snprintf(link->reason, sizeof link->reason, "%s", reason);
    link->state = LINK_DOWN;
    link->ac = NULL;
    link->n_due = link->n_greetings = 0;
    uv_timer_start(&link->timer, on_timer, link->pause_ms, 0);
    link->pause_ms =
        2 * link->pause_ms < MOST_PAUSE_MS ? 2 * link->pause_ms : (unsigned)MOST_PAUSE_MS;
    link->on_down(link->ctx);
}

static void hang_up(redis_link *link, const char *reason) {
    redisAsyncContext *ac = link->ac;
    link->state = LINK_DOWN;
    link->ac = NULL;
    redisAsyncFree(ac); // callbacks come with NULL
    went_down(link, reason);
}

static void on_disconnect(const redisAsyncContext *ac, int status) {
    redis_link *link = ac->data;
    if (ac == link->ac)
        went_down(link, ac->errstr && *ac->errstr ? ac->errstr : "the connection was closed");
}

static void on_overdue(uv_timer_t *timer) {
    redis_link *link = timer->data;
    hang_up(link, "it does not answer");
}

void link_watch(redis_link *link) {
    if (link->state == LINK_UP && link->n_due > 0 &&
        uv_now(link->loop) - link->heard_ms > ANSWER_MS)
        hang_up(link, "it has stopped answering");
}

// ---- the greeting

static void greeted(redis_link *link, const char *error) {
    if (error && !*link->reason)
        snprintf(link->reason, sizeof link->reason, "%s", error);
    if (--link->n_greetings > 0)
        return;
    if (*link->reason) {
        hang_up(link, NULL);
        return;
    }
    uv_timer_stop(&link->timer);
    link->state = LINK_UP;
    link->pause_ms = LEAST_PAUSE_MS;
    link->has_secret = true;
    link->n_due = 0;
    link->on_up(link->ctx);
}

static const char *error_of(const redisReply *reply) {
    return reply && reply->type == REDIS_REPLY_ERROR ? reply->str : NULL;
}

static void on_word(redisAsyncContext *ac, void *reply, void *arg) {
    redis_link *link = arg;
    if (ac == link->ac && reply)
        greeted(link, error_of(reply));
}

static void on_secret(redisAsyncContext *ac, void *arg, void *ctx) {
    redis_link *link = ctx;
    const redisReply *reply = arg;
    if (ac != link->ac || !reply)
        return;
    const char *error = error_of(reply);
    const bool is_one = reply->type == REDIS_REPLY_STRING && reply->len == sizeof link->secret;
    if (!error && !is_one)
        error = SECRET_KEY " does not hold 16 bytes";
    else if (is_one && link->has_secret &&
             memcmp(link->secret, reply->str, sizeof link->secret) != 0)
        error = "it is another database than before (" SECRET_KEY " has changed)";
    else if (is_one)
        memcpy(link->secret, reply->str, sizeof link->secret);
    greeted(link, error);
}

// What has no INFO for us may be new enough.
static void on_info(redisAsyncContext *ac, void *arg, void *ctx) {
    redis_link *link = ctx;
    const redisReply *reply = arg;
    int major = 0, minor = 0;
    if (ac != link->ac || !reply)
        return;
    const char *at =
        reply->type == REDIS_REPLY_STRING ? strstr(reply->str, "redis_version:") : NULL;
    const bool is_old = at && sscanf(at, "redis_version:%d.%d", &major, &minor) == 2 &&
                        (major < 6 || (major == 6 && minor < 2));
    greeted(link, is_old ? "it is older than Redis 6.2" : NULL);
}

static void say(redis_link *link, redisCallbackFn *fn, int n, const char **words,
                const size_t *lengths) {
    if (redisAsyncCommandArgv(link->ac, fn, link, n, words, lengths) == REDIS_OK)
        link->n_greetings++;
}

static void greet(redis_link *link) {
    const redis_url *url = &link->url;
    char db[12];
    const size_t lengths[] = {3, strlen(SECRET_KEY), sizeof link->secret, 2};
    link->state = LINK_GREETING;
    link->n_greetings = 0;
    *link->reason = '\0';
    snprintf(db, sizeof db, "%d", url->db);
    if (*url->user)
        say(link, on_word, 3, (const char *[]){"AUTH", url->user, url->password}, NULL);
    else if (*url->password)
        say(link, on_word, 2, (const char *[]){"AUTH", url->password}, NULL);
    if (url->db != 0)
        say(link, on_word, 2, (const char *[]){"SELECT", db}, NULL);
    say(link, on_word, 4, (const char *[]){"SET", SECRET_KEY, (const char *)link->secret, "NX"},
        lengths);
    say(link, on_secret, 2, (const char *[]){"GET", SECRET_KEY}, NULL);
    say(link, on_info, 2, (const char *[]){"INFO", "server"}, NULL);
}

// ---- up

static void on_connect(const redisAsyncContext *ac, int status) {
    redis_link *link = ac->data;
    if (ac != link->ac)
        return;
    if (status == REDIS_OK)
        greet(link);
    else
        went_down(link, ac->errstr); // hiredis frees it
}

static void connect_now(redis_link *link) {
    redisAsyncContext *ac = link->url.port ? redisAsyncConnect(link->url.host, link->url.port)
                                           : redisAsyncConnectUnix(link->url.host);
    if (!ac || ac->err || !attach(link, ac)) {
        char reason[160];
        snprintf(reason, sizeof reason, "%s", ac && ac->err ? ac->errstr : "no memory");
        if (ac)
            redisAsyncFree(ac);
        went_down(link, reason);
        return;
    }
    ac->data = link;
    link->ac = ac;
    link->state = LINK_CONNECTING;
    uv_timer_start(&link->timer, on_overdue, CONNECT_MS, 0);
    redisAsyncSetDisconnectCallback(ac, on_disconnect);
    redisAsyncSetConnectCallback(ac, on_connect); // begins to wait for it
}

static void on_answer(redisAsyncContext *ac, void *reply, void *arg) {
    due *d = arg;
    redis_link *link = d->link;
    const due one = *d;
    free(d);
    if (ac == link->ac) {
        link->n_due--;
        link->heard_ms = uv_now(link->loop);
        if (!reply) // all others follow
            link->state = LINK_DOWN;
    }
    one.fn(one.ctx, reply);
}

bool link_send(redis_link *link, link_answer fn, void *ctx, int n, const char **words,
               const size_t *lengths) {
    assert(link->state == LINK_UP);
    due *d = malloc(sizeof *d);
    if (!d)
        return false;
    *d = (due){link, fn, ctx};
    if (link->n_due++ == 0)
        link->heard_ms = uv_now(link->loop);
    if (redisAsyncCommandArgv(link->ac, on_answer, d, n, words, lengths) == REDIS_OK)
        return true;
    link->n_due--;
    free(d);
    return false;
}

void link_open(redis_link *link, const uint8_t fresh[16]) {
    const redis_url *url = &link->url;
    if (url->port)
        snprintf(link->name, sizeof link->name, "%s:%d", url->host, url->port);
    else
        snprintf(link->name, sizeof link->name, "%s", url->host);
    memcpy(link->secret, fresh, sizeof link->secret);
    link->pause_ms = LEAST_PAUSE_MS;
    uv_timer_init(link->loop, &link->timer);
    link->timer.data = link;
    connect_now(link);
}

void link_close(redis_link *link) {
    redisAsyncContext *ac = link->ac;
    link->ac = NULL;
    link->state = LINK_DOWN;
    if (ac)
        redisAsyncFree(ac);
    uv_timer_stop(&link->timer);
    uv_close((uv_handle_t *)&link->timer, NULL);
}
#endif
