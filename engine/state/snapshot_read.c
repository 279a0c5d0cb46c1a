// SPDX-License-Identifier: Apache-2.0
// A session's file, read: nothing of it is believed.
//
// The header is read and parsed first. Numbers are read straight to where they will stay, a
// piece at a time that fits the cache, in which they are added to the checksum and looked at
// before they leave it: a state is copied once and read once.
//
// Beside a plain read of mamba-130m's 2.8 MB, 0.20 ms (Ice Lake; best of 300): the checksum 0.05,
// the look for NaN 0.04, the header and the rest 0.05. What made it several times a read: fresh
// memory (state_pool.h), 1 ms; the look with its accumulators in an array, 0.18 where it is 0.1
// from memory; two parses of a header that is four fifths spaces, 0.1; mapping the data, a fault
// every sixteen pages; a sum of floats as the look, a chain of additions that no compiler may
// reorder.
#include "snapshot_file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "engine/model/model.h"
#include "engine/model/safetensors.h"
#include "snapshot_parts.h"

enum { PIECE = 1 << 18 }; // bytes: half of a small second-level cache

typedef struct reader {
    const ssm_model *model;
    const uint8_t *bytes; // of the file: all of it, or with fd its head
    int fd;               // -1: none
    XXH3_state_t *sum;
    const json_t *meta; // the parsed header's
    ssm_error *err;
} reader;

static int bad(const reader *r, const char *what) {
    return ssm_error_set(r->err, SSM_EINVAL, "state", "not a session of this model: %s", what);
}

// ---- metadata

static const char *text_of(const reader *r, const char *key) {
    const char *text = json_string_value(json_object_get(r->meta, key));
    return text ? text : "";
}

static bool read_number(const reader *r, const char *key, uint64_t *out) {
    const char *text = text_of(r, key);
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && *end == '\0' && errno == 0 && *out <= INT64_MAX;
}

// 32 hexadecimal digits.
static bool read_pair(const reader *r, const char *key, uint64_t out[2]) {
    const char *text = text_of(r, key);
    if (strlen(text) != 32 || strspn(text, "0123456789abcdef") != 32)
        return false;
    return sscanf(text, "%16" SCNx64 "%16" SCNx64, &out[0], &out[1]) == 2;
}

static int check_model(const reader *r) {
    uint64_t hash[2], theirs[2];
    if (strcmp(text_of(r, "format"), SNAPSHOT_FORMAT) != 0)
        return bad(r, "its format is not " SNAPSHOT_FORMAT);
    if (strcmp(text_of(r, "architecture"), ssm_model_get_info(r->model)->architecture) != 0)
        return bad(r, "another architecture");
    model_hash(r->model, hash);
    if (!read_pair(r, "model", theirs) || theirs[0] != hash[0] || theirs[1] != hash[1])
        return bad(r, "another model");
    return strcmp(text_of(r, "dtype"), "F32") == 0 ? 0 : bad(r, "its dtype is not F32");
}

static int read_last(const reader *r, session_text *text) {
    const char *at = text_of(r, "last_tokens");
    const int32_t vocab = ssm_model_get_info(r->model)->vocab_size;
    while (*at) {
        char *end;
        const long id = strtol(at, &end, 10);
        if (end == at || (*end != ' ' && *end != '\0') || id < 0 || id >= vocab ||
            text->n_last == SESSION_LAST)
            return bad(r, "its last_tokens are no tokens");
        text->last[text->n_last++] = (int32_t)id;
        at = *end ? end + 1 : end;
    }
    return 0;
}

// None, or bytes in hexadecimal digits.
static bool read_memo(const reader *r, session_text *text) {
    const char *at = text_of(r, "memo");
    const size_t n = strlen(at);
    if (n % 2 != 0 || n / 2 > sizeof text->memo || strspn(at, "0123456789abcdef") != n)
        return false;
    for (; *at; at += 2) {
        unsigned byte;
        if (sscanf(at, "%2x", &byte) != 1)
            return false;
        text->memo[text->n_memo++] = (uint8_t)byte;
    }
    return true;
}

static int read_text(const reader *r, session_text *text) {
    uint64_t chain[2], position;
    if (!read_number(r, "tokens", &text->n_tokens) || !read_number(r, "position", &position) ||
        !read_pair(r, "chain", chain))
        return bad(r, "its tokens, position or chain are missing");
    if (position == 0 || position > text->n_tokens || text->n_tokens - position > MAX_PENDING)
        return bad(r, "its position is none");
    text->n_pending = (size_t)(text->n_tokens - position);
    text->chain = (token_chain){.hi = chain[0], .lo = chain[1]};
    if (!read_memo(r, text))
        return bad(r, "its memo is none");
    return read_last(r, text);
}

static bool read_label(const reader *r, snapshot_label *label) {
    uint64_t created, used;
    snapshot_label l;
    const char *name = text_of(r, "session");
    if (!session_name_is_valid(name) || !read_pair(r, "owner", l.owner) ||
        !read_number(r, "created", &created) || !read_number(r, "last_used", &used))
        return false;
    strcpy(l.name, name);
    l.created = (int64_t)created;
    l.last_used = (int64_t)used;
    *label = l;
    return true;
}

// Everything that the header says but the label; its tensors are then the model's.
static int read_header(reader *r, const safetensors *st, session_text *text,
                       snapshot_part parts[N_PARTS]) {
    r->meta = st->metadata;
    int rc = r->meta ? check_model(r) : bad(r, "it has no metadata");
    if (rc == 0)
        rc = read_text(r, text);
    if (rc != 0)
        return rc;
    snapshot_parts(&ssm_model_weights(r->model)->geometry, text->n_pending, parts);
    for (int i = 0; i < N_PARTS; i++) {
        const safetensor *t = st->n_tensors == N_PARTS ? &st->tensors[0] : NULL;
        while (t && strcmp(t->name, parts[i].name) != 0)
            t = t < &st->tensors[N_PARTS - 1] ? t + 1 : NULL;
        if (!t || strcmp(t->type, parts[i].type) != 0 || t->n_dims != parts[i].n_dims ||
            memcmp(t->dims, parts[i].dims, (size_t)t->n_dims * sizeof t->dims[0]) != 0)
            return bad(r, "its tensors are others or have other shapes");
        assert(t->bytes == parts[i].bytes);
    }
    return 0;
}

// ---- data

static int fetch(const reader *r, size_t at, uint8_t *out, size_t n) {
    if (r->fd < 0) {
        memcpy(out, r->bytes + at, n);
        return 0;
    }
    while (n > 0) {
        const ssize_t got = pread(r->fd, out, n, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return ssm_error_set(r->err, SSM_EIO, "state", "cannot read a session's file: %m");
        if (got == 0)
            return bad(r, "it is cut short");
        out += got;
        at += (size_t)got;
        n -= (size_t)got;
    }
    return 0;
}

// Whether one of n numbers is a NaN or an infinity: their exponents are all ones, and one more
// carries into the sign. Four chains, so that loads and not their order are what it waits for, each
// a variable: as an array they go through the stack, at half the speed.
#define CARRY(x) (((x)&0x7f800000u) + 0x00800000u)
#define DEFINE_LOOK(name, width)                                                                   \
    static bool name(const uint8_t *bytes, size_t n) {                                             \
        typedef uint32_t vec __attribute__((vector_size(width)));                                  \
        typedef uint32_t vec_at __attribute__((vector_size(width), aligned(1), may_alias));        \
        vec a = {0}, b = {0}, c = {0}, d = {0};                                                    \
        uint32_t any = 0, one;                                                                     \
        size_t i = 0;                                                                              \
        for (; i + width <= n; i += width) {                                                       \
            const vec_at *at = (const vec_at *)(const void *)(bytes + i * sizeof(float));          \
            a |= CARRY(at[0]);                                                                     \
            b |= CARRY(at[1]);                                                                     \
            c |= CARRY(at[2]);                                                                     \
            d |= CARRY(at[3]);                                                                     \
        }                                                                                          \
        a |= b | c | d;                                                                            \
        for (size_t k = 0; k < (width) / sizeof one; k++)                                          \
            any |= a[k];                                                                           \
        for (; i < n; i++) {                                                                       \
            memcpy(&one, bytes + i * sizeof one, sizeof one);                                      \
            any |= CARRY(one);                                                                     \
        }                                                                                          \
        return any >> 31;                                                                          \
    }

DEFINE_LOOK(look_16, 16) // what every machine of 64 bits has

#ifdef __x86_64__
__attribute__((target("avx2"))) DEFINE_LOOK(look_32, 32)

    static bool is_strange(const uint8_t *bytes, size_t n) {
    return __builtin_cpu_supports("avx2") ? look_32(bytes, n) : look_16(bytes, n);
}
#else
static bool is_strange(const uint8_t *bytes, size_t n) {
    return look_16(bytes, n);
}
#endif

// A tensor to its place and into the checksum.
static int take_tensor(const reader *r, const safetensor *t, uint8_t *out, bool *strange) {
    const size_t from = (size_t)t->at;
    int rc = 0;
    for (size_t at = 0; rc == 0 && at < t->bytes; at += PIECE) {
        const size_t n = t->bytes - at < PIECE ? (size_t)t->bytes - at : PIECE;
        rc = fetch(r, from + at, out + at, n);
        if (rc == 0) {
            XXH3_128bits_update(r->sum, out + at, n);
            *strange |= strcmp(t->type, "F32") == 0 && is_strange(out + at, n / sizeof(float));
        }
    }
    return rc;
}

static int make_room(const reader *r, const snapshot_part parts[N_PARTS], snapshot_image *image) {
    const bool has_logits = image->text.n_pending == 0;
    const ssm_model_info *info = ssm_model_get_info(r->model);
    image->state = state_pool_take(image->pool, info->saved_bytes);
    image->text.pending = malloc(has_logits ? 1 : parts[PART_REST].bytes);
    if (!image->state || !image->text.pending)
        return ssm_error_set(r->err, SSM_ENOMEM, NULL, "no memory for a session's state");
    image->logits = has_logits ? image->state + info->state_bytes / sizeof(float) : NULL;
    return 0;
}

static uint8_t *place_of(const safetensor *t, const snapshot_part parts[N_PARTS],
                         const snapshot_image *image) {
    if (strcmp(t->name, parts[PART_CONV].name) == 0)
        return (uint8_t *)image->state;
    if (strcmp(t->name, parts[PART_SSM].name) == 0)
        return (uint8_t *)image->state + parts[PART_CONV].bytes;
    return image->logits ? (uint8_t *)image->logits : (uint8_t *)image->text.pending;
}

static int read_data(const reader *r, const safetensors *st, const snapshot_part parts[N_PARTS],
                     snapshot_image *image) {
    const int32_t vocab = ssm_model_get_info(r->model)->vocab_size;
    const size_t digits = snapshot_find_checksum(r->bytes);
    char sum[CHECKSUM_DIGITS + 1];
    bool strange = false;
    if (digits == 0)
        return bad(r, "it has no checksum");
    snapshot_sum_header(r->sum, r->bytes, (size_t)st->tensors[0].at, digits);
    int rc = make_room(r, parts, image);
    for (int i = 0; rc == 0 && i < N_PARTS; i++) // by offset, without holes: the parser saw to it
        rc = take_tensor(r, &st->tensors[i], place_of(&st->tensors[i], parts, image), &strange);
    if (rc != 0)
        return rc;
    snapshot_sum_digits(r->sum, sum);
    if (memcmp(r->bytes + digits, sum, CHECKSUM_DIGITS) != 0)
        return bad(r, "its checksum does not fit");
    if (strange)
        return bad(r, "it holds numbers that are not finite");
    for (size_t i = 0; i < image->text.n_pending; i++) {
        if (image->text.pending[i] < 0 || image->text.pending[i] >= vocab)
            return bad(r, "its pending tokens are no tokens");
    }
    return 0;
}

// ---- the whole

static int decode(reader *r, const safetensors *st, snapshot_image *image, snapshot_label *label,
                  bool *has_label) {
    snapshot_part parts[N_PARTS];
    r->sum = XXH3_createState();
    int rc = r->sum ? read_header(r, st, &image->text, parts)
                    : ssm_error_set(r->err, SSM_ENOMEM, NULL, "no memory for a checksum");
    if (rc == 0)
        rc = read_data(r, st, parts, image);
    const bool is_labelled = rc == 0 && label && read_label(r, label);
    if (has_label)
        *has_label = is_labelled;
    XXH3_freeState(r->sum);
    if (rc != 0)
        snapshot_image_dispose(image);
    return rc;
}

// What is wrong with a foreign file is its sender's doing, not ours.
static int as_input(int rc, ssm_error *err) {
    if (rc != SSM_EFORMAT && rc != SSM_EUNSUPPORTED)
        return rc;
    if (err)
        err->code = SSM_EINVAL;
    return SSM_EINVAL;
}

int snapshot_file_decode(const ssm_model *model, const uint8_t *bytes, size_t size,
                         snapshot_image *image, snapshot_label *label, bool *has_label,
                         ssm_error *err) {
    reader r = {.model = model, .bytes = bytes, .fd = -1, .err = err};
    safetensors st;
    *image = (snapshot_image){.pool = image->pool};
    int rc = as_input(safetensors_parse(&st, bytes, size, "state", err), err);
    if (rc != 0)
        return rc;
    rc = decode(&r, &st, image, label, has_label);
    safetensors_dispose(&st);
    return rc;
}

// ---- files

// A file opened, its head read and parsed. What was made is there even on failure.
typedef struct head_file {
    int fd;
    uint64_t size;
    uint8_t *head;
    safetensors st;
} head_file;

static int read_head(head_file *f, const char *path, ssm_error *err) {
    struct stat info;
    *f = (head_file){.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)}; // a FIFO must not block
    if (f->fd < 0 || fstat(f->fd, &info) != 0 || !S_ISREG(info.st_mode))
        return ssm_error_set(err, SSM_EIO, "state", "cannot read %s: %s", path,
                             f->fd < 0 ? strerror(errno) : "it is no regular file");
    f->size = (uint64_t)info.st_size;
    size_t n = LENGTH_BYTES + HEADER_BYTES; // of a file that we wrote; more of another's
    if (!(f->head = calloc(1, n)))
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for a session's header");
    n = f->size < n ? (size_t)f->size : n;
    reader r = {.fd = f->fd, .err = err};
    int rc = fetch(&r, 0, f->head, n);
    const size_t wanted = safetensors_head_bytes(f->head);
    if (rc != 0 || wanted <= n || wanted > f->size)
        return rc;
    uint8_t *longer = realloc(f->head, wanted);
    if (!longer)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for a session's header");
    f->head = longer;
    return fetch(&r, n, f->head + n, wanted - n);
}

static int open_head(head_file *f, const char *path, ssm_error *err) {
    const int rc = read_head(f, path, err);
    return rc != 0 ? rc
                   : as_input(safetensors_parse_head(&f->st, f->head, f->size, "state", err), err);
}

static void close_head(head_file *f) {
    safetensors_dispose(&f->st);
    free(f->head);
    if (f->fd >= 0)
        close(f->fd);
}

int snapshot_file_read(const ssm_model *model, const char *path, snapshot_image *image,
                       snapshot_label *label, bool *has_label, ssm_error *err) {
    head_file f;
    *image = (snapshot_image){.pool = image->pool};
    int rc = open_head(&f, path, err);
    reader r = {.model = model, .bytes = f.head, .fd = f.fd, .err = err};
    if (rc == 0)
        rc = decode(&r, &f.st, image, label, has_label);
    close_head(&f);
    return rc;
}

int snapshot_file_peek(const ssm_model *model, const char *path, session_text *text,
                       snapshot_label *label, ssm_error *err) {
    head_file f;
    snapshot_part parts[N_PARTS];
    *text = (session_text){0};
    int rc = open_head(&f, path, err);
    reader r = {.model = model, .bytes = f.head, .fd = f.fd, .err = err};
    if (rc == 0)
        rc = read_header(&r, &f.st, text, parts);
    if (rc == 0 && !read_label(&r, label))
        rc = bad(&r, "it has no label");
    text->n_pending = 0; // they were not read
    close_head(&f);
    return rc;
}
