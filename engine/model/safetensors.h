// SPDX-License-Identifier: Apache-2.0
// One safetensors file: mapped, its header read and checked in full before anything is used.
//
// Format: 8 bytes, the header's length, little-endian; the header, JSON: name -> {dtype, shape,
// data_offsets}, offsets from the header's end; then the data, which the tensors must cover
// exactly, without overlaps or holes. https://huggingface.co/docs/safetensors
#ifndef SSM_MODEL_SAFETENSORS_H
#define SSM_MODEL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include <ssm/dtype.h>
#include <ssm/error.h>

enum { SAFETENSORS_MAX_DIMS = 8 };

typedef struct safetensor {
    char *name;
    const char *type; // as the file spells it, static: "BF16"
    ssm_dtype dtype;  // SSM_DTYPE_AUTO: a type that no weight may have here
    int32_t n_dims;   // 0: a single number
    int64_t dims[SAFETENSORS_MAX_DIMS];
    const uint8_t *data; // in the mapping, at any alignment; NULL: the file's head alone is there
    uint64_t at, bytes;  // in the file
} safetensor;

typedef struct safetensors {
    void *map; // NULL if the bytes are the caller's
    size_t map_bytes;
    safetensor *tensors; // by offset, ascending
    int32_t n_tensors;
    struct json_t *metadata; // __metadata__, an object of strings; NULL: there is none
} safetensors;

// Maps path; `file` names it in messages. SSM_EIO, SSM_ENOMEM, SSM_EFORMAT or SSM_EUNSUPPORTED with
// the tensor's name. On failure nothing is left to dispose.
int safetensors_open(safetensors *st, const char *path, const char *file, ssm_error *err);

// The same over bytes in memory, which must outlive *st.
int safetensors_parse(safetensors *st, const uint8_t *bytes, size_t size, const char *file,
                      ssm_error *err);
// The same of a file's head alone, its first 8 bytes and its header, in a file of so many bytes.
int safetensors_parse_head(safetensors *st, const uint8_t *head, uint64_t size, const char *file,
                           ssm_error *err);
// Bytes of the head, of its first 8 bytes; 0: more than any header may have.
size_t safetensors_head_bytes(const uint8_t first[8]);
void safetensors_dispose(safetensors *st);

#endif
