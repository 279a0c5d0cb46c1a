// SPDX-License-Identifier: Apache-2.0
// Which of cuBLASLt's algorithms each product takes, as all processes have it (algorithms.c). In C
// and without cuBLASLt, for product.cu and for a test without a device. Any thread; a list is its
// caller's alone.
#ifndef SSM_KERNELS_CUDA_ALGORITHMS_H
#define SSM_KERNELS_CUDA_ALGORITHMS_H

#include <stdbool.h>
#include <stddef.h>

enum { ALGORITHM_BYTES = 64, ALGORITHM_KEY = 128 };

typedef struct algorithm {
    char shape[160]; // one word: what the product is
    int product;     // the caller's number for it, not stored
    float microseconds;
    unsigned char bytes[ALGORITHM_BYTES]; // a cublasLtMatmulAlgo_t
} algorithm;

// Whether the caller can take a for the product that a->product says. Called under a lock that is
// the whole process's: no call of this file's from within.
typedef bool algorithm_usable(void *context, const algorithm *a);

typedef struct algorithm_list {
    char key[ALGORITHM_KEY];
    algorithm_usable *usable;
    void *context;
    algorithm *items; // those of the key, oldest first
    int n, room;
} algorithm_list;

// What a remembered choice depends on besides the product.
void algorithms_key(char out[ALGORITHM_KEY], const char *device, int driver, size_t library);

// What is remembered for a key; nothing where nothing can be read. End with algorithms_free().
void algorithms_load(algorithm_list *list, const char *key, algorithm_usable *usable,
                     void *context);
void algorithms_free(algorithm_list *list);

// The oldest usable one for a->shape and a->product, into a. False, and a as it was: there is none.
bool algorithms_find(const algorithm_list *list, algorithm *a);

// Makes this opening's choices everybody's, or takes what others have chosen before: in, what was
// found or timed; out, what every opening takes, in this process and in others. Writes what is new,
// then reads again.
void algorithms_settle(algorithm_list *list, algorithm *chosen, int n);

#endif
