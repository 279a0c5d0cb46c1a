// SPDX-License-Identifier: Apache-2.0
#define SSM_AVX512_BF16 1
#define SSM_AVX512_VNNI 1
#include <math.h>
#include <string.h>

#include "kernels.h"
#include "simd_avx512.h"

#include "template_product.h"

#include "template_ceiling.h"

#include "template_math.h"

#include "template_lti.h"
#include "template_rows.h"
#include "template_scan.h"

extern const cpu_kernels cpu_kernels_avx512bf16;

const cpu_kernels cpu_kernels_avx512bf16 = {
    .name = "avx512bf16",
    .has_bf16_dot = true,
    .product = product,
    .conv = conv,
    .scan = scan,
    .norm = norm,
    .softplus = softplus,
    .convert = convert,
    .lti = &lti_kernels,
    .read_stream = read_stream,
    .product_rounds = product_rounds,
};
