// SPDX-License-Identifier: Apache-2.0
// Requests to a running server, for commands: libcurl, so that whatever stands in front of a server
// (TLS, a proxy, IPv6) is no concern of ours, and bodies of any length go from file to file. A
// build without libcurl says so when it is asked.
#ifndef SSMD_REMOTE_H
#define SSMD_REMOTE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <ssm/error.h>

#include "buf.h"

typedef struct remote {
    const char *url;    // of the server, without a path
    const char *key;    // API key, or NULL
    double timeout;     // seconds: to connect, and without any progress
    const char *method; // GET, POST, PUT, DELETE
    char path[512];     // begins with '/'
    const char *json;   // body, or NULL
    FILE *from;         // body, or NULL
    int64_t from_bytes; // of it; -1: not known
    FILE *to;           // where the body of an answer with status 200 goes; NULL: into body
    int status;         // out
    buf body;           // out: the caller's
    uint64_t received;  // out: bytes of the body
} remote;

// 0: there was an answer, whatever its status. SSM_EIO: there was none, or not all of it;
// SSM_EUNSUPPORTED: built without libcurl.
int remote_run(remote *r, ssm_error *err);

#endif
