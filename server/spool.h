// SPDX-License-Identifier: Apache-2.0
// Spools: sessions' states on their way in or out, each in a file without a name.
//
// A state has up to hundreds of megabytes, and a client may take minutes for it. So a body that is
// a state goes to a file as it comes in, and one that goes out is sent from a file (sendfile): what
// memory it takes is the page cache's. The file is unlinked from the beginning: a client that
// leaves, or a process that is killed, leaves nothing behind. It lies in --state-dir, else in /tmp;
// where neither can be written (a container that is read-only), in memory within
// --max-request-memory.
//
// A spool belongs to one thread at a time, the loop's or one of the pool's.
#ifndef SSMD_SPOOL_H
#define SSMD_SPOOL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ssm/error.h>

#include "budget.h"

enum { SPOOLS_MOST = 32, SPOOL_PATH = 32 };

typedef struct spool_room { // of a process
    const char *folders[2]; // to be tried in this order; NULL: none
    budget *budget;
    atomic_int n; // open
} spool_room;

typedef struct spool {
    spool_room *room;
    int fd;
    bool in_memory;
    uint64_t size;
    size_t charged; // of the budget, if it is in memory
} spool;

// SSM_ENOMEM: SPOOLS_MOST are open; SSM_EIO. On failure *out is NULL.
int spool_open(spool_room *room, spool **out, ssm_error *err);
void spool_close(spool *s); // NULL is allowed

// Makes sure of room for so many bytes in all: of a file nothing is asked, memory is charged.
int spool_reserve(spool *s, uint64_t size, ssm_error *err);

// Appends. SSM_ENOMEM: the budget; SSM_EDISKFULL; SSM_EIO.
int spool_write(spool *s, const char *data, size_t len, ssm_error *err);

// A name under which this process can open the file as long as the spool is.
void spool_path(const spool *s, char out[SPOOL_PATH]);

#endif
