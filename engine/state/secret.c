// SPDX-License-Identifier: Apache-2.0
#include "secret.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "files.h"

// ---- SipHash

static uint64_t load64(const uint8_t *p) {
    uint64_t x = 0;
    for (int i = 7; i >= 0; i--)
        x = x << 8 | p[i];
    return x;
}

static void store64(uint8_t *p, uint64_t x) {
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(x >> 8 * i);
}

static uint64_t turn(uint64_t x, int bits) {
    return x << bits | x >> (64 - bits);
}

static void sip_rounds(uint64_t v[4], int n) {
    while (n-- > 0) {
        v[0] += v[1];
        v[2] += v[3];
        v[1] = turn(v[1], 13) ^ v[0];
        v[3] = turn(v[3], 16) ^ v[2];
        v[0] = turn(v[0], 32);
        v[2] += v[1];
        v[0] += v[3];
        v[1] = turn(v[1], 17) ^ v[2];
        v[3] = turn(v[3], 21) ^ v[0];
        v[2] = turn(v[2], 32);
    }
}

static void sip_word(uint64_t v[4], uint64_t m) {
    v[3] ^= m;
    sip_rounds(v, 2);
    v[0] ^= m;
}

void siphash128(const uint8_t key[16], const void *data, size_t n, uint8_t out[16]) {
    const uint64_t k0 = load64(key), k1 = load64(key + 8);
    uint64_t v[4] = {k0 ^ 0x736f6d6570736575u, k1 ^ 0x646f72616e646f6du ^ 0xee,
                     k0 ^ 0x6c7967656e657261u, k1 ^ 0x7465646279746573u};
    const uint8_t *p = data;
    uint8_t last[8] = {0};
    size_t left = n;
    for (; left >= 8; left -= 8, p += 8)
        sip_word(v, load64(p));
    if (left > 0)
        memcpy(last, p, left);
    last[7] = (uint8_t)n;
    sip_word(v, load64(last));
    v[2] ^= 0xee;
    sip_rounds(v, 4);
    store64(out, v[0] ^ v[1] ^ v[2] ^ v[3]);
    v[1] ^= 0xdd;
    sip_rounds(v, 4);
    store64(out + 8, v[0] ^ v[1] ^ v[2] ^ v[3]);
}

void secret_owner(const uint8_t secret[16], const uint64_t owner[2], uint64_t out[2]) {
    uint8_t bytes[16];
    store64(bytes, owner[0]);
    store64(bytes + 8, owner[1]);
    siphash128(secret, bytes, sizeof bytes, bytes);
    out[0] = load64(bytes);
    out[1] = load64(bytes + 8);
}

// ---- the file

int secret_make(uint8_t out[16], ssm_error *err) {
    if (getrandom(out, 16, 0) == 16)
        return 0;
    return ssm_error_set(err, SSM_EIO, NULL, "no random numbers: %m");
}

// 0, SSM_ENOTFOUND without setting err, or SSM_EIO.
static int read_secret(const char *path, uint8_t out[16], ssm_error *err) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT)
        return SSM_ENOTFOUND;
    if (fd < 0)
        return ssm_error_set(err, SSM_EIO, "state_dir", "cannot read %.300s: %m", path);
    const ssize_t n = read(fd, out, 16);
    close(fd);
    if (n == 16)
        return 0;
    return ssm_error_set(err, SSM_EIO, "state_dir", "%.300s does not hold 16 bytes", path);
}

// Under a name of its own first, so that nobody reads half of it; a link is made once.
static int write_secret(const char *path, ssm_error *err) {
    char temporary[4200];
    uint8_t secret[16];
    int rc = secret_make(secret, err);
    if (rc != 0)
        return rc;
    snprintf(temporary, sizeof temporary, "%.4000s.%ld.tmp", path, (long)getpid());
    unlink(temporary);
    const int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    const bool is_written =
        fd >= 0 && write(fd, secret, sizeof secret) == sizeof secret && fsync(fd) == 0;
    if (!is_written || (link(temporary, path) != 0 && errno != EEXIST))
        rc = ssm_error_set(err, SSM_EIO, "state_dir", "cannot write %.300s: %m", path);
    if (fd >= 0)
        close(fd);
    unlink(temporary);
    return rc == 0 ? file_sync_folder(path, "state_dir", err) : rc;
}

int secret_open(const char *folder, uint8_t out[16], ssm_error *err) {
    char path[4096];
    snprintf(path, sizeof path, "%.4000s/.secret", folder);
    int rc = read_secret(path, out, err);
    if (rc == SSM_ENOTFOUND && (rc = write_secret(path, err)) == 0)
        rc = read_secret(path, out, err);
    if (rc == SSM_ENOTFOUND)
        rc = ssm_error_set(err, SSM_EIO, "state_dir", "%.300s is gone again", path);
    return rc;
}
