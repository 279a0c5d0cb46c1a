// SPDX-License-Identifier: Apache-2.0
// What all loops of a serving process share: frozen after start, but for atomics.
#ifndef SSMD_SERVER_H
#define SSMD_SERVER_H

#include <stdatomic.h>
#include <stdbool.h>

#include "auth.h"
#include "budget.h"
#include "metrics.h"
#include "options.h"
#include "registry.h"
#include "spool.h"

struct loop;

typedef struct server {
    const options *o;
    registry models;
    auth auth;
    metrics metrics;
    budget budget;
    spool_room spools;
    atomic_bool draining;
    struct loop *loops;
    int n_loops;
} server;

#endif
