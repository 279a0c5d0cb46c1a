// SPDX-License-Identifier: Apache-2.0
// Stop strings over a stream of text.
//
// A ssm_stopper takes the text of one choice piece by piece and releases what may be shown: text
// that could still turn out to be the beginning of a stop string is held back, and a stop string
// that ends across two pieces is found. It belongs to one thread at a time and owns copies of its
// strings. Matching is linear in the text (Aho-Corasick), whatever the strings.
#ifndef SSM_TEXT_H
#define SSM_TEXT_H

#include <ssm/tokenizer.h>

typedef struct ssm_stopper ssm_stopper;

typedef struct ssm_string {
    const char *data;
    size_t len;
} ssm_string;

// n stop strings (each 1 byte or more, copied). include: the stop string itself is released too.
// 0, SSM_EINVAL or SSM_ENOMEM; n = 0 gives a stopper that releases everything.
int ssm_stopper_create(const ssm_string *stops, size_t n, bool include, ssm_stopper **out);
void ssm_stopper_free(ssm_stopper *stopper);

// Appends to *out what of the text so far is safe to show. Returns 1 + the index of the stop string
// that was completed (the earliest end; at equal ends the earliest start), 0 if none yet, or a
// negative code. After a match nothing more is released.
int ssm_stopper_push(ssm_stopper *stopper, const char *text, size_t len, ssm_text *out);

// The stream ended without a stop: releases what was held back.
int ssm_stopper_finish(ssm_stopper *stopper, ssm_text *out);

// Bytes of text held back at this moment.
size_t ssm_stopper_held(const ssm_stopper *stopper);

#endif
