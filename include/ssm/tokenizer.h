// SPDX-License-Identifier: Apache-2.0
// Tokenizers: tokenizer.json of the Hugging Face tokenizers library, both ways.
//
// A ssm_tokenizer is immutable once open and may be used by any number of threads at once. Text is
// UTF-8 with an explicit length (NUL bytes are text). A ssm_detokenizer holds what one stream of
// ids needs to become text piece by piece; it belongs to one thread at a time.
#ifndef SSM_TOKENIZER_H
#define SSM_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <ssm/error.h>

typedef struct ssm_tokenizer ssm_tokenizer;
typedef struct ssm_detokenizer ssm_detokenizer;

// A growing array of ids, and one of bytes. Zero-initialise; dispose when done. The functions below
// append, so that one buffer can serve many calls.
typedef struct ssm_ids {
    int32_t *data;
    size_t len, cap;
} ssm_ids;
typedef struct ssm_text {
    char *data; // NUL-terminated whenever cap > 0; the NUL is not counted
    size_t len, cap;
} ssm_text;
void ssm_ids_dispose(ssm_ids *ids);
void ssm_text_dispose(ssm_text *text);
int ssm_ids_append(ssm_ids *ids, const int32_t *data, size_t n); // 0 or SSM_ENOMEM
int ssm_text_append(ssm_text *text, const char *data, size_t n); // 0 or SSM_ENOMEM

enum {
    SSM_ADD_SPECIAL = 1,  // encode: apply the post-processor (beginning-of-text and the like)
    SSM_SKIP_SPECIAL = 1, // decode: leave special tokens out
};

// Opens a tokenizer.json, or the one in a model's folder (tokenizer_config.json beside it is read
// for add_bos_token and the like when present). SSM_EIO, SSM_EFORMAT, SSM_EUNSUPPORTED with the
// component's name. *out is the caller's.
int ssm_tokenizer_open(const char *path, ssm_tokenizer **out, ssm_error *err);

// The same from bytes in memory (borrowed during the call).
int ssm_tokenizer_create(const char *json, size_t len, ssm_tokenizer **out, ssm_error *err);
void ssm_tokenizer_free(ssm_tokenizer *tokenizer);

// Highest id + 1 over vocabulary and added tokens: ids from here on have no text.
int32_t ssm_tokenizer_vocab_size(const ssm_tokenizer *tokenizer);

// Text to ids, appended to *out; added tokens found in the text become their ids. Linear in len.
// SSM_EINVAL: text is not valid UTF-8 (the offset is in the message).
int ssm_tokenizer_encode(const ssm_tokenizer *tokenizer, const char *text, size_t len,
                         unsigned flags, ssm_ids *out, ssm_error *err);

// Ids to text, appended to *out, as the library's decode does (clean-up as the decoder says; bytes
// that do not form UTF-8 become U+FFFD). SSM_EINVAL names an id that is out of range.
int ssm_tokenizer_decode(const ssm_tokenizer *tokenizer, const int32_t *ids, size_t n,
                         unsigned flags, ssm_text *out, ssm_error *err);

// The bytes that a token stands for (decoded: no "Ġ", no "<0x0A>", metaspace as a space), borrowed;
// *len may be 0. NULL if the id has no text. May be half a character.
const char *ssm_tokenizer_bytes(const ssm_tokenizer *tokenizer, int32_t id, size_t *len);

// The token as the vocabulary spells it ("Ġthe"), borrowed; NULL if there is none.
const char *ssm_tokenizer_piece(const ssm_tokenizer *tokenizer, int32_t id, size_t *len);

bool ssm_tokenizer_is_special(const ssm_tokenizer *tokenizer, int32_t id);

// The id of a token spelt as in the vocabulary or the added tokens, or -1.
int32_t ssm_tokenizer_find(const ssm_tokenizer *tokenizer, const char *piece, size_t len);

// A stream of ids to text. push appends to *out the text that is settled by now: never half a
// character, never text that a later id could still change; what it appended so far plus what
// finish appends equals decode of all ids. The tokenizer must outlive the detokenizer.
int ssm_detokenizer_create(const ssm_tokenizer *tokenizer, unsigned flags, ssm_detokenizer **out);
void ssm_detokenizer_free(ssm_detokenizer *detokenizer);
int ssm_detokenizer_push(ssm_detokenizer *detokenizer, int32_t id, ssm_text *out, ssm_error *err);
int ssm_detokenizer_finish(ssm_detokenizer *detokenizer, ssm_text *out, ssm_error *err);

#endif
