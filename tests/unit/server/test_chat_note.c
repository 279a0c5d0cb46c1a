// SPDX-License-Identifier: Apache-2.0
// What a session remembers of a chat: where the next turn's text goes on, which text is another
// conversation, and notes that nobody here has written.
#include "chat_note.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answer_text.h"
#include "suite.h"

static const char prompt[] = "<u>Hi</u><a>";

static chat_note note_of(const char *core, uint32_t uncovered, const char *trail,
                         const char *closing) {
    chat_note note = {.prompt_bytes = strlen(prompt),
                      .core_bytes = strlen(core),
                      .uncovered = uncovered,
                      .anchor = -1,
                      .n_trail = (uint8_t)strlen(trail),
                      .n_closing = (uint8_t)strlen(closing)};
    chat_note_hash(prompt, strlen(prompt), note.prompt_hash);
    chat_note_hash(core, strlen(core), note.core_hash);
    memcpy(note.trail, trail, note.n_trail);
    memcpy(note.closing, closing, note.n_closing);
    return note;
}

START_TEST(texts_are_aligned_behind_what_the_session_holds) {
    static const struct {
        const char *core;
        uint32_t uncovered;
        const char *trail, *closing, *text, *rest; // rest NULL: another conversation
    } cases[] = {
        {"Ho ho", 0, "", "", "Ho ho</a><u>", "</a><u>"},
        {"Ho ho", 0, "", "", " \n\t Ho ho</a>", "</a>"},
        {"Ho ho", 0, "", "", "\xe2\x80\x83\xc2\xa0Ho ho", ""},
        {"Ho ho", 0, "", "", "Ho ho", ""},
        {"Ho ho", 0, "", "", "Ho  ho</a>", NULL},
        {"Ho ho", 0, "", "", "Ho h", NULL},
        {"Ho ho", 0, "", "", "", NULL},
        {"Ho ho", 0, "", "", "xHo ho", NULL},
        {"Ho ho", 0, "", "", "Ho hoho", "ho"}, // it does begin with the answer
        // a stop string has cut inside a token, or before any
        {"Ho ho", 2, "", "", " Ho ho</a>", "ho</a>"},
        {"Ho ho", 5, "", "", " Ho ho</a>", " Ho ho</a>"},
        // white space that both have is not run again; what only the text has is
        {"Ho", 0, "\n\n", "", "Ho\n\n\n<u>", "\n<u>"},
        {"Ho", 0, "\n\n", "", "Ho\n<u>", "<u>"},
        {"Ho", 0, "\n\n", "", "Ho<u>", "<u>"},
        {"Ho", 0, " \n", "", "Ho\n <u>", "\n <u>"},
        {"Ho", 0, "\xe2\x80\xa8", "", "Ho\xe2\x80\xa9x", "\xe2\x80\xa9x"}, // two shared bytes
        {"", 0, "\n", "", "\n\n<u>", "\n<u>"},
        {"", 0, "", "", "  </a>", "  </a>"},
        // the model has written the end of its turn, so the text must have it there
        {"Ho", 0, "", "</a>", "Ho</a><u>", "<u>"},
        {"Ho", 0, " ", "</a>", "Ho</a><u>", "<u>"},
        {"Ho", 0, "", "</a>", "Ho \n</a><u>", "<u>"},
        {"Ho", 0, "", "</a>", "Ho, said he</a><u>", NULL},
        {"Ho", 0, "", "</a>", "Ho</", NULL},
        {"", 0, "", "</a>", "</a><u>", "<u>"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[128];
        size_t at = 0;
        const chat_note note =
            note_of(cases[i].core, cases[i].uncovered, cases[i].trail, cases[i].closing);
        snprintf(text, sizeof text, "%s%s", prompt, cases[i].text);
        const bool matches = chat_note_match(&note, text, strlen(text), &at);
        ck_assert_msg(matches == (cases[i].rest != NULL), "case %zu", i);
        if (matches) {
            ck_assert_msg(strcmp(text + at, cases[i].rest) == 0, "case %zu: '%s'", i, text + at);
        }
        text[3] ^= 1; // of what came before the answer every byte counts
        ck_assert_msg(!chat_note_match(&note, text, strlen(text), &at), "case %zu", i);
    }
}
END_TEST

START_TEST(notes_come_back_as_they_went) {
    uint8_t bytes[CHAT_NOTE_BYTES];
    char full[CHAT_NOTE_PART + 1];
    memset(full, ' ', sizeof full);
    full[CHAT_NOTE_PART] = '\0';
    const chat_note notes[] = {note_of("Ho", 1, "", ""), note_of("", 0, full, full),
                               note_of("Ho ho", 0, "\n", "</a>")};
    for (size_t i = 0; i < 3; i++) {
        chat_note back;
        const size_t n = chat_note_write(&notes[i], bytes);
        ck_assert_uint_gt(n, 0);
        ck_assert(chat_note_read(&back, bytes, n));
        ck_assert_int_eq(memcmp(&back.prompt_hash, &notes[i].prompt_hash, 16), 0);
        ck_assert_uint_eq(back.core_bytes, notes[i].core_bytes);
        ck_assert_uint_eq(back.uncovered, notes[i].uncovered);
        ck_assert_int_eq(back.anchor, -1);
        ck_assert_uint_eq(back.n_trail, notes[i].n_trail);
        ck_assert_int_eq(memcmp(back.trail, notes[i].trail, back.n_trail), 0);
        ck_assert_int_eq(memcmp(back.closing, notes[i].closing, back.n_closing), 0);
        for (size_t k = 0; k < n; k++) {
            ck_assert(!chat_note_read(&back, bytes, k));
        }
    }
}
END_TEST

// A memo is whatever an imported file says: it may be refused, it may match nothing, it may name
// a place in the text. It never leads outside.
START_TEST(foreign_notes_are_harmless) {
    static const char text[] = "<u>Hi</u><a> Ho ho \n</a><u>x";
    uint32_t seed = 7;
    const chat_note good = note_of("Ho ho", 0, " \n", "</a>");
    for (int i = 0; i < 200000; i++) {
        uint8_t bytes[CHAT_NOTE_BYTES], exact[CHAT_NOTE_BYTES];
        size_t n = chat_note_write(&good, bytes), at = 0;
        for (int k = 0; k < 1 + i % 4; k++) {
            seed = seed * 1664525u + 1013904223u;
            bytes[(seed >> 8) % n] = (uint8_t)(seed >> 24);
        }
        n = i % 7 ? n : (seed >> 4) % sizeof bytes;
        memcpy(exact, bytes, n);
        uint8_t *heap = malloc(n + 1); // of its size, so that a sanitizer sees a read behind it
        memcpy(heap, exact, n);
        chat_note note;
        if (chat_note_read(&note, heap, n) && chat_note_match(&note, text, strlen(text), &at)) {
            ck_assert_uint_le(at, strlen(text));
        }
        free(heap);
    }
    chat_note huge = good;
    size_t at;
    huge.prompt_bytes = UINT64_MAX;
    ck_assert(!chat_note_match(&huge, text, strlen(text), &at));
    huge = good;
    huge.core_bytes = UINT64_MAX - 3;
    ck_assert(!chat_note_match(&huge, text, strlen(text), &at));
}
END_TEST

// ---- answers

static ssm_tokenizer *tokenizer;

static answer_text answer_of(const char *const pieces[], size_t n, const char *shown) {
    answer_text a;
    uint64_t end = 0;
    ck_assert_int_eq(answer_text_init(&a), 0);
    for (size_t i = 0; i < n; i++) {
        end += strlen(pieces[i]);
        ck_assert_int_eq(answer_text_token(&a, (int32_t)i, end), 0);
    }
    for (size_t at = 0, len = strlen(shown); at < len; at++) { // byte by byte but for characters
        size_t k = 1;
        while ((shown[at + k] & 0xc0) == 0x80) {
            k++;
        }
        ck_assert_int_eq(answer_text_show(&a, shown + at, k), 0);
        at += k - 1;
    }
    return a;
}

START_TEST(answers_are_kept_as_far_as_they_were_shown) {
    static const struct {
        const char *pieces[6], *shown, *core, *trail;
        bool is_cut;
        size_t kept;
        uint32_t uncovered;
    } cases[] = {
        {{" Ho", " ho"}, " Ho ho", "Ho ho", "", false, 2, 0},
        {{" Ho", " ho", "\n \xe2\x80\xa9"},
         " Ho ho\n \xe2\x80\xa9",
         "Ho ho",
         "\n \xe2\x80\xa9",
         false,
         3,
         0},
        {{" Ho", " ho", ". ", "U"}, " Ho ho. ", "Ho ho.", " ", true, 3, 0},
        {{" Ho", " ho.", "", "", "U"}, " Ho ho.", "Ho ho.", "", true, 2, 0},
        {{" Ho", " ho. U", "x"}, " Ho ho. ", "Ho ho.", "", true, 1, 4},
        {{" Ho", "U"}, " H", "H", "", true, 0, 1},
        {{" ", "Ho"}, " H", "H", "", true, 0, 1},
        {{"U"}, "", "", "", true, 0, 0},
        {{" \n", "U"}, " \n", "", " \n", true, 1, 0},
        {{" \n", "U"}, " ", "", "", true, 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n = 0;
        while (n < 6 && cases[i].pieces[n]) {
            n++;
        }
        uint64_t want[2];
        chat_note note = {0};
        answer_text a = answer_of(cases[i].pieces, n, cases[i].shown);
        const answer_end end = {.is_cut = cases[i].is_cut, .closing = ""};
        ck_assert_msg(answer_text_end(&a, &end, tokenizer, &note) == cases[i].kept, "case %zu", i);
        chat_note_hash(cases[i].core, strlen(cases[i].core), want);
        ck_assert_uint_eq(note.core_bytes, strlen(cases[i].core));
        ck_assert_int_eq(memcmp(note.core_hash, want, sizeof want), 0);
        ck_assert_msg(note.uncovered == cases[i].uncovered, "case %zu: %u", i, note.uncovered);
        ck_assert_msg(note.n_trail == strlen(cases[i].trail) &&
                          memcmp(note.trail, cases[i].trail, note.n_trail) == 0,
                      "case %zu", i);
        ck_assert_int_eq(note.anchor, cases[i].kept ? (int32_t)cases[i].kept - 1 : -1);
        answer_text_dispose(&a);
    }
}
END_TEST

START_TEST(the_end_of_a_turn_is_kept_if_the_template_writes_it) {
    ssm_error err;
    ck_assert_msg(ssm_tokenizer_open(SSM_DEMO_MODEL, &tokenizer, &err) == 0, "%s", err.message);
    static const struct {
        const char *closing;
        uint64_t end; // of the stop token's text
        size_t kept;
    } cases[] = {{"<|endoftext|>\n", 2, 2},
                 {"<|im_end|>\n", 2, 1},
                 {"", 2, 1},
                 {"<|endoftext|>\n", 15, 1}}; // shown as text: it is part of the answer
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        answer_text a;
        chat_note note = {0};
        ck_assert_int_eq(answer_text_init(&a), 0);
        answer_text_token(&a, 5, 2);
        answer_text_token(&a, 0, cases[i].end);
        answer_text_show(&a, "Ho<|endoftext|>", (size_t)cases[i].end);
        const answer_end end = {.has_stop_token = true, .closing = cases[i].closing};
        ck_assert_msg(answer_text_end(&a, &end, tokenizer, &note) == cases[i].kept, "case %zu", i);
        ck_assert_uint_eq(note.n_closing, cases[i].kept == 2 ? 13 : 0);
        ck_assert_uint_eq(note.uncovered, cases[i].end - 2);
        answer_text_dispose(&a);
    }
    ssm_tokenizer_free(tokenizer);
}
END_TEST

int main(void) {
    const TTest *const tests[] = {texts_are_aligned_behind_what_the_session_holds,
                                  notes_come_back_as_they_went, foreign_notes_are_harmless,
                                  answers_are_kept_as_far_as_they_were_shown,
                                  the_end_of_a_turn_is_kept_if_the_template_writes_it};
    return RUN_SUITE("chat_note", tests);
}
