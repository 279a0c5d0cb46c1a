// SPDX-License-Identifier: Apache-2.0
#include "unknown.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <uv.h>

#include "log.h"

enum { MOST = 256, LONGEST = 80 };

static uv_once_t once = UV_ONCE_INIT;
static uv_mutex_t lock;
static char names[MOST][LONGEST]; // under lock; a stranger who sends more names than this is quiet
static int n_names;

static void on_once(void) {
    uv_mutex_init(&lock);
}

static bool is_new(const char *name) {
    for (int i = 0; i < n_names; i++) {
        if (strncmp(names[i], name, LONGEST - 1) == 0) {
            return false;
        }
    }
    if (n_names == MOST) {
        return false;
    }
    snprintf(names[n_names++], LONGEST, "%s", name);
    return true;
}

void unknown_note(const char *name) {
    uv_once(&once, on_once);
    uv_mutex_lock(&lock);
    const bool fresh = is_new(name);
    uv_mutex_unlock(&lock);
    if (fresh) {
        log_write(LOG_WARN, "a request has the unknown parameter '%s', ignored (said once)", name);
    }
}
