// SPDX-License-Identifier: Apache-2.0
#include "chat_note.h"

#include <string.h>

#include <xxhash.h>

enum { VERSION = 1 };

void chat_note_hash(const char *text, size_t len, uint64_t out[2]) {
    const XXH128_hash_t h = XXH3_128bits(len ? text : "", len);
    out[0] = h.high64;
    out[1] = h.low64;
}

size_t chat_note_space(const char *text, size_t len) {
    static const char *const wide[] = {"\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80",
                                       "\xe2\x80\xa8", "\xe2\x80\xa9", "\xe2\x80\xaf",
                                       "\xe2\x81\x9f", "\xe3\x80\x80"};
    const unsigned char *s = (const unsigned char *)text;
    if (len == 0) {
        return 0;
    }
    if (s[0] < 0x80) {
        return s[0] == ' ' || (s[0] >= 0x09 && s[0] <= 0x0d) || (s[0] >= 0x1c && s[0] <= 0x1f);
    }
    if (len >= 3 && s[0] == 0xe2 && s[1] == 0x80 && s[2] >= 0x80 && s[2] <= 0x8a) {
        return 3; // U+2000 to U+200A
    }
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++) {
        const size_t n = strlen(wide[i]);
        if (len >= n && memcmp(s, wide[i], n) == 0) {
            return n;
        }
    }
    return 0;
}

// ---- bytes

struct cursor {
    uint8_t *out;      // writing, or
    const uint8_t *in; // reading
    size_t at, end;
    bool failed;
};

static void pass(struct cursor *c, void *value, size_t n) {
    if (n > c->end - c->at) {
        c->failed = true;
    } else if (c->out) {
        memcpy(c->out + c->at, value, n);
        c->at += n;
    } else {
        memcpy(value, c->in + c->at, n);
        c->at += n;
    }
}

// The one order of the fields, for both directions.
static void pass_note(struct cursor *c, chat_note *note) {
    uint8_t version = VERSION;
    pass(c, &version, 1);
    c->failed = c->failed || version != VERSION;
    pass(c, &note->prompt_bytes, 8);
    pass(c, note->prompt_hash, 16);
    pass(c, &note->core_bytes, 8);
    pass(c, note->core_hash, 16);
    pass(c, &note->uncovered, 4);
    pass(c, &note->anchor, 4);
    pass(c, &note->n_trail, 1);
    pass(c, &note->n_closing, 1);
    c->failed = c->failed || note->n_trail > CHAT_NOTE_PART || note->n_closing > CHAT_NOTE_PART;
    if (!c->failed) {
        pass(c, note->trail, note->n_trail);
        pass(c, note->closing, note->n_closing);
    }
}

size_t chat_note_write(const chat_note *note, uint8_t out[CHAT_NOTE_BYTES]) {
    chat_note copy = *note;
    struct cursor c = {.out = out, .end = CHAT_NOTE_BYTES};
    pass_note(&c, &copy);
    return c.failed ? 0 : c.at;
}

bool chat_note_read(chat_note *note, const uint8_t *bytes, size_t n) {
    struct cursor c = {.in = bytes, .end = n};
    *note = (chat_note){0};
    pass_note(&c, note);
    return !c.failed && c.at == n && note->uncovered <= note->core_bytes;
}

// ---- comparing

// Whether the text from *at on is n bytes of that hash; steps over them.
static bool takes(const char *text, size_t len, size_t *at, uint64_t n, const uint64_t hash[2]) {
    uint64_t found[2];
    if (n > len - *at) {
        return false;
    }
    chat_note_hash(text + *at, (size_t)n, found);
    *at += (size_t)n;
    return found[0] == hash[0] && found[1] == hash[1];
}

static size_t skip_space(const char *text, size_t len, size_t at) {
    for (size_t n; (n = chat_note_space(text + at, len - at)) > 0;) {
        at += n;
    }
    return at;
}

// Of white space that the session and the text both have behind the answer, one is enough.
static size_t skip_trail(const chat_note *note, const char *text, size_t len, size_t at) {
    for (size_t i = 0, n; i < note->n_trail; i += n) {
        n = chat_note_space(note->trail + i, note->n_trail - i);
        if (n == 0 || n > len - at || memcmp(text + at, note->trail + i, n) != 0) {
            break;
        }
        at += n;
    }
    return at;
}

bool chat_note_match(const chat_note *note, const char *text, size_t len, size_t *out) {
    size_t at = 0;
    if (!takes(text, len, &at, note->prompt_bytes, note->prompt_hash)) {
        return false;
    }
    if (note->core_bytes > 0) {
        at = skip_space(text, len, at);
        if (!takes(text, len, &at, note->core_bytes, note->core_hash)) {
            return false;
        }
    }
    if (note->uncovered > 0) {
        const bool is_all = note->uncovered == note->core_bytes;
        *out = is_all ? (size_t)note->prompt_bytes : at - note->uncovered;
        return true;
    }
    at = skip_trail(note, text, len, at);
    if (note->n_closing > 0) {
        at = skip_space(text, len, at);
        if (note->n_closing > len - at || memcmp(text + at, note->closing, note->n_closing) != 0) {
            return false;
        }
        at += note->n_closing;
    }
    *out = at;
    return true;
}
