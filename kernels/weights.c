// SPDX-License-Identifier: Apache-2.0
#include "weights.h"

#include <assert.h>
#include <string.h>

bool ssm_block_is_lti(ssm_block_kind kind) {
    return kind == SSM_BLOCK_S4D || kind == SSM_BLOCK_S4 || kind == SSM_BLOCK_H3;
}

ssm_dtype ssm_weights_dtype(const ssm_weights *w) {
    const ssm_layer *l = &w->layers[0];
    return l->in_proj.data ? l->in_proj.dtype : l->out_proj.dtype;
}

size_t ssm_state_conv_floats(const ssm_geometry *g) {
    return (size_t)g->n_layers * (size_t)g->conv_dim * (size_t)(g->d_conv - 1);
}

size_t ssm_state_ssm_floats(const ssm_geometry *g) {
    return (size_t)g->n_layers * (size_t)g->d_inner * (size_t)g->d_state;
}

static float f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    const uint32_t exponent = (h >> 10) & 0x1f;
    const uint32_t mantissa = h & 0x3ff;
    uint32_t bits;
    if (exponent == 0x1f) {
        bits = sign | 0x7f800000u | mantissa << 13;
    } else if (exponent != 0) {
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    } else { // zero or subnormal: mantissa * 2^-24, exact in fp32
        const float magnitude = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &magnitude, sizeof bits);
        bits |= sign;
    }
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static float bf16_to_f32(uint16_t b) {
    const uint32_t bits = (uint32_t)b << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

float ssm_tensor_get(const ssm_tensor *tensor, size_t i) {
    float out;
    ssm_tensor_read(tensor, i, 1, &out);
    return out;
}

void ssm_tensor_read(const ssm_tensor *tensor, size_t i, size_t n, float *out) {
    assert(i + n <= (size_t)tensor->rows * (size_t)tensor->cols);
    if (tensor->dtype == SSM_DTYPE_F32) {
        memcpy(out, (const char *)tensor->data + i * sizeof(float), n * sizeof(float));
        return;
    }
    assert(tensor->dtype == SSM_DTYPE_F16 || tensor->dtype == SSM_DTYPE_BF16);
    const char *in = (const char *)tensor->data + i * sizeof(uint16_t);
    for (size_t k = 0; k < n; k++) {
        uint16_t bits; // a file's tensor may be unaligned
        memcpy(&bits, in + k * sizeof bits, sizeof bits);
        out[k] = tensor->dtype == SSM_DTYPE_F16 ? f16_to_f32(bits) : bf16_to_f32(bits);
    }
}
