// SPDX-License-Identifier: Apache-2.0
// A model's folder from foreign bytes: config.json, a NUL byte, model.safetensors.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <ssm/model.h>

static char folder[64], config_path[96], weights_path[96];

static void remove_folder(void) {
    unlink(config_path);
    unlink(weights_path);
    rmdir(folder);
}

static void make_folder(void) {
    struct stat shared;
    const char *base = stat("/dev/shm", &shared) == 0 ? "/dev/shm" : "/tmp";
    snprintf(folder, sizeof folder, "%s/fuzz_model.XXXXXX", base);
    if (!mkdtemp(folder)) {
        perror(folder);
        exit(1);
    }
    snprintf(config_path, sizeof config_path, "%s/config.json", folder);
    snprintf(weights_path, sizeof weights_path, "%s/model.safetensors", folder);
    atexit(remove_folder);
}

static void write_file(const char *path, const uint8_t *data, size_t size) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file) != 0) {
        perror(path);
        exit(1);
    }
}

// Whatever was accepted can be listed and is consistent with itself.
static void look_at(const ssm_model *model) {
    const ssm_model_info *info = ssm_model_get_info(model);
    ssm_tensor_info tensor;
    uint64_t bytes = 0;
    for (int i = 0; ssm_model_get_tensor(model, i, &tensor) == 0; i++) {
        bytes += tensor.bytes + strlen(tensor.name);
    }
    if (info->n_layers <= 0 || info->d_model <= 0 || info->vocab_size <= 0 || bytes == 0) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint8_t *split = memchr(data, 0, size);
    size_t config_size = split ? (size_t)(split - data) : size;
    ssm_model *model = NULL;
    ssm_error err;
    if (!folder[0]) {
        make_folder();
    }
    write_file(config_path, data, config_size);
    write_file(weights_path, split ? split + 1 : data, split ? size - config_size - 1 : 0);
    if (ssm_model_open(folder, &model, &err) == 0) {
        look_at(model);
    } else if (err.message[0] == '\0') {
        abort(); // a refusal says why
    }
    ssm_model_free(model);
    return 0;
}
