// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // memmem
#include "snapshot_parts.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void snapshot_parts(const ssm_geometry *g, size_t n_pending, snapshot_part out[N_PARTS]) {
    const int64_t layers = g->n_layers;
    out[PART_CONV] = (snapshot_part){"conv", "F32", {layers, g->conv_dim, g->d_conv - 1}, 3, 0};
    out[PART_CONV].bytes = ssm_state_conv_floats(g) * sizeof(float);
    if (g->kind != SSM_BLOCK_MAMBA2)
        out[PART_SSM] = (snapshot_part){"ssm", "F32", {layers, g->d_inner, g->d_state}, 3, 0};
    else
        out[PART_SSM] =
            (snapshot_part){"ssm", "F32", {layers, g->n_heads, g->head_dim, g->d_state}, 4, 0};
    out[PART_SSM].bytes = ssm_state_ssm_floats(g) * sizeof(float);
    if (n_pending > 0)
        out[PART_REST] =
            (snapshot_part){"pending", "I32", {(int64_t)n_pending}, 1, n_pending * sizeof(int32_t)};
    else
        out[PART_REST] = (snapshot_part){
            "logits", "F32", {g->vocab_size}, 1, (size_t)g->vocab_size * sizeof(float)};
}

size_t snapshot_find_checksum(const uint8_t *bytes) {
    uint64_t length;
    memcpy(&length, bytes, sizeof length);
    const uint8_t *key =
        memmem(bytes + LENGTH_BYTES, (size_t)length, CHECKSUM_KEY, strlen(CHECKSUM_KEY));
    if (!key)
        return 0;
    const size_t at = (size_t)(key - bytes) + strlen(CHECKSUM_KEY);
    return at + CHECKSUM_DIGITS <= LENGTH_BYTES + length ? at : 0;
}

void snapshot_sum_header(XXH3_state_t *sum, const uint8_t *bytes, size_t size, size_t digits) {
    const size_t after = digits + CHECKSUM_DIGITS;
    XXH3_128bits_reset(sum);
    XXH3_128bits_update(sum, bytes, digits);
    XXH3_128bits_update(sum, CHECKSUM_ZEROS, CHECKSUM_DIGITS);
    XXH3_128bits_update(sum, bytes + after, size - after);
}

void snapshot_sum_digits(const XXH3_state_t *sum, char out[CHECKSUM_DIGITS + 1]) {
    const XXH128_hash_t h = XXH3_128bits_digest(sum);
    snprintf(out, CHECKSUM_DIGITS + 1, "%016" PRIx64 "%016" PRIx64, h.high64, h.low64);
}
