// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"
#include "simd_avx512.h"

#define ISA_TABLE cpu_kernels_avx512
#define ISA_NAME  "avx512"
#include "template_isa.h"
