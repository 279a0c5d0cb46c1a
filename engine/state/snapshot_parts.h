// SPDX-License-Identifier: Apache-2.0
// What writing and reading a session's file share: its tensors, and the checksum's place. See
// snapshot_file.h.
#ifndef SSM_ENGINE_SNAPSHOT_PARTS_H
#define SSM_ENGINE_SNAPSHOT_PARTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hash.h"
#include "kernels/weights.h"

enum {
    LENGTH_BYTES = 8,
    HEADER_BYTES = 4096,   // of ours: fixed, padded with spaces, so that sizes are known ahead
    MAX_PENDING = 1 << 20, // tokens
    CHECKSUM_DIGITS = 32,
};

#define SNAPSHOT_FORMAT "ssmd-session-1"
#define CHECKSUM_KEY    "\"checksum\":\""
#define CHECKSUM_ZEROS  "00000000000000000000000000000000"

typedef struct snapshot_part { // a tensor
    const char *name, *type;
    int64_t dims[4];
    int32_t n_dims;
    size_t bytes;
} snapshot_part;

enum { PART_CONV, PART_SSM, PART_REST, N_PARTS }; // REST: logits or pending

void snapshot_parts(const ssm_geometry *g, size_t n_pending, snapshot_part out[N_PARTS]);

// Where a file's header keeps the checksum's digits; 0: nowhere. `bytes` holds the length and at
// least so much behind it.
size_t snapshot_find_checksum(const uint8_t *bytes);

// The checksum over length and header, its digits, which are at `digits`, read as zeros. What
// follows in the file is the caller's to add.
void snapshot_sum_header(XXH3_state_t *sum, const uint8_t *bytes, size_t size, size_t digits);
void snapshot_sum_digits(const XXH3_state_t *sum, char out[CHECKSUM_DIGITS + 1]);

#endif
