// SPDX-License-Identifier: Apache-2.0
// ssmd generate: one completion on the terminal, streaming.
//
// The same request, engine and text as the server's, without HTTP: a uv_loop waits for the engine's
// wake-ups and for signals. The first Ctrl-C cancels the request: what was generated stays, the
// line is ended, the exit status is 130. A second leaves at once. Text goes to standard output as
// soon as it is settled, everything else to standard error.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include <uv.h>

#include "choice_text.h"
#include "commands.h"
#include "completion.h"
#include "log.h"
#include "options.h"
#include "registry.h"

typedef struct generating {
    options options;
    registry models;
    completion request;
    choice_text text;
    completion_prompt prompt;
    ssm_ids ids;
    uv_loop_t uv;
    uv_async_t wake;
    uv_signal_t interrupt;
    ssm_port *port;
    uint64_t id;
    ssm_usage usage;
    bool interrupted;
    int status;
    ssm_error error;
} generating;

// ---- the request

static void read_options(generating *g) {
    const options *o = &g->options;
    completion *r = &g->request;
    completion_init(r);
    r->max_tokens = o->max_tokens;
    r->min_tokens = o->min_tokens < o->max_tokens ? o->min_tokens : o->max_tokens;
    r->echo = o->echo;
    r->ignore_eos = o->ignore_eos;
    r->sampling.temperature = (float)o->temperature;
    r->sampling.top_k = (int32_t)o->top_k;
    r->sampling.top_p = (float)o->top_p;
    r->sampling.min_p = (float)o->min_p;
    r->sampling.typical_p = (float)o->typical_p;
    r->sampling.presence_penalty = (float)o->presence_penalty;
    r->sampling.frequency_penalty = (float)o->frequency_penalty;
    r->sampling.repetition_penalty = (float)o->repetition_penalty;
    r->seed = (uint64_t)o->seed;
    if (options_where(o, "seed") == OPTIONS_DEFAULT &&
        getrandom(&r->seed, sizeof r->seed, 0) != sizeof r->seed) {
        r->seed = uv_hrtime();
    }
}

static int read_stops(generating *g, ssm_error *err) {
    completion *r = &g->request;
    r->stops = arena_alloc(&r->arena, g->options.stop.n, sizeof *r->stops);
    if (!r->stops) {
        return ssm_error_set(err, SSM_ENOMEM, NULL, "out of memory");
    }
    for (size_t i = 0; i < g->options.stop.n; i++) {
        const char *stop = g->options.stop.items[i];
        if (!*stop) {
            return ssm_error_set(err, SSM_EINVAL, "stop", "--stop is empty");
        }
        r->stops[i] = (ssm_string){stop, strlen(stop)};
    }
    r->n_stops = g->options.stop.n;
    return 0;
}

static int read_prompt(generating *g, ssm_error *err) {
    const served_model *m = &g->models.items[0];
    const completion_limits limits = {0};
    const char *text = g->options.args[0];
    const int rc =
        ssm_tokenizer_encode(m->tokenizer, text, strlen(text), SSM_ADD_SPECIAL, &g->ids, err);
    if (rc < 0) {
        return rc;
    }
    g->prompt = (completion_prompt){
        .text = text, .text_len = strlen(text), .ids = g->ids.data, .n_ids = g->ids.len};
    return completion_check_prompt(&g->request, m, &limits, &g->prompt, err);
}

// ---- events

static void show(generating *g) {
    ssm_text *shown = &g->text.shown;
    if (shown->len > 0) {
        fwrite(shown->data, 1, shown->len, stdout);
        fflush(stdout);
        shown->len = 0;
    }
    if (ferror(stdout)) { // a pipe that was closed: nobody reads on
        ssm_engine_cancel(g->models.items[0].engine, g->id, -1);
    }
}

static int on_event(generating *g, const ssm_event *event, ssm_error *err) {
    int rc = 0;
    switch (event->kind) {
    case SSM_EVENT_TOKEN:
        rc = choice_text_push(&g->text, event, err);
        if (rc > 0) {
            ssm_engine_cancel(g->models.items[0].engine, g->id, -1);
        }
        break;
    case SSM_EVENT_FINISH:
        rc = choice_text_finish(&g->text, event->finish, event->token, err);
        break;
    case SSM_EVENT_DONE:
        g->usage = *event->usage;
        if (event->error && event->error != SSM_ECANCELED) {
            rc = ssm_error_set(err, event->error, NULL, "%s", event->message);
        }
        uv_stop(&g->uv);
        break;
    default:
        break;
    }
    return rc < 0 ? rc : 0;
}

static void on_wake(uv_async_t *handle) {
    generating *g = handle->data;
    ssm_batch *batches = ssm_port_take(g->port);
    for (const ssm_batch *b = batches; b; b = b->next) {
        for (size_t i = 0; i < b->n_events; i++) {
            ssm_error err = {0};
            if (on_event(g, &b->events[i], &err) < 0 && g->error.code == 0) {
                g->error = err;
                ssm_engine_cancel(g->models.items[0].engine, g->id, -1);
            }
        }
    }
    ssm_batch_free(batches);
    show(g);
}

static void wake(void *ctx) {
    uv_async_send(ctx);
}

static void on_interrupt(uv_signal_t *handle, int number) {
    generating *g = handle->data;
    if (g->interrupted) {
        _exit(130);
    }
    g->interrupted = true;
    ssm_engine_cancel(g->models.items[0].engine, g->id, -1);
}

// ---- life

static int submit(generating *g, ssm_error *err) {
    const completion *r = &g->request;
    ssm_request request;
    ssm_request_init(&request);
    request.port = g->port;
    request.prompt = g->prompt.ids;
    request.n_prompt = g->prompt.n_ids;
    request.max_tokens = r->max_tokens;
    request.min_tokens = r->min_tokens;
    request.sampling = &r->sampling;
    request.seed = r->seed;
    request.ignore_eos = r->ignore_eos;
    return ssm_engine_submit(g->models.items[0].engine, &request, &g->id, err);
}

static void print_timings(const generating *g) {
    const ssm_usage *u = &g->usage;
    const double prefill = (double)u->prefill_ns * 1e-9, decode = (double)u->decode_ns * 1e-9;
    const double gaps = u->completion_tokens > 1 ? (double)(u->completion_tokens - 1) : 0;
    fprintf(stderr,
            "prompt: %llu tokens, %.3f s to the first; generated: %llu tokens, %.1f a second\n",
            (unsigned long long)u->prompt_tokens, prefill, (unsigned long long)u->completion_tokens,
            decode > 0 ? gaps / decode : 0.0);
}

static int generate(generating *g, ssm_error *err) {
    const served_model *m = &g->models.items[0];
    int rc = read_stops(g, err);
    if (rc < 0 || (rc = read_prompt(g, err)) < 0 ||
        (rc = choice_text_init(&g->text, &g->request, m, err)) < 0 ||
        (rc = ssm_port_open(m->engine, wake, &g->wake, &g->port, err)) < 0) {
        return rc;
    }
    if (g->request.echo) {
        rc = choice_text_echo(&g->text, g->prompt.text, g->prompt.text_len);
        show(g);
    }
    rc = rc == 0 ? submit(g, err) : rc;
    if (rc < 0) {
        return rc;
    }
    uv_signal_start(&g->interrupt, on_interrupt, SIGINT);
    uv_run(&g->uv, UV_RUN_DEFAULT);
    fputc('\n', stdout);
    if (g->error.code == 0 && g->options.timings) {
        print_timings(g);
    }
    *err = g->error;
    return g->error.code;
}

static int start(generating *g, ssm_error *err) {
    const options *o = &g->options;
    if (o->n_args != 1) {
        return ssm_error_set(err, SSM_EINVAL, NULL, "one PROMPT is wanted, got %d", o->n_args);
    }
    if (o->model.n > 1) {
        return ssm_error_set(err, SSM_EINVAL, "model", "--model: one is enough here");
    }
    const int rc = registry_init(&g->models, o, err);
    return rc < 0 ? rc : registry_load(&g->models, o, err);
}

static void stop(generating *g) {
    registry_stop(&g->models);
    if (g->port) {
        ssm_port_close(g->port);
    }
    uv_close((uv_handle_t *)&g->wake, NULL);
    uv_close((uv_handle_t *)&g->interrupt, NULL);
    uv_run(&g->uv, UV_RUN_DEFAULT);
    uv_loop_close(&g->uv);
    choice_text_dispose(&g->text);
    ssm_ids_dispose(&g->ids);
    completion_dispose(&g->request);
    registry_dispose(&g->models);
}

int cmd_generate(int argc, char **argv) {
    static generating g; // large, and one a process
    ssm_error err = {0};
    int rc = options_load(&g.options, OPTIONS_GENERATE, argc, argv, &err);
    if (rc == 0) {
        signal(SIGPIPE, SIG_IGN);
        log_set_level(g.options.log_level);
        uv_loop_init(&g.uv);
        uv_async_init(&g.uv, &g.wake, on_wake);
        uv_signal_init(&g.uv, &g.interrupt);
        g.wake.data = g.interrupt.data = &g;
        read_options(&g);
        rc = start(&g, &err);
        rc = rc == 0 ? generate(&g, &err) : rc;
        stop(&g);
    }
    if (rc < 0) {
        fprintf(stderr, "ssmd generate: %s\n", err.message);
    }
    options_dispose(&g.options);
    return rc < 0 ? (rc == SSM_EINVAL ? 2 : 1) : g.interrupted ? 130 : 0;
}
