// SPDX-License-Identifier: Apache-2.0
#include "cors.h"

#include <string.h>

static const char *allowed_origin(const options *o, const char *origin) {
    for (size_t i = 0; origin && i < o->cors_origin.n; i++) {
        if (strcmp(o->cors_origin.items[i], "*") == 0) {
            return "*";
        }
        if (strcmp(o->cors_origin.items[i], origin) == 0) {
            return origin;
        }
    }
    return NULL;
}

void cors_add_headers(const options *o, const char *origin, struct MHD_Response *response) {
    const char *allowed = allowed_origin(o, origin);
    if (o->cors_origin.n > 0) {
        MHD_add_response_header(response, "Vary", "Origin");
    }
    if (!allowed) {
        return;
    }
    MHD_add_response_header(response, "Access-Control-Allow-Origin", allowed);
    MHD_add_response_header(response, "Access-Control-Allow-Methods",
                            "GET, HEAD, POST, DELETE, OPTIONS");
    MHD_add_response_header(response, "Access-Control-Allow-Headers",
                            "Authorization, Content-Type, X-Request-Id");
    MHD_add_response_header(response, "Access-Control-Expose-Headers",
                            "x-request-id, openai-processing-ms, Retry-After");
    MHD_add_response_header(response, "Access-Control-Max-Age", "86400");
}
