// SPDX-License-Identifier: Apache-2.0
// An HTTP/1.1 answer read piece by piece: status line, headers, then a body of a known length or in
// chunks. Body bytes go to a callback where they lie in the read buffer. No allocation.
#ifndef LOAD_RESPONSE_H
#define LOAD_RESPONSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum response_state {
    RESPONSE_STATUS,
    RESPONSE_HEADERS,
    RESPONSE_BODY, // of a known length
    RESPONSE_CHUNK_SIZE,
    RESPONSE_CHUNK,
    RESPONSE_CHUNK_END,
    RESPONSE_TRAILER,
    RESPONSE_DONE,
    RESPONSE_BROKEN, // not HTTP as this reader knows it
} response_state;

typedef struct response {
    response_state state;
    int status;
    bool chunked, close; // the peer will close the connection
    uint64_t left;       // of the body or the chunk
    size_t line_len;
    char line[4096]; // the line being read
    void (*on_body)(void *ctx, const char *data, size_t len);
    void *ctx;
} response;

void response_init(response *r, void (*on_body)(void *ctx, const char *data, size_t len),
                   void *ctx);

// Reads on; returns how many bytes it used: fewer than len only once it is done or broken.
size_t response_feed(response *r, const char *data, size_t len);

#endif
