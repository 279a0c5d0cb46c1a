// SPDX-License-Identifier: Apache-2.0
#include "response.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

void response_init(response *r, void (*on_body)(void *ctx, const char *data, size_t len),
                   void *ctx) {
    r->state = RESPONSE_STATUS;
    r->status = 0;
    r->chunked = r->close = false;
    r->left = 0;
    r->line_len = 0;
    r->on_body = on_body;
    r->ctx = ctx;
}

static response_state on_status_line(response *r) {
    if (strncmp(r->line, "HTTP/1.1 ", 9) != 0) {
        return RESPONSE_BROKEN;
    }
    r->status = atoi(r->line + 9);
    return r->status >= 100 && r->status <= 599 ? RESPONSE_HEADERS : RESPONSE_BROKEN;
}

static response_state on_header_line(response *r) {
    if (r->line[0] == '\0') {
        if (r->chunked) {
            return RESPONSE_CHUNK_SIZE;
        }
        return r->left > 0 ? RESPONSE_BODY : RESPONSE_DONE;
    }
    char *value = strchr(r->line, ':');
    if (!value) {
        return RESPONSE_BROKEN;
    }
    *value++ = '\0';
    value += strspn(value, " \t");
    if (strcasecmp(r->line, "content-length") == 0) {
        r->left = strtoull(value, NULL, 10);
    } else if (strcasecmp(r->line, "transfer-encoding") == 0) {
        r->chunked = strcasecmp(value, "chunked") == 0;
    } else if (strcasecmp(r->line, "connection") == 0) {
        r->close = strcasecmp(value, "close") == 0;
    }
    return RESPONSE_HEADERS;
}

static response_state on_chunk_size(response *r) {
    char *end;
    r->left = strtoull(r->line, &end, 16);
    if (end == r->line) {
        return RESPONSE_BROKEN;
    }
    return r->left > 0 ? RESPONSE_CHUNK : RESPONSE_TRAILER;
}

static response_state on_line(response *r) {
    switch (r->state) {
    case RESPONSE_STATUS:
        return on_status_line(r);
    case RESPONSE_HEADERS:
        return on_header_line(r);
    case RESPONSE_CHUNK_SIZE:
        return on_chunk_size(r);
    case RESPONSE_CHUNK_END:
        return r->line[0] == '\0' ? RESPONSE_CHUNK_SIZE : RESPONSE_BROKEN;
    case RESPONSE_TRAILER:
        return r->line[0] == '\0' ? RESPONSE_DONE : RESPONSE_TRAILER;
    default:
        return RESPONSE_BROKEN;
    }
}

// Up to the end of a line; the line is handed on without its CR LF.
static size_t feed_line(response *r, const char *data, size_t len) {
    const char *newline = memchr(data, '\n', len);
    size_t used = newline ? (size_t)(newline - data) + 1 : len;
    if (r->line_len + used >= sizeof r->line) {
        r->state = RESPONSE_BROKEN;
        return used;
    }
    memcpy(r->line + r->line_len, data, used);
    r->line_len += used;
    if (newline) {
        r->line_len--;
        if (r->line_len > 0 && r->line[r->line_len - 1] == '\r') {
            r->line_len--;
        }
        r->line[r->line_len] = '\0';
        r->line_len = 0;
        r->state = on_line(r);
    }
    return used;
}

static size_t feed_body(response *r, const char *data, size_t len) {
    size_t used = r->left < len ? (size_t)r->left : len;
    r->on_body(r->ctx, data, used);
    r->left -= used;
    if (r->left == 0) {
        r->state = r->state == RESPONSE_CHUNK ? RESPONSE_CHUNK_END : RESPONSE_DONE;
    }
    return used;
}

size_t response_feed(response *r, const char *data, size_t len) {
    size_t used = 0;
    while (used < len && r->state != RESPONSE_DONE && r->state != RESPONSE_BROKEN) {
        bool in_body = r->state == RESPONSE_BODY || r->state == RESPONSE_CHUNK;
        used += (in_body ? feed_body : feed_line)(r, data + used, len - used);
    }
    return used;
}
