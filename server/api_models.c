// SPDX-License-Identifier: Apache-2.0
// GET /v1/models, /v1/models/{id}.
#include <stdio.h>
#include <string.h>

#include "loop.h"
#include "routes.h"
#include "server.h"

static void put_model(buf *out, const served_model *m, const char *name) {
    buf_str(out, "{\"id\":");
    json_put_text(out, name);
    buf_printf(
        out,
        ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"ssmd\",\"architecture\":\"%s\","
        "\"parameters\":%llu,\"layers\":%d,\"vocab_size\":%d,\"session_bytes\":%llu}",
        (long long)m->created, m->info->architecture, (unsigned long long)m->info->parameters,
        m->info->n_layers, m->info->vocab_size, (unsigned long long)m->info->state_bytes);
}

void api_models(exchange *ex) {
    const registry *r = &ex->conn->loop->server->models;
    buf body = {0};
    buf_str(&body, "{\"object\":\"list\",\"data\":[");
    for (size_t i = 0; i < r->n; i++) {
        buf_str(&body, i ? "," : "");
        put_model(&body, &r->items[i], r->items[i].name);
    }
    buf_str(&body, "]}");
    http_reply_json(ex, 200, &body);
}

void api_model(exchange *ex) {
    const char *name = ex->path + strlen("/v1/models/");
    const served_model *m = registry_find(&ex->conn->loop->server->models, name);
    buf body = {0};
    if (!m) {
        char message[160];
        snprintf(message, sizeof message, "there is no model '%.100s' here", name);
        http_reply_error(ex, 404, "invalid_request_error", "model", "model_not_found", message);
        return;
    }
    put_model(&body, m, name); // under --any-model, the name that was asked for
    http_reply_json(ex, 200, &body);
}
