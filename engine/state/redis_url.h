// SPDX-License-Identifier: Apache-2.0
// Where a Redis or Valkey is, as a URL:
//
//     redis://[[user]:password@]host[:port][/db]     valkey:// too; [::1] for IPv6; port 6379
//     unix://[[user]:password@]/path/to/socket[?db=N]
//
// Users and passwords may be percent-encoded. TLS (rediss://) is refused by name.
#ifndef SSM_ENGINE_REDIS_URL_H
#define SSM_ENGINE_REDIS_URL_H

#include <stdint.h>

#include <ssm/error.h>

enum { REDIS_TEXT = 256 };

typedef struct redis_url {
    char host[REDIS_TEXT]; // a name or an address, or with port 0 a socket's path
    int32_t port;
    char user[REDIS_TEXT], password[REDIS_TEXT]; // "": none
    int32_t db;
} redis_url;

// SSM_EINVAL says what is wrong, without showing a password.
int redis_url_parse(const char *text, redis_url *out, ssm_error *err);

#endif
