// SPDX-License-Identifier: Apache-2.0
// A step's lists: what the host tells the device of a plan.
//
// A plan's segments become rows (one token of a sequence) and spans (several). Either says which
// slot it is of, where its tokens lie, where the convolution's ring takes its next entry and
// whether the slot reads as zero. Spans are cut twice: into tiles of CONV_TILE tokens for the
// convolution, into pieces for the scan (pieces.cu). With them go the tokens, which token rows the
// logits are of, and for states that are not written in every step how many entries each is still
// without, with the slots to be made whole first (folds).
//
// All that lies in one block, list behind list at multiples of 16 bytes, and crosses in one copy
// (step.cu). A graph reads a list where it lay at the capture: so a decode step's are laid by its
// bucket alone, all but the folds, which are behind them and have launches of their own. Rows that
// fill up the bucket are fresh rows of slot -1. A block has room for any plan that a step takes
// (step_staging_bytes), whatever it consists of.
//
// The host knows of a slot what depends on numbers of tokens alone: ring_at and held. Both are
// moved on here, when the lists are written, not when the device gets there.
#include "lists.h"

namespace ssm {

static size_t align16(size_t n) {
    return (n + 15) & ~(size_t)15;
}

size_t step_staging_bytes(int32_t max_tokens, int32_t n_slots, int32_t max_rows) {
    const size_t tokens = (size_t)step_bucket(max_tokens), slots = (size_t)step_bucket(n_slots);
    const size_t pieces = tokens / 16 + 2 * slots, tiles = tokens / CONV_TILE + slots;
    return tokens * sizeof(int32_t) + slots * (sizeof(row) + 2 * sizeof(span) + sizeof(int32_t)) +
           REPLAY_MOST_STARTS * sizeof(int32_t) + (pieces + tiles) * sizeof(piece) +
           (size_t)step_bucket(max_rows) * sizeof(int32_t) + 16 * 11;
}
static_assert(LEAST_COPY <= REPLAY_MOST_STARTS * sizeof(int32_t), "a block has as many");

template <class T> static T *reserve(block *b, size_t n, const T **on_device) {
    T *host = (T *)(b->host + b->used);
    *on_device = (const T *)(b->device + b->used);
    b->used += align16(n * sizeof(T));
    return b->used <= b->capacity ? host : NULL;
}

// ---- segments

static int32_t token_code(int32_t token, int32_t slot) {
    return token == SSM_TOKEN_SAMPLED ? -1 - slot : token;
}

// Where the slot's ring stands before this segment; moves it on.
static int32_t ring_of(device *d, const ssm_segment *s) {
    if (is_lti(d)) // no ring: H3's shift SSM keeps sums, not inputs
        return 0;
    const int32_t kept = d->g.d_conv > 1 ? d->g.d_conv - 1 : 1;
    const int32_t at = s->fresh ? 0 : d->ring_at[s->slot];
    d->ring_at[s->slot] = (at + s->count) % kept;
    return at;
}

static row row_of(device *d, const ssm_segment *s) {
    return {s->first, s->slot, ring_of(d, s), s->fresh};
}

// Entries that the slot's base is without (replay.cu, advance_replay.cu), with 256 if it then is
// without none. Bases are written where a sequence comes to a multiple of replay_every tokens,
// counted from its start or from where its state was written: nothing but the sequence's own
// history decides.
static int32_t take_entry(device *d, const ssm_segment *s) {
    replay_slot *slot = &d->held[s->slot];
    if (!d->replays)
        return 0;
    if (s->fresh)
        *slot = {};
    const int32_t held = slot->held;
    slot->phase = (slot->phase + s->count) % d->replay_every;
    const bool fold = s->fresh || slot->phase == 0;
    slot->held = fold || s->count > 1 ? 0 : held + 1;
    return held + (fold ? 256 : 0);
}

// Mamba-1: all but advance_replay.cu. Mamba-2: what solo_large_mamba2.cu takes, which knows of no
// entries, and few rows of a model whose weights are what a step reads (replay.cu, When).
static bool writes_at_once(const device *d, int32_t n_rows, bool decode) {
    if (d->g.kind == SSM_BLOCK_MAMBA)
        return d->replays && !advance_replay_fits(d, n_rows);
    if (!d->replays || !decode || n_rows > FEW_ROWS)
        return false;
    return solo_fits(d, n_rows) || resident_fits(d, n_rows) ||
           (d->g.d_model >= 512 && !medium_fits(d, n_rows) && few_fits(d, n_rows));
}

// In such a step: the entries that the slot's base is without until it begins.
static int32_t take_whole(device *d, const ssm_segment *s) {
    replay_slot *slot = &d->held[s->slot];
    if (s->fresh)
        *slot = {};
    const int32_t held = slot->held;
    slot->held = 0;
    slot->phase = (slot->phase + 1) % d->replay_every;
    return held;
}

static bool reserve_folds(block *block, size_t n, folds *f) {
    f->b = {};
    f->spans = reserve(block, n, &f->b.spans);
    return f->spans != NULL;
}

static void fold_first(folds *f, const ssm_segment *s, int32_t held) {
    if (held == 0)
        return;
    span *to = &f->spans[f->b.n_spans++];
    *to = {};
    to->slot = s->slot, to->held = held;
}

// ---- decode rows alone

bool lists_are_decode(const device *d, const ssm_plan *plan) {
    for (int32_t i = 0; i < plan->n_segments; i++) {
        if (plan->segments[i].count != 1 || plan->segments[i].want == SSM_WANT_NONE)
            return false;
    }
    return plan->n_segments <= d->max_rows;
}

decode_lists lists_lay_decode(const device *d, block *b, int32_t bucket, batch *out) {
    decode_lists lists;
    *out = {};
    out->n = out->n_rows = out->n_logits = bucket;
    out->decode = true;
    out->at_once = writes_at_once(d, bucket, true);
    lists.tokens = reserve(b, (size_t)bucket, &out->tokens);
    lists.rows = reserve(b, (size_t)bucket, &out->rows);
    lists.held = reserve(b, (size_t)bucket, &out->held);
    lists.starts = reserve(b, replay_starts(d), &out->starts);
    return lists;
}

void lists_decode(device *d, const ssm_plan *plan, int32_t bucket, block *b, folds *f) {
    batch like_captured;
    const decode_lists lists = lists_lay_decode(d, b, bucket, &like_captured);
    reserve_folds(b, (size_t)bucket, f);
    for (int32_t i = 0; i < plan->n_segments; i++) {
        const ssm_segment *s = &plan->segments[i];
        lists.tokens[i] = token_code(plan->tokens[s->first], s->slot);
        lists.rows[i] = row_of(d, s);
        lists.rows[i].at = i;
        if (like_captured.at_once)
            fold_first(f, s, take_whole(d, s));
        else
            lists.held[i] = take_entry(d, s);
    }
    for (int32_t i = plan->n_segments; i < bucket; i++) {
        lists.tokens[i] = 0;
        lists.rows[i] = {i, -1, 0, 1};
    }
    if (!like_captured.at_once)
        replay_plan(d, lists.held, plan->n_segments, lists.starts);
}

// ---- mixed steps

static bool fill_tokens(const ssm_plan *plan, block *block, batch *b) {
    b->n = step_bucket(plan->n_tokens);
    int32_t *tokens = reserve(block, (size_t)b->n, &b->tokens);
    if (!tokens)
        return false;
    for (int32_t i = 0; i < plan->n_segments; i++) {
        const ssm_segment *s = &plan->segments[i];
        for (int32_t k = 0; k < s->count; k++)
            tokens[s->first + k] = token_code(plan->tokens[s->first + k], s->slot);
    }
    for (int32_t i = plan->n_tokens; i < b->n; i++)
        tokens[i] = 0;
    return true;
}

static int32_t cut(piece *out, int32_t at, const span *s, int32_t index, int32_t length) {
    int32_t n = 0;
    for (int32_t done = 0; done < s->count; n++) {
        const int32_t count = s->count - done < length ? s->count - done : length;
        out[at + n] = {index, s->first + done, count, at + n};
        done += count;
    }
    return n;
}

static bool fill_spans(device *d, const ssm_plan *plan, block *block, batch *b, folds *folds) {
    int32_t n_rows = 0, n_spans = 0, prefill = 0, longest = 0;
    for (int32_t i = 0; i < plan->n_segments; i++) {
        const int32_t count = plan->segments[i].count;
        const bool one = count == 1;
        n_rows += one;
        n_spans += !one;
        prefill += one ? 0 : count;
        longest = count > longest ? count : longest;
    }
    row *rows = reserve(block, (size_t)n_rows, &b->rows);
    int32_t *held = reserve(block, (size_t)n_rows, &b->held);
    int32_t *starts = reserve(block, replay_starts(d), &b->starts);
    span *spans = reserve(block, (size_t)n_spans, &b->spans);
    if (!rows || !spans || !held || !starts ||
        !reserve_folds(block, (size_t)plan->n_segments, folds))
        return false;
    b->at_once = writes_at_once(d, n_rows, false);
    const int32_t length = is_lti(d) ? lti_plan_spans(d, n_spans, prefill, b)
                                     : piece_length(d, n_spans, prefill, longest);
    for (int32_t i = 0; i < plan->n_segments; i++) {
        const ssm_segment *s = &plan->segments[i];
        if (s->count == 1) {
            if (b->at_once)
                fold_first(folds, s, take_whole(d, s));
            else
                held[b->n_rows] = take_entry(d, s);
            rows[b->n_rows++] = row_of(d, s);
            continue;
        }
        span *p = &spans[b->n_spans++];
        *p = {s->slot, s->first, s->count, ring_of(d, s), s->fresh, b->n_pieces, 0, 0};
        fold_first(folds, s, take_entry(d, s) & 255);
        p->n_pieces = ceil_div(s->count, length);
        b->n_pieces += p->n_pieces;
        b->n_tiles += ceil_div(s->count, CONV_TILE);
        b->split |= p->n_pieces > 1;
    }
    replay_plan(d, held, n_rows, starts);
    piece *tiles = reserve(block, (size_t)b->n_tiles, &b->tiles);
    piece *pieces = reserve(block, (size_t)b->n_pieces, &b->pieces);
    if (!tiles || !pieces)
        return false;
    for (int32_t i = 0, t = 0, p = 0; i < b->n_spans; i++) {
        t += cut(tiles, t, &spans[i], i, CONV_TILE);
        p += cut(pieces, p, &spans[i], i, length);
    }
    return true;
}

static bool fill_logits(const ssm_plan *plan, block *block, batch *b) {
    int32_t n = 0;
    for (int32_t i = 0; i < plan->n_segments; i++) {
        const ssm_segment *s = &plan->segments[i];
        n += s->want == SSM_WANT_ALL ? s->count : s->want == SSM_WANT_LAST;
    }
    b->n_logits = n == 0 ? 0 : step_bucket(n);
    int32_t *tokens = reserve(block, (size_t)b->n_logits, &b->logit_tokens);
    if (!tokens)
        return false;
    int32_t at = 0;
    for (int32_t i = 0; i < plan->n_segments; i++) {
        const ssm_segment *s = &plan->segments[i];
        const int32_t wanted = s->want == SSM_WANT_ALL ? s->count : s->want == SSM_WANT_LAST;
        for (int32_t k = s->count - wanted; k < s->count; k++)
            tokens[at++] = s->first + k;
    }
    while (at < b->n_logits)
        tokens[at++] = 0;
    return true;
}

bool lists_mixed(device *d, const ssm_plan *plan, block *b, batch *out, folds *f) {
    *out = {};
    *f = {};
    return fill_tokens(plan, b, out) && fill_spans(d, plan, b, out, f) && fill_logits(plan, b, out);
}

} // namespace ssm
