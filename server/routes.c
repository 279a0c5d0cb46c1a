// SPDX-License-Identifier: Apache-2.0
#include "routes.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "loop.h"
#include "server.h"

static const route table[] = {
    {"/v1/completions", false, NULL, api_completions, ROUTE_TIMED, NULL, NULL},
    {"/v1/chat/completions", false, NULL, api_chat, ROUTE_TIMED, NULL, NULL},
    {"/apply-template", false, NULL, api_apply_template, 0, NULL, NULL},
    {"/v1/sessions", false, api_sessions, NULL, 0, NULL, NULL},
    {"/v1/sessions/", true, api_session_get, api_session_post, ROUTE_SPOOL, api_session_put,
     api_session_delete},
    {"/v1/models", false, api_models, NULL, 0, NULL, NULL},
    {"/v1/models/", true, api_model, NULL, 0, NULL, NULL},
    {"/tokenize", false, NULL, api_tokenize, 0, NULL, NULL},
    {"/detokenize", false, NULL, api_detokenize, 0, NULL, NULL},
    {"/tokenizer_info", false, api_tokenizer_info, NULL, 0, NULL, NULL},
    {"/health", false, api_health, NULL, ROUTE_OPEN | ROUTE_ALWAYS, NULL, NULL},
    {"/readyz", false, api_health, NULL, ROUTE_OPEN | ROUTE_ALWAYS, NULL, NULL},
    {"/livez", false, api_livez, NULL, ROUTE_OPEN | ROUTE_ALWAYS, NULL, NULL},
    {"/metrics", false, api_metrics, NULL, ROUTE_METRICS | ROUTE_ALWAYS, NULL, NULL},
    {"/version", false, api_version, NULL, ROUTE_ALWAYS, NULL, NULL},
};

static const route *find(const char *path) {
    if (strstr(path, "/../")) {
        return NULL; // clients resolve these; whoever sends one looks for something else
    }
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const size_t len = strlen(table[i].path);
        if (table[i].prefix ? strncmp(path, table[i].path, len) == 0 && path[len]
                            : strcmp(path, table[i].path) == 0) {
            return &table[i];
        }
    }
    return NULL;
}

static const char *allow_of(const route *r) {
    return r && r->put              ? "GET, HEAD, POST, PUT, DELETE, OPTIONS"
           : r && r->get && r->post ? "GET, HEAD, POST, OPTIONS"
           : r && r->post           ? "POST, OPTIONS"
                                    : "GET, HEAD, OPTIONS";
}

static route_handler handler_of(const exchange *ex) {
    const bool get = strcmp(ex->method, "GET") == 0 || strcmp(ex->method, "HEAD") == 0;
    return get                                 ? ex->route->get
           : strcmp(ex->method, "POST") == 0   ? ex->route->post
           : strcmp(ex->method, "PUT") == 0    ? ex->route->put
           : strcmp(ex->method, "DELETE") == 0 ? ex->route->del
                                               : NULL;
}

static void reply_options(exchange *ex) {
    buf empty = {0};
    ex->allow = allow_of(ex->route);
    http_reply(ex, 204, NULL, &empty);
}

static bool needs_key(const server *s, const route *r) {
    return !(r->flags & ROUTE_OPEN) && !((r->flags & ROUTE_METRICS) && s->o->public_metrics);
}

static void reply_unready(exchange *ex, const char *why) {
    const bool loading = strcmp(why, "loading") == 0;
    ex->retry_after = loading ? 1 : 5;
    http_reply_error(ex, 503, "server_error", NULL, why,
                     loading ? "the model is loading" : "the server is shutting down");
}

void routes_reply_nothing(exchange *ex) {
    char message[200];
    snprintf(message, sizeof message,
             "there is nothing at %.80s: completions are at /v1/completions and "
             "/v1/chat/completions, models at /v1/models",
             ex->path);
    http_reply_error(ex, 404, "invalid_request_error", NULL, "unknown_url", message);
}

bool routes_check(server *s, exchange *ex, const char *authorization) {
    const char *unready = loop_unready(ex->conn->loop);
    char message[200];
    ex->route = find(ex->path);
    if (strcmp(ex->method, "OPTIONS") == 0) {
        reply_options(ex); // before any key: a preflight carries none
    } else if (ex->route ? needs_key(s, ex->route) && !auth_check(&s->auth, authorization)
                         : !auth_check(&s->auth, authorization)) {
        http_reply_error(ex, 401, "authentication_error", NULL, "invalid_api_key",
                         authorization ? "the API key is not one of this server's"
                                       : "an API key is needed: Authorization: Bearer KEY");
    } else if (!ex->route) {
        routes_reply_nothing(ex);
    } else if (!handler_of(ex)) {
        ex->allow = allow_of(ex->route);
        snprintf(message, sizeof message, "%.80s takes %s, not %.20s", ex->path, ex->allow,
                 ex->method);
        http_reply_error(ex, 405, "invalid_request_error", NULL, "method_not_allowed", message);
    } else if (unready && !(ex->route->flags & ROUTE_ALWAYS)) {
        reply_unready(ex, unready);
    }
    ex->timed = ex->route && (ex->route->flags & ROUTE_TIMED);
    return !ex->ready;
}

bool routes_begin(exchange *ex) {
    const bool is_state = (ex->route->flags & ROUTE_SPOOL) && strcmp(ex->method, "PUT") == 0;
    return !is_state || api_session_put_begin(ex);
}

// application/json and application/...+json, with charset=utf-8 if any; none at all is taken, too.
bool routes_takes_type(const exchange *ex, const char *content_type) {
    if (!ex->route->post || strcmp(ex->method, "POST") != 0 || !content_type || !*content_type) {
        return true;
    }
    const size_t len = strcspn(content_type, "; \t");
    const bool json = (len == 16 && strncasecmp(content_type, "application/json", len) == 0) ||
                      (len > 17 && strncasecmp(content_type, "application/", 12) == 0 &&
                       strncasecmp(content_type + len - 5, "+json", 5) == 0);
    const char *charset = strcasestr(content_type + len, "charset=");
    const char *name = charset ? charset + 8 + (charset[8] == '"') : "utf-8";
    return json && (strncasecmp(name, "utf-8", 5) == 0 || strncasecmp(name, "utf8", 4) == 0);
}

void routes_dispatch(exchange *ex) {
    handler_of(ex)(ex);
}
