// SPDX-License-Identifier: Apache-2.0
// Connections: who is there, who has left, who stalls.
//
// libmicrohttpd owns the sockets and tells of their beginning and end. It does not poll a suspended
// connection, so its client's leaving would go unseen until there is something to send: each
// socket that was ever suspended is watched with a uv_poll of our own for UV_DISCONNECT
// (EPOLLRDHUP, in the loop's epoll; libmicrohttpd's is another). The watch is started once and
// stays until it fires or the connection ends: one epoll_ctl a connection, not two a request. A
// client that closes only its sending half counts as gone: such clients exist on paper, while for a
// client that left the two look the same.
//
// Of other connections it hears an end of file by an edge of epoll's, and after a read that filled
// less than its buffer it (0.9.75) waits for the next edge. An end that came with those bytes has
// no edge of its own: behind a request on a kept connection, or behind half of a body, it would be
// found out by --header-timeout. So whatever was read from is looked at after the turn, when all
// requests that had come whole are in hand: only then does an end mean that nothing is left to do.
//
// libmicrohttpd's own time-out counts from the last byte and skips suspended connections. It is
// kept for answers that a client does not read; requests that come in drop by drop are swept here.
//
// A uv_poll must be stopped before its descriptor is closed, and its memory must outlive uv_close's
// callback: the CLOSED notice comes just before libmicrohttpd closes the socket, and the conn is
// freed in that callback.
#include <assert.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "conn/body.h"
#include "conn/http.h"
#include "conn/linger.h"
#include "loop.h"
#include "server.h"

enum { SLOWEST_BODY = 1024 }; // bytes a second, beyond --header-timeout's grace

static void describe_peer(conn *c, const struct sockaddr *address) {
    socklen_t len = address && address->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                                              : sizeof(struct sockaddr_in);
    if (!address ||
        getnameinfo(address, len, c->peer, sizeof c->peer, NULL, 0, NI_NUMERICHOST) != 0) {
        snprintf(c->peer, sizeof c->peer, "?");
    }
}

static void on_started(struct loop *l, struct MHD_Connection *mhd, void **context) {
    conn *c = calloc(1, sizeof *c);
    const int one = 1;
    if (!c) {
        return; // the first request on it is refused
    }
    *context = c;
    c->loop = l;
    c->fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    c->since = uv_hrtime();
    describe_peer(c, MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS)->client_addr);
    // Without it a stream's first tokens come 40 ms late and in bursts.
    (void)setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->next = l->conns;
    if (c->next) {
        c->next->prev = c;
    }
    l->conns = c;
    l->n_conns++;
    atomic_fetch_add_explicit(&l->server->metrics.connections, 1, memory_order_relaxed);
}

static void forget_look(conn *c) {
    if (c->look) {
        *c->look = c->next_look;
        if (c->next_look) {
            c->next_look->look = c->look;
        }
        c->look = NULL;
    }
}

static void on_poll_closed(uv_handle_t *handle) {
    free(handle->data);
}

static void on_closed(conn *c) {
    struct loop *l = c->loop;
    assert(!c->ex);
    if (c->next) {
        c->next->prev = c->prev;
    }
    if (c->prev) {
        c->prev->next = c->next;
    } else {
        l->conns = c->next;
    }
    l->n_conns--;
    forget_look(c);
    atomic_fetch_sub_explicit(&l->server->metrics.connections, 1, memory_order_relaxed);
    if (c->unread && !c->gone && !l->stopping) {
        linger_start(l, c->fd);
    }
    if (c->watched) {
        uv_poll_stop(&c->hangup);
        c->hangup.data = c;
        uv_close((uv_handle_t *)&c->hangup, on_poll_closed);
    } else {
        free(c);
    }
}

void conn_on_notify(void *cls, struct MHD_Connection *mhd, void **context,
                    enum MHD_ConnectionNotificationCode what) {
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        on_started(cls, mhd, context);
    } else if (*context) {
        on_closed(*context);
        *context = NULL;
    }
}

void conn_leave(conn *c) {
    exchange *ex = c->ex;
    c->gone = true;
    if (!ex) {
        return;
    }
    if (ex->listener) {
        const exchange_listener *listener = ex->listener;
        ex->listener = NULL;
        listener->on_gone(ex->work);
    }
    http_resume(ex); // libmicrohttpd finds out when it calls us
}

static void on_hangup(uv_poll_t *handle, int status, int events) {
    conn *c = handle->data;
    uv_poll_stop(&c->hangup);
    c->watching = false;
    conn_leave(c);
}

void conn_watch(conn *c) {
    if (c->watched) {
        return;
    }
    if (uv_poll_init(&c->loop->uv, &c->hangup, c->fd) != 0) {
        return; // out of memory: the hang-up is noticed when something is sent
    }
    c->watched = true;
    c->hangup.data = c;
    c->watching = uv_poll_start(&c->hangup, UV_DISCONNECT, on_hangup) == 0;
}

void conn_shutdown(conn *c) {
    (void)shutdown(c->fd, SHUT_RDWR);
    loop_turn_soon(c->loop);
}

// ---- who left behind a request

void conn_look_soon(conn *c) {
    struct loop *l = c->loop;
    if (!c->look) {
        c->next_look = l->looks;
        if (c->next_look) {
            c->next_look->look = &c->next_look;
        }
        c->look = &l->looks;
        l->looks = c;
    }
}

// Between requests, or in the middle of one, with nothing to come.
static bool has_left(const conn *c) {
    char byte;
    const bool reads = !c->ex || c->ex->state == EXCHANGE_READING;
    return reads && recv(c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

void conn_look(struct loop *l) {
    while (l->looks) {
        conn *c = l->looks;
        forget_look(c);
        if (has_left(c)) {
            conn_shutdown(c);
        }
    }
}

// ---- the sweep

static bool is_late(const conn *c, uint64_t now, uint64_t limit) {
    const exchange *ex = c->ex;
    if (!ex) {
        return now - c->since > limit; // idle, or a request line and headers that do not end
    }
    if (ex->state != EXCHANGE_READING) {
        return false;
    }
    const uint64_t seconds = body_received(ex) / SLOWEST_BODY;
    return now - ex->progress > limit || now - ex->started > limit + seconds * 1000000000u;
}

void conn_sweep(struct loop *l, uint64_t now) {
    const uint64_t limit = (uint64_t)(l->server->o->header_timeout * 1e9);
    const uint64_t ping = (uint64_t)(l->server->o->ping_interval * 1e9);
    for (conn *c = l->conns, *next; c; c = next) {
        next = c->next;
        exchange *ex = c->ex;
        if (is_late(c, now, limit)) {
            c->is_late = true;
            conn_shutdown(c);
        } else if (ex && ex->listener && now - ex->progress > ping) {
            ex->progress = now;
            if (ex->listener->on_idle) {
                ex->listener->on_idle(ex->work);
            }
        }
    }
}
