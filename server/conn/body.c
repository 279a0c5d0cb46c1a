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

// Grows the body within the budget.
static int append(exchange *ex, const char *data, size_t len, ssm_error *err) {
    budget *b = &ex->conn->loop->server->budget;
    if (ex->body.len + len > ex->charged) {
        // Charged in steps of the buffer's own growth.
        const size_t more = len + ex->charged / 2 + 4096;
        if (!budget_take(b, more)) {
            return ssm_error_set(err, SSM_ENOMEM, NULL,
                                 "too much request memory is in use, try again later");
        }
        ex->charged += more;
    }
    buf_add(&ex->body, data, len);
    return ex->body.failed ? ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory") : 0;
}

static void add(exchange *ex, const char *data, size_t len) {
    ssm_error err;
    const bool is_too_long = body_received(ex) + len > ex->body_most;
    int rc = 0;
    if (!is_too_long) {
        rc = ex->spool ? spool_write(ex->spool, data, len, &err) : append(ex, data, len, &err);
    }
    if (!is_too_long && rc == 0) {
        return;
    }
    http_free_body(ex);
    ex->discarding = true;
    if (is_too_long) {
        reply_too_long(ex, 0);
    } else {
        http_reply_ssm_error(ex, &err);
    }
}

bool body_add(exchange *ex, const char *data, size_t len) {
    if (!ex->discarding) {
        add(ex, data, len);
    }
    ex->discarded += ex->discarding ? len : 0;
    // What was refused through no fault of its own is read to its end, whatever it has taken.
    return ex->discarded <= BODY_DISCARD_MOST + (ex->status >= 500 ? ex->body_most : 0);
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
