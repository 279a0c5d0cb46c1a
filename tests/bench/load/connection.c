// SPDX-License-Identifier: Apache-2.0
// One connection of the load generator: it sends a request, reads the answer event by event and
// stamps each event when its bytes are read. Nothing is parsed that is not needed: an event is a
// line that begins with `data: {`. A server may hold a token's text back (half a character) or say
// the end in an event of its own, so events give the times, and the usage that ends the stream
// gives the number of tokens.
#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"

static load_stats *measured(load_connection *c) {
    return c->driver->measuring ? &c->driver->stats : NULL;
}

// ---- requests

static void append(load_connection *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void append(load_connection *c, const char *format, ...) {
    for (;;) {
        va_list args;
        va_start(args, format);
        size_t room = c->request_cap - c->request_len;
        int n = vsnprintf(c->request + c->request_len, room, format, args);
        va_end(args);
        assert(n >= 0);
        if ((size_t)n < room) {
            c->request_len += (size_t)n;
            return;
        }
        c->request_cap = 2 * (c->request_cap + (size_t)n + 1);
        c->request = realloc(c->request, c->request_cap);
        assert(c->request);
    }
}

static void append_prompt(load_connection *c) {
    const load_options *o = c->driver->options;
    append(c, o->text ? "\"" : "[");
    for (int i = 0; i < o->prompt_tokens; i++) {
        uint64_t random = load_random(c->driver);
        if (o->text) {
            append(c, "%c", (int)('a' + random % 26));
        } else {
            append(c, "%s%" PRIu64, i ? "," : "", random % (uint64_t)o->vocab);
        }
    }
    append(c, o->text ? "\"" : "]");
}

// The body's length is written into room kept for it in the head.
static void make_request(load_connection *c) {
    enum { LENGTH_WIDTH = 10 };
    load_driver *driver = c->driver;
    const load_options *o = driver->options;
    c->request_len = 0;
    append(c, "POST /v1/completions HTTP/1.1\r\nHost: %s:%s\r\nContent-Type: application/json\r\n",
           o->host, o->port);
    if (o->key) {
        append(c, "Authorization: Bearer %s\r\n", o->key);
    }
    append(c, "Content-Length: ");
    size_t length_at = c->request_len;
    append(c, "%*s\r\n\r\n", LENGTH_WIDTH, "");
    size_t body_at = c->request_len;
    append(c, "{\"prompt\":");
    append_prompt(c);
    append(c, ",\"max_tokens\":%d,\"ignore_eos\":true,\"temperature\":%g,\"seed\":%" PRIu64,
           o->max_tokens, o->temperature, o->seed + driver->request_number++);
    if (o->model) {
        append(c, ",\"model\":\"%s\"", o->model);
    }
    append(c, o->stream ? ",\"stream\":true,\"stream_options\":{\"include_usage\":true}}" : "}");
    char length[LENGTH_WIDTH + 1];
    snprintf(length, sizeof length, "%0*zu", LENGTH_WIDTH, c->request_len - body_at);
    memcpy(c->request + length_at, length, LENGTH_WIDTH);
}

// ---- answers

static void on_token(load_connection *c) {
    load_stats *stats = measured(c);
    uint64_t now = uv_hrtime();
    c->tokens++;
    if (stats) {
        stats->output_tokens++;
        if (c->last_token_ns == 0) {
            histogram_add(&stats->ttft, now - c->due_ns);
        } else {
            histogram_add(&stats->gap, now - c->last_token_ns);
        }
    }
    c->last_token_ns = now;
}

// The last event before [DONE]: what was not counted as it came, or was counted too much, is put
// right.
static void on_usage(load_connection *c, const char *number) {
    load_stats *stats = measured(c);
    uint64_t drawn = strtoull(number, NULL, 10);
    if (stats) {
        stats->output_tokens += drawn - c->tokens; // wraps where it is negative, and back
    }
    c->tokens = drawn;
}

// One line of a stream, NUL-terminated.
static void on_event_line(load_connection *c) {
    static const char key[] = "\"completion_tokens\":";
    if (c->event_len < 7 || memcmp(c->event, "data: {", 7) != 0) {
        return;
    }
    const char *usage = memmem(c->event, c->event_len, key, sizeof key - 1);
    if (usage) {
        on_usage(c, usage + sizeof key - 1);
    } else {
        on_token(c);
    }
}

static void on_body(void *ctx, const char *data, size_t len) {
    load_connection *c = ctx;
    if (!c->driver->options->stream || c->answer.status != 200) {
        return;
    }
    while (len > 0) {
        const char *newline = memchr(data, '\n', len);
        size_t n = newline ? (size_t)(newline - data) : len;
        size_t room = sizeof c->event - 1 - c->event_len;
        size_t kept = n < room ? n : room;
        memcpy(c->event + c->event_len, data, kept);
        c->event_len += kept;
        if (!newline) {
            return;
        }
        c->event[c->event_len] = '\0';
        on_event_line(c);
        c->event_len = 0;
        data += n + 1;
        len -= n + 1;
    }
}

static void count_failure(load_stats *stats, int status) {
    stats->failed++;
    if (status == 429 || status == 503) {
        stats->refused++;
    }
    if (stats->first_status == 0) {
        stats->first_status = status > 0 ? status : -1;
    }
}

// status: of the answer, or 0 if there was none to its end.
static void end_request(load_connection *c, int status) {
    load_stats *stats = measured(c);
    assert(c->is_busy);
    c->is_busy = false;
    if (stats && status == 200) {
        const load_options *o = c->driver->options;
        stats->finished++;
        stats->prompt_tokens += (uint64_t)o->prompt_tokens;
        stats->output_tokens += o->stream ? 0 : (uint64_t)o->max_tokens;
        histogram_add(&stats->latency, uv_hrtime() - c->due_ns);
    } else if (stats) {
        count_failure(stats, status);
    }
    load_driver_on_end(c->driver, c, status == 200);
}

// ---- the socket

static void on_closed(uv_handle_t *handle) {
    load_connection *c = handle->data;
    c->is_open = c->is_closing = false;
    if (c->is_busy) {
        end_request(c, c->answer.state == RESPONSE_DONE ? c->answer.status : 0);
    }
}

void load_connection_close(load_connection *c) {
    if (c->is_open && !c->is_closing) {
        c->is_closing = true;
        uv_close((uv_handle_t *)&c->tcp, on_closed);
    }
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
    static char shared[1 << 16]; // one thread: each read is used up before the next
    *buf = uv_buf_init(shared, sizeof shared);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
    load_connection *c = stream->data;
    if (n == 0) {
        return;
    }
    if (n < 0 || !c->is_busy) {
        load_connection_close(c); // ends the request, if any
        return;
    }
    size_t used = response_feed(&c->answer, buf->base, (size_t)n);
    if (c->answer.state == RESPONSE_BROKEN) {
        load_connection_close(c);
    } else if (c->answer.state == RESPONSE_DONE && (c->answer.close || used < (size_t)n)) {
        load_connection_close(c); // the request ends when the socket is gone
    } else if (c->answer.state == RESPONSE_DONE) {
        end_request(c, c->answer.status);
    }
}

static void on_written(uv_write_t *write, int status) {
    load_connection *c = write->data;
    if (status < 0) {
        load_connection_close(c);
    }
}

static void send_request(load_connection *c) {
    uv_buf_t buf = uv_buf_init(c->request, (unsigned)c->request_len);
    c->write.data = c;
    if (uv_write(&c->write, (uv_stream_t *)&c->tcp, &buf, 1, on_written) != 0) {
        load_connection_close(c);
    }
}

static void on_connected(uv_connect_t *connect, int status) {
    load_connection *c = connect->data;
    if (status < 0 || uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read) != 0) {
        load_connection_close(c);
        return;
    }
    send_request(c);
}

static void open_connection(load_connection *c) {
    uv_tcp_init(c->driver->loop, &c->tcp);
    c->tcp.data = c->connect.data = c;
    c->is_open = true;
    uv_tcp_nodelay(&c->tcp, 1);
    const struct sockaddr *address = (const struct sockaddr *)&c->driver->options->address;
    if (uv_tcp_connect(&c->connect, &c->tcp, address, on_connected) != 0) {
        load_connection_close(c);
    }
}

void load_connection_init(load_connection *c, load_driver *driver) {
    c->driver = driver;
}

void load_connection_start(load_connection *c, uint64_t due_ns) {
    assert(!c->is_busy && !c->is_closing);
    c->is_busy = true;
    c->due_ns = due_ns;
    c->last_token_ns = 0;
    c->tokens = 0;
    c->event_len = 0;
    response_init(&c->answer, on_body, c);
    make_request(c);
    if (c->is_open) {
        send_request(c);
    } else {
        open_connection(c);
    }
}
