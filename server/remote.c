// SPDX-License-Identifier: Apache-2.0
#include "remote.h"

#include <stdlib.h>
#include <string.h>

#include <ssm/version.h>

#ifndef SSMD_CURL

int remote_run(remote *r, ssm_error *err) {
    return ssm_error_set(err, SSM_EUNSUPPORTED, NULL,
                         "this program was built without libcurl: use curl itself");
}

#else

#include <curl/curl.h>

enum { STALL_SECONDS = 60, MOST_IN_MEMORY = 64 << 20 };

static size_t on_data(char *data, size_t size, size_t n, void *ctx) {
    remote *r = ctx;
    const size_t len = size * n;
    r->received += len;
    if (r->to && r->status == 200) {
        return fwrite(data, 1, len, r->to);
    }
    if (r->body.len + len > MOST_IN_MEMORY) {
        return 0;
    }
    buf_add(&r->body, data, len);
    return r->body.failed ? 0 : len;
}

static size_t on_header(char *data, size_t size, size_t n, void *ctx) {
    remote *r = ctx;
    const size_t len = size * n;
    if (len > 9 && strncmp(data, "HTTP/", 5) == 0) {
        const char *space = memchr(data, ' ', len);
        char digits[4] = "";
        if (space && space + 4 <= data + len) {
            memcpy(digits, space + 1, 3);
        }
        r->status = (int)strtol(digits, NULL, 10);
    }
    return len;
}

static size_t on_read(char *to, size_t size, size_t n, void *ctx) {
    FILE *from = ctx;
    const size_t len = fread(to, 1, size * n, from);
    return len == 0 && ferror(from) ? CURL_READFUNC_ABORT : len;
}

static struct curl_slist *make_headers(const remote *r) {
    struct curl_slist *headers = NULL;
    if (r->key) {
        buf line = {0};
        buf_str(&line, "Authorization: Bearer ");
        buf_add(&line, r->key, strlen(r->key) + 1); // a buffer ends without a NUL
        headers = line.failed ? NULL : curl_slist_append(headers, line.data);
        buf_dispose(&line);
    }
    return curl_slist_append(headers, r->json   ? "Content-Type: application/json"
                                      : r->from ? "Content-Type: application/octet-stream"
                                                : "Accept: */*");
}

static void set_body(CURL *curl, const remote *r) {
    if (r->from) {
        curl_easy_setopt(curl, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(curl, CURLOPT_READFUNCTION, on_read);
        curl_easy_setopt(curl, CURLOPT_READDATA, r->from);
        if (r->from_bytes >= 0) {
            curl_easy_setopt(curl, CURLOPT_INFILESIZE_LARGE, (curl_off_t)r->from_bytes);
        }
    } else if (r->json) {
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, r->json);
    }
}

static void set_limits(CURL *curl, const remote *r) {
    const long stall = r->timeout > STALL_SECONDS ? (long)r->timeout : STALL_SECONDS;
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)(r->timeout * 1000));
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, stall);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
}

int remote_run(remote *r, ssm_error *err) {
    char why[CURL_ERROR_SIZE] = "";
    buf url = {0};
    CURL *curl = curl_easy_init();
    struct curl_slist *headers = make_headers(r);
    int rc = SSM_ENOMEM;
    buf_add(&url, r->url, strlen(r->url) - (r->url[strlen(r->url) - 1] == '/'));
    buf_add(&url, r->path, strlen(r->path) + 1);
    if (!curl || !headers || url.failed) {
        ssm_error_set(err, rc, NULL, "out of memory");
        goto done;
    }
    set_body(curl, r);
    set_limits(curl, r);
    curl_easy_setopt(curl, CURLOPT_URL, url.data);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, r->method);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "ssmd/" SSM_VERSION);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, why);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, r);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, r);
    const CURLcode code = curl_easy_perform(curl);
    rc = code == CURLE_OK ? 0
                          : ssm_error_set(err, SSM_EIO, NULL, "%.200s: %.160s", r->url,
                                          *why ? why : curl_easy_strerror(code));
done:
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    buf_dispose(&url);
    return rc;
}

#endif
