// SPDX-License-Identifier: Apache-2.0
// Chat templates: a template, a NUL and a context in JSON. Whatever compiles must run within its
// bounds, and refusals must say why.
#include <stdlib.h>
#include <string.h>

#include <ssm/template.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const ssm_template_limits limits = {
        .steps = 100000, .output = 1 << 20, .memory = 16 << 20, .now = 1722000000};
    const uint8_t *split = memchr(data, 0, size);
    const size_t source_size = split ? (size_t)(split - data) : size;
    const char *context = split ? (const char *)split + 1 : "{}";
    const size_t context_size = split ? size - source_size - 1 : 2;
    ssm_template *tpl = NULL;
    ssm_text text = {0};
    ssm_error err = {0};
    int rc = ssm_template_create((const char *)data, source_size, &tpl, &err);
    if (rc == 0) {
        rc = ssm_template_render(tpl, context, context_size, &limits, &text, &err);
        if (text.len > limits.output)
            abort();
    }
    if ((rc != 0) != (err.code != 0) || (rc != 0 && err.param[0] == '\0'))
        abort();
    ssm_text_dispose(&text);
    ssm_template_free(tpl);
    return 0;
}
