// SPDX-License-Identifier: Apache-2.0
// API keys: from --api-key and --api-key-file, read once, compared in constant time.
#ifndef SSMD_AUTH_H
#define SSMD_AUTH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ssm/error.h>

#include "options.h"

typedef struct auth {
    options_list keys; // owned
} auth;

// SSM_EIO: the file cannot be read; SSM_EINVAL: it holds no key (a server that was meant to be
// closed must not come up open).
int auth_init(auth *a, const options *o, ssm_error *err);
void auth_dispose(auth *a);

// Whether the Authorization header (NULL: none) carries a key; always true if there are no keys.
// The time does not depend on which key it is nor where it differs.
bool auth_check(const auth *a, const char *header);

#endif
