// SPDX-License-Identifier: Apache-2.0
// Tokens of a choice -> detokenizer -> stopper -> text that may be shown.
//
// The token that ends a choice (end of text, or one of stop_token_ids) is counted and listed but is
// no text unless include_stop_str_in_output asks for it. Stop strings are not looked for before
// min_tokens, as peers do. The engine goes on drawing until a cancellation reaches it: what comes
// after a stop string is dropped here.
//
// Which tokens are listed beside which text: those that begin in it. A token whose text is held
// back, or is half a character, waits; at the end the rest follows, except what a stop string cut.
#include "choice_text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int choice_text_init(choice_text *c, const completion *request, const served_model *model,
                     ssm_error *err) {
    *c = (choice_text){.request = request, .model = model};
    int rc = ssm_detokenizer_create(model->tokenizer, request->skip_special ? SSM_SKIP_SPECIAL : 0,
                                    &c->detokenizer);
    if (rc == 0) {
        rc = ssm_stopper_create(request->stops, request->n_stops, request->include_stop,
                                &c->stopper);
    }
    if (rc == 0 && request->chat.is_chat && request->session) {
        c->answer = calloc(1, sizeof *c->answer);
        rc = c->answer ? answer_text_init(c->answer) : SSM_ENOMEM;
    }
    return rc < 0 ? ssm_error_set(err, rc, NULL, "%s", ssm_error_text(rc)) : 0;
}

void choice_text_dispose(choice_text *c) {
    ssm_detokenizer_free(c->detokenizer);
    ssm_stopper_free(c->stopper);
    ssm_text_dispose(&c->scratch);
    ssm_text_dispose(&c->shown);
    logprobs_dispose(&c->logprobs);
    ssm_ids_dispose(&c->ids);
    if (c->answer) {
        answer_text_dispose(c->answer);
        free(c->answer);
    }
    *c = (choice_text){0};
}

int choice_text_echo(choice_text *c, const char *text, size_t len) {
    const size_t chars = utf8_count(text, len);
    c->chars += chars;
    c->shown_chars += chars;
    return ssm_text_append(&c->shown, text, len);
}

static bool is_in(const int32_t *ids, size_t n, int32_t id) {
    for (size_t i = 0; i < n; i++) {
        if (ids[i] == id) {
            return true;
        }
    }
    return false;
}

static bool is_stop(const choice_text *c, int32_t id) {
    const completion *r = c->request;
    const ssm_model_info *info = c->model->info;
    return is_in(r->stop_ids, r->n_stop_ids, id) ||
           (!r->ignore_eos && is_in(info->eos_ids, (size_t)info->n_eos, id));
}

// Text was shown behind the first `before` bytes.
static int on_shown(choice_text *c, size_t before) {
    const size_t len = c->shown.len - before;
    if (len == 0) {
        return 0;
    }
    c->shown_chars += utf8_count(c->shown.data + before, len);
    return c->answer ? answer_text_show(c->answer, c->shown.data + before, len) : 0;
}

// What the detokenizer settled, through the stopper if stop strings count by now.
static int show(choice_text *c) {
    const size_t before = c->shown.len;
    const bool counts = c->n_tokens >= c->request->min_tokens;
    c->chars += utf8_count(c->scratch.data, c->scratch.len);
    c->settled += c->scratch.len;
    const int rc = counts ? ssm_stopper_push(c->stopper, c->scratch.data, c->scratch.len, &c->shown)
                          : ssm_text_append(&c->shown, c->scratch.data, c->scratch.len);
    c->scratch.len = 0;
    if (rc > 0) {
        c->end = CHOICE_STOP_STRING;
        c->stop_string = (size_t)rc - 1;
    }
    const int shown = rc < 0 ? 0 : on_shown(c, before);
    return shown < 0 ? shown : rc;
}

static int note(choice_text *c, const ssm_event *event) {
    c->n_tokens++;
    c->sum_logprob += isnan(event->logprob) ? 0 : (double)event->logprob;
    int rc = c->request->logprobs >= 0 ? logprobs_add(&c->logprobs, event, c->chars) : 0;
    if (rc == 0 && c->request->return_token_ids) {
        rc = ssm_ids_append(&c->ids, &event->token, 1);
    }
    return rc;
}

int choice_text_push(choice_text *c, const ssm_event *event, ssm_error *err) {
    if (c->end != CHOICE_OPEN) {
        return 0;
    }
    int rc = note(c, event);
    const bool ends = is_stop(c, event->token) && c->n_tokens > c->request->min_tokens;
    if (rc == 0 && (!ends || c->request->include_stop)) {
        rc = ssm_detokenizer_push(c->detokenizer, event->token, &c->scratch, err);
        rc = rc == 0 ? show(c) : rc;
    }
    if (rc >= 0 && c->answer && answer_text_token(c->answer, event->token, c->settled) < 0) {
        rc = SSM_ENOMEM;
    }
    return rc < 0 ? ssm_error_set(err, rc, NULL, "%s", ssm_error_text(rc)) : rc;
}

int choice_text_finish(choice_text *c, ssm_finish reason, int32_t token, ssm_error *err) {
    if (c->end != CHOICE_OPEN) {
        return 0;
    }
    int rc = ssm_detokenizer_finish(c->detokenizer, &c->scratch, err);
    rc = rc == 0 ? show(c) : rc; // may still complete a stop string
    if (rc == 0) {
        const size_t before = c->shown.len;
        rc = ssm_stopper_finish(c->stopper, &c->shown);
        rc = rc == 0 ? on_shown(c, before) : rc;
    }
    if (rc < 0) {
        return ssm_error_set(err, rc, NULL, "%s", ssm_error_text(rc));
    }
    if (c->end == CHOICE_OPEN) {
        const bool asked = is_in(c->request->stop_ids, c->request->n_stop_ids, token);
        c->end = reason != SSM_FINISH_STOP ? CHOICE_LENGTH : asked ? CHOICE_STOP_ID : CHOICE_EOS;
        c->stop_id = token;
    }
    return 0;
}

size_t choice_text_listed(const choice_text *c) {
    size_t end = c->logprobs.n;
    if (c->end == CHOICE_OPEN || c->end == CHOICE_STOP_STRING) {
        while (end > c->logprobs_sent &&
               c->logprobs.tokens[end - 1].text_offset >= c->shown_chars) {
            end--;
        }
    }
    return end;
}

size_t choice_text_bytes(const choice_text *c) {
    const answer_text *a = c->answer;
    return logprobs_bytes(&c->logprobs) + c->shown.cap +
           (a ? a->cap * sizeof *a->tokens + a->space.cap : 0);
}

const char *choice_text_reason(const choice_text *c) {
    return c->end == CHOICE_OPEN ? NULL : c->end == CHOICE_LENGTH ? "length" : "stop";
}
