// SPDX-License-Identifier: Apache-2.0
// A session's file from foreign bytes, as they are and with the checksum made to fit, without which
// no mutation would get past it. What is accepted must be a session that a turn could go on from:
// finite, of the model's sizes, with ids of its vocabulary; and what is written of it must be read
// back the same. The note of a chat in it must lead nowhere outside a text.
#include <assert.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "chat_note.h"
#include "engine/model/model.h"
#include "engine/state/snapshot_file.h"

static ssm_model *model;
static size_t state_floats;

static void open_model(void) {
    ssm_error err = {0};
    const int rc = ssm_model_open(SSM_TEST_DATA "/models/copying-mamba", &model, &err);
    assert(rc == 0);
    (void)rc;
    const ssm_geometry *g = &ssm_model_weights(model)->geometry;
    state_floats = ssm_state_conv_floats(g) + ssm_state_ssm_floats(g);
}

static void check_floats(const float *v, size_t n) {
    for (size_t i = 0; i < n; i++) {
        assert(isfinite(v[i]));
    }
}

static void check_image(const snapshot_image *image) {
    const ssm_model_info *info = ssm_model_get_info(model);
    const session_text *text = &image->text;
    check_floats(image->state, state_floats);
    assert((image->logits != NULL) == (text->n_pending == 0));
    if (image->logits) {
        check_floats(image->logits, (size_t)info->vocab_size);
    }
    assert(text->n_pending < text->n_tokens && text->n_last <= SESSION_LAST);
    for (size_t i = 0; i < text->n_pending; i++) {
        assert(text->pending[i] >= 0 && text->pending[i] < info->vocab_size);
    }
    for (size_t i = 0; i < text->n_last; i++) {
        assert(text->last[i] >= 0 && text->last[i] < info->vocab_size);
    }
}

static void check_label(const snapshot_label *label) {
    assert(session_name_is_valid(label->name));
    assert(label->created >= 0 && label->last_used >= 0);
}

static void check_written(const snapshot_image *image) {
    uint8_t *bytes;
    size_t size;
    snapshot_image back = {0};
    ssm_error err;
    if (snapshot_file_encode(model, image, NULL, &bytes, &size, &err) != 0) {
        abort();
    }
    if (snapshot_file_decode(model, bytes, size, &back, NULL, NULL, &err) != 0) {
        abort();
    }
    assert(size <= snapshot_file_max(model));
    assert(memcmp(back.state, image->state, state_floats * sizeof(float)) == 0);
    assert(back.text.n_tokens == image->text.n_tokens);
    assert(chain_is(back.text.chain, image->text.chain));
    assert(back.text.n_memo == image->text.n_memo);
    assert(memcmp(back.text.memo, image->text.memo, back.text.n_memo) == 0);
    snapshot_image_dispose(&back);
    free(bytes);
}

static void check_note(const session_text *text) {
    static const char chat[] = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n Ho ho \n";
    chat_note note;
    size_t at;
    if (chat_note_read(&note, text->memo, text->n_memo) &&
        chat_note_match(&note, chat, sizeof chat - 1, &at)) {
        assert(at <= sizeof chat - 1);
    }
}

static void decode(const uint8_t *data, size_t size) {
    snapshot_image image = {0};
    snapshot_label label = {.name = ""};
    bool has_label = false;
    ssm_error err = {0};
    const int rc = snapshot_file_decode(model, data, size, &image, &label, &has_label, &err);
    if (rc != 0) {
        assert(rc == SSM_EINVAL && err.code == rc && err.message[0]); // a refusal says why
        return;
    }
    check_image(&image);
    check_note(&image.text);
    check_written(&image);
    if (has_label) {
        check_label(&label);
    }
    snapshot_image_dispose(&image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint64_t length = 0;
    if (!model) {
        open_model();
    }
    decode(data, size);
    if (size > sizeof length) {
        memcpy(&length, data, sizeof length);
    }
    if (length > 0 && length <= size - sizeof length) {
        uint8_t *sealed = malloc(size);
        memcpy(sealed, data, size);
        if (snapshot_file_seal(sealed, size)) {
            decode(sealed, size);
        }
        free(sealed);
    }
    return 0;
}
