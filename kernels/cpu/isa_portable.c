// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"
#include "simd_portable.h"

#define ISA_TABLE cpu_kernels_portable
#ifdef __aarch64__
#define ISA_NAME "neon"
#else
#define ISA_NAME "portable"
#endif
#include "template_isa.h"
