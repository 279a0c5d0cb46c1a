// SPDX-License-Identifier: Apache-2.0
// Sessions on disk: a folder with a file each, written by a thread of its own.
//
// A file is the whole session (snapshot_file.h) with its name, owner and times, under the hash of
// owner and name. It is written under a temporary name, synced, renamed, and the folder synced: at
// any moment, kill -9 included, a name stands for one whole version. Files are checked when they
// are read; one that is torn, foreign or of another model is set aside as NAME.bad and not looked
// at again, and a temporary one is what a killed process left: it goes.
//
// The engine's thread hands over images and goes on; what is to be answered only when a file is on
// the disk comes back through `on_stored`, on the store's thread, in the order of the puts.
#ifndef SSM_ENGINE_STORE_H
#define SSM_ENGINE_STORE_H

#include "snapshot_file.h"

typedef struct store store;

// on_stored(ctx, tag, rc): a put or delete with that tag (not NULL) is on the disk, or failed.
// Takes ownership of nothing. The folder is made if need be.
int store_open(const ssm_model *model, const char *folder,
               void (*on_stored)(void *ctx, void *tag, int rc), void *ctx, store **out,
               ssm_error *err);

// Calls each with every session found; each takes the image's buffers and leaves it empty, or does
// not. Before the first put. *set_aside counts files that are not sessions of this model.
typedef void (*store_each)(void *ctx, snapshot_image *image, const snapshot_label *label);
int store_load(store *s, store_each each, void *ctx, uint64_t *set_aside, ssm_error *err);

// Queues a write; takes the image over. A queued version of the same session that nobody waits for
// is dropped. SSM_ENOMEM: nothing was queued, on_stored will not be called.
int store_put(store *s, snapshot_image *image, const snapshot_label *label, void *tag);
int store_delete(store *s, const uint64_t owner[2], const char *name, void *tag);

// Writes what is queued, stops the thread, frees. NULL is allowed.
void store_close(store *s);

#endif
