// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"
#include "simd_avx2.h"

#define ISA_TABLE cpu_kernels_avx2
#define ISA_NAME  "avx2"
#include "template_isa.h"
