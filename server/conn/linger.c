// SPDX-License-Identifier: Apache-2.0
#include "conn/linger.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <uv.h>

#include "loop.h"

struct lingering {
    struct loop *loop;
    struct lingering *prev, *next;
    uv_poll_t poll;
    uv_timer_t timer;
    int fd;
    int open; // handles whose close callback has not come
    size_t bytes;
};

static void on_handle_closed(uv_handle_t *handle) {
    struct lingering *g = handle->data;
    if (--g->open == 0) {
        close(g->fd);
        free(g);
    }
}

static void finish(struct lingering *g) {
    if (g->next) {
        g->next->prev = g->prev;
    }
    if (g->prev) {
        g->prev->next = g->next;
    } else {
        g->loop->lingers = g->next;
    }
    g->loop->n_lingers--;
    uv_close((uv_handle_t *)&g->poll, on_handle_closed);
    uv_close((uv_handle_t *)&g->timer, on_handle_closed);
}

static void on_readable(uv_poll_t *poll, int status, int events) {
    char sink[16 << 10];
    struct lingering *g = poll->data;
    const ssize_t n = status < 0 ? 0 : recv(g->fd, sink, sizeof sink, MSG_DONTWAIT);
    g->bytes += n > 0 ? (size_t)n : 0;
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR) || g->bytes > LINGER_BYTES) {
        finish(g);
    }
}

static void on_timeout(uv_timer_t *timer) {
    finish(timer->data);
}

void linger_start(struct loop *l, int fd) {
    struct lingering *g = l->n_lingers < LINGER_MOST ? calloc(1, sizeof *g) : NULL;
    if (!g) {
        return;
    }
    g->fd = dup(fd);
    if (g->fd < 0 || uv_poll_init(&l->uv, &g->poll, g->fd) != 0) {
        if (g->fd >= 0) {
            close(g->fd);
        }
        free(g);
        return;
    }
    g->loop = l;
    g->open = 2;
    g->poll.data = g;
    g->timer.data = g;
    uv_timer_init(&l->uv, &g->timer);
    uv_timer_start(&g->timer, on_timeout, LINGER_MS, 0);
    uv_poll_start(&g->poll, UV_READABLE, on_readable);
    g->next = l->lingers;
    if (g->next) {
        g->next->prev = g;
    }
    l->lingers = g;
    l->n_lingers++;
    (void)shutdown(g->fd, SHUT_WR);
}

void linger_stop_all(struct loop *l) {
    while (l->lingers) {
        finish(l->lingers);
    }
}
