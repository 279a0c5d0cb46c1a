// SPDX-License-Identifier: Apache-2.0
// The stages of a decoder: what they are (decoder.c reads them), what each remembers in a stream,
// and what each does with the two events (decoder_stages.c).
#ifndef SSM_ENGINE_TEXT_DECODER_STAGES_H
#define SSM_ENGINE_TEXT_DECODER_STAGES_H

#include "engine/text/decoder.h"
#include "engine/text/pattern.h"

enum { MAX_STAGES = 32 };

#define REPLACEMENT "\xef\xbf\xbd" // U+FFFD

typedef enum stage_kind {
    STAGE_JOIN, // no decoder: a space between tokens
    STAGE_BYTE_LEVEL,
    STAGE_BYTE_FALLBACK,
    STAGE_FUSE,
    STAGE_STRIP,     // mark, start, stop
    STAGE_REPLACE,   // pattern, content
    STAGE_METASPACE, // mark, drops_first
    STAGE_BPE,       // pattern (the suffix)
} stage_kind;

typedef struct stage {
    stage_kind kind;
    int32_t mark;
    size_t start, stop;
    bool drops_first;
    pattern *pattern;
    ssm_text content;
} stage;

struct decoder {
    stage stages[MAX_STAGES];
    size_t n;
    bool has_regex;
};

// What a stage remembers in one stream.
typedef struct memory {
    ssm_text hold;  // of the current token, or the unfinished character (ByteLevel: see tail)
    ssm_text run;   // ByteFallback: bytes of the run; BPEDecoder: the last token
    size_t checked; // of run: valid UTF-8 so far
    size_t tokens;  // complete ones so far
    size_t taken, pending; // Strip: marks dropped at the start, marks held at the end
    bool inside;    // Strip: past the start. ByteFallback: the token is not a byte, passing it on
    bool is_broken; // ByteFallback: the run is known to be bad
    char tail[4];   // ByteLevel: an unfinished character
    size_t tail_len;
} memory;

struct decoder_stream {
    const decoder *d;
    matcher *matcher; // NULL unless a stage has an expression
    ssm_text *out;
    memory memory[MAX_STAGES];
};

// Events for stage i; past the last stage they are the stream's text. In decoder.c.
int decoder_on_text(decoder_stream *s, size_t i, const char *text, size_t len);
int decoder_on_end(decoder_stream *s, size_t i);

// A complete token for the stages behind i.
int stage_pass_token(decoder_stream *s, size_t i, const char *text, size_t len);

// What the stages do that do not merely hold or pass on.
int stage_end_byte_level(decoder_stream *s, size_t i);
int stage_text_byte_fallback(decoder_stream *s, size_t i, const char *text, size_t len);
int stage_end_byte_fallback(decoder_stream *s, size_t i);
int stage_end_run(decoder_stream *s, size_t i); // ByteFallback: no more tokens
int stage_text_strip(decoder_stream *s, size_t i, const char *text, size_t len);
int stage_end_strip(decoder_stream *s, size_t i);
int stage_text_replace(decoder_stream *s, size_t i, const char *text, size_t len);
int stage_end_replace(decoder_stream *s, size_t i);
int stage_text_metaspace(decoder_stream *s, size_t i, const char *text, size_t len);
int stage_end_bpe(decoder_stream *s, size_t i);
int stage_pass_last(decoder_stream *s, size_t i, bool at_end); // BPEDecoder: the held token

// The letters of a byte-level token as bytes; false if one of them is no such letter.
bool stage_letters_to_bytes(const char *token, size_t len, ssm_text *out, int *rc);

// The byte of a token "<0xNN>", -1 if it is none.
int stage_byte_token(const char *token, size_t len);

#endif
