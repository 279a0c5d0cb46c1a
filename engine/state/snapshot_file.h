// SPDX-License-Identifier: Apache-2.0
// A session's state as a file: safetensors, so that any tool of the field can look inside.
//
//     conv     F32 [n_layers][conv_dim][d_conv - 1]   the canonical state of kernels/weights.h
//     ssm      F32 [n_layers][d_inner][d_state]       (Mamba-2: [n_heads][head_dim] in the middle)
//     logits   F32 [vocab_size]                       of the next token
//     pending  I32 [n]                                in place of logits: tokens behind the state
//
// The metadata names the format, the architecture, the model's hash, how many tokens there are, how
// many of them the state covers, the last few, the chain over all (session.h), and a checksum over
// header and data with the checksum's own digits read as zeros; and what the last turn's consumer
// left with it (ssm_engine_keep). No times and no names: the same state gives the same bytes. A
// label, if there is one, adds a session's name, owner and times for a store that must find it
// again.
//
// Hash and checksum are XXH3-128: they guard against accidents, at the speed of memory, where a
// cryptographic hash would take longer than all the rest of a save. They cannot guard against
// someone who makes a file on purpose, and neither could SHA-256 without a key. So nothing in a
// file is believed: the header is parsed by the reader of checkpoints, every size and shape must be
// this model's, every number finite, every id in the vocabulary. What a hostile file can do is be a
// session with strange things in its state, which its owner could have had anyway.
#ifndef SSM_ENGINE_SNAPSHOT_FILE_H
#define SSM_ENGINE_SNAPSHOT_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ssm/model.h>
#include <ssm/session.h>

#include "session.h"
#include "state_pool.h"

typedef struct snapshot_image {
    state_pool *pool; // of the state; NULL: malloc
    float *state;     // canonical, with room for logits behind it
    uint64_t ticket;  // of the copy that fills it; 0: it is filled
    float *logits;    // [vocab] there, if text.n_pending is 0, else NULL
    session_text text;
} snapshot_image;

// Until the state is there; the functions that write files do it themselves.
int snapshot_image_wait(const snapshot_image *image, ssm_error *err);
void snapshot_image_dispose(snapshot_image *image); // its pool stays

typedef struct snapshot_label {
    char name[SSM_SESSION_NAME + 1];
    uint64_t owner[2];
    int64_t created, last_used;
} snapshot_label;

// The file's bytes in one buffer from malloc; label may be NULL.
int snapshot_file_encode(const ssm_model *model, const snapshot_image *image,
                         const snapshot_label *label, uint8_t **out, size_t *size, ssm_error *err);

// The image of a file's bytes, whose pool is the caller's to set. SSM_EINVAL says what is wrong
// with them; SSM_ENOMEM. label (may be NULL) stays as it is if the file has none; *has_label (may
// be NULL) says so.
int snapshot_file_decode(const ssm_model *model, const uint8_t *bytes, size_t size,
                         snapshot_image *image, snapshot_label *label, bool *has_label,
                         ssm_error *err);

// To a file, as file_replace (files.h); label may be NULL.
int snapshot_file_write(const ssm_model *model, const snapshot_image *image,
                        const snapshot_label *label, const char *path, bool sync, ssm_error *err);
// The same into an open file, unlabelled; *size may be NULL.
int snapshot_file_put(const ssm_model *model, const snapshot_image *image, int fd, uint64_t *size,
                      ssm_error *err);
int snapshot_file_read(const ssm_model *model, const char *path, snapshot_image *image,
                       snapshot_label *label, bool *has_label, ssm_error *err);

// A labelled file's header alone: whose it is and how long its text, without pending tokens. Its
// size is checked, its checksum is not. SSM_EINVAL: it is no session of this model, or has no
// label.
int snapshot_file_peek(const ssm_model *model, const char *path, session_text *text,
                       snapshot_label *label, ssm_error *err);

// Puts the checksum into a file's header, whose length must be within the file; false: there is no
// place for it, or no memory.
bool snapshot_file_seal(uint8_t *bytes, size_t size);

// Bytes of the largest file of this model.
uint64_t snapshot_file_max(const ssm_model *model);

// XXH3-128 over geometry and weights; computed once a model, at the speed at which its file can be
// read. Any thread.
void model_hash(const ssm_model *model, uint64_t out[2]);

#endif
