// SPDX-License-Identifier: Apache-2.0
// JSON that is mostly text, read at the speed of text.
//
// jansson takes 130 instructions for each byte of a string (reader, UTF-8 check, copy by byte), 10
// ms for a conversation of 250 KB; this takes one or two. It makes jansson's own trees and reads
// what is plainly JSON; whatever else it meets, or does not care for, is left for json_loadb to
// refuse or to read.
#ifndef SSM_JSON_H
#define SSM_JSON_H

#include <stddef.h>

struct json_t;

// The tree that json_loadb(text, len, JSON_ALLOW_NUL, NULL) gives, a new reference; or NULL, which
// says nothing: ask json_loadb. Any thread.
struct json_t *ssm_json_read(const char *text, size_t len);

#endif
