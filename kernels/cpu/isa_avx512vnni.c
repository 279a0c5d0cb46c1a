// SPDX-License-Identifier: Apache-2.0
#define SSM_AVX512_VNNI 1
#include "kernels.h"
#include "simd_avx512.h"

#define ISA_TABLE cpu_kernels_avx512vnni
#define ISA_NAME  "avx512vnni"
#include "template_isa.h"
