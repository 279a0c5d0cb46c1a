// SPDX-License-Identifier: Apache-2.0
// An index is as foreign as the shards: a shard's name must be a plain file name in the same folder
// (no path leads out of it), each tensor must lie in the shard that the index names, and each
// tensor of a shard must be in the index. transformers prefers model.safetensors if both exist, and
// so do we.
#include "checkpoint.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"

#define SINGLE "model.safetensors"
#define INDEX  "model.safetensors.index.json"

enum { MAX_SHARDS = 1024 };

static int no_memory(ssm_error *err) {
    return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the checkpoint's tensors");
}

static int join(char path[PATH_MAX], const char *folder, const char *file, ssm_error *err) {
    if ((size_t)snprintf(path, PATH_MAX, "%s/%s", folder, file) >= PATH_MAX)
        return ssm_error_set(err, SSM_EIO, file, "the path of %s is too long", file);
    return 0;
}

static int open_shard(checkpoint *ck, const char *folder, const char *file, ssm_error *err) {
    char path[PATH_MAX];
    int rc = join(path, folder, file, err);
    if (rc)
        return rc;
    const size_t n = (size_t)ck->n_shards;
    safetensors *shards = realloc(ck->shards, (n + 1) * sizeof *shards);
    if (shards)
        ck->shards = shards;
    char **files = realloc(ck->files, (n + 1) * sizeof *files);
    if (files)
        ck->files = files;
    char *name = strdup(file);
    if (!shards || !files || !name) {
        free(name);
        return no_memory(err);
    }
    rc = safetensors_open(&ck->shards[n], path, file, err);
    if (rc) {
        free(name);
        return rc;
    }
    ck->files[n] = name;
    ck->n_shards++;
    return 0;
}

// ---- names

static int by_name(const void *a, const void *b) {
    const checkpoint_entry *x = a, *y = b;
    return strcmp(x->tensor->name, y->tensor->name);
}

static int name_against_entry(const void *name, const void *entry) {
    return strcmp(name, ((const checkpoint_entry *)entry)->tensor->name);
}

checkpoint_entry *checkpoint_find(const checkpoint *ck, const char *name) {
    if (ck->n_entries == 0)
        return NULL;
    return bsearch(name, ck->entries, (size_t)ck->n_entries, sizeof *ck->entries,
                   name_against_entry);
}

static int list_entries(checkpoint *ck, ssm_error *err) {
    size_t total = 0;
    for (int32_t s = 0; s < ck->n_shards; s++)
        total += (size_t)ck->shards[s].n_tensors;
    if (total > INT32_MAX)
        return ssm_error_set(err, SSM_EFORMAT, NULL, "the checkpoint has %zu tensors", total);
    ck->entries = calloc(total + 1, sizeof *ck->entries);
    if (!ck->entries)
        return no_memory(err);
    for (int32_t s = 0; s < ck->n_shards; s++) {
        for (int32_t i = 0; i < ck->shards[s].n_tensors; i++)
            ck->entries[ck->n_entries++] = (checkpoint_entry){&ck->shards[s].tensors[i], s, false};
    }
    qsort(ck->entries, total, sizeof *ck->entries, by_name);
    for (int32_t i = 1; i < ck->n_entries; i++) {
        const checkpoint_entry *e = &ck->entries[i];
        if (by_name(e - 1, e) == 0)
            return ssm_error_set(err, SSM_EFORMAT, e->tensor->name,
                                 "tensor %s is in both %s and %s", e->tensor->name,
                                 ck->files[e[-1].shard], ck->files[e->shard]);
    }
    return 0;
}

// ---- the index

static bool is_plain_name(const char *file) {
    const size_t n = strlen(file);
    const size_t suffix = strlen(".safetensors");
    return n > suffix && n <= NAME_MAX && file[0] != '.' && !strpbrk(file, "/\\") &&
           strcmp(file + n - suffix, ".safetensors") == 0;
}

static bool is_open(const checkpoint *ck, const char *file) {
    for (int32_t s = ck->n_shards; s-- > 0;) { // names come in runs: the latest first
        if (strcmp(ck->files[s], file) == 0)
            return true;
    }
    return false;
}

static int open_listed(checkpoint *ck, const char *folder, json_t *map, ssm_error *err) {
    const char *name;
    json_t *v;
    json_object_foreach(map, name, v) {
        const char *file = json_string_value(v);
        if (!file || !is_plain_name(file))
            return ssm_error_set(err, SSM_EFORMAT, name,
                                 "%s: the shard of %s must be the name of a .safetensors file in "
                                 "the same folder, got %.100s",
                                 INDEX, name, file ? file : "no string");
        if (is_open(ck, file))
            continue;
        if (ck->n_shards == MAX_SHARDS)
            return ssm_error_set(err, SSM_EFORMAT, name, "%s names more than %d shards", INDEX,
                                 MAX_SHARDS);
        const int rc = open_shard(ck, folder, file, err);
        if (rc)
            return rc;
    }
    return 0;
}

static int check_index(const checkpoint *ck, json_t *map, ssm_error *err) {
    const char *name;
    json_t *v;
    json_object_foreach(map, name, v) {
        const checkpoint_entry *e = checkpoint_find(ck, name);
        if (!e || strcmp(ck->files[e->shard], json_string_value(v)) != 0)
            return ssm_error_set(err, SSM_EFORMAT, name, "%s puts tensor %s in %s: it is not there",
                                 INDEX, name, json_string_value(v));
    }
    for (int32_t i = 0; i < ck->n_entries; i++) {
        const checkpoint_entry *e = &ck->entries[i];
        if (!json_object_get(map, e->tensor->name))
            return ssm_error_set(err, SSM_EFORMAT, e->tensor->name, "tensor %s of %s is not in %s",
                                 e->tensor->name, ck->files[e->shard], INDEX);
    }
    return 0;
}

static int open_index(checkpoint *ck, const char *folder, ssm_error *err) {
    config index;
    int rc = config_open(&index, folder, INDEX, err);
    if (rc == SSM_ENOTFOUND)
        return ssm_error_set(err, SSM_EIO, SINGLE, "%s holds neither %s nor %s", folder, SINGLE,
                             INDEX);
    if (rc)
        return rc;
    json_t *map = config_get(&index, "weight_map");
    if (!json_is_object(map))
        rc =
            ssm_error_set(err, SSM_EFORMAT, "weight_map", "%s: weight_map is not an object", INDEX);
    if (rc == 0)
        rc = open_listed(ck, folder, map, err);
    if (rc == 0)
        rc = list_entries(ck, err);
    if (rc == 0)
        rc = check_index(ck, map, err);
    config_dispose(&index);
    return rc;
}

int checkpoint_open(checkpoint *ck, const char *folder, ssm_error *err) {
    *ck = (checkpoint){0};
    char path[PATH_MAX];
    int rc = join(path, folder, SINGLE, err);
    if (rc)
        return rc;
    if (access(path, F_OK) != 0)
        return open_index(ck, folder, err);
    rc = open_shard(ck, folder, SINGLE, err);
    return rc ? rc : list_entries(ck, err);
}

void checkpoint_dispose(checkpoint *ck) {
    for (int32_t s = 0; s < ck->n_shards; s++) {
        safetensors_dispose(&ck->shards[s]);
        free(ck->files[s]);
    }
    free(ck->shards);
    free(ck->files);
    free(ck->entries);
    *ck = (checkpoint){0};
}
