// SPDX-License-Identifier: Apache-2.0
// HTTP on the loop: connections (a TCP peer) and exchanges (one request and its answer on it).
//
// All of it belongs to the connection's loop thread. A handler is called once, when the body is in;
// it answers at once (http_reply...), or it says whom to tell (http_wait) and answers later, whole
// or as a stream. An exchange that waits is suspended in libmicrohttpd, and its socket is watched,
// so that a client who leaves is noticed within a turn of the loop.
//
//   state        on ...                               next
//   READING      the last byte of the body            HANDLING
//   HANDLING     handler returned without an answer   WAITING
//   HANDLING     handler replied                      ANSWERED
//   WAITING      http_reply, http_stream_begin        ANSWERED
//   any          client gone, request over            (freed)
#ifndef SSMD_HTTP_H
#define SSMD_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <microhttpd.h>
#include <uv.h>

#include <ssm/error.h>

#include "buf.h"
#include "spool.h"

struct loop;
struct route;
typedef struct exchange exchange;

enum {
    HTTP_STREAM_HIGH = 64 << 10,
    HTTP_STREAM_LOW = HTTP_STREAM_HIGH / 4,
    BODY_DISCARD_MOST = 1 << 20, // bytes of a body that is refused
};

typedef struct conn {
    struct loop *loop;
    struct conn *prev, *next; // of the loop
    int fd;                   // libmicrohttpd's
    uv_poll_t hangup;
    bool watched, watching; // hangup was initialised; is active
    bool gone;              // the peer closed, or its half of it
    bool unread;            // an answer was sent before all of the body was read
    bool is_late;           // it was closed for that
    struct conn *next_look; // of the loop's looks
    struct conn **look;     // what points at this one there, or NULL
    uint64_t since;         // uv_hrtime of accept or of the last answer's end
    exchange *ex;           // the request in hand, or NULL
    char peer[64];          // address without the port
} conn;

typedef enum exchange_state {
    EXCHANGE_READING,
    EXCHANGE_HANDLING,
    EXCHANGE_WAITING,
    EXCHANGE_ANSWERED,
} exchange_state;

// Whom an exchange tells while its handler's work goes on. Called on the loop thread. Who has no
// stream leaves the last two NULL.
typedef struct exchange_listener {
    void (*on_gone)(void *work);    // the client left; the exchange must not be used any more
    void (*on_proceed)(void *work); // a stream that was told to stop has drained
    void (*on_idle)(void *work);    // nothing was written for --ping-interval
} exchange_listener;

struct exchange {
    conn *conn;
    struct MHD_Connection *mhd;
    const struct route *route;
    exchange_state state;
    char id[136];      // x-request-id
    char method[16];   // as sent, cut
    char *path;        // decoded, owned
    uint64_t started;  // uv_hrtime
    uint64_t progress; // uv_hrtime of the last bytes in or out
    // the body
    buf body;
    size_t charged;     // of the budget
    spool *spool;       // where the body goes instead, or the answer comes from; NULL: none
    uint64_t body_most; // bytes that are taken
    size_t discarded;   // bytes read and thrown away
    bool expects_body, discarding;
    // the answer
    bool ready, streaming, suspended, resuming;
    exchange *next_resume;
    int status;
    const char *content_type;
    const char *allow; // static, or NULL
    int retry_after;   // seconds, 0: none
    bool timed;        // openai-processing-ms
    bool close;        // no further request on this connection
    buf out;           // what is to be sent
    size_t out_at;     // what libmicrohttpd has taken of it
    bool out_end;      // nothing more comes
    bool pressed;      // the writer was told to stop
    // work in progress
    const exchange_listener *listener;
    void *work;
    buf log; // fields that a handler adds to the request's line
};

// ---- the daemon's callbacks (conn/http.c)

enum MHD_Result http_on_request(void *cls, struct MHD_Connection *mhd, const char *url,
                                const char *method, const char *version, const char *upload,
                                size_t *upload_size, void **state);
void http_on_completed(void *cls, struct MHD_Connection *mhd, void **state,
                       enum MHD_RequestTerminationCode why);

// ---- answers (conn/reply.c); each may be given once an exchange

void http_reply(exchange *ex, int status, const char *content_type, buf *body);      // takes body
void http_reply_json(exchange *ex, int status, buf *body);                           // takes body
void http_reply_spool(exchange *ex, int status, const char *content_type, spool *s); // takes s
// OpenAI's error object. param and code may be NULL.
void http_reply_error(exchange *ex, int status, const char *type, const char *param,
                      const char *code, const char *message);
void http_reply_ssm_error(exchange *ex, const ssm_error *err);
void http_put_error(buf *out, const char *type, const char *param, const char *code,
                    const char *message);  // {"error":{...}}
const char *http_error_code(int ssm_code); // OpenAI's `code` for a SSM_E*, or NULL
enum MHD_Result http_queue_reply(exchange *ex);

// ---- later answers

void http_wait(exchange *ex, const exchange_listener *listener, void *work);
void http_forget_work(exchange *ex); // the work is over: its listener is not called any more
void http_free_body(exchange *ex);   // early: the parsed request has all that is needed

// A stream: headers now, then pieces, then the end. write returns false when more than
// HTTP_STREAM_HIGH bytes wait to be sent: stop until on_proceed.
void http_stream_begin(exchange *ex, const char *content_type);
bool http_stream_write(exchange *ex, const char *data, size_t len);
void http_stream_end(exchange *ex);
void http_resume(exchange *ex); // the exchange has something for libmicrohttpd to do

// ---- connections (conn/conn.c)

void conn_on_notify(void *cls, struct MHD_Connection *mhd, void **context,
                    enum MHD_ConnectionNotificationCode what);
void conn_watch(conn *c);          // for hang-up; idempotent
void conn_shutdown(conn *c);       // makes libmicrohttpd close it at its next turn
void conn_leave(conn *c);          // tells the work in hand that its client is gone
void conn_look_soon(conn *c);      // something was read from it; idempotent
void conn_look(struct loop *loop); // after libmicrohttpd's turn: closes those whose client has left
void conn_sweep(struct loop *loop, uint64_t now);

#endif
