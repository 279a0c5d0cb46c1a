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

int ssm_slot_export(const ssm_backend *b, ssm_device *device, int32_t slot, int32_t row, float *out,
                    uint64_t *ticket, ssm_error *err) {
    *ticket = 0;
    if (b->slot_export)
        return b->slot_export(device, slot, row, out, ticket, err);
    const int rc = b->slot_read(device, slot, out, err);
    return rc != 0 || row < 0 ? rc : b->logits_read(device, row, out + device->state_floats, err);
}

int ssm_slot_import(const ssm_backend *b, ssm_device *device, int32_t slot, int32_t row,
                    const float *state, uint64_t after, uint64_t *ticket, ssm_error *err) {
    *ticket = 0;
    if (b->slot_import)
        return b->slot_import(device, slot, row, state, after, ticket, err);
    const int rc = b->slot_write(device, slot, state, err);
    return rc != 0 || row < 0 ? rc
                              : b->logits_write(device, row, state + device->state_floats, err);
}

int ssm_ticket_wait(const ssm_backend *b, ssm_device *device, uint64_t ticket, ssm_error *err) {
    return ticket == 0 ? 0 : b->ticket_wait(device, ticket, err);
}
