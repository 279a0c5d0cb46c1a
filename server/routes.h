// SPDX-License-Identifier: Apache-2.0
// The route table: an endpoint is one function and one row.
#ifndef SSMD_ROUTES_H
#define SSMD_ROUTES_H

#include <stdbool.h>

#include "conn/http.h"

struct server;

// Handlers run on the loop thread with the whole body in ex->body; they reply or call http_wait.
typedef void (*route_handler)(exchange *ex);

typedef struct route {
    const char *path;
    bool prefix;             // path ends in '/', and one or more characters follow
    route_handler get, post; // NULL: 405
    unsigned flags;
    route_handler put, del;
} route;

enum {
    ROUTE_OPEN = 1,    // needs no key
    ROUTE_METRICS = 2, // needs none with --public-metrics
    ROUTE_ALWAYS = 4,  // answers also while models load and while the server drains
    ROUTE_TIMED = 8,   // openai-processing-ms
    ROUTE_SPOOL = 16,  // a PUT's body is a session's state: it goes to a spool
};

// Finds the route, checks method, key and readiness. False: a reply has been made.
bool routes_check(struct server *s, exchange *ex, const char *authorization);
// Prepares for the body; ex->body_most may change. False: a reply has been made.
bool routes_begin(exchange *ex);
bool routes_takes_type(const exchange *ex, const char *content_type);
void routes_dispatch(exchange *ex);
void routes_reply_nothing(exchange *ex); // 404

// ---- handlers, one file a family: api_NAME.c

void api_completions(exchange *ex);
void api_chat(exchange *ex);
void api_apply_template(exchange *ex);
void api_models(exchange *ex);
void api_model(exchange *ex);
void api_tokenize(exchange *ex);
void api_detokenize(exchange *ex);
void api_tokenizer_info(exchange *ex);
void api_health(exchange *ex);
void api_livez(exchange *ex);
void api_metrics(exchange *ex);
void api_version(exchange *ex);
void api_sessions(exchange *ex);          // GET /v1/sessions
void api_session_get(exchange *ex);       // /v1/sessions/{id}, /v1/sessions/{id}/state
void api_session_post(exchange *ex);      // /v1/sessions/{id}/fork
bool api_session_put_begin(exchange *ex); // /v1/sessions/{id}/state, before its body
void api_session_put(exchange *ex);
void api_session_delete(exchange *ex);

#endif
