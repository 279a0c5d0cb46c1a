// SPDX-License-Identifier: Apache-2.0
// All that is compiled once an instruction set: the templates' functions, and the table of them.
// The includer has chosen its simd_*.h, and says ISA_TABLE and ISA_NAME.
#include <math.h>
#include <string.h>

#include "kernels.h"
#include "template_product.h"

#include "template_ceiling.h"

#include "template_math.h"

#include "template_lti.h"
#include "template_rows.h"
#include "template_scan.h"

extern const cpu_kernels ISA_TABLE;

const cpu_kernels ISA_TABLE = {
    .name = ISA_NAME,
#ifdef SIMD_HAS_BF16_DOT
    .has_bf16_dot = true,
#endif
#ifdef SIMD_HAS_WORD_DOT
    .has_word_dot = true,
#endif
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
