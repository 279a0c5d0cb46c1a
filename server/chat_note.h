// SPDX-License-Identifier: Apache-2.0
// What a session remembers of a chat, so that the next turn can tell its conversation from another
// by the text that clients send back.
//
// Clients keep messages, not tokens. The next request holds the whole conversation as text, the
// last answer as it was shown, and the template renders it anew. To compare tokens would refuse
// most honest clients: an answer's tokens are seldom those that its text is encoded to; templates
// trim it; the token that ended the turn is no part of it, nor is what a stop string cut; and the
// whole past would be encoded each turn. So text is compared: the rendered prompt of the last turn
// must be the beginning of the new one, byte by byte (length and 128-bit hash), and the answer as
// it was shown must follow, up to white space around it. What comes after that, and only that, runs
// behind the session's own tokens: what the model has really read and written.
//
// A session's tokens may hold less of the answer than was shown (a stop string cut inside a token:
// `uncovered`), white space that the template has trimmed, and the end-of-turn token if the model
// wrote one that the template writes too (`closing`): the new text is aligned over all three.
//
// An edited message, another system prompt, a template that rewrites the past (dates, reasoning
// taken out): no match. Then the tokens of the whole are compared (ssm_request.session_whole),
// which is right for sessions that were made by completions, and the answer is session_mismatch.
#ifndef SSMD_CHAT_NOTE_H
#define SSMD_CHAT_NOTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CHAT_NOTE_PART = 64, CHAT_NOTE_BYTES = 256 };

typedef struct chat_note {
    uint64_t prompt_bytes, prompt_hash[2]; // the last turn's rendered text
    uint64_t core_bytes, core_hash[2];     // the answer as shown, without the white space around it
    uint32_t uncovered; // bytes at the core's end that the tokens do not hold; all of them: nor the
                        // white space in front of it
    int32_t anchor;     // the session's last token; -1: not known
    uint8_t n_trail, n_closing;
    char trail[CHAT_NOTE_PART];   // white space behind the core that the tokens hold
    char closing[CHAT_NOTE_PART]; // text of the end-of-turn token that they end with
} chat_note;

// To bytes for ssm_engine_keep; returns how many.
size_t chat_note_write(const chat_note *note, uint8_t out[CHAT_NOTE_BYTES]);

// From a session's memo, which may be anybody's; false: it is no note.
bool chat_note_read(chat_note *note, const uint8_t *bytes, size_t n);

// Where in a rendered conversation the part begins that the session does not hold yet; false: this
// is another conversation.
bool chat_note_match(const chat_note *note, const char *text, size_t len, size_t *at);

void chat_note_hash(const char *text, size_t len, uint64_t out[2]);

// Bytes of the white space character that a text begins with, 0 if it begins with another: what
// Python's str.strip takes away, and with it templates.
size_t chat_note_space(const char *text, size_t len);

#endif
