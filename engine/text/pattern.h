// SPDX-License-Identifier: Apache-2.0
// The patterns of tokenizer files: written for Oniguruma (Ruby syntax), run in PCRE2.
//
// A pattern is immutable once compiled and shared by threads; a matcher holds what one call needs
// and belongs to one thread.
#ifndef SSM_ENGINE_TEXT_PATTERN_H
#define SSM_ENGINE_TEXT_PATTERN_H

#include <stdbool.h>
#include <stddef.h>

#include <ssm/text.h>

typedef struct pattern pattern;
typedef struct matcher matcher;

// regex: an Oniguruma expression; else the literal bytes. SSM_EUNSUPPORTED names a construct that
// has no equal translation; SSM_EFORMAT is a broken expression.
int pattern_create(bool regex, const char *source, size_t len, pattern **out, ssm_error *err);
void pattern_free(pattern *p);

int matcher_create(matcher **out);
void matcher_free(matcher *m);

// Where to look next in one text; zero-initialise.
typedef struct cursor {
    size_t at, last_end;
    bool matched;
} cursor;

// The next match in the valid UTF-8 s[0..len): 1 and its range, 0 when there is none, or a negative
// code. An empty match is given unless it touches the end of the one before.
int pattern_next(const pattern *p, matcher *m, const char *s, size_t len, cursor *c, size_t *start,
                 size_t *end, ssm_error *err);

// The literal bytes of a non-regex pattern, NULL for a regex.
const char *pattern_literal(const pattern *p, size_t *len);

// Translates an expression from Oniguruma's Ruby syntax to PCRE2's (compile it with UTF, UCP and
// MULTILINE). In onig.c; here for its tests.
int onig_translate(const char *source, size_t len, ssm_text *out, ssm_error *err);

#endif
