// SPDX-License-Identifier: Apache-2.0
// Exchanges: libmicrohttpd's callbacks, bodies, suspension, streams.
//
// The access handler is called once with the headers, then with pieces of the body, then with none;
// after a suspended exchange was resumed it is called with none again. A response queued at the
// first call makes libmicrohttpd close the connection, and in mid-upload none may be queued at all.
// So an early refusal (401, 404, 415, ...) is decided at the first call, kept until the body has
// been read and thrown away, and keep-alive survives; only a body that is too long to throw away
// is refused at once. A chunked body has no length to look at: past the limit it is thrown away for
// BODY_DISCARD_MOST bytes, then the connection is closed.
//
// A stream's reader that has nothing to give suspends: returning 0 alone would spin. Exchanges to
// be resumed are gathered in a list and resumed together before libmicrohttpd's turn, once each,
// however many events touched them.
#include "conn/http.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "conn/body.h"
#include "log.h"
#include "loop.h"
#include "routes.h"
#include "server.h"

static const char *header(exchange *ex, const char *name) {
    return MHD_lookup_connection_value(ex->mhd, MHD_HEADER_KIND, name);
}

// ---- request ids

static bool is_good_id(const char *id) {
    const size_t len = strlen(id);
    return len > 0 && len <= 128 &&
           strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+=@") ==
               len;
}

static void choose_id(exchange *ex) {
    const char *given = header(ex, "x-request-id");
    if (given && is_good_id(given)) {
        snprintf(ex->id, sizeof ex->id, "%s", given);
    } else {
        snprintf(ex->id, sizeof ex->id, "req-%016llx",
                 (unsigned long long)loop_random(ex->conn->loop));
    }
}

// ---- the first call

static void refuse_type(exchange *ex, const char *type) {
    char message[160];
    snprintf(message, sizeof message, "Content-Type must be application/json in UTF-8, not '%.80s'",
             type);
    http_reply_error(ex, 415, "invalid_request_error", NULL, "unsupported_media_type", message);
}

// Refuses what can be refused by the headers alone; the reply is made, not yet queued.
static void check_headers(exchange *ex, uint64_t length) {
    server *s = ex->conn->loop->server;
    const char *type = header(ex, "Content-Type");
    if (!routes_check(s, ex, header(ex, "Authorization"))) {
        return;
    }
    body_begin(ex, length);
    if (ex->ready) {
        return;
    }
    if (ex->expects_body && !routes_takes_type(ex, type)) {
        refuse_type(ex, type);
    } else if (ex->expects_body && header(ex, "Content-Encoding")) {
        http_reply_error(ex, 415, "invalid_request_error", NULL, "unsupported_media_type",
                         "Content-Encoding is not supported");
    }
}

static exchange *open_exchange(conn *c, struct MHD_Connection *mhd, const char *url,
                               const char *method) {
    exchange *ex = calloc(1, sizeof *ex);
    char *path = ex ? strdup(url) : NULL;
    if (!path) {
        free(ex);
        return NULL;
    }
    ex->conn = c;
    ex->mhd = mhd;
    ex->path = path;
    ex->started = ex->progress = uv_hrtime();
    snprintf(ex->method, sizeof ex->method, "%s", method);
    choose_id(ex);
    c->ex = ex;
    return ex;
}

static enum MHD_Result on_headers(conn *c, struct MHD_Connection *mhd, const char *url,
                                  const char *method, void **state) {
    exchange *ex = c && !c->gone ? open_exchange(c, mhd, url, method) : NULL;
    if (!ex) {
        return MHD_NO; // gone, or out of memory: the connection is closed
    }
    *state = ex;
    const char *length_text = header(ex, "Content-Length");
    const char *expect = header(ex, "Expect");
    const bool chunked = header(ex, "Transfer-Encoding") != NULL;
    const uint64_t length = length_text && !chunked ? strtoull(length_text, NULL, 10) : 0;
    ex->expects_body = length > 0 || chunked;
    check_headers(ex, length);
    if (!expect) { // else a body that is in may wait until 100 was sent
        conn_look_soon(c);
    }
    if (ex->ready && ex->expects_body) {
        const bool asks = expect && strcasecmp(expect, "100-continue") == 0;
        if (asks || length > ex->body_most || length > BODY_DISCARD_MOST) {
            c->unread = true;
            ex->close = true;
            return http_queue_reply(ex);
        }
        ex->discarding = true;
    }
    return MHD_YES;
}

// ---- the body

static enum MHD_Result on_body(exchange *ex, const char *data, size_t *size) {
    const bool goes_on = body_add(ex, data, *size);
    ex->progress = uv_hrtime();
    conn_look_soon(ex->conn);
    *size = goes_on ? 0 : *size;
    return goes_on ? MHD_YES : MHD_NO;
}

// ---- the whole request

static enum MHD_Result suspend(exchange *ex) {
    assert(!ex->suspended);
    ex->suspended = true;
    conn_watch(ex->conn);
    MHD_suspend_connection(ex->mhd);
    return MHD_YES;
}

static enum MHD_Result on_whole(exchange *ex) {
    if (ex->state == EXCHANGE_READING) {
        ex->state = EXCHANGE_HANDLING;
        ex->progress = uv_hrtime();
        if (!ex->ready) {
            routes_dispatch(ex);
        }
        assert(ex->ready || ex->listener);
    }
    if (ex->ready) {
        ex->state = EXCHANGE_ANSWERED;
        return http_queue_reply(ex);
    }
    if (ex->conn->gone) {
        return MHD_NO;
    }
    ex->state = EXCHANGE_WAITING;
    return suspend(ex);
}

enum MHD_Result http_on_request(void *cls, struct MHD_Connection *mhd, const char *url,
                                const char *method, const char *version, const char *upload,
                                size_t *upload_size, void **state) {
    exchange *ex = *state;
    if (!ex) {
        conn *c = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
        return on_headers(c, mhd, url, method, state);
    }
    if (*upload_size > 0) {
        return on_body(ex, upload, upload_size);
    }
    return on_whole(ex);
}

// ---- the end

// Who ended it before its end.
static const char *cut_by(const conn *c, enum MHD_RequestTerminationCode why) {
    const bool is_late = c->is_late || why == MHD_REQUEST_TERMINATED_TIMEOUT_REACHED;
    return is_late ? "timeout" : c->loop->stopping ? "shutdown" : "client";
}

static void log_request(exchange *ex, enum MHD_RequestTerminationCode why, uint64_t took) {
    buf line = {0};
    if (!log_is_on(LOG_INFO)) {
        return;
    }
    log_begin(&line, LOG_INFO, "request");
    log_text(&line, "id", ex->id);
    log_text(&line, "client", ex->conn->peer);
    log_text(&line, "method", ex->method);
    log_text(&line, "path", ex->path);
    log_int(&line, "status", ex->status);
    log_ms(&line, "ms", took);
    if (why != MHD_REQUEST_TERMINATED_COMPLETED_OK) {
        log_text(&line, "cut", cut_by(ex->conn, why));
    }
    if (!ex->log.failed) {
        buf_add(&line, ex->log.data, ex->log.len);
    }
    log_end(&line);
}

static void drop_resume(exchange *ex) {
    for (exchange **at = &ex->conn->loop->resumes; *at; at = &(*at)->next_resume) {
        if (*at == ex) {
            *at = ex->next_resume;
            return;
        }
    }
}

void http_on_completed(void *cls, struct MHD_Connection *mhd, void **state,
                       enum MHD_RequestTerminationCode why) {
    exchange *ex = *state;
    if (!ex) {
        return; // refused before our handler
    }
    conn *c = ex->conn;
    server *s = c->loop->server;
    const uint64_t now = uv_hrtime();
    *state = NULL;
    c->ex = NULL;
    c->since = now;
    conn_look_soon(c);
    if (ex->listener) {
        ex->listener->on_gone(ex->work);
    }
    if (ex->state != EXCHANGE_ANSWERED && !c->unread) {
        ex->status = 499; // nothing was sent: the client left, or stalled and was closed
    }
    metrics_count_request(&s->metrics, ex->status);
    if (ex->timed) {
        metrics_observe(&s->metrics.request_duration, now - ex->started);
    }
    log_request(ex, why, now - ex->started);
    if (ex->resuming) {
        drop_resume(ex);
    }
    http_free_body(ex);
    buf_dispose(&ex->out);
    buf_dispose(&ex->log);
    free(ex->path);
    free(ex);
}

// ---- later answers

void http_wait(exchange *ex, const exchange_listener *listener, void *work) {
    assert(!ex->ready && !ex->listener);
    ex->listener = listener;
    ex->work = work;
}

void http_forget_work(exchange *ex) {
    ex->listener = NULL;
    ex->work = NULL;
}

void http_resume(exchange *ex) {
    loop *l = ex->conn->loop;
    if (ex->suspended && !ex->resuming) {
        ex->resuming = true;
        ex->next_resume = l->resumes;
        l->resumes = ex;
        loop_turn_soon(l);
    }
}

static size_t pending(const exchange *ex) {
    return ex->out.len - ex->out_at;
}

void http_stream_begin(exchange *ex, const char *content_type) {
    assert(!ex->ready);
    ex->ready = ex->streaming = true;
    ex->status = 200;
    ex->content_type = content_type;
    http_resume(ex);
}

bool http_stream_write(exchange *ex, const char *data, size_t len) {
    assert(ex->streaming && !ex->out_end);
    buf_add(&ex->out, data, len);
    ex->progress = uv_hrtime();
    http_resume(ex);
    ex->pressed = ex->pressed || pending(ex) > HTTP_STREAM_HIGH;
    return !ex->pressed;
}

void http_stream_end(exchange *ex) {
    ex->out_end = true;
    http_forget_work(ex);
    http_resume(ex);
}
