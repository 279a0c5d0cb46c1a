// SPDX-License-Identifier: Apache-2.0
#include "session.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// ---- the chain

token_chain chain_begin(void) {
    return (token_chain){0x243f6a8885a308d3u, 0x13198a2e03707344u}; // digits of pi
}

// Two lanes of multiply and xorshift, each a bijection of its state for every token, so that two
// texts that part can meet again only by chance, once in 2^128.
token_chain chain_add(token_chain c, const int32_t *tokens, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const uint64_t x = (uint32_t)tokens[i];
        c.lo = (c.lo ^ x) * 0x9e3779b97f4a7c15u;
        c.lo ^= c.lo >> 29;
        c.hi = (c.hi + x + 1) * 0xd1342543de82ef95u;
        c.hi ^= c.hi >> 31;
    }
    return c;
}

bool chain_is(token_chain a, token_chain b) {
    return a.lo == b.lo && a.hi == b.hi;
}

// ---- texts

void session_text_add(session_text *text, const int32_t *tokens, size_t n) {
    text->chain = chain_add(text->chain, tokens, n);
    text->n_tokens += n;
    const size_t fresh = n < SESSION_LAST ? n : SESSION_LAST;
    const size_t room = SESSION_LAST - fresh;
    const size_t old = text->n_last < room ? text->n_last : room;
    memmove(text->last, text->last + (text->n_last - old), old * sizeof *tokens);
    if (fresh > 0)
        memcpy(text->last + old, tokens + (n - fresh), fresh * sizeof *tokens);
    text->n_last = old + fresh;
}

bool session_text_copy(session_text *to, const session_text *from) {
    *to = *from;
    if (!(to->pending = malloc((from->n_pending + 1) * sizeof *to->pending)))
        return false;
    if (from->n_pending > 0)
        memcpy(to->pending, from->pending, from->n_pending * sizeof *to->pending);
    return true;
}

ssm_session_point session_point(const session_text *text) {
    return (ssm_session_point){text->n_tokens, {text->chain.hi, text->chain.lo}};
}

void session_text_dispose(session_text *text) {
    free(text->pending);
    *text = (session_text){.chain = chain_begin()};
}

// ---- the table

bool session_name_is_valid(const char *name) {
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    const size_t n = strnlen(name, SSM_SESSION_NAME + 1);
    return n >= 1 && n <= SSM_SESSION_NAME && strspn(name, allowed) == n;
}

static size_t bucket(const uint64_t owner[2], const char *name) {
    uint64_t h = owner[0] ^ owner[1] * 0x9e3779b97f4a7c15u;
    for (; *name; name++)
        h = (h ^ (uint8_t)*name) * 0x100000001b3u; // FNV-1a
    return (size_t)(h ^ h >> 32) % SESSION_BUCKETS;
}

static bool is_called(const session *s, const uint64_t owner[2], const char *name) {
    return s->owner[0] == owner[0] && s->owner[1] == owner[1] && strcmp(s->name, name) == 0;
}

session *sessions_find(const session_table *t, const uint64_t owner[2], const char *name) {
    session *s = t->buckets[bucket(owner, name)];
    while (s && !is_called(s, owner, name))
        s = s->next;
    return s;
}

// ---- how many an owner has

static session_owner **find_owner(session_table *t, const uint64_t owner[2]) {
    session_owner **at = &t->owners[(owner[0] ^ owner[1]) % OWNER_BUCKETS];
    while (*at && ((*at)->owner[0] != owner[0] || (*at)->owner[1] != owner[1]))
        at = &(*at)->next;
    return at;
}

size_t sessions_of(const session_table *t, const uint64_t owner[2]) {
    const session_owner *o = *find_owner((session_table *)t, owner);
    return o ? o->n : 0;
}

static bool count_owner(session_table *t, const uint64_t owner[2]) {
    session_owner **at = find_owner(t, owner);
    if (!*at && !(*at = calloc(1, sizeof **at)))
        return false;
    memcpy((*at)->owner, owner, sizeof(*at)->owner);
    (*at)->n++;
    return true;
}

static void discount_owner(session_table *t, const uint64_t owner[2]) {
    session_owner **at = find_owner(t, owner), *o = *at;
    if (--o->n > 0)
        return;
    *at = o->next;
    free(o);
}

// ---- life

session *sessions_ref(session_table *t, const uint64_t owner[2], const char *name) {
    session *s = sessions_find(t, owner, name);
    if (!s) {
        if (!(s = calloc(1, sizeof *s)) || !count_owner(t, owner)) {
            free(s);
            return NULL;
        }
        memcpy(s->owner, owner, sizeof s->owner);
        strcpy(s->name, name);
        s->text.chain = chain_begin();
        s->created = s->last_used = (int64_t)time(NULL);
        s->is_listed = true;
        s->refs = 1;
        session **head = &t->buckets[bucket(owner, name)];
        s->next = *head;
        *head = s;
        t->n++;
    }
    s->refs++;
    return s;
}

static void take_state(session *s, snapshot *state) {
    s->state = state;
    s->next_alike = state->sessions;
    state->sessions = s;
}

static void drop_state(session *s, cache *c) {
    if (!s->state)
        return;
    session **at = &s->state->sessions;
    while (*at != s)
        at = &(*at)->next_alike;
    *at = s->next_alike;
    cache_release(c, s->state);
    s->state = NULL;
}

static void unref(cache *c, session *s) {
    if (--s->refs > 0)
        return;
    assert(!s->is_listed && !s->holder && !s->is_dirty && !s->tickets && !s->calls);
    drop_state(s, c);
    session_text_dispose(&s->text);
    free(s);
}

void sessions_delete(session_table *t, cache *c, session *s) {
    session **at = &t->buckets[bucket(s->owner, s->name)];
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    s->is_listed = false;
    t->n--;
    discount_owner(t, s->owner);
    unref(c, s);
}

void sessions_unref(session_table *t, cache *c, session *s) {
    if (s->refs == 2 && s->is_listed && !session_is_alive(s))
        sessions_delete(t, c, s);
    unref(c, s);
}

void sessions_dispose(session_table *t, cache *c) {
    for (size_t i = 0; i < SESSION_BUCKETS; i++) {
        while (t->buckets[i]) {
            assert(t->buckets[i]->refs == 1);
            sessions_delete(t, c, t->buckets[i]);
        }
    }
}

void session_set(session *s, cache *c, snapshot *state, session_text *text) {
    assert(state->keeps > 0 && (text->n_pending > 0 || state->has_logits));
    assert(state->position + text->n_pending == text->n_tokens);
    drop_state(s, c);
    session_text_dispose(&s->text);
    take_state(s, state);
    s->text = *text;
    *text = (session_text){0};
    s->last_used = (int64_t)time(NULL);
    s->version++;
}

void session_load(session *s, snapshot *state, session_text *text) {
    assert(!s->state && s->stored > 0 && s->stored == s->version);
    session_text_dispose(&s->text);
    take_state(s, state);
    s->text = *text;
    *text = (session_text){0};
}

void session_unload(session *s, cache *c) {
    assert(s->stored > 0 && s->stored == s->version && !s->holder);
    drop_state(s, c);
    free(s->text.pending);
    s->text.pending = NULL;
    s->text.n_pending = 0;
}

void session_reset(session *s, cache *c) {
    assert(!s->holder);
    drop_state(s, c);
    session_text_dispose(&s->text);
    s->stored = s->stamp = 0;
}
