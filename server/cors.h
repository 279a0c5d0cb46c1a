// SPDX-License-Identifier: Apache-2.0
// Cross-origin requests: off unless --cors-origin names who may call.
#ifndef SSMD_CORS_H
#define SSMD_CORS_H

#include <microhttpd.h>

#include "options.h"

// Adds what lets a page of this origin (NULL: no such header) read the answer; on an OPTIONS
// request the same headers answer the preflight.
void cors_add_headers(const options *o, const char *origin, struct MHD_Response *response);

#endif
