// SPDX-License-Identifier: Apache-2.0
// The result, as lines for people or as one JSON object.
#include <inttypes.h>
#include <stdio.h>

#include "load.h"

static const double quantiles[] = {0.5, 0.9, 0.99, 0.999};
static const char *const quantile_names[] = {"p50", "p90", "p99", "p99.9"};
enum { QUANTILES = 4 };

static void print_row(const char *name, const histogram *h) {
    printf("%-22s %9.2f", name, histogram_mean(h) / 1e6);
    for (int i = 0; i < QUANTILES; i++) {
        printf(" %9.2f", (double)histogram_quantile(h, quantiles[i]) / 1e6);
    }
    printf(" %9.2f %10" PRIu64 "\n", (double)h->max_ns / 1e6, h->count);
}

static void print_text(const load_options *o, const load_stats *s) {
    printf("%" PRIu64 " requests finished, %" PRIu64 " failed (%" PRIu64
           " told to come later), %" PRIu64 " open at the end, in %.2f s\n",
           s->finished, s->failed, s->refused, s->open_at_end, s->seconds);
    if (s->failed > 0) {
        printf("first failure: %s %" PRId64 "\n", s->first_status > 0 ? "status" : "no answer",
               s->first_status > 0 ? s->first_status : 0);
    }
    printf("%.1f requests/s, %.1f tokens/s generated, %.1f prompt tokens/s, at most %" PRIu64
           " open\n\n",
           (double)s->finished / s->seconds, (double)s->output_tokens / s->seconds,
           (double)s->prompt_tokens / s->seconds, s->max_open);
    printf("%-22s %9s", "milliseconds", "mean");
    for (int i = 0; i < QUANTILES; i++) {
        printf(" %9s", quantile_names[i]);
    }
    printf(" %9s %10s\n", "max", "count");
    if (o->stream) {
        print_row("to the first token", &s->ttft);
        print_row("between tokens", &s->gap);
    }
    print_row("to the end", &s->latency);
    if (o->rate > 0) {
        print_row("sent late by", &s->wait);
    }
}

static void print_json_histogram(const char *name, const histogram *h) {
    printf(",\"%s\":{\"count\":%" PRIu64 ",\"mean\":%.4f", name, h->count, histogram_mean(h) / 1e6);
    for (int i = 0; i < QUANTILES; i++) {
        printf(",\"%s\":%.4f", quantile_names[i],
               (double)histogram_quantile(h, quantiles[i]) / 1e6);
    }
    printf(",\"max\":%.4f}", (double)h->max_ns / 1e6);
}

static void print_json(const load_options *o, const load_stats *s) {
    printf("{\"clients\":%d,\"rate\":%g,\"prompt_tokens\":%d,\"max_tokens\":%d,\"stream\":%s,",
           o->clients, o->rate, o->prompt_tokens, o->max_tokens, o->stream ? "true" : "false");
    printf("\"seconds\":%.4f,\"started\":%" PRIu64 ",\"finished\":%" PRIu64 ",\"failed\":%" PRIu64
           ",\"refused\":%" PRIu64 ",\"first_failure\":%" PRId64 ",\"open_at_end\":%" PRIu64
           ",\"max_open\":%" PRIu64 ",",
           s->seconds, s->started, s->finished, s->failed, s->refused, s->first_status,
           s->open_at_end, s->max_open);
    printf("\"requests_per_s\":%.3f,\"output_tokens_per_s\":%.3f,\"prompt_tokens_per_s\":%.3f",
           (double)s->finished / s->seconds, (double)s->output_tokens / s->seconds,
           (double)s->prompt_tokens / s->seconds);
    print_json_histogram("first_token_ms", &s->ttft);
    print_json_histogram("between_tokens_ms", &s->gap);
    print_json_histogram("latency_ms", &s->latency);
    print_json_histogram("sent_late_ms", &s->wait);
    printf("}\n");
}

void load_report(const load_options *o, const load_stats *s) {
    (o->json ? print_json : print_text)(o, s);
}
