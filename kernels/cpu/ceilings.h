// SPDX-License-Identifier: Apache-2.0
#ifndef SSM_KERNELS_CPU_CEILINGS_H
#define SSM_KERNELS_CPU_CEILINGS_H

#include "kernels.h"
#include "kernels/backend.h"
#include "pool.h"

// Measures on all threads of the pool. 0 or SSM_ENOMEM.
int cpu_ceilings(const cpu_kernels *kernels, cpu_pool *pool, cpu_format format, ssm_ceilings *out);

#endif
