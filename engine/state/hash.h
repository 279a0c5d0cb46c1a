// SPDX-License-Identifier: Apache-2.0
// xxHash, at this machine's vector width where the library can choose: 50 GB/s for 20.
#ifndef SSM_ENGINE_HASH_H
#define SSM_ENGINE_HASH_H

#include <xxhash.h>
#ifdef SSM_XXHASH_DISPATCH
#include <xxh_x86dispatch.h>
#endif

#endif
