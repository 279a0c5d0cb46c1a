// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE // memmem, mkostemps
#include "snapshot_file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>
#include <xxhash.h>

#include "engine/model/model.h"
#include "engine/model/safetensors.h"

enum {
    LENGTH_BYTES = 8,
    HEADER_BYTES = 4096,   // of ours: fixed, padded with spaces, so that sizes are known ahead
    MAX_PENDING = 1 << 20, // tokens
    CHECKSUM_DIGITS = 32,
};

#define FORMAT       "ssmd-session-1"
#define CHECKSUM_KEY "\"checksum\":\""
#define ZEROS        "00000000000000000000000000000000"

void snapshot_image_dispose(snapshot_image *image) {
    free(image->state);
    free(image->logits);
    session_text_dispose(&image->text);
    *image = (snapshot_image){0};
}

// ---- the tensors of a model's sessions

typedef struct part {
    const char *name, *type;
    int64_t dims[4];
    int32_t n_dims;
    size_t bytes;
} part;

enum { CONV, SSM, REST, N_PARTS }; // REST: logits or pending

static void describe_parts(const ssm_geometry *g, size_t n_pending, part out[N_PARTS]) {
    const int64_t layers = g->n_layers;
    out[CONV] = (part){"conv", "F32", {layers, g->conv_dim, g->d_conv - 1}, 3, 0};
    out[CONV].bytes = ssm_state_conv_floats(g) * sizeof(float);
    if (g->kind == SSM_BLOCK_MAMBA)
        out[SSM] = (part){"ssm", "F32", {layers, g->d_inner, g->d_state}, 3, 0};
    else
        out[SSM] = (part){"ssm", "F32", {layers, g->n_heads, g->head_dim, g->d_state}, 4, 0};
    out[SSM].bytes = ssm_state_ssm_floats(g) * sizeof(float);
    if (n_pending > 0)
        out[REST] = (part){"pending", "I32", {(int64_t)n_pending}, 1, n_pending * 4};
    else
        out[REST] = (part){"logits", "F32", {g->vocab_size}, 1, (size_t)g->vocab_size * 4};
}

// ---- checksums

// Of the whole file, `digits` being where its own are. False: no memory.
static bool checksum(const uint8_t *bytes, size_t size, size_t digits, char out[33]) {
    XXH3_state_t *state = XXH3_createState();
    if (!state)
        return false;
    const size_t after = digits + CHECKSUM_DIGITS;
    XXH3_128bits_reset(state);
    XXH3_128bits_update(state, bytes, digits);
    XXH3_128bits_update(state, ZEROS, CHECKSUM_DIGITS);
    XXH3_128bits_update(state, bytes + after, size - after);
    const XXH128_hash_t h = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    snprintf(out, 33, "%016" PRIx64 "%016" PRIx64, h.high64, h.low64);
    return true;
}

// Where a file's header, whose length the parser has checked, keeps the digits; 0: nowhere.
static size_t find_checksum(const uint8_t *bytes) {
    uint64_t length;
    memcpy(&length, bytes, sizeof length);
    const uint8_t *key =
        memmem(bytes + LENGTH_BYTES, (size_t)length, CHECKSUM_KEY, strlen(CHECKSUM_KEY));
    if (!key)
        return 0;
    const size_t at = (size_t)(key - bytes) + strlen(CHECKSUM_KEY);
    return at + CHECKSUM_DIGITS <= LENGTH_BYTES + length ? at : 0;
}

bool snapshot_file_seal(uint8_t *bytes, size_t size) {
    char digits[33];
    const size_t at = find_checksum(bytes);
    if (at == 0 || !checksum(bytes, size, at, digits))
        return false;
    memcpy(bytes + at, digits, CHECKSUM_DIGITS);
    return true;
}

// ---- writing

static void put_label(FILE *f, const snapshot_label *l) {
    fprintf(f,
            "\"session\":\"%s\",\"owner\":\"%016" PRIx64 "%016" PRIx64 "\",\"created\":\"%" PRId64
            "\",\"last_used\":\"%" PRId64 "\",",
            l->name, l->owner[0], l->owner[1], l->created, l->last_used);
}

static void put_metadata(FILE *f, const ssm_model *model, const session_text *text,
                         const snapshot_label *label) {
    uint64_t hash[2];
    model_hash(model, hash);
    fprintf(f, "{\"__metadata__\":{\"format\":\"" FORMAT "\"," CHECKSUM_KEY ZEROS "\",");
    if (label)
        put_label(f, label);
    fprintf(f, "\"architecture\":\"%s\",\"model\":\"%016" PRIx64 "%016" PRIx64 "\",",
            ssm_model_get_info(model)->architecture, hash[0], hash[1]);
    fprintf(f, "\"dtype\":\"F32\",\"tokens\":\"%" PRIu64 "\",\"position\":\"%" PRIu64 "\",",
            text->n_tokens, text->n_tokens - text->n_pending);
    fprintf(f, "\"chain\":\"%016" PRIx64 "%016" PRIx64 "\",\"last_tokens\":\"", text->chain.hi,
            text->chain.lo);
    for (size_t i = 0; i < text->n_last; i++)
        fprintf(f, "%s%d", i ? " " : "", text->last[i]);
    for (size_t i = 0; i < text->n_memo; i++)
        fprintf(f, "%s%02x", i ? "" : "\",\"memo\":\"", text->memo[i]);
    fprintf(f, "\"}");
}

static void put_parts(FILE *f, const part parts[N_PARTS]) {
    size_t at = 0;
    for (int i = 0; i < N_PARTS; i++) {
        const part *p = &parts[i];
        fprintf(f, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", p->name, p->type);
        for (int32_t k = 0; k < p->n_dims; k++)
            fprintf(f, "%s%" PRId64, k ? "," : "", p->dims[k]);
        fprintf(f, "],\"data_offsets\":[%zu,%zu]}", at, at + p->bytes);
        at += p->bytes;
    }
    fputc('}', f);
}

// The header into exactly HEADER_BYTES.
static bool write_header(uint8_t *out, const ssm_model *model, const snapshot_image *image,
                         const snapshot_label *label, const part parts[N_PARTS]) {
    memset(out, ' ', HEADER_BYTES);
    char text[HEADER_BYTES + 1];
    FILE *f = fmemopen(text, sizeof text, "w");
    if (!f)
        return false;
    put_metadata(f, model, &image->text, label);
    put_parts(f, parts);
    const long n = ftell(f);
    const bool is_ok = fclose(f) == 0 && n > 0 && n <= HEADER_BYTES;
    if (is_ok)
        memcpy(out, text, (size_t)n);
    return is_ok;
}

int snapshot_file_encode(const ssm_model *model, const snapshot_image *image,
                         const snapshot_label *label, uint8_t **out, size_t *size, ssm_error *err) {
    const ssm_geometry *g = &ssm_model_weights(model)->geometry;
    part parts[N_PARTS];
    describe_parts(g, image->text.n_pending, parts);
    const size_t state_bytes = parts[CONV].bytes + parts[SSM].bytes;
    *size = LENGTH_BYTES + HEADER_BYTES + state_bytes + parts[REST].bytes;
    uint8_t *bytes = *out = malloc(*size);
    if (!bytes || !write_header(bytes + LENGTH_BYTES, model, image, label, parts)) {
        free(bytes);
        *out = NULL;
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for a session's file");
    }
    const uint64_t length = HEADER_BYTES;
    memcpy(bytes, &length, sizeof length);
    uint8_t *data = bytes + LENGTH_BYTES + HEADER_BYTES;
    memcpy(data, image->state, state_bytes);
    memcpy(data + state_bytes,
           image->text.n_pending > 0 ? (const void *)image->text.pending : image->logits,
           parts[REST].bytes);
    if (!snapshot_file_seal(bytes, *size)) {
        free(bytes);
        *out = NULL;
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for a session's file");
    }
    return 0;
}

uint64_t snapshot_file_max(const ssm_model *model) {
    const ssm_model_info *info = ssm_model_get_info(model);
    const uint64_t logits = (uint64_t)info->vocab_size * sizeof(float);
    const uint64_t pending = (uint64_t)MAX_PENDING * sizeof(int32_t);
    return LENGTH_BYTES + HEADER_BYTES + info->state_bytes + (logits > pending ? logits : pending);
}

// ---- reading

typedef struct reader {
    const ssm_model *model;
    const uint8_t *bytes;
    size_t size;
    json_t *meta;
    ssm_error *err;
} reader;

static int bad(const reader *r, const char *what) {
    return ssm_error_set(r->err, SSM_EINVAL, "state", "not a session of this model: %s", what);
}

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

static int check_checksum(const reader *r) {
    char digits[33];
    const size_t at = find_checksum(r->bytes);
    if (at == 0)
        return bad(r, "it has no checksum");
    if (!checksum(r->bytes, r->size, at, digits))
        return ssm_error_set(r->err, SSM_ENOMEM, NULL, "no memory for a checksum");
    return memcmp(r->bytes + at, digits, CHECKSUM_DIGITS) == 0
               ? 0
               : bad(r, "its checksum does not fit");
}

static int check_model(const reader *r) {
    uint64_t hash[2], theirs[2];
    if (strcmp(text_of(r, "format"), FORMAT) != 0)
        return bad(r, "its format is not " FORMAT);
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

static const safetensor *find_part(const safetensors *st, const part *p) {
    for (int32_t i = 0; i < st->n_tensors; i++) {
        const safetensor *t = &st->tensors[i];
        if (strcmp(t->name, p->name) == 0)
            return strcmp(t->type, p->type) == 0 && t->n_dims == p->n_dims &&
                           memcmp(t->dims, p->dims, (size_t)p->n_dims * sizeof p->dims[0]) == 0
                       ? t
                       : NULL;
    }
    return NULL;
}

static bool are_finite(const float *v, size_t n) {
    // A sum of zeros, unless there is a NaN or an infinity: one pass that vectorises.
    float sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += v[i] * 0.0f;
    return sum == 0;
}

// Copies a tensor of floats; false: one of them is not finite.
static bool take_floats(const safetensor *t, float *out) {
    if (t->bytes > 0)
        memcpy(out, t->data, t->bytes);
    return are_finite(out, t->bytes / sizeof(float));
}

static int read_data(const reader *r, const safetensors *st, snapshot_image *image) {
    part parts[N_PARTS];
    const safetensor *found[N_PARTS];
    const int32_t vocab = ssm_model_get_info(r->model)->vocab_size;
    session_text *text = &image->text;
    describe_parts(&ssm_model_weights(r->model)->geometry, text->n_pending, parts);
    for (int i = 0; i < N_PARTS; i++) {
        if (!(found[i] = find_part(st, &parts[i])) || st->n_tensors != N_PARTS)
            return bad(r, "its tensors are others or have other shapes");
        assert(found[i]->bytes == parts[i].bytes);
    }
    const bool has_logits = text->n_pending == 0;
    image->state = malloc(parts[CONV].bytes + parts[SSM].bytes + 1);
    image->logits = has_logits ? malloc(parts[REST].bytes) : NULL;
    text->pending = malloc(parts[REST].bytes + 1);
    if (!image->state || (has_logits && !image->logits) || !text->pending)
        return ssm_error_set(r->err, SSM_ENOMEM, NULL, "no memory for a session's state");
    if (!take_floats(found[CONV], image->state) ||
        !take_floats(found[SSM], image->state + parts[CONV].bytes / sizeof(float)) ||
        (has_logits && !take_floats(found[REST], image->logits)))
        return bad(r, "it holds numbers that are not finite");
    if (!has_logits)
        memcpy(text->pending, found[REST]->data, parts[REST].bytes);
    for (size_t i = 0; i < text->n_pending; i++) {
        if (text->pending[i] < 0 || text->pending[i] >= vocab)
            return bad(r, "its pending tokens are no tokens");
    }
    return 0;
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

static int read_metadata(reader *r) {
    uint64_t length;
    memcpy(&length, r->bytes, sizeof length);
    json_t *header = json_loadb((const char *)r->bytes + LENGTH_BYTES, (size_t)length, 0, NULL);
    r->meta = json_incref(json_object_get(header, "__metadata__"));
    json_decref(header);
    return r->meta ? 0 : bad(r, "it has no metadata");
}

static int decode(reader *r, const safetensors *st, snapshot_image *image, snapshot_label *label,
                  bool *has_label) {
    int rc = read_metadata(r);
    if (rc == 0)
        rc = check_model(r);
    if (rc == 0)
        rc = check_checksum(r);
    if (rc == 0)
        rc = read_text(r, &image->text);
    if (rc == 0)
        rc = read_data(r, st, image);
    const bool is_labelled = rc == 0 && label && read_label(r, label);
    if (has_label)
        *has_label = is_labelled;
    json_decref(r->meta);
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
    reader r = {.model = model, .bytes = bytes, .size = size, .err = err};
    safetensors st;
    *image = (snapshot_image){0};
    int rc = as_input(safetensors_parse(&st, bytes, size, "state", err), err);
    if (rc != 0)
        return rc;
    rc = decode(&r, &st, image, label, has_label);
    safetensors_dispose(&st);
    return rc;
}

int snapshot_file_read(const ssm_model *model, const char *path, snapshot_image *image,
                       snapshot_label *label, bool *has_label, ssm_error *err) {
    safetensors st;
    *image = (snapshot_image){0};
    int rc = as_input(safetensors_open(&st, path, "state", err), err);
    if (rc != 0)
        return rc;
    reader r = {.model = model, .bytes = st.map, .size = st.map_bytes, .err = err};
    rc = decode(&r, &st, image, label, has_label);
    safetensors_dispose(&st);
    return rc;
}

// ---- files

static int write_all(int fd, const uint8_t *bytes, size_t size) {
    while (size > 0) {
        const ssize_t n = write(fd, bytes, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        bytes += n;
        size -= (size_t)n;
    }
    return 0;
}

// A rename is on the disk once its folder is.
static int sync_folder(const char *path) {
    char folder[4096];
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 : 1,
             slash ? path : ".");
    const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    const int rc = fsync(fd);
    close(fd);
    return rc;
}

int file_replace(const char *path, const uint8_t *bytes, size_t size, bool sync, ssm_error *err) {
    char temporary[4096];
    const int n = snprintf(temporary, sizeof temporary, "%s.XXXXXX.tmp", path);
    if (n >= (int)sizeof temporary)
        return ssm_error_set(err, SSM_EINVAL, NULL, "the path of a session's file is too long");
    const int fd = mkostemps(temporary, 4, O_CLOEXEC);
    if (fd < 0)
        return ssm_error_set(err, SSM_EIO, NULL, "cannot write %s: %m", temporary);
    int rc = write_all(fd, bytes, size);
    if (rc == 0 && sync)
        rc = fsync(fd);
    if (close(fd) != 0)
        rc = -1;
    if (rc == 0)
        rc = rename(temporary, path);
    if (rc != 0) {
        ssm_error_set(err, SSM_EIO, NULL, "cannot write %s: %m", path);
        unlink(temporary);
        return SSM_EIO;
    }
    if (sync && sync_folder(path) != 0)
        return ssm_error_set(err, SSM_EIO, NULL, "cannot sync the folder of %s: %m", path);
    return 0;
}

int file_remove(const char *path, ssm_error *err) {
    if ((unlink(path) != 0 && errno != ENOENT) || sync_folder(path) != 0)
        return ssm_error_set(err, SSM_EIO, NULL, "cannot remove %s: %m", path);
    return 0;
}

int snapshot_file_write(const ssm_model *model, const snapshot_image *image, const char *path,
                        ssm_error *err) {
    uint8_t *bytes;
    size_t size;
    int rc = snapshot_file_encode(model, image, NULL, &bytes, &size, err);
    if (rc != 0)
        return rc;
    rc = file_replace(path, bytes, size, false, err);
    free(bytes);
    return rc;
}
