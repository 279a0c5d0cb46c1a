// SPDX-License-Identifier: Apache-2.0
#include "pool.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "loop.h"
#include "server.h"

static int share(int together, int n_loops) {
    return n_loops < together ? together / n_loops : 1;
}

void pool_size(int n_loops) {
    char n[16];
    snprintf(n, sizeof n, "%d",
             n_loops * (share(POOL_ENCODES, n_loops) + share(POOL_SESSION_CALLS, n_loops)));
    (void)setenv("UV_THREADPOOL_SIZE", n, 0);
}

void pool_line_init(pool_line *line, loop *l, int together) {
    *line = (pool_line){.loop = l, .most = share(together, (int)l->server->o->loops)};
    line->last = &line->first;
}

static void on_work(uv_work_t *uv) {
    pool_work *w = uv->data;
    w->run(w);
}

static void on_worked(uv_work_t *uv, int status);

static void start_some(pool_line *line) {
    pool_work *w;
    while ((w = line->first) && line->n < line->most && (!line->take || line->take(w))) {
        line->first = w->next;
        if (!line->first) {
            line->last = &line->first;
        }
        line->n++;
        const int rc = uv_queue_work(&line->loop->uv, &w->uv, on_work, on_worked);
        assert(rc == 0); // it fails for want of a function alone
        (void)rc;
    }
}

static void on_worked(uv_work_t *uv, int status) {
    pool_work *w = uv->data;
    pool_line *line = w->line;
    line->n--;
    line->loop->n_works--;
    if (line->give) {
        line->give(w);
    }
    start_some(line);
    w->done(w);
}

void pool_join(pool_line *line, pool_work *w) {
    w->uv.data = w;
    w->line = line;
    w->next = NULL;
    *line->last = w;
    line->last = &w->next;
    line->loop->n_works++;
    start_some(line);
}

bool pool_drop(pool_work *w) {
    pool_line *line = w->line;
    for (pool_work **at = line ? &line->first : NULL; at && *at; at = &(*at)->next) {
        if (*at == w) {
            *at = w->next;
            if (!w->next) {
                line->last = at;
            }
            line->loop->n_works--;
            start_some(line); // what is behind it may need less
            return true;
        }
    }
    return false;
}
