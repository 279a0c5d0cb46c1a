// SPDX-License-Identifier: Apache-2.0
#include <ssm/dtype.h>

#include <string.h>

static const struct {
    const char *name;
    ssm_dtype dtype;
} names[] = {
    {"auto", SSM_DTYPE_AUTO},   {"f32", SSM_DTYPE_F32},       {"f16", SSM_DTYPE_F16},
    {"bf16", SSM_DTYPE_BF16},   {"int8", SSM_DTYPE_INT8},     {"int4", SSM_DTYPE_INT4},
    {"int5", SSM_DTYPE_INT5},   {"int6", SSM_DTYPE_INT6},     {"fp32", SSM_DTYPE_F32},
    {"float32", SSM_DTYPE_F32}, {"fp16", SSM_DTYPE_F16},      {"float16", SSM_DTYPE_F16},
    {"half", SSM_DTYPE_F16},    {"bfloat16", SSM_DTYPE_BF16},
};

const char *ssm_dtype_name(ssm_dtype dtype) {
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (names[i].dtype == dtype)
            return names[i].name;
    }
    return "unknown";
}

int ssm_dtype_parse(const char *name) {
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(names[i].name, name) == 0)
            return names[i].dtype;
    }
    return -1;
}

size_t ssm_dtype_bytes(ssm_dtype dtype, size_t n) {
    switch (dtype) {
    case SSM_DTYPE_F32:
        return 4 * n;
    case SSM_DTYPE_F16:
    case SSM_DTYPE_BF16:
        return 2 * n;
    case SSM_DTYPE_INT8:
        return n;
    case SSM_DTYPE_INT4:
        return (n + 1) / 2;
    case SSM_DTYPE_INT5:
        return (5 * n + 7) / 8;
    case SSM_DTYPE_INT6:
        return (6 * n + 7) / 8;
    case SSM_DTYPE_AUTO:
        break;
    }
    return 0;
}
