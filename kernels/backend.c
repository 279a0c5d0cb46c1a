// SPDX-License-Identifier: Apache-2.0
#include "backend.h"

#include <string.h>

static const ssm_backend *const backends[] = {
    &ssm_backend_reference,
    &ssm_backend_cpu,
#ifdef SSM_WITH_CUDA
    &ssm_backend_cuda,
#endif
};

const ssm_backend *ssm_backend_find(const char *name) {
    for (size_t i = 0; i < sizeof backends / sizeof backends[0]; i++) {
        if (strcmp(backends[i]->name, name) == 0)
            return backends[i];
    }
    return NULL;
}
