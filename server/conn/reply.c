// SPDX-License-Identifier: Apache-2.0
// Answers: bodies, error objects, headers, and the reader of streams.
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "conn/http.h"
#include "cors.h"
#include "loop.h"
#include "server.h"

enum { STREAM_BLOCK = 16 << 10 };

void http_reply(exchange *ex, int status, const char *content_type, buf *body) {
    assert(!ex->ready);
    ex->ready = true;
    ex->status = body->failed ? 500 : status;
    ex->content_type = content_type;
    ex->out = *body;
    *body = (buf){0};
    http_resume(ex);
}

void http_reply_spool(exchange *ex, int status, const char *content_type, spool *s) {
    buf none = {0};
    assert(!ex->spool);
    ex->spool = s;
    http_reply(ex, status, content_type, &none);
}

void http_reply_json(exchange *ex, int status, buf *body) {
    http_reply(ex, status, "application/json", body);
}

void http_put_error(buf *out, const char *type, const char *param, const char *code,
                    const char *message) {
    buf_str(out, "{\"error\":{\"message\":");
    json_put_text(out, message);
    buf_str(out, ",\"type\":");
    json_put_text(out, type);
    buf_str(out, ",\"param\":");
    json_put_text(out, param && *param ? param : NULL);
    buf_str(out, ",\"code\":");
    json_put_text(out, code);
    buf_str(out, "}}");
}

void http_reply_error(exchange *ex, int status, const char *type, const char *param,
                      const char *code, const char *message) {
    buf body = {0};
    http_put_error(&body, type, param, code, message);
    http_reply_json(ex, status, &body);
}

const char *http_error_code(int ssm_code) {
    switch (ssm_code) {
    case SSM_EBUSY:
        return "queue_full";
    case SSM_EDRAINING:
        return "draining";
    case SSM_ENOMEM:
        return "request_memory";
    case SSM_ESESSIONBUSY:
        return "session_busy";
    case SSM_EMISMATCH:
        return "session_mismatch";
    case SSM_EQUOTA:
        return "session_quota";
    case SSM_ENOTFOUND: // models have their own
        return "session_not_found";
    case SSM_EUNAVAILABLE:
        return "session_store";
    case SSM_ECONFLICT:
        return "session_conflict";
    case SSM_EDISKFULL:
        return "disk_full";
    default:
        return NULL;
    }
}

void http_reply_ssm_error(exchange *ex, const ssm_error *err) {
    const int status = ssm_error_status(err->code);
    ex->retry_after = status == 409 || status == 429 || status == 503 ? 1 : 0;
    http_reply_error(ex, status, ssm_error_type(err->code), err->param, http_error_code(err->code),
                     *err->message ? err->message : ssm_error_text(err->code));
}

// ---- streams

static void compact(exchange *ex) {
    if (ex->out_at == ex->out.len) {
        ex->out.len = ex->out_at = 0;
    } else if (ex->out_at > ex->out.len / 2) {
        memmove(ex->out.data, ex->out.data + ex->out_at, ex->out.len - ex->out_at);
        ex->out.len -= ex->out_at;
        ex->out_at = 0;
    }
}

// Cuts the connection off. libmicrohttpd (0.9.75, with epoll) then has it in no list of what is to
// be done: it comes to end it, and to close the socket, when it looks for connections whose time is
// over, which it does from the one used longest ago to the first that may stay. Behind an idle one
// those who left would keep their sockets for the rest of its --header-timeout. A connection with a
// time-out of its own is looked at in every turn: in this one, or else the next.
static ssize_t cut(exchange *ex) {
    const unsigned all = (unsigned)(ex->conn->loop->server->o->header_timeout + 0.999);
    MHD_set_connection_option(ex->mhd, MHD_CONNECTION_OPTION_TIMEOUT, all + 1);
    loop_turn_soon(ex->conn->loop);
    return MHD_CONTENT_READER_END_WITH_ERROR;
}

static ssize_t read_stream(void *cls, uint64_t position, char *to, size_t max) {
    exchange *ex = cls;
    const size_t left = ex->out.len - ex->out_at;
    const size_t n = left < max ? left : max;
    if (ex->out.failed || (ex->conn->gone && !ex->out_end)) {
        return cut(ex);
    }
    if (n == 0) {
        if (ex->out_end) {
            return MHD_CONTENT_READER_END_OF_STREAM;
        }
        if (!ex->suspended) {
            ex->suspended = true;
            conn_watch(ex->conn);
            MHD_suspend_connection(ex->mhd);
        }
        return 0;
    }
    memcpy(to, ex->out.data + ex->out_at, n);
    ex->out_at += n;
    compact(ex);
    if (ex->pressed && left - n < HTTP_STREAM_LOW) {
        ex->pressed = false;
        if (ex->listener && ex->listener->on_proceed) {
            ex->listener->on_proceed(ex->work);
        }
    }
    return (ssize_t)n;
}

// ---- headers

static struct MHD_Response *make_response(exchange *ex) {
    if (ex->streaming) {
        return MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, read_stream, ex,
                                                 NULL);
    }
    if (ex->spool && ex->status == 200) {
        // The response closes its descriptor; the spool stays until the exchange ends.
        const int fd = dup(ex->spool->fd);
        struct MHD_Response *r =
            fd >= 0 ? MHD_create_response_from_fd64(ex->spool->size, fd) : NULL;
        if (!r && fd >= 0) {
            close(fd);
        }
        return r;
    }
    size_t len;
    char *body = buf_take(&ex->out, &len);
    struct MHD_Response *r = MHD_create_response_from_buffer(
        len, body ? body : (char *)"", body ? MHD_RESPMEM_MUST_FREE : MHD_RESPMEM_PERSISTENT);
    if (!r) {
        free(body);
    }
    return r;
}

static void add_number(struct MHD_Response *r, const char *name, uint64_t number) {
    char text[24];
    snprintf(text, sizeof text, "%llu", (unsigned long long)number);
    MHD_add_response_header(r, name, text);
}

static void add_headers(exchange *ex, struct MHD_Response *r) {
    const server *s = ex->conn->loop->server;
    MHD_add_response_header(r, "x-request-id", ex->id);
    if (ex->content_type) {
        MHD_add_response_header(r, "Content-Type", ex->content_type);
    }
    if (ex->streaming) {
        MHD_add_response_header(r, "Cache-Control", "no-cache");
        MHD_add_response_header(r, "X-Accel-Buffering", "no"); // nginx passes events on at once
    }
    if (ex->allow) {
        MHD_add_response_header(r, "Allow", ex->allow);
    }
    if (ex->retry_after) {
        add_number(r, "Retry-After", (uint64_t)ex->retry_after);
    }
    if (ex->status == 401) {
        MHD_add_response_header(r, "WWW-Authenticate", "Bearer");
    }
    if (ex->timed) {
        add_number(r, "openai-processing-ms", (uv_hrtime() - ex->started) / 1000000);
    }
    if (ex->close || ex->conn->loop->draining) {
        MHD_add_response_header(r, "Connection", "close");
    }
    cors_add_headers(s->o, MHD_lookup_connection_value(ex->mhd, MHD_HEADER_KIND, "Origin"), r);
}

enum MHD_Result http_queue_reply(exchange *ex) {
    struct MHD_Response *r = make_response(ex);
    if (!r) {
        return MHD_NO;
    }
    add_headers(ex, r);
    const enum MHD_Result rc = MHD_queue_response(ex->mhd, (unsigned)ex->status, r);
    MHD_destroy_response(r);
    return rc;
}
