// SPDX-License-Identifier: Apache-2.0
// Who owns what, in a form that may lie on a disk.
//
// The owners of sessions are hashes that callers derive from API keys, without a key of their own:
// beside a file they would let anyone who can read it check a guess at an API key, as fast as the
// hash runs. So a store keeps, and compares, SipHash-2-4-128 of them under 128 random bits that are
// its folder's `.secret`, which only its user may read. Whoever has that too can check guesses; a
// slow hash would only help keys that can be guessed at all. Without the file the sessions beside
// it belong to nobody and wait for their time to live to end.
#ifndef SSM_ENGINE_SECRET_H
#define SSM_ENGINE_SECRET_H

#include <stddef.h>
#include <stdint.h>

#include <ssm/error.h>

// The folder's secret, made if there is none yet; processes that come at once agree on one.
int secret_open(const char *folder, uint8_t out[16], ssm_error *err);

int secret_make(uint8_t out[16], ssm_error *err); // random, kept nowhere

void secret_owner(const uint8_t secret[16], const uint64_t owner[2], uint64_t out[2]);

// SipHash-2-4 with 128 bits of output; Aumasson, Bernstein: https://131002.net/siphash/
void siphash128(const uint8_t key[16], const void *data, size_t n, uint8_t out[16]);

#endif
