// SPDX-License-Identifier: Apache-2.0
#include "chat_turn.h"

#include <stdio.h>
#include <string.h>

#include "chat_note.h"

_Static_assert((int)CHAT_NOTE_BYTES <= (int)SSM_SESSION_MEMO, "a note fits at a session");

// ---- the prompt

// The ids of a text that goes on behind the session's last token. A tokenizer may treat the
// beginning of a text in a way of its own (a space put in front, say), so that the token's text is
// encoded in front of it where that gives the token back.
static int encode_rest(const ssm_tokenizer *tokenizer, int32_t anchor, const char *text, size_t len,
                       ssm_ids *out, ssm_error *err) {
    ssm_text joined = {0};
    ssm_ids ids = {0};
    int rc = 0;
    if (len > 0 && anchor >= 0 && anchor < ssm_tokenizer_vocab_size(tokenizer)) {
        rc = ssm_tokenizer_decode(tokenizer, &anchor, 1, 0, &joined, err);
        rc = rc == 0 ? ssm_text_append(&joined, text, len) : rc;
        rc = rc == 0 ? ssm_tokenizer_encode(tokenizer, joined.data, joined.len, 0, &ids, err) : rc;
    }
    if (rc == 0 && ids.len > 1 && ids.data[0] == anchor) {
        rc = ssm_ids_append(out, ids.data + 1, ids.len - 1);
    } else if (rc == 0 && len > 0) {
        rc = ssm_tokenizer_encode(tokenizer, text, len, 0, out, err);
    }
    ssm_ids_dispose(&ids);
    ssm_text_dispose(&joined);
    return rc;
}

int chat_turn_encode(chat_turn *turn, const completion *request, const served_model *model,
                     ssm_ids *out, ssm_error *err) {
    const completion_prompt *prompt = &request->prompts[0];
    ssm_session_info info = {.n_memo = 0};
    chat_note note;
    size_t at;
    int rc = ssm_session_get(model->engine, turn->owner, request->session, &info, err);
    if (rc < 0 && rc != SSM_ENOTFOUND) {
        return rc;
    }
    turn->at = info.at;
    turn->prompt_bytes = prompt->text_len;
    chat_note_hash(prompt->text, prompt->text_len, turn->prompt_hash);
    turn->is_whole = !chat_note_read(&note, info.memo, info.n_memo) ||
                     !chat_note_match(&note, prompt->text, prompt->text_len, &at);
    if (turn->is_whole) {
        const unsigned flags = completion_adds_special(request, model) ? SSM_ADD_SPECIAL : 0;
        return ssm_tokenizer_encode(model->tokenizer, prompt->text, prompt->text_len, flags, out,
                                    err);
    }
    return encode_rest(model->tokenizer, note.anchor, prompt->text + at, prompt->text_len - at, out,
                       err);
}

// ---- the answer

size_t chat_turn_end(const chat_turn *turn, const choice_text *choice, uint8_t memo[],
                     size_t *n_memo) {
    chat_note note = {.prompt_bytes = turn->prompt_bytes,
                      .prompt_hash = {turn->prompt_hash[0], turn->prompt_hash[1]}};
    const answer_end end = {
        .is_cut = choice->end == CHOICE_STOP_STRING,
        .has_stop_token = choice->end == CHOICE_EOS || choice->end == CHOICE_STOP_ID,
        .closing = choice->model->closing,
    };
    const size_t n = answer_text_end(choice->answer, &end, choice->model->tokenizer, &note);
    *n_memo = chat_note_write(&note, memo);
    return n;
}

void chat_turn_closing(const ssm_chat *chat, char *out) {
    static const char mark[] = "an-answer-of-one-word";
    char messages[128];
    ssm_text text = {0};
    const int len = snprintf(
        messages, sizeof messages,
        "[{\"role\":\"user\",\"content\":\"x\"},{\"role\":\"assistant\",\"content\":\"%s\"}]",
        mark);
    *out = '\0';
    if (ssm_chat_render(chat, messages, (size_t)len, NULL, &text, NULL) == 0 && text.len > 0) {
        const char *found = strstr(text.data, mark);
        const char *at = found ? found + strlen(mark) : "";
        size_t left = strlen(at);
        for (size_t n; (n = chat_note_space(at, left)) > 0; left -= n) {
            at += n;
        }
        snprintf(out, CHAT_NOTE_PART + 1, "%s", at);
    }
    ssm_text_dispose(&text);
}
