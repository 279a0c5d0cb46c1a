// SPDX-License-Identifier: Apache-2.0
// GET /health, /readyz, /livez, /version, /metrics.
#include <ssm/version.h>

#include "loop.h"
#include "routes.h"
#include "server.h"

enum { STUCK_SECONDS = 30 };

static void reply_status(exchange *ex, int status, const char *word) {
    buf body = {0};
    buf_str(&body, "{\"status\":");
    json_put_text(&body, word);
    buf_str(&body, "}");
    http_reply_json(ex, status, &body);
}

static void reply_unhealthy(exchange *ex, const char *code, const char *message) {
    ex->retry_after = 1;
    http_reply_error(ex, 503, "server_error", NULL, code, message);
}

// A store that is away takes sessions from every server alike: there is no better one to be sent
// to, and all else goes on.
static void reply_ready(exchange *ex) {
    const server *s = ex->conn->loop->server;
    buf body = {0};
    buf_str(&body, "{\"status\":\"ok\"");
    if (s->o->state_url && *s->o->state_url) {
        buf_printf(&body, ",\"session_store\":\"%s\"",
                   registry_store_is_up(&s->models) ? "ok" : "unavailable");
    }
    buf_str(&body, "}");
    http_reply_json(ex, 200, &body);
}

void api_health(exchange *ex) {
    const char *unready = loop_unready(ex->conn->loop);
    if (unready) {
        reply_unhealthy(ex, unready, *unready == 'l' ? "the model is loading" : "shutting down");
    } else {
        reply_ready(ex);
    }
}

// Alive unless an engine has failed, or has not stepped for long with work waiting.
void api_livez(exchange *ex) {
    const registry *r = &ex->conn->loop->server->models;
    for (size_t i = 0; registry_is_ready(r) && i < r->n; i++) {
        ssm_stats stats;
        ssm_engine_get_stats(r->items[i].engine, &stats);
        if (stats.failed || stats.idle_seconds > STUCK_SECONDS) {
            reply_unhealthy(ex, "engine_stuck",
                            stats.failed ? "the engine has failed" : "the engine does not step");
            return;
        }
    }
    reply_status(ex, 200, "ok");
}

void api_version(exchange *ex) {
    buf body = {0};
    buf_printf(&body,
               "{\"name\":\"ssmd\",\"version\":\"%s\",\"commit\":\"%s\",\"backends\":", SSM_VERSION,
               ssm_version_commit());
    json_put_text(&body, ssm_engine_backends());
    buf_str(&body, "}");
    http_reply_json(ex, 200, &body);
}

void api_metrics(exchange *ex) {
    server *s = ex->conn->loop->server;
    buf body = {0};
    metrics_write(&s->metrics, &s->models, &body);
    http_reply(ex, 200, "text/plain; version=0.0.4; charset=utf-8", &body);
}
