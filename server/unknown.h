// SPDX-License-Identifier: Apache-2.0
// Parameters that nobody here knows: named in the log, each once in the process's life.
#ifndef SSMD_UNKNOWN_H
#define SSMD_UNKNOWN_H

void unknown_note(const char *name); // any thread

#endif
