// SPDX-License-Identifier: Apache-2.0
// Who a request comes from, as far as states are concerned: sessions and saved prompts of one API
// key are nobody else's.
#ifndef SSMD_TENANT_H
#define SSMD_TENANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct exchange;

// Whose sessions: a hash of the API key, the same in every process. A server without keys has one
// owner, whatever its clients send.
void tenant_owner(const struct exchange *ex, uint64_t out[2]);

// Whose saved prompts: the owner and cache_salt (NULL: none) together.
void tenant_salt(const struct exchange *ex, const char *salt, size_t len, uint64_t out[2]);

// [A-Za-z0-9._-]{1,128}
bool tenant_is_session(const char *name);

#endif
