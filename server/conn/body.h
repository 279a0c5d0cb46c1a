// SPDX-License-Identifier: Apache-2.0
// Bodies of requests as they come in: into memory within the budget, or into a spool, or away.
#ifndef SSMD_BODY_H
#define SSMD_BODY_H

#include "conn/http.h"

// The headers are in: what is to be done with a body of so many bytes (0: not known, or none). May
// make a reply.
void body_begin(exchange *ex, uint64_t length);

// A piece has come. False: too much has been thrown away, the connection is to be closed.
bool body_add(exchange *ex, const char *data, size_t len);

// Bytes that have come.
uint64_t body_received(const exchange *ex);

#endif
