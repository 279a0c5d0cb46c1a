// SPDX-License-Identifier: Apache-2.0
#include "store.h"

#include <stdlib.h>

void store_request_free(store_request *r) {
    if (!r)
        return;
    snapshot_image_dispose(&r->image);
    free(r->infos);
    free(r);
}
