// SPDX-License-Identifier: Apache-2.0
// Lingering: a socket whose answer was sent before its request's body had been read (413). Closing
// it then makes the kernel send a reset, and the reset may overtake the answer at the client. So a
// duplicate of the descriptor is kept after libmicrohttpd has shut down its sending half and closed
// its own; what still comes in is thrown away until the client closes, or LINGER_MS have passed, or
// LINGER_BYTES have come.
#ifndef SSMD_LINGER_H
#define SSMD_LINGER_H

struct loop;

enum { LINGER_MS = 2000, LINGER_BYTES = 64 << 20, LINGER_MOST = 64 };

void linger_start(struct loop *loop, int fd); // does nothing if it cannot; loop thread
void linger_stop_all(struct loop *loop);      // before the loop closes

#endif
