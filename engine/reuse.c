// SPDX-License-Identifier: Apache-2.0
// Reuse: what of a prompt need not run because its state is known, and what is saved for others.
//
// Where states are saved. At the prompt's end with its logits; at the answer's end; inside the
// prompt on a grid, and where texts part. The grid is checkpoint_tokens wide, wider in long prompts
// so that one of them never takes more than GRID_POINTS rows of the cache: dense checkpoints of a
// single document that push out everybody else's are a known way to lose every hit. A grid rarely
// falls on the end of what texts share, a system prompt say. So when the tree knows more of a
// prompt than the snapshot it starts from covers, two texts part there, and the prompt saves its
// state at that place: from the third text on the whole of the common part is a hit.
//
// Requests with a common beginning that arrive together would each run it, as none of them finds
// anything. So a request that shares MIN_SHARED tokens or more, beyond what is saved, with a prompt
// that is running now follows it: the leader saves its state at the end of what they share and the
// follower begins there. A follower holds no slot, and waits for nothing but the leader's next
// steps: it is let go as soon as the leader has got there, pauses or ends, and follows at most
// MAX_FOLLOWS times.
//
// A beginning that is on the disk is fetched before the job begins. It waits in the queue, and
// nobody else waits for it; it looks again when the state is in memory, which by then may know
// more.
//
// Places inside a prompt are multiples of GRANULE, so that kernels' tiles fall as they would
// without a cache. What the logits of a prompt need is one token that runs: a state of the whole
// prompt without logits is of no use to it, hence the -1.
#include "engine.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { GRID_POINTS = 8, MIN_SHARED = 64, MAX_FOLLOWS = 4, MAX_FETCHES = 4 };

static size_t round_down(size_t n) {
    return n - n % GRANULE;
}

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

// ---- checkpoints

static bool add_mark(job *j, size_t at) {
    for (int32_t i = 0; i < j->n_marks; i++) {
        if (j->marks[i] == at)
            return true;
        if (j->marks[i] <= j->prefilled) { // passed
            j->marks[i] = at;
            return true;
        }
    }
    if (j->n_marks == JOB_MARKS)
        return false;
    j->marks[j->n_marks++] = at;
    return true;
}

static size_t grid_of(const ssm_engine *engine, const job *j) {
    const size_t least = (size_t)engine->options.checkpoint_tokens;
    if (least == 0)
        return 0;
    const size_t steps = (j->n_prompt / GRID_POINTS + least - 1) / least;
    return steps > 1 ? steps * least : least;
}

size_t reuse_next_cut(const job *j) {
    size_t cut = j->n_prompt;
    if (!j->uses_cache)
        return cut;
    if (j->grid > 0)
        cut = smaller(cut, (j->prefilled / j->grid + 1) * j->grid);
    for (int32_t i = 0; i < j->n_marks; i++) {
        if (j->marks[i] > j->prefilled)
            cut = smaller(cut, j->marks[i]);
    }
    return cut;
}

int reuse_save_checkpoints(ssm_engine *engine, const flight *f, ssm_error *err) {
    int rc = 0;
    for (int32_t i = 0; i < f->n_saves && rc == 0; i++) {
        const checkpoint_save *s = &f->saves[i];
        const job *j = s->choice->job;
        if (j->session && s->position == j->n_prompt)
            rc = turn_keep(engine, s->choice, s->row, err);
        if (rc != 0 || !j->uses_cache)
            continue;
        const cache_text text = {.tenant = j->tenant, .prompt = j->prompt, .n_prompt = s->position};
        rc = cache_save(&engine->cache, &text, s->choice->slot, s->row, true, err);
    }
    return rc;
}

// The state covers the prompt and the tokens fed. Of many choices only the first may push others
// out. A cancelled choice may have been fed a token that the host does not know: it has no key.
void reuse_save_answer(ssm_engine *engine, choice *c) {
    const job *j = c->job;
    const bool has_key = c->tokens && c->fed > 0 && c->fed <= c->generated;
    if (!j->uses_cache || !has_key || c->state != CHOICE_DECODE || engine->is_failed)
        return;
    const cache_text text = {.tenant = j->tenant,
                             .prompt = j->prompt,
                             .n_prompt = j->n_prompt,
                             .answer = c->tokens,
                             .n_answer = (size_t)c->fed};
    // A failing device fails the next step too, where it can be told.
    cache_save(&engine->cache, &text, c->slot, -1, c->index == 0, NULL);
}

// ---- at admission

static void drop_fetched(ssm_engine *engine, job *j) {
    if (j->fetched)
        cache_unpin(&engine->cache, j->fetched);
    j->fetched = NULL;
}

bool reuse_fetch(ssm_engine *engine, job *j) {
    const bool is_later_turn = j->session && session_is_alive(j->session);
    size_t known;
    if (!j->uses_cache || is_later_turn || !engine->cache.disk || j->n_fetches == MAX_FETCHES)
        return false;
    snapshot *s = cache_find(&engine->cache, j->tenant, j->prompt, j->n_prompt, false, &known);
    if (!s || !cache_is_away(s) || !cache_fetch(&engine->cache, s))
        return false;
    j->n_fetches++;
    j->is_fetching = true;
    j->awaited_state = s;
    return true;
}

void reuse_moved(ssm_engine *engine, spill_move *m) {
    cache *c = &engine->cache;
    snapshot *s = m->snapshot;
    const bool is_here = cache_moved(c, m) && m->is_read;
    for (job *j = engine->waiting.first; j && m->is_read; j = j->next) {
        if (!j->is_fetching || j->awaited_state != s)
            continue;
        j->is_fetching = false;
        j->awaited_state = NULL;
        drop_fetched(engine, j);
        if (is_here) {
            cache_pin(c, s); // so that it stays until the job begins
            j->fetched = s;
        }
    }
    free(m);
    cache_trim(c);
}

void reuse_begin(ssm_engine *engine, job *j) {
    cache *saved = &engine->cache;
    size_t known;
    if (saved->o.n_slots == 0)
        j->uses_cache = false;
    if (!j->uses_cache)
        return;
    j->keeps_tokens = true;
    snapshot *s = cache_find(saved, j->tenant, j->prompt, j->n_prompt, true, &known);
    if (s) {
        cache_pin(saved, s);
        j->hit = s;
        j->cached = j->prefilled = (size_t)s->position;
        saved->counts.cached_tokens += s->position;
    }
    if (s)
        saved->counts.tier[s == j->fetched ? SSM_TIER_DISK : cache_tier(s)].hits++;
    else
        saved->counts.misses++;
    drop_fetched(engine, j);
    j->grid = grid_of(engine, j);
    const size_t parting = round_down(smaller(known, j->n_prompt - 1));
    if (parting >= j->prefilled + MIN_SHARED)
        add_mark(j, parting);
}

int reuse_enter(ssm_engine *engine, choice *c, ssm_error *err) {
    job *j = c->job;
    c->state = job_has_end(j) ? CHOICE_RESTORE : CHOICE_PREFILL;
    if (c->state == CHOICE_RESTORE || !j->hit)
        return 0;
    const int rc = cache_restore(&engine->cache, j->hit, c->slot, -1, err);
    reuse_forget(engine, j);
    return rc;
}

bool reuse_hold_end(ssm_engine *engine, job *j) {
    size_t known;
    if (!j->uses_cache || j->hit)
        return j->hit != NULL;
    snapshot *s = cache_find(&engine->cache, j->tenant, j->prompt, j->n_prompt, true, &known);
    if (!s || s->position != j->n_prompt)
        return false;
    cache_pin(&engine->cache, s);
    j->hit = s;
    return true;
}

void reuse_forget(ssm_engine *engine, job *j) {
    if (j->hit)
        cache_unpin(&engine->cache, j->hit);
    j->hit = NULL;
    drop_fetched(engine, j);
}

// ---- following

static bool is_leader(const job *a, const job *j) {
    return a != j && a->uses_cache && !a->is_paused && a->prefilled < a->n_prompt &&
           memcmp(a->tenant, j->tenant, sizeof a->tenant) == 0;
}

// How far a prompt could begin from the state of another.
static size_t shared_with(const job *a, const job *j) {
    const size_t most = smaller(a->n_prompt, j->n_prompt);
    size_t n = 0;
    while (n < most && a->prompt[n] == j->prompt[n])
        n++;
    if (n == a->n_prompt && n == j->n_prompt)
        return n; // the same: it will have its logits too
    return round_down(smaller(n, j->n_prompt - 1));
}

bool reuse_follow(ssm_engine *engine, job *j) {
    const bool is_later_turn = j->session && session_is_alive(j->session);
    if (!j->uses_cache || is_later_turn || engine->cache.o.n_slots == 0 ||
        j->n_follows >= MAX_FOLLOWS)
        return false;
    size_t known, best = 0;
    job *leader = NULL;
    const snapshot *s = cache_find(&engine->cache, j->tenant, j->prompt, j->n_prompt, true, &known);
    const size_t saved = s ? (size_t)s->position : 0;
    for (job *a = engine->running.first; a; a = a->next) {
        const size_t shared = is_leader(a, j) ? shared_with(a, j) : 0;
        if (shared > best && shared > a->prefilled && shared >= saved + MIN_SHARED) {
            best = shared;
            leader = a;
        }
    }
    if (!leader || (best < leader->n_prompt && !add_mark(leader, best)))
        return false;
    j->leader = leader->id;
    j->awaited = best;
    j->n_follows++;
    return true;
}

void reuse_release_followers(ssm_engine *engine) {
    for (job *j = engine->waiting.first; j; j = j->next) {
        if (!j->leader)
            continue;
        const job *a = list_find(&engine->running, j->leader);
        if (!a || a->is_paused || a->prefilled >= j->awaited)
            j->leader = 0;
    }
}
