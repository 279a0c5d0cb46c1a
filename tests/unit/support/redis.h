// SPDX-License-Identifier: Apache-2.0
// A Redis or Valkey of a test's own, on a socket in a folder of its own; it ends with the test.
// SSM_TEST_REDIS picks the program, by name or path; else redis-server serves, or valkey-server.
#ifndef SSM_TESTS_REDIS_H
#define SSM_TESTS_REDIS_H

#include <stdbool.h>
#include <sys/types.h>

typedef struct redis_server {
    char folder[64], url[128], path[96];
    pid_t pid;
} redis_server;

// False: it cannot be had here, which fails the test if SSM_EXPECT_REDIS is set, and is said.
bool redis_is_here(void);

// More words for its command line, up to a NULL. What it is told to keep it keeps over a restart.
void redis_start(redis_server *r, const char *const *words);
void redis_restart(redis_server *r, const char *const *words);
void redis_kill(redis_server *r);    // as a machine that goes
void redis_dispose(redis_server *r); // and its folder

#endif
