// SPDX-License-Identifier: Apache-2.0
// Memory for states on the host, one size for all, used again and again.
//
// A state that comes from a file, or leaves the device, needs a buffer of its own for as long as it
// stays. Memory fresh from the kernel is paid for page by page when it is first written: 700 faults
// for the 2.7 MB of mamba-130m, 1.2 ms beside the 0.2 ms of the read itself (a virtual machine,
// where faults are dear). So buffers that come back are kept, up to KEPT_BYTES of them.
//
// A device that copies beside its steps (kernels/backend.h, host_alloc) wants page-locked memory,
// which takes some milliseconds to make: it is made in slabs, the first when the pool is, and all
// of it is kept. There a buffer may come back before its last copy has ended: whoever takes it
// waits for that copy, which by then has mostly ended.
//
// Any thread. NULL as a pool stands for plain malloc and free.
#ifndef SSM_ENGINE_STATE_POOL_H
#define SSM_ENGINE_STATE_POOL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/backend.h"

typedef struct pooled_state {
    float *state;
    uint64_t ticket; // of the copy after which it is free; 0: it is
} pooled_state;

typedef struct state_pool {
    const ssm_backend *backend; // constant, as are the next
    ssm_device *device;
    size_t bytes; // of a state
    size_t most;  // buffers kept; 0: this is no pool
    pthread_mutex_t lock;
    pooled_state *kept; // guarded by lock, as is all below: a ring of `cap`
    size_t first, n, cap;
    void **slabs; // page-locked
    size_t n_slabs;
} state_pool;

// A backend without host_alloc, or NULL: ordinary memory. SSM_ENOMEM.
int state_pool_init(state_pool *p, size_t bytes, const ssm_backend *backend, ssm_device *device);
void state_pool_dispose(state_pool *p); // all have been given back

// For `bytes`, which are the pool's; NULL: no memory. What is in it is anybody's old state.
float *state_pool_take(state_pool *p, size_t bytes);
// ticket: of the last copy from it or to it, 0: none is under way. A NULL state is allowed.
void state_pool_give(state_pool *p, float *state, uint64_t ticket);

#endif
