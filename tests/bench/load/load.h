// SPDX-License-Identifier: Apache-2.0
// ssmd-load's parts: options, the driver that decides when requests start, connections that carry
// them, and what is counted. One thread, one loop.
#ifndef LOAD_LOAD_H
#define LOAD_LOAD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <uv.h>

#include "histogram.h"
#include "response.h"

typedef struct load_options {
    char host[256], port[8];
    struct sockaddr_storage address;
    const char *model, *key; // NULL: none
    int clients;             // connections: always busy (closed loop), or at most (open loop)
    double rate;             // requests a second, started whatever the server does; 0: closed loop
    double duration, warmup; // seconds counted; seconds before them
    int prompt_tokens, max_tokens, vocab;
    double temperature;
    uint64_t seed;
    bool stream, json;
    bool text; // prompts of random letters, for servers that take no ids
} load_options;

// Fills *options from the command line; 0, or the exit status + 1 to leave with at once.
int load_options_parse(load_options *options, int argc, char **argv);

// ---- what is counted: only what happens inside the measured seconds

typedef struct load_stats {
    uint64_t started, finished, failed; // requests; failed: no 200, broken or cut
    uint64_t refused;                   // of those: 429 and 503
    uint64_t prompt_tokens, output_tokens;
    int64_t first_status;           // the first status that was no 200 (0: none; -1: no answer)
    histogram ttft, gap, latency;   // to the first token, between tokens, to the end
    histogram wait;                 // open loop: how late requests were sent
    double seconds;                 // measured
    uint64_t open_at_end, max_open; // requests in flight
} load_stats;

void load_report(const load_options *options, const load_stats *stats);

// ---- the driver

typedef struct load_connection load_connection;

typedef struct load_driver {
    const load_options *options;
    uv_loop_t *loop;
    load_stats stats;
    bool measuring, over;
    uint64_t begun_ns, request_number;
    uint64_t open; // requests in flight
    load_connection *connections;
    load_connection *idle;    // a list through ->next
    load_connection *resting; // the same: refused or cut off, they ask again a little later
    // open loop: requests that are due and have no connection yet, oldest first
    uint64_t *due, due_head, due_len, due_cap;
    uint64_t next_due_ns;
    uint64_t random_state;
    uv_timer_t arrivals, phase, rest;
} load_driver;

// Runs it all; 0, or -1 if no request ever succeeded.
int load_driver_run(load_driver *driver, const load_options *options);

uint64_t load_random(load_driver *driver);

// Called by a connection when its request ended, well or not; it may be used again.
void load_driver_on_end(load_driver *driver, load_connection *connection, bool well);

// ---- connections

struct load_connection {
    load_driver *driver;
    load_connection *next;
    uv_tcp_t tcp;
    uv_connect_t connect;
    uv_write_t write;
    bool is_open, is_closing, is_busy;
    response answer;
    char *request; // of the write in flight
    size_t request_cap, request_len;
    uint64_t due_ns, last_token_ns; // when it should have started; 0: no token yet
    uint64_t tokens;                // of this answer so far
    char event[16384];              // the line being read, cut if it is longer
    size_t event_len;
};

void load_connection_init(load_connection *connection, load_driver *driver);
void load_connection_close(load_connection *connection);

// Sends one request that was due at due_ns; connects first if need be.
void load_connection_start(load_connection *connection, uint64_t due_ns);

#endif
