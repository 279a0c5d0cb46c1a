// SPDX-License-Identifier: Apache-2.0
#ifndef SSM_KERNELS_CUDA_ALGORITHMS_H
#define SSM_KERNELS_CUDA_ALGORITHMS_H

#include <cublasLt.h>
#include <stddef.h>

namespace ssm {

enum { MAX_ALGORITHMS = 2048 };

struct algorithm {
    char shape[160]; // one word: what the product is
    float microseconds;
    cublasLtMatmulAlgo_t algo;
};

struct algorithm_list {
    int n;
    algorithm items[MAX_ALGORITHMS];
};

// What a remembered choice depends on besides the product.
void algorithms_key(char *out, size_t size, const char *device, int driver, size_t library);
void algorithms_load(algorithm_list *list, const char *key);
const algorithm *algorithms_find(const algorithm_list *list, const char *shape); // or NULL
void algorithms_append(const char *key, const algorithm *a);

} // namespace ssm

#endif
