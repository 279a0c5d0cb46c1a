// SPDX-License-Identifier: Apache-2.0
// Memory for states on the host, one size for all, used again and again.
//
// A state that comes from a file, or leaves the device, needs a buffer of its own for as long as it
// stays. Memory fresh from the kernel is paid for page by page when it is first written: 700 faults
// for the 2.7 MB of mamba-130m, 1.2 ms beside the 0.2 ms of the read itself (a virtual machine,
// where faults are dear). So buffers that come back are kept, up to KEPT_BYTES of them.
//
// Any thread. NULL as a pool stands for plain malloc and free.
#ifndef SSM_ENGINE_STATE_POOL_H
#define SSM_ENGINE_STATE_POOL_H

#include <pthread.h>
#include <stddef.h>

enum { STATE_POOL_MOST = 16 };

typedef struct state_pool {
    size_t bytes; // of a state
    pthread_mutex_t lock;
    float *kept[STATE_POOL_MOST]; // guarded by lock
    int n_kept, most;
} state_pool;

void state_pool_init(state_pool *p, size_t bytes);
void state_pool_dispose(state_pool *p); // all have been given back

// For `bytes`, which are the pool's; NULL: no memory. What is in it is anybody's old state.
float *state_pool_take(state_pool *p, size_t bytes);
void state_pool_give(state_pool *p, float *state); // NULL is allowed

#endif
