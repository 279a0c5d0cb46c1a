// SPDX-License-Identifier: Apache-2.0
// A completion in hand: one HTTP request, its prompts as engine requests, their choices.
//
//   TOKENIZING -> RUNNING -> (freed)      the answer is given on the way out of RUNNING
//        \           \----> ORPHANED      client gone, or failed: answered, waits for its DONEs
//         \---------------> ORPHANED
//
// Belongs to its loop's thread but for tokenizing, which touches texts and ids alone.
#ifndef SSMD_COMPLETER_H
#define SSMD_COMPLETER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <ssm/engine.h>

#include "chat_turn.h"
#include "choice_text.h"
#include "completion.h"
#include "conn/http.h"
#include "encode.h"

struct loop;
typedef struct completer completer;

enum run_state { RUN_PENDING, RUN_OPEN, RUN_DONE };

// One prompt: an engine request with best_of choices.
typedef struct completion_run {
    completer *owner;
    completion_prompt *prompt;
    enum run_state state;
    uint64_t id; // the engine's
    choice_text *choices;
    int32_t n_choices;           // best_of; 0 before it is submitted
    size_t first_index;          // of its first choice in the answer
    logprobs scores;             // of the prompt's tokens (echo with logprobs)
    ssm_detokenizer *score_text; // where they lie in the echoed text
    size_t score_chars;
    uint64_t first_token; // uv_hrtime, 0: none yet
    int64_t drawn;        // tokens of all choices so far
    bool kept;            // the session has been told what of the answer it keeps
    ssm_usage usage;      // when done
} completion_run;

struct completer {
    struct loop *loop;
    exchange *ex; // NULL once orphaned
    completer *next_touched;
    bool touched;
    completion request;
    const served_model *model;
    encode encode;
    bool encoding, in_handler;
    chat_turn turn; // of a chat with a session
    bool moved;     // its session has: the prompt is to be made again
    completion_run *runs;
    size_t n_runs, n_submitted, n_open;
    // the answer
    char id[32];
    time_t created;
    uint64_t started; // uv_hrtime of the request
    uint64_t first_token;
    bool began;            // the stream's headers are on their way
    bool pressed;          // the client reads slowly: engine requests are paused
    bool finished;         // a stream: its usage and [DONE] have been written
    ssm_error error;       // code 0: none
    buf chunk, chunk_head; // chunk_head: what every chunk begins with
    size_t charged;        // of the budget
};

// ---- api_completions.c

// Parses the exchange's body as one or the other, and answers it, now or later.
void completer_open(exchange *ex, bool is_chat);
completion_limits completer_limits(const struct loop *l);
completion_memory completer_memory(struct loop *l); // counts against the budget
void completer_reply_unknown_model(exchange *ex, const char *name);

// ---- completer.c, completer_answer.c

// Engine events of a completer's runs (event->user is the run), then a look at what has changed.
void completer_on_event(const ssm_event *event);
void completer_flush_touched(struct loop *l);

// ---- answers (completion_json.c)

void completion_put_answer(buf *out, const completer *c); // the whole answer
// One event's data of a choice: what is new since the last; marks it as sent.
void completion_put_chunk(buf *out, completer *c, completion_run *run, int32_t choice);
void completion_put_last_chunk(buf *out, completer *c); // no choices: usage, timings
bool completion_has_news(const completer *c, const completion_run *run, int32_t choice);

#endif
