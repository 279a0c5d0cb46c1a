// SPDX-License-Identifier: Apache-2.0
#include "answer_text.h"

#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

int answer_text_init(answer_text *a) {
    *a = (answer_text){.hash = XXH3_createState()};
    if (!a->hash) {
        return SSM_ENOMEM;
    }
    XXH3_128bits_reset(a->hash);
    return 0;
}

void answer_text_dispose(answer_text *a) {
    XXH3_freeState(a->hash);
    ssm_text_dispose(&a->space);
    free(a->tokens);
    *a = (answer_text){0};
}

// ---- as it comes

static void add_core(answer_text *a, const char *text, size_t len) {
    if (a->core == 0) {
        a->lead = a->space.len;
    } else if (a->space.len > 0) {
        XXH3_128bits_update(a->hash, a->space.data, a->space.len);
        a->core += a->space.len;
    }
    a->space.len = 0;
    XXH3_128bits_update(a->hash, text, len);
    a->core += len;
}

int answer_text_show(answer_text *a, const char *text, size_t len) {
    for (size_t at = 0; at < len;) {
        const size_t space = chat_note_space(text + at, len - at);
        if (space > 0 && ssm_text_append(&a->space, text + at, space) != 0) {
            return SSM_ENOMEM;
        }
        size_t word = at + space;
        while (space == 0 && word < len && chat_note_space(text + word, len - word) == 0) {
            word++;
        }
        if (space == 0) {
            add_core(a, text + at, word - at);
        }
        at = word;
    }
    return 0;
}

int answer_text_token(answer_text *a, int32_t id, uint64_t end) {
    if (a->n == a->cap) {
        const size_t cap = a->cap ? 2 * a->cap : 64;
        answer_token *tokens = realloc(a->tokens, cap * sizeof *tokens);
        if (!tokens) {
            return SSM_ENOMEM;
        }
        a->tokens = tokens;
        a->cap = cap;
    }
    a->tokens[a->n++] = (answer_token){end, id};
    return 0;
}

// ---- its end

static uint64_t end_of(const answer_text *a, size_t n) {
    return n > 0 ? a->tokens[n - 1].end : 0;
}

// The tokens whose text has been shown whole, up to the last that has any: behind a cut, tokens
// without text (half a character, a hidden special) belong to what was cut.
static size_t count_shown(const answer_text *a, uint64_t shown) {
    size_t n = a->n;
    while (n > 0 && (end_of(a, n) > shown || end_of(a, n) == end_of(a, n - 1))) {
        n--;
    }
    return n;
}

// Whether the template writes the answer's last token itself; its text goes into the note.
static bool take_closing(const answer_text *a, const answer_end *end,
                         const ssm_tokenizer *tokenizer, chat_note *note) {
    size_t len = 0;
    const char *piece = ssm_tokenizer_piece(tokenizer, a->tokens[a->n - 1].id, &len);
    const bool is_text = end_of(a, a->n) > end_of(a, a->n - 1);
    if (!piece || len == 0 || len > CHAT_NOTE_PART || is_text ||
        strncmp(end->closing, piece, len) != 0) {
        return false;
    }
    memcpy(note->closing, piece, len);
    note->n_closing = (uint8_t)len;
    return true;
}

// White space behind the core that the tokens hold, as much of it as a note has room for.
static void take_trail(const answer_text *a, uint64_t covered, chat_note *note) {
    const uint64_t behind = covered - (a->lead + a->core);
    size_t at = 0, n;
    while (at < a->space.len && (n = chat_note_space(a->space.data + at, a->space.len - at)) > 0 &&
           at + n <= behind && at + n <= CHAT_NOTE_PART) {
        at += n;
    }
    if (at > 0) {
        memcpy(note->trail, a->space.data, at);
    }
    note->n_trail = (uint8_t)at;
}

size_t answer_text_end(const answer_text *a, const answer_end *end, const ssm_tokenizer *tokenizer,
                       chat_note *note) {
    const uint64_t core_end = a->lead + a->core, shown = core_end + a->space.len;
    const XXH128_hash_t h = XXH3_128bits_digest(a->hash);
    uint64_t covered = shown;
    size_t n = a->n;
    note->core_bytes = a->core;
    note->core_hash[0] = h.high64;
    note->core_hash[1] = h.low64;
    if (end->is_cut) {
        n = count_shown(a, shown);
        covered = end_of(a, n);
    } else if (end->has_stop_token && n > 0 && !take_closing(a, end, tokenizer, note)) {
        n--;
        covered = end_of(a, a->n) > end_of(a, n) ? end_of(a, n) : shown;
    }
    if (covered >= core_end) {
        take_trail(a, covered, note);
    } else if (covered > a->lead) {
        note->uncovered = (uint32_t)(core_end - covered);
    } else { // of the answer nothing is left, not even the space before it
        note->uncovered = (uint32_t)a->core;
        n = 0;
    }
    note->anchor = n > 0 ? a->tokens[n - 1].id : -1;
    return n;
}
