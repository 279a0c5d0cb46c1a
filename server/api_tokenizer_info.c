// SPDX-License-Identifier: Apache-2.0
// GET /tokenizer_info: what a client must know to tokenize through /tokenize alone, under vLLM's
// names. lm-eval's local-completions looks here first and then needs no tokenizer of its own. It is
// of the first model, the one that /tokenize takes if none is named. The chat template is left out:
// POST /apply-template applies it.
#include "loop.h"
#include "routes.h"
#include "server.h"

// A token's text, or null for an id of none.
static void put_token(buf *out, const char *key, const served_model *m, int32_t id) {
    size_t len = 0;
    const char *text = id >= 0 ? ssm_tokenizer_piece(m->tokenizer, id, &len) : NULL;
    buf_printf(out, ",\"%s\":", key);
    if (text) {
        json_put_string(out, text, len);
    } else {
        buf_str(out, "null");
    }
}

void api_tokenizer_info(exchange *ex) {
    const served_model *m = registry_find(&ex->conn->loop->server->models, NULL);
    const ssm_model_info *info = m->info;
    buf body = {0};
    buf_str(&body, "{\"tokenizer_class\":\"ssmd\",\"model\":");
    json_put_text(&body, m->name);
    put_token(&body, "bos_token", m, info->bos_id);
    put_token(&body, "eos_token", m, info->n_eos > 0 ? info->eos_ids[0] : -1);
    buf_printf(&body, ",\"vocab_size\":%d}", ssm_tokenizer_vocab_size(m->tokenizer));
    http_reply_json(ex, 200, &body);
}
