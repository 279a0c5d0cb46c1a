// SPDX-License-Identifier: Apache-2.0
// Listening sockets.
#ifndef SSMD_LISTEN_H
#define SSMD_LISTEN_H

#include <stdbool.h>

#include <ssm/error.h>

// Binds host:*port (0: a free one, then stored) without listening yet; shared: others will bind
// it, too (SO_REUSEPORT). Returns the descriptor, or SSM_EIO with what is in the way.
int listen_bind(const char *host, int *port, bool shared, ssm_error *err);
int listen_start(int fd, ssm_error *err);

// "http://127.0.0.1:8080" as a client on this machine would reach it.
void listen_url(const char *host, int port, char *out, unsigned long size);

#endif
