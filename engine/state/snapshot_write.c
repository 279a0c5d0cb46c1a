// SPDX-License-Identifier: Apache-2.0
// A session's file, written: a header and the image's own buffers, checksummed where they lie and
// given to one writev. The only copy of a state on its way to the page cache is the kernel's.
#include "snapshot_file.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/model.h"
#include "files.h"
#include "snapshot_parts.h"

int snapshot_image_wait(const snapshot_image *image, ssm_error *err) {
    const state_pool *p = image->pool;
    return p ? ssm_ticket_wait(p->backend, p->device, image->ticket, err) : 0;
}

void snapshot_image_dispose(snapshot_image *image) {
    state_pool_give(image->pool, image->state, image->ticket);
    session_text_dispose(&image->text);
    *image = (snapshot_image){.pool = image->pool};
}

// ---- the header

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
    fprintf(f, "{\"__metadata__\":{\"format\":\"" SNAPSHOT_FORMAT "\"," CHECKSUM_KEY CHECKSUM_ZEROS
               "\",");
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

static void put_parts(FILE *f, const snapshot_part parts[N_PARTS]) {
    size_t at = 0;
    for (int i = 0; i < N_PARTS; i++) {
        const snapshot_part *p = &parts[i];
        fprintf(f, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", p->name, p->type);
        for (int32_t k = 0; k < p->n_dims; k++)
            fprintf(f, "%s%" PRId64, k ? "," : "", p->dims[k]);
        fprintf(f, "],\"data_offsets\":[%zu,%zu]}", at, at + p->bytes);
        at += p->bytes;
    }
    fputc('}', f);
}

// Exactly HEADER_BYTES, spaces at the end.
static bool write_header(uint8_t *out, const ssm_model *model, const snapshot_image *image,
                         const snapshot_label *label, const snapshot_part parts[N_PARTS]) {
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

// ---- the file in pieces

enum { HEAD, STATE, REST, N_PIECES };

typedef struct pieces {
    uint8_t head[LENGTH_BYTES + HEADER_BYTES];
    struct iovec at[N_PIECES];
    size_t size;
} pieces;

static bool seal_pieces(pieces *p) {
    XXH3_state_t *sum = XXH3_createState();
    if (!sum)
        return false;
    char digits[CHECKSUM_DIGITS + 1];
    const size_t place = snapshot_find_checksum(p->head);
    assert(place > 0);
    snapshot_sum_header(sum, p->head, sizeof p->head, place);
    for (int i = STATE; i < N_PIECES; i++)
        XXH3_128bits_update(sum, p->at[i].iov_base, p->at[i].iov_len);
    snapshot_sum_digits(sum, digits);
    memcpy(p->head + place, digits, CHECKSUM_DIGITS);
    XXH3_freeState(sum);
    return true;
}

// The pieces point into the image and into themselves.
static int cut_pieces(const ssm_model *model, const snapshot_image *image,
                      const snapshot_label *label, pieces *p, ssm_error *err) {
    snapshot_part parts[N_PARTS];
    const uint64_t length = HEADER_BYTES;
    const bool has_logits = image->text.n_pending == 0;
    const int rc = snapshot_image_wait(image, err);
    if (rc != 0)
        return rc;
    snapshot_parts(&ssm_model_weights(model)->geometry, image->text.n_pending, parts);
    memcpy(p->head, &length, sizeof length);
    p->at[HEAD] = (struct iovec){p->head, sizeof p->head};
    p->at[STATE] = (struct iovec){image->state, parts[PART_CONV].bytes + parts[PART_SSM].bytes};
    p->at[REST] = (struct iovec){has_logits ? (void *)image->logits : image->text.pending,
                                 parts[PART_REST].bytes};
    p->size = p->at[HEAD].iov_len + p->at[STATE].iov_len + p->at[REST].iov_len;
    if (write_header(p->head + LENGTH_BYTES, model, image, label, parts) && seal_pieces(p))
        return 0;
    return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for a session's file");
}

int snapshot_file_encode(const ssm_model *model, const snapshot_image *image,
                         const snapshot_label *label, uint8_t **out, size_t *size, ssm_error *err) {
    pieces p;
    *out = NULL;
    const int rc = cut_pieces(model, image, label, &p, err);
    if (rc != 0)
        return rc;
    *size = p.size;
    uint8_t *at = *out = malloc(p.size);
    if (!at)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for a session's file");
    for (int i = 0; i < N_PIECES; i++) {
        memcpy(at, p.at[i].iov_base, p.at[i].iov_len);
        at += p.at[i].iov_len;
    }
    return 0;
}

int snapshot_file_write(const ssm_model *model, const snapshot_image *image,
                        const snapshot_label *label, const char *path, bool sync, ssm_error *err) {
    pieces p;
    const int rc = cut_pieces(model, image, label, &p, err);
    return rc != 0 ? rc : file_replace(path, p.at, N_PIECES, sync, err);
}

int snapshot_file_put(const ssm_model *model, const snapshot_image *image, int fd, uint64_t *size,
                      ssm_error *err) {
    pieces p;
    const int rc = cut_pieces(model, image, NULL, &p, err);
    if (rc == 0 && size)
        *size = p.size;
    return rc != 0 ? rc : file_write(fd, p.at, N_PIECES, err);
}

bool snapshot_file_seal(uint8_t *bytes, size_t size) {
    XXH3_state_t *sum = XXH3_createState();
    const size_t place = snapshot_find_checksum(bytes);
    char digits[CHECKSUM_DIGITS + 1];
    const bool is_ok = sum && place > 0;
    if (is_ok) {
        snapshot_sum_header(sum, bytes, size, place);
        snapshot_sum_digits(sum, digits);
        memcpy(bytes + place, digits, CHECKSUM_DIGITS);
    }
    XXH3_freeState(sum);
    return is_ok;
}

uint64_t snapshot_file_max(const ssm_model *model) {
    const ssm_model_info *info = ssm_model_get_info(model);
    const uint64_t logits = (uint64_t)info->vocab_size * sizeof(float);
    const uint64_t pending = (uint64_t)MAX_PENDING * sizeof(int32_t);
    return LENGTH_BYTES + HEADER_BYTES + info->state_bytes + (logits > pending ? logits : pending);
}
