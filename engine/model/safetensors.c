// SPDX-License-Identifier: Apache-2.0
// Every number of the header is foreign: it is checked against the others and against the file's
// size before it is used, in 64 bits with overflow caught. Once parsed, each tensor has as many
// bytes as its type and shape say, all lie within the file, and together they cover it.
//
// A file that shrinks while it is mapped ends the process with SIGBUS, as with any mapped file:
// checkpoints are replaced by renaming, not rewritten in place.
#include "safetensors.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "weights are used as they lie in files");

enum {
    LENGTH_BYTES = 8,
    // The format allows 100 MB. 16 MiB hold over 100,000 tensors and bound what a lying header can
    // make the JSON parser allocate (about 20 times its size).
    MAX_HEADER = 16 << 20,
};

static const struct {
    const char *name;
    uint32_t bits;
    ssm_dtype dtype;
} types[] = {
    {"F32", 32, SSM_DTYPE_F32},  {"F16", 16, SSM_DTYPE_F16},     {"BF16", 16, SSM_DTYPE_BF16},
    {"F64", 64, SSM_DTYPE_AUTO}, {"I64", 64, SSM_DTYPE_AUTO},    {"I32", 32, SSM_DTYPE_AUTO},
    {"I16", 16, SSM_DTYPE_AUTO}, {"I8", 8, SSM_DTYPE_AUTO},      {"U64", 64, SSM_DTYPE_AUTO},
    {"U32", 32, SSM_DTYPE_AUTO}, {"U16", 16, SSM_DTYPE_AUTO},    {"U8", 8, SSM_DTYPE_AUTO},
    {"BOOL", 8, SSM_DTYPE_AUTO}, {"F8_E4M3", 8, SSM_DTYPE_AUTO}, {"F8_E5M2", 8, SSM_DTYPE_AUTO},
    {"C64", 64, SSM_DTYPE_AUTO}, {"F8_E8M0", 8, SSM_DTYPE_AUTO}, {"F4", 4, SSM_DTYPE_AUTO},
};

typedef struct reader {
    const char *file;
    const uint8_t *bytes;       // of the whole file, or NULL
    uint64_t first, data_bytes; // of the data: where it begins, behind the header
    ssm_error *err;
} reader;

static int read_type(const reader *r, safetensor *t, const json_t *v, uint32_t *bits) {
    const char *name = json_string_value(v);
    for (size_t i = 0; name && i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(types[i].name, name) == 0) {
            t->type = types[i].name;
            t->dtype = types[i].dtype;
            *bits = types[i].bits;
            return 0;
        }
    }
    return ssm_error_set(r->err, name ? SSM_EUNSUPPORTED : SSM_EFORMAT, t->name,
                         "%s: tensor %s has %s dtype %.32s", r->file, t->name,
                         name ? "the unknown" : "no", name ? name : "");
}

// Reads the shape and with it the bytes that the tensor must have.
static int read_shape(const reader *r, safetensor *t, const json_t *v, uint32_t bits) {
    if (!json_is_array(v) || json_array_size(v) > SAFETENSORS_MAX_DIMS)
        return ssm_error_set(r->err, SSM_EFORMAT, t->name,
                             "%s: the shape of %s is not a list of up to %d dimensions", r->file,
                             t->name, SAFETENSORS_MAX_DIMS);
    uint64_t n_bits = bits;
    t->n_dims = (int32_t)json_array_size(v);
    for (int32_t i = 0; i < t->n_dims; i++) {
        const json_t *dim = json_array_get(v, (size_t)i);
        t->dims[i] = json_integer_value(dim);
        if (!json_is_integer(dim) || t->dims[i] < 0 ||
            __builtin_mul_overflow(n_bits, (uint64_t)t->dims[i], &n_bits))
            return ssm_error_set(r->err, SSM_EFORMAT, t->name,
                                 "%s: the shape of %s is not one of a tensor", r->file, t->name);
    }
    if (n_bits % 8 != 0)
        return ssm_error_set(r->err, SSM_EFORMAT, t->name, "%s: %s ends within a byte", r->file,
                             t->name);
    t->bytes = n_bits / 8;
    return 0;
}

static int read_offsets(const reader *r, safetensor *t, const json_t *v) {
    const json_t *first = json_array_get(v, 0), *last = json_array_get(v, 1);
    if (json_array_size(v) != 2 || !json_is_integer(first) || !json_is_integer(last))
        return ssm_error_set(r->err, SSM_EFORMAT, t->name,
                             "%s: data_offsets of %s are not two integers", r->file, t->name);
    const int64_t begin = json_integer_value(first), end = json_integer_value(last);
    if (begin < 0 || end < begin)
        return ssm_error_set(r->err, SSM_EFORMAT, t->name,
                             "%s: data_offsets of %s are [%" PRId64 ", %" PRId64 "]", r->file,
                             t->name, begin, end);
    if ((uint64_t)end > r->data_bytes)
        return ssm_error_set(r->err, SSM_EFORMAT, t->name,
                             "%s: the file is cut short: %s ends at byte %" PRId64
                             " of its data, the file holds %" PRIu64,
                             r->file, t->name, end, r->data_bytes);
    if ((uint64_t)(end - begin) != t->bytes)
        return ssm_error_set(r->err, SSM_EFORMAT, t->name,
                             "%s: %s has %" PRId64 " bytes where its shape and type need %" PRIu64,
                             r->file, t->name, end - begin, t->bytes);
    t->at = r->first + (uint64_t)begin;
    t->data = r->bytes ? r->bytes + t->at : NULL;
    return 0;
}

static int read_tensor(const reader *r, safetensor *t, const char *name, const json_t *v) {
    t->name = strdup(name);
    if (!t->name)
        return ssm_error_set(r->err, SSM_ENOMEM, NULL, "%s: no memory for its header", r->file);
    if (!json_is_object(v))
        return ssm_error_set(r->err, SSM_EFORMAT, name, "%s: tensor %s is not an object", r->file,
                             name);
    uint32_t bits = 0;
    int rc = read_type(r, t, json_object_get(v, "dtype"), &bits);
    if (rc == 0)
        rc = read_shape(r, t, json_object_get(v, "shape"), bits);
    if (rc == 0)
        rc = read_offsets(r, t, json_object_get(v, "data_offsets"));
    return rc;
}

static int by_offset(const void *a, const void *b) {
    const safetensor *x = a, *y = b;
    if (x->at != y->at)
        return x->at < y->at ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); // empty ones first
}

// The tensors, in order of offset, must cover the data without overlaps or holes.
static int check_cover(const reader *r, const safetensors *st) {
    uint64_t end = r->first;
    for (int32_t i = 0; i < st->n_tensors; i++) {
        const safetensor *t = &st->tensors[i];
        if (t->at < end)
            return ssm_error_set(r->err, SSM_EFORMAT, t->name, "%s: %s overlaps %s", r->file,
                                 t->name, t[-1].name);
        if (t->at > end)
            return ssm_error_set(r->err, SSM_EFORMAT, t->name,
                                 "%s: %" PRIu64 " bytes before %s belong to no tensor", r->file,
                                 t->at - end, t->name);
        end = t->at + t->bytes;
    }
    if (end != r->first + r->data_bytes)
        return ssm_error_set(r->err, SSM_EFORMAT, NULL,
                             "%s: %" PRIu64 " bytes at the end belong to no tensor", r->file,
                             r->first + r->data_bytes - end);
    return 0;
}

static int check_metadata(const reader *r, json_t *v) {
    const char *key;
    json_t *text;
    bool valid = json_is_object(v);
    json_object_foreach(v, key, text) valid = valid && json_is_string(text);
    return valid ? 0
                 : ssm_error_set(r->err, SSM_EFORMAT, "__metadata__",
                                 "%s: __metadata__ is not an object of strings", r->file);
}

static int read_tensors(const reader *r, safetensors *st, json_t *header) {
    st->tensors = calloc(json_object_size(header) + 1, sizeof *st->tensors);
    if (!st->tensors)
        return ssm_error_set(r->err, SSM_ENOMEM, NULL, "%s: no memory for its header", r->file);
    const char *name;
    json_t *v;
    int rc = 0;
    json_object_foreach(header, name, v) {
        if (strcmp(name, "__metadata__") == 0)
            rc = check_metadata(r, st->metadata = json_incref(v));
        else
            rc = read_tensor(r, &st->tensors[st->n_tensors++], name, v);
        if (rc)
            return rc;
    }
    qsort(st->tensors, (size_t)st->n_tensors, sizeof *st->tensors, by_offset);
    return check_cover(r, st);
}

size_t safetensors_head_bytes(const uint8_t first[8]) {
    uint64_t length;
    memcpy(&length, first, sizeof length);
    return length <= MAX_HEADER ? LENGTH_BYTES + (size_t)length : 0;
}

// bytes: the head at least; all of the file if `whole`.
static int parse(safetensors *st, const uint8_t *bytes, uint64_t size, bool whole, const char *file,
                 ssm_error *err) {
    *st = (safetensors){0};
    uint64_t length = 0;
    if (size >= LENGTH_BYTES)
        memcpy(&length, bytes, LENGTH_BYTES);
    if (size < LENGTH_BYTES + 2 || length < 2 || bytes[LENGTH_BYTES] != '{')
        return ssm_error_set(err, SSM_EFORMAT, NULL, "%s: not a safetensors file", file);
    if (length > MAX_HEADER)
        return ssm_error_set(err, SSM_EFORMAT, NULL,
                             "%s: its header claims %" PRIu64 " bytes, more than %d", file, length,
                             MAX_HEADER);
    if (length > size - LENGTH_BYTES)
        return ssm_error_set(err, SSM_EFORMAT, NULL,
                             "%s: the file is cut short: a header of %" PRIu64
                             " bytes in a file of %" PRIu64,
                             file, length, size);
    json_error_t at;
    size_t text = (size_t)length; // spaces at the end align the data: the parser takes 80
    while (bytes[LENGTH_BYTES + text - 1] == ' ') // instructions for each
        text--;
    json_t *header =
        json_loadb((const char *)bytes + LENGTH_BYTES, text, JSON_REJECT_DUPLICATES, &at);
    if (!header)
        return ssm_error_set(err, SSM_EFORMAT, NULL, "%s: its header is not valid JSON: %s", file,
                             at.text);
    const reader r = {.file = file,
                      .bytes = whole ? bytes : NULL,
                      .first = LENGTH_BYTES + length,
                      .data_bytes = size - LENGTH_BYTES - length,
                      .err = err};
    const int rc = read_tensors(&r, st, header);
    json_decref(header);
    if (rc)
        safetensors_dispose(st);
    return rc;
}

int safetensors_parse(safetensors *st, const uint8_t *bytes, size_t size, const char *file,
                      ssm_error *err) {
    return parse(st, bytes, size, true, file, err);
}

int safetensors_parse_head(safetensors *st, const uint8_t *head, uint64_t size, const char *file,
                           ssm_error *err) {
    return parse(st, head, size, false, file, err);
}

int safetensors_open(safetensors *st, const char *path, const char *file, ssm_error *err) {
    *st = (safetensors){0};
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a FIFO must not block here
    if (fd < 0)
        return ssm_error_set(err, SSM_EIO, file, "cannot open %s: %m", path);
    void *map = MAP_FAILED;
    struct stat info;
    int rc = 0;
    if (fstat(fd, &info) != 0)
        rc = ssm_error_set(err, SSM_EIO, file, "cannot read %s: %m", path);
    else if (!S_ISREG(info.st_mode))
        rc = ssm_error_set(err, SSM_EIO, file, "%s is not a regular file", path);
    else if (info.st_size == 0)
        rc = ssm_error_set(err, SSM_EFORMAT, file, "%s is empty", file);
    if (rc)
        goto done;
    const size_t size = (size_t)info.st_size;
    map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        rc = ssm_error_set(err, SSM_EIO, file, "cannot map %s: %m", path);
        goto done;
    }
    rc = safetensors_parse(st, map, size, file, err);
    if (rc) {
        munmap(map, size);
        goto done;
    }
    st->map = map;
    st->map_bytes = size;
done:
    close(fd);
    return rc;
}

void safetensors_dispose(safetensors *st) {
    for (int32_t i = 0; i < st->n_tensors; i++)
        free(st->tensors[i].name);
    free(st->tensors);
    json_decref(st->metadata);
    if (st->map)
        munmap(st->map, st->map_bytes);
    *st = (safetensors){0};
}
