// SPDX-License-Identifier: Apache-2.0
// /v1/sessions: list, look, fork, delete, and states as files.
//
// The engine answers these calls between two steps, and states are copied and checked on the way:
// all of it happens on libuv's pool (pool.h), in one task a request. A task whose client has left
// ends if it was in line still and would only have looked. Sessions belong to a model's engine; a
// name is looked for in the models in order, and a state goes to the first model that it is of.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ssm/session.h>

#include "json.h"
#include "loop.h"
#include "routes.h"
#include "server.h"
#include "tenant.h"

enum task_kind { TASK_LIST, TASK_GET, TASK_DELETE, TASK_FORK, TASK_EXPORT, TASK_IMPORT };

typedef struct task {
    pool_work work;
    exchange *ex; // NULL: the client has left
    loop *loop;
    enum task_kind kind;
    uint64_t owner[2];
    char name[SSM_SESSION_NAME + 1], target[SSM_SESSION_NAME + 1];
    spool *spool;              // IMPORT: the file, taken from the exchange; EXPORT: to be sent
    const served_model *model; // where it was found
    ssm_session_info info;
    buf answer; // LIST
    int rc;
    ssm_error err;
} task;

// ---- on the pool

static void put_session(buf *out, const ssm_session_info *info, const char *model) {
    buf_str(out, "{\"id\":");
    json_put_text(out, info->name);
    buf_str(out, ",\"object\":\"session\",\"model\":");
    json_put_text(out, model);
    buf_printf(out, ",\"tokens\":%llu,\"bytes\":%llu,\"created\":%lld,\"last_used\":%lld}",
               (unsigned long long)info->tokens, (unsigned long long)info->bytes,
               (long long)info->created, (long long)info->last_used);
}

static void list_model(task *t, const served_model *m) {
    ssm_session_info *infos;
    size_t n;
    t->rc = ssm_session_list(m->engine, t->owner, &infos, &n, &t->err);
    for (size_t i = 0; i < n; i++) {
        if (t->answer.data[t->answer.len - 1] != '[') {
            buf_str(&t->answer, ",");
        }
        put_session(&t->answer, &infos[i], m->name);
    }
    free(infos);
}

static void export_state(task *t, const served_model *m) {
    t->rc = t->spool ? 0 : spool_open(&t->loop->server->spools, &t->spool, &t->err);
    if (t->rc == 0) {
        t->rc = spool_reserve(t->spool, ssm_session_max_file(m->engine), &t->err);
    }
    if (t->rc == 0) {
        t->rc = ssm_session_export_fd(m->engine, t->owner, t->name, t->spool->fd, &t->spool->size,
                                      &t->err);
    }
}

static void import_state(task *t, const served_model *m) {
    char path[SPOOL_PATH];
    spool_path(t->spool, path);
    t->rc = ssm_session_import(m->engine, t->owner, t->name, path, &t->info, &t->err);
}

static void run_on(task *t, const served_model *m) {
    switch (t->kind) {
    case TASK_LIST:
        list_model(t, m);
        break;
    case TASK_GET:
        t->rc = ssm_session_get(m->engine, t->owner, t->name, &t->info, &t->err);
        break;
    case TASK_DELETE:
        t->rc = ssm_session_delete(m->engine, t->owner, t->name, &t->err);
        break;
    case TASK_FORK:
        t->rc = ssm_session_fork(m->engine, t->owner, t->name, t->target, &t->info, &t->err);
        break;
    case TASK_EXPORT:
        export_state(t, m);
        break;
    case TASK_IMPORT:
        import_state(t, m);
        break;
    }
}

static void run(pool_work *w) {
    task *t = w->owner;
    const registry *models = &t->loop->server->models;
    const int goes_on = t->kind == TASK_LIST     ? 0
                        : t->kind == TASK_IMPORT ? SSM_EINVAL
                                                 : SSM_ENOTFOUND;
    for (size_t i = 0; i < models->n; i++) {
        t->model = &models->items[i];
        run_on(t, t->model);
        if (t->rc != goes_on) {
            break;
        }
    }
}

// ---- back on the loop

static void free_task(task *t) {
    t->loop->n_jobs--;
    spool_close(t->spool);
    buf_dispose(&t->answer);
    free(t);
}

static void reply_not_found(exchange *ex, const char *name) {
    char message[192];
    snprintf(message, sizeof message, "there is no session '%.128s'", name);
    http_reply_error(ex, 404, "invalid_request_error", "session", "session_not_found", message);
}

static void reply(task *t) {
    exchange *ex = t->ex;
    buf body = {0};
    if (t->rc == SSM_ENOTFOUND) {
        reply_not_found(ex, t->name);
    } else if (t->rc < 0) {
        t->err.code = t->rc;
        if (t->kind == TASK_IMPORT && t->rc == SSM_EINVAL) {
            strcpy(t->err.param, "state"); // and no part of it, such as a tensor's name
        }
        http_reply_ssm_error(ex, &t->err);
    } else if (t->kind == TASK_EXPORT) {
        http_reply_spool(ex, 200, "application/octet-stream", t->spool);
        t->spool = NULL;
    } else if (t->kind == TASK_LIST) {
        buf_str(&t->answer, "]}");
        http_reply_json(ex, 200, &t->answer);
    } else if (t->kind == TASK_DELETE) {
        buf_str(&body, "{\"id\":");
        json_put_text(&body, t->name);
        buf_str(&body, ",\"object\":\"session\",\"deleted\":true}");
        http_reply_json(ex, 200, &body);
    } else {
        put_session(&body, &t->info, t->model->name);
        http_reply_json(ex, t->kind == TASK_GET ? 200 : 201, &body);
    }
}

static void done(pool_work *w) {
    task *t = w->owner;
    if (t->ex) {
        http_forget_work(t->ex);
        reply(t);
    }
    free_task(t);
}

static void on_gone(void *work) {
    task *t = work;
    const bool looks = t->kind == TASK_LIST || t->kind == TASK_GET || t->kind == TASK_EXPORT;
    t->ex = NULL;
    if (looks && pool_drop(&t->work)) {
        free_task(t);
    }
}

static const exchange_listener listener = {.on_gone = on_gone};

// ---- the handlers

static task *open_task(exchange *ex, enum task_kind kind) {
    task *t = calloc(1, sizeof *t);
    if (!t) {
        http_reply_ssm_error(ex, &(ssm_error){.code = SSM_ENOMEM});
        return NULL;
    }
    t->work = (pool_work){.run = run, .done = done, .owner = t};
    t->ex = ex;
    t->loop = ex->conn->loop;
    t->loop->n_jobs++;
    t->kind = kind;
    tenant_owner(ex, t->owner);
    return t;
}

static void start_task(task *t) {
    http_wait(t->ex, &listener, t);
    pool_join(&t->loop->session_calls, &t->work);
}

// The name in /v1/sessions/{id}[/rest]; false: a reply has been made.
static bool read_path(exchange *ex, const char *rest, char name[SSM_SESSION_NAME + 1]) {
    const char *at = ex->path + strlen("/v1/sessions/");
    const char *slash = strchr(at, '/');
    const size_t len = slash ? (size_t)(slash - at) : strlen(at);
    if (len <= SSM_SESSION_NAME && strcmp(slash ? slash : "", rest) == 0) {
        memcpy(name, at, len);
        name[len] = '\0';
        if (tenant_is_session(name)) {
            return true;
        }
    }
    routes_reply_nothing(ex);
    return false;
}

static bool ends_in_state(const exchange *ex) {
    const char *slash = strrchr(ex->path, '/');
    return strcmp(slash, "/state") == 0;
}

void api_sessions(exchange *ex) {
    task *t = open_task(ex, TASK_LIST);
    if (t) {
        buf_str(&t->answer, "{\"object\":\"list\",\"data\":[");
        start_task(t);
    }
}

void api_session_get(exchange *ex) {
    const bool state = ends_in_state(ex);
    char name[SSM_SESSION_NAME + 1];
    task *t = read_path(ex, state ? "/state" : "", name)
                  ? open_task(ex, state ? TASK_EXPORT : TASK_GET)
                  : NULL;
    if (t) {
        memcpy(t->name, name, sizeof name);
        start_task(t);
    }
}

void api_session_delete(exchange *ex) {
    char name[SSM_SESSION_NAME + 1];
    task *t = read_path(ex, "", name) ? open_task(ex, TASK_DELETE) : NULL;
    if (t) {
        memcpy(t->name, name, sizeof name);
        start_task(t);
    }
}

static int read_target(exchange *ex, char out[SSM_SESSION_NAME + 1], ssm_error *err) {
    const char *id = NULL;
    size_t len = 0;
    json_t *root = json_parse_object(ex->body.data, ex->body.len, err);
    int rc = root ? json_get_string(root, "id", &id, &len, err) : SSM_EINVAL;
    const bool is_good = id && strlen(id) == len && tenant_is_session(id);
    if (rc == 0 && !is_good) {
        rc = ssm_error_set(err, SSM_EINVAL, "id",
                           "id must be 1 to 128 characters of A-Z a-z 0-9 . _ -");
    }
    if (rc == 0) {
        memcpy(out, id, len + 1);
    }
    json_decref(root);
    return rc;
}

void api_session_post(exchange *ex) {
    char name[SSM_SESSION_NAME + 1], target[SSM_SESSION_NAME + 1];
    ssm_error err = {0};
    if (!read_path(ex, "/fork", name)) {
        return;
    }
    const int rc = read_target(ex, target, &err);
    http_free_body(ex);
    if (rc < 0) {
        err.code = rc;
        http_reply_ssm_error(ex, &err);
        return;
    }
    task *t = open_task(ex, TASK_FORK);
    if (t) {
        memcpy(t->name, name, sizeof name);
        memcpy(t->target, target, sizeof target);
        start_task(t);
    }
}

// A state is as long as its model says, whatever --max-body-bytes says of other bodies.
bool api_session_put_begin(exchange *ex) {
    server *s = ex->conn->loop->server;
    char name[SSM_SESSION_NAME + 1];
    ssm_error err;
    if (!read_path(ex, "/state", name)) {
        return false;
    }
    ex->body_most = 0;
    for (size_t i = 0; i < s->models.n; i++) {
        const uint64_t most = ssm_session_max_file(s->models.items[i].engine);
        ex->body_most = most > ex->body_most ? most : ex->body_most;
    }
    if (spool_open(&s->spools, &ex->spool, &err) < 0) {
        http_reply_ssm_error(ex, &err);
        return false;
    }
    return true;
}

void api_session_put(exchange *ex) {
    char name[SSM_SESSION_NAME + 1];
    task *t = read_path(ex, "/state", name) ? open_task(ex, TASK_IMPORT) : NULL;
    if (!t) {
        return;
    }
    memcpy(t->name, name, sizeof name);
    t->spool = ex->spool;
    ex->spool = NULL;
    start_task(t);
}
