// SPDX-License-Identifier: Apache-2.0
// The CUDA backend's place in the program: opens libssm_cuda.so when a CUDA device is first asked
// for and passes calls on. See device.cu for why it is a library of its own.
//
// It is looked for where the program lies, then in ../lib beside it, then by the run-time linker.
#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "kernels/backend.h"

static const ssm_backend *library;
static char why[320]; // it could not be opened
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void *open_library(void) {
    char folder[PATH_MAX];
    const ssize_t n = readlink("/proc/self/exe", folder, sizeof folder - 1);
    if (n > 0) {
        folder[n] = 0;
        char *slash = strrchr(folder, '/');
        if (slash)
            *slash = 0;
        const char *const places[] = {"", "/../lib", "/..", "/../kernels"};
        for (int i = 0; i < 4; i++) {
            char path[PATH_MAX + 64];
            snprintf(path, sizeof path, "%s%s/libssm_cuda.so", folder, places[i]);
            if (access(path, R_OK) == 0)
                return dlopen(path, RTLD_NOW | RTLD_LOCAL); // if it is there, its error counts
        }
    }
    return dlopen("libssm_cuda.so", RTLD_NOW | RTLD_LOCAL);
}

// CUDA's own libraries take some hundred megabytes to open: not without a driver.
static bool has_driver(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (driver)
        dlclose(driver);
    return driver != NULL;
}

static void load(void) {
    if (!has_driver()) {
        snprintf(why, sizeof why, "no NVIDIA driver (libcuda.so.1)");
        return;
    }
    void *handle = open_library();
    if (handle)
        library = dlsym(handle, "ssm_backend_cuda_library");
    if (!library) {
        const char *text = dlerror();
        snprintf(why, sizeof why, "%s", text ? text : "libssm_cuda.so is not what it should be");
    }
}

static int open_device(const ssm_weights *weights, const ssm_device_options *options,
                       ssm_device **out, ssm_error *err) {
    pthread_once(&once, load);
    if (!library)
        return ssm_error_set(err, SSM_EUNSUPPORTED, "device", "CUDA cannot be used here: %s", why);
    const int rc = library->open(weights, options, out, err);
    if (rc == 0)
        (*out)->backend = &ssm_backend_cuda;
    return rc;
}

static void close_device(ssm_device *device) {
    if (device)
        library->close(device);
}

static void info(const ssm_device *device, ssm_device_info *out) {
    library->info(device, out);
}

static int step(ssm_device *device, const ssm_plan *plan, ssm_error *err) {
    return library->step(device, plan, err);
}

static int sample(ssm_device *device, const ssm_sample *samples, int32_t n, ssm_error *err) {
    return library->sample(device, samples, n, err);
}

static int collect(ssm_device *device, ssm_sampled *out, int32_t n, ssm_error *err) {
    return library->collect(device, out, n, err);
}

static int slots_copy(ssm_device *device, const int32_t *src, const int32_t *dst, int32_t n,
                      ssm_error *err) {
    return library->slots_copy(device, src, dst, n, err);
}

static int slot_read(ssm_device *device, int32_t slot, float *out, ssm_error *err) {
    return library->slot_read(device, slot, out, err);
}

static int slot_write(ssm_device *device, int32_t slot, const float *state, ssm_error *err) {
    return library->slot_write(device, slot, state, err);
}

static int logits_copy(ssm_device *device, const int32_t *src, const int32_t *dst, int32_t n,
                       ssm_error *err) {
    return library->logits_copy(device, src, dst, n, err);
}

static int logits_read(ssm_device *device, int32_t row, float *out, ssm_error *err) {
    return library->logits_read(device, row, out, err);
}

static int logits_write(ssm_device *device, int32_t row, const float *logits, ssm_error *err) {
    return library->logits_write(device, row, logits, err);
}

static void *host_alloc(ssm_device *device, size_t bytes) {
    return library->host_alloc(device, bytes);
}

static void host_free(ssm_device *device, void *memory) {
    library->host_free(device, memory);
}

static int slot_export(ssm_device *device, int32_t slot, int32_t row, float *out, uint64_t *ticket,
                       ssm_error *err) {
    return library->slot_export(device, slot, row, out, ticket, err);
}

static int slot_import(ssm_device *device, int32_t slot, int32_t row, const float *state,
                       uint64_t after, uint64_t *ticket, ssm_error *err) {
    return library->slot_import(device, slot, row, state, after, ticket, err);
}

static int ticket_wait(ssm_device *device, uint64_t ticket, ssm_error *err) {
    return library->ticket_wait(device, ticket, err);
}

const ssm_backend ssm_backend_cuda = {
    .name = "cuda",
    .open = open_device,
    .close = close_device,
    .info = info,
    .step = step,
    .sample = sample,
    .collect = collect,
    .slots_copy = slots_copy,
    .slot_read = slot_read,
    .slot_write = slot_write,
    .logits_copy = logits_copy,
    .logits_read = logits_read,
    .logits_write = logits_write,
    .host_alloc = host_alloc,
    .host_free = host_free,
    .slot_export = slot_export,
    .slot_import = slot_import,
    .ticket_wait = ticket_wait,
};
