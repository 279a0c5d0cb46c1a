// SPDX-License-Identifier: Apache-2.0
// Unicode normal forms in linear time.
#ifndef SSM_ENGINE_TEXT_NFORM_H
#define SSM_ENGINE_TEXT_NFORM_H

#include <stdbool.h>

#include <ssm/tokenizer.h>

// Appends NFD (compat: NFKD; compose: NFC, NFKC) of valid UTF-8. 0 or SSM_ENOMEM.
int nform_append(const char *s, size_t len, bool compat, bool compose, ssm_text *out);

#endif
