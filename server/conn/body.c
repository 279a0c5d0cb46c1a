// SPDX-License-Identifier: Apache-2.0
#include "conn/body.h"

#include <stdio.h>

#include "loop.h"
#include "routes.h"
#include "server.h"

static void reply_too_long(exchange *ex, uint64_t length) {
    char message[128];
    if (length > 0) {
        snprintf(message, sizeof message, "the body has %llu bytes, at most %llu are taken",
                 (unsigned long long)length, (unsigned long long)ex->body_most);
    } else {
        snprintf(message, sizeof message, "the body is longer than the %llu bytes that are taken",
                 (unsigned long long)ex->body_most);
    }
    http_reply_error(ex, 413, "invalid_request_error", NULL, "body_too_large", message);
}

void body_begin(exchange *ex, uint64_t length) {
    ex->body_most = (uint64_t)ex->conn->loop->server->o->max_body_bytes;
    if (routes_begin(ex) && length > ex->body_most) {
        reply_too_long(ex, length);
    }
}

// Grows the body within the budget: 0, or the status to answer.
static int append(exchange *ex, const char *data, size_t len) {
    budget *b = &ex->conn->loop->server->budget;
    if (ex->body.len + len > ex->charged) {
        // Charged in steps of the buffer's own growth.
        const size_t more = len + ex->charged / 2 + 4096;
        if (!budget_take(b, more)) {
            return 503;
        }
        ex->charged += more;
    }
    buf_add(&ex->body, data, len);
    return ex->body.failed ? 503 : 0;
}

static void refuse(exchange *ex, int status, const char *why) {
    http_free_body(ex);
    ex->discarding = true;
    if (status == 413) {
        reply_too_long(ex, 0);
    } else {
        ex->retry_after = 1;
        http_reply_error(ex, 503, "server_error", NULL, "request_memory", why);
    }
}

bool body_add(exchange *ex, const char *data, size_t len) {
    ssm_error err = {.message = "too much request memory is in use, try again later"};
    int status = 0;
    if (!ex->discarding && body_received(ex) + len > ex->body_most) {
        status = 413;
    } else if (!ex->discarding && ex->spool) {
        status = spool_write(ex->spool, data, len, &err) == 0 ? 0 : 503;
    } else if (!ex->discarding) {
        status = append(ex, data, len);
    }
    if (status != 0) {
        refuse(ex, status, err.message);
    }
    ex->discarded += ex->discarding ? len : 0;
    return ex->discarded <= BODY_DISCARD_MOST + (ex->status == 503 ? ex->body_most : 0);
}

uint64_t body_received(const exchange *ex) {
    return ex->body.len + ex->discarded + (ex->spool ? ex->spool->size : 0);
}

void http_free_body(exchange *ex) {
    buf_dispose(&ex->body);
    budget_give(&ex->conn->loop->server->budget, ex->charged);
    ex->charged = 0;
    spool_close(ex->spool);
    ex->spool = NULL;
}
