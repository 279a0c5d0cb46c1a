// SPDX-License-Identifier: Apache-2.0
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

extern const cpu_kernels cpu_kernels_avx512;

const cpu_kernels cpu_kernels_avx512 = {
    .name = "avx512",
    .has_bf16_dot = false,
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
