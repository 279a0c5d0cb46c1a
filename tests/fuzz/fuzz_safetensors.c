// SPDX-License-Identifier: Apache-2.0
// A safetensors file from foreign bytes, in memory of exactly its size: whatever is accepted may be
// read to the last byte of every tensor.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/safetensors.h"

static volatile uint8_t sink;

static void read_all(const safetensor *t) {
    uint8_t sum = (uint8_t)strlen(t->name);
    for (uint64_t i = 0; i < t->bytes; i++) {
        sum ^= t->data[i];
    }
    sink = sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    safetensors st;
    ssm_error err = {0};
    const int rc = safetensors_parse(&st, data, size, "fuzz", &err);
    if (rc != 0) {
        if (err.code != rc || err.message[0] == '\0') {
            abort(); // a refusal says why
        }
        return 0;
    }
    uint64_t bytes = 0;
    for (int32_t i = 0; i < st.n_tensors; i++) {
        read_all(&st.tensors[i]);
        bytes += st.tensors[i].bytes;
    }
    uint64_t header;
    memcpy(&header, data, sizeof header);
    if (bytes != size - sizeof header - header) {
        abort(); // tensors cover the data exactly
    }
    safetensors_dispose(&st);
    return 0;
}
