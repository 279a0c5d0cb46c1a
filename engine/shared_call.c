// SPDX-License-Identifier: Apache-2.0
// Calls of ssm/session.h at sessions that other processes have too: each is one request to the
// store, behind what of its session is still on its way there.
#include "engine.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "session_call.h"
#include "state/store.h"

static const store_kind kind_of[] = {
    [SESSION_LIST] = STORE_LIST, [SESSION_GET] = STORE_LOOK, [SESSION_DELETE] = STORE_DELETE,
    [SESSION_FORK] = STORE_FORK, [SESSION_READ] = STORE_GET, [SESSION_WRITE] = STORE_PUT,
};

int shared_call(ssm_engine *engine, session_call *call, bool *waits) {
    session *s = call->name ? sessions_find(&engine->sessions, call->owner, call->name) : NULL;
    *waits = true;
    if (s && (s->is_dirty || s->is_writing)) {
        call->next = s->calls;
        s->calls = call;
        return 0;
    }
    store_request *r = calloc(1, sizeof *r);
    if (!r) {
        *waits = false;
        return ssm_error_set(&call->error, SSM_ENOMEM, NULL, "no memory for a session");
    }
    const int64_t now = (int64_t)time(NULL);
    *r = (store_request){
        .kind = kind_of[call->op],
        .label = {.owner = {call->owner[0], call->owner[1]}, .created = now, .last_used = now},
        .stamp = shared_stamp(engine),
        .target = call->target,
        .call = call,
        .began_ns = engine_now_ns()};
    if (call->name)
        memcpy(r->label.name, call->name, strlen(call->name) + 1);
    if (call->op == SESSION_WRITE) {
        r->is_import = true;
        r->image = call->image;
        call->image.state = call->image.logits = NULL;
        call->image.text = (session_text){0};
        ssm_session_info *info = r->infos = calloc(1, sizeof *info);
        if (info) { // as it will be
            strcpy(info->name, call->name);
            info->tokens = r->image.text.n_tokens;
            info->created = info->last_used = now;
            info->at = session_point(&r->image.text);
            info->n_memo = r->image.text.n_memo;
            memcpy(info->memo, r->image.text.memo, info->n_memo);
        }
    }
    durable_send(engine, NULL, r);
    return 0;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const ssm_session_info *)a)->name, ((const ssm_session_info *)b)->name);
}

// What is on its way to the store counts as there.
static void add_unwritten(ssm_engine *engine, session_call *call) {
    for (size_t i = 0; i < SESSION_BUCKETS; i++) {
        for (const session *s = engine->sessions.buckets[i]; s; s = s->next) {
            if ((!s->is_dirty && !s->is_writing) ||
                memcmp(s->owner, call->owner, sizeof s->owner) != 0)
                continue;
            size_t at = 0;
            while (at < call->n_infos && strcmp(call->infos[at].name, s->name) != 0)
                at++;
            ssm_session_info *more = at < call->n_infos
                                         ? call->infos
                                         : realloc(call->infos, (call->n_infos + 1) * sizeof *more);
            if (!more)
                return;
            call->infos = more;
            call->n_infos += at == call->n_infos;
            session_describe(engine, s, &call->infos[at]);
        }
    }
}

static void on_list(ssm_engine *engine, session_call *call, store_request *r) {
    const uint64_t bytes = engine->state_floats * sizeof(float);
    call->infos = r->infos;
    call->n_infos = r->n_infos;
    r->infos = NULL;
    for (size_t i = 0; i < call->n_infos; i++)
        call->infos[i].bytes = bytes;
    add_unwritten(engine, call);
    qsort(call->infos, call->n_infos, sizeof *call->infos, by_name);
}

void shared_called(ssm_engine *engine, store_request *r) {
    session_call *call = r->call;
    if (r->rc == 0 && call->op == SESSION_LIST) {
        on_list(engine, call, r);
    } else if (r->rc == 0) {
        if (r->infos && call->infos) {
            *call->infos = *r->infos;
            call->infos->bytes = engine->state_floats * sizeof(float);
        }
        if (call->op == SESSION_READ) {
            call->image = r->image;
            r->image = (snapshot_image){.pool = NULL};
        }
    } else if (r->rc == SSM_ENOTFOUND) {
        ssm_error_set(&call->error, r->rc, NULL, "there is no session %s", call->name);
    } else if (r->rc == SSM_EINVAL && call->op == SESSION_FORK) {
        ssm_error_set(&call->error, r->rc, "id", "session %s exists already", call->target);
    } else {
        engine->session_counts.set_aside += r->rc == SSM_EINVAL;
        engine->session_counts.refusals += r->rc == SSM_EQUOTA;
        r->rc = shared_describe(r, &call->error);
    }
    session_finish(engine, call, r->rc);
}
