// SPDX-License-Identifier: Apache-2.0
#include "logprobs.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool grow(void **data, size_t *cap, size_t need, size_t size) {
    if (need <= *cap) {
        return true;
    }
    const size_t wanted = need > *cap * 2 ? need : *cap * 2;
    void *bigger = realloc(*data, wanted * size);
    if (bigger) {
        *data = bigger;
        *cap = wanted;
    }
    return bigger != NULL;
}

int logprobs_add(logprobs *l, const ssm_event *event, size_t text_offset) {
    const size_t n_top = event->n_top > 0 ? (size_t)event->n_top : 0;
    if (!grow((void **)&l->tokens, &l->cap, l->n + 1, sizeof *l->tokens) ||
        !grow((void **)&l->tops, &l->cap_tops, l->n_tops + n_top, sizeof *l->tops)) {
        return SSM_ENOMEM;
    }
    l->tokens[l->n++] = (logprob_token){.id = event->token,
                                        .logprob = event->logprob,
                                        .text_offset = text_offset,
                                        .top = l->n_tops,
                                        .n_top = (int32_t)n_top};
    for (size_t i = 0; i < n_top; i++) {
        l->tops[l->n_tops++] = (logprob_top){event->top_ids[i], event->top_logprobs[i]};
    }
    return 0;
}

size_t logprobs_bytes(const logprobs *l) {
    return l->cap * sizeof *l->tokens + l->cap_tops * sizeof *l->tops;
}

void logprobs_dispose(logprobs *l) {
    free(l->tokens);
    free(l->tops);
    *l = (logprobs){0};
}

// ---- JSON

void logprobs_put_token(buf *out, const ssm_tokenizer *tokenizer, bool as_ids, int32_t id) {
    size_t len = 0;
    const char *bytes = as_ids ? NULL : ssm_tokenizer_bytes(tokenizer, id, &len);
    if (!bytes) {
        buf_printf(out, "\"token_id:%d\"", id);
        return;
    }
    if (utf8_is_valid(bytes, len)) {
        json_put_string(out, bytes, len);
        return;
    }
    buf_str(out, "\"bytes:");
    for (size_t i = 0; i < len; i++) {
        buf_printf(out, "\\\\x%02x", (unsigned char)bytes[i]);
    }
    buf_str(out, "\"");
}

static bool same_text(const ssm_tokenizer *tokenizer, int32_t a, int32_t b) {
    size_t a_len = 0, b_len = 0;
    const char *a_text = ssm_tokenizer_bytes(tokenizer, a, &a_len);
    const char *b_text = ssm_tokenizer_bytes(tokenizer, b, &b_len);
    return a == b ||
           (a_text && b_text && a_len == b_len && (a_len == 0 || !memcmp(a_text, b_text, a_len)));
}

// {token: logprob}: the likeliest, then the drawn one if it is not among them. Entries come
// likeliest first, so of two ids with equal text the first is the one to keep.
static void put_top(buf *out, const ssm_tokenizer *tokenizer, bool as_ids, const logprobs *l,
                    const logprob_token *token) {
    logprob_top entries[SSM_MAX_LOGPROBS + 1];
    int32_t n = token->n_top < SSM_MAX_LOGPROBS ? token->n_top : SSM_MAX_LOGPROBS;
    if (isnan(token->logprob)) {
        buf_str(out, "null");
        return;
    }
    for (int32_t i = 0; i < n; i++) {
        entries[i] = l->tops[token->top + (size_t)i];
    }
    entries[n++] = (logprob_top){token->id, token->logprob};
    bool first = true;
    buf_str(out, "{");
    for (int32_t i = 0; i < n; i++) {
        bool seen = false;
        for (int32_t k = 0; k < i && !seen; k++) {
            seen = as_ids ? entries[k].id == entries[i].id
                          : same_text(tokenizer, entries[k].id, entries[i].id);
        }
        if (seen) {
            continue;
        }
        buf_str(out, first ? "" : ",");
        first = false;
        logprobs_put_token(out, tokenizer, as_ids, entries[i].id);
        buf_str(out, ":");
        json_put_logprob(out, entries[i].logprob);
    }
    buf_str(out, "}");
}

enum part { PART_TOKENS, PART_LOGPROBS, PART_TOP, PART_OFFSETS };

static void put_part(buf *out, const ssm_tokenizer *tokenizer, bool as_ids,
                     const logprobs_span *spans, size_t n_spans, enum part part) {
    bool first = true;
    buf_str(out, "[");
    for (size_t s = 0; s < n_spans; s++) {
        for (size_t i = spans[s].begin; i < spans[s].end; i++) {
            const logprob_token *token = &spans[s].list->tokens[i];
            buf_str(out, first ? "" : ",");
            first = false;
            if (part == PART_TOKENS) {
                logprobs_put_token(out, tokenizer, as_ids, token->id);
            } else if (part == PART_LOGPROBS) {
                json_put_logprob(out, token->logprob);
            } else if (part == PART_TOP) {
                put_top(out, tokenizer, as_ids, spans[s].list, token);
            } else {
                json_put_int(out, (int64_t)token->text_offset);
            }
        }
    }
    buf_str(out, "]");
}

void logprobs_put(buf *out, const ssm_tokenizer *tokenizer, bool as_ids, const logprobs_span *spans,
                  size_t n_spans) {
    static const char *const names[] = {
        "{\"tokens\":", ",\"token_logprobs\":", ",\"top_logprobs\":", ",\"text_offset\":"};
    for (int part = PART_TOKENS; part <= PART_OFFSETS; part++) {
        buf_str(out, names[part]);
        put_part(out, tokenizer, as_ids, spans, n_spans, (enum part)part);
    }
    buf_str(out, "}");
}

// ---- of a chat

// "token":...,"logprob":...,"bytes":[...]
static void put_chat_token(buf *out, const ssm_tokenizer *tokenizer, bool as_ids, int32_t id,
                           float logprob) {
    size_t len = 0;
    const char *bytes = ssm_tokenizer_bytes(tokenizer, id, &len);
    buf_str(out, "\"token\":");
    logprobs_put_token(out, tokenizer, as_ids, id);
    buf_str(out, ",\"logprob\":");
    json_put_logprob(out, logprob);
    buf_str(out, bytes ? ",\"bytes\":[" : ",\"bytes\":null");
    for (size_t i = 0; bytes && i < len; i++) {
        buf_printf(out, i ? ",%d" : "%d", (unsigned char)bytes[i]);
    }
    buf_str(out, bytes ? "]" : "");
}

void logprobs_put_chat(buf *out, const ssm_tokenizer *tokenizer, bool as_ids,
                       const logprobs_span *span) {
    const logprobs *l = span->list;
    buf_str(out, "{\"content\":[");
    for (size_t i = span->begin; i < span->end; i++) {
        const logprob_token *token = &l->tokens[i];
        buf_str(out, i > span->begin ? ",{" : "{");
        put_chat_token(out, tokenizer, as_ids, token->id, token->logprob);
        buf_str(out, ",\"top_logprobs\":[");
        for (int32_t k = 0; k < token->n_top; k++) {
            const logprob_top *top = &l->tops[token->top + (size_t)k];
            buf_str(out, k ? ",{" : "{");
            put_chat_token(out, tokenizer, as_ids, top->id, top->logprob);
            buf_str(out, "}");
        }
        buf_str(out, "]}");
    }
    buf_str(out, "],\"refusal\":null}");
}
