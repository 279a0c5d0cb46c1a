// SPDX-License-Identifier: Apache-2.0
// See races.h. One thread calls, so nothing is locked.
#ifdef EMU_RACES
#include "emulator.h"

#include <stdio.h>
#include <stdlib.h>

#include <map>
#include <string>
#include <unordered_map>
#include <vector>

typedef std::vector<uint32_t> times; // of all warps, then all blocks' copy engines

struct agent { // a warp
    times seen, fenced;
    std::unordered_map<uint64_t, uint64_t> acquired; // object: its phase
};
struct object {
    times seen, fenced, seen_of_phase, fenced_of_phase;
    uint64_t phase;
};
struct cell {             // of so many bytes; time 0: never
    uint32_t write, read; // times
    uint32_t reads;       // of several warps: which of the region's, from 1 on
    uint16_t writer, reader;
    uint32_t write_place, read_place; // in the code
    bool generic;
};
struct region { // a block's shared memory, or what a test has named
    std::string name;
    uint64_t first, bytes;
    size_t unit, first_reader, n_readers; // bytes of a cell; warps
    std::vector<cell> cells;              // none: not looked at
    std::vector<uint32_t> reads;          // [..][n_readers] times
};
enum { CHECKED_OF = 16, CHECKED = 2, MOST_SAID = 20 };

static size_t n_blocks, n_warps, n_all; // n_warps: of a block
static uint64_t first_byte, all_bytes;  // of shared memory
static std::vector<agent> agents;
static std::unordered_map<uint64_t, object> objects;
static std::vector<region> blocks, named;
static std::vector<uint32_t> engines; // their clocks
static std::map<std::pair<uint32_t, uint32_t>, int> said;

static bool is_checked(size_t block) {
    return block % CHECKED_OF < CHECKED;
}
static void join(times *to, const times &from) {
    if (from.empty())
        return;
    if (to->empty())
        to->assign(n_all, 0);
    uint32_t *mine = to->data();
    const uint32_t *other = from.data();
    for (size_t i = 0; i < n_all; i++)
        mine[i] = std::max(mine[i], other[i]);
}
static size_t own_number(void) {
    return (size_t)emu_block_number() * n_warps + threadIdx.x / EMU_LANES;
}
static agent &own(void) {
    return agents[own_number()];
}
static void tick(void) {
    own().seen[own_number()]++;
}

void emu_races_begin(int n, int threads, const char *shared) {
    n_blocks = (size_t)n, n_warps = (size_t)threads / EMU_LANES;
    n_all = n_blocks * n_warps + n_blocks;
    first_byte = (uint64_t)(uintptr_t)shared, all_bytes = n_blocks * EMU_SHARED;
    agents.assign(n_blocks * n_warps, agent());
    for (size_t i = 0; i < agents.size(); i++) {
        agents[i].seen.assign(n_all, 0), agents[i].fenced.assign(n_all, 0);
        agents[i].seen[i] = 1;
    }
    objects.clear(), engines.assign(n_blocks, 0), blocks.assign(n_blocks, region());
    for (size_t b = 0; b < n_blocks; b++) {
        blocks[b] = region{.name = "shared memory of block " + std::to_string(b),
                           .first = first_byte + b * EMU_SHARED,
                           .bytes = EMU_SHARED,
                           .unit = 2,
                           .first_reader = b * n_warps,
                           .n_readers = n_warps};
        if (is_checked(b))
            blocks[b].cells.assign(EMU_SHARED / 2, cell());
    }
    for (region &r : named)
        r.n_readers = agents.size();
}
void emu_races_end(void) {
    if (!said.empty())
        exit(1);
    all_bytes = 0, named.clear(); // what lies there from now on is the host's
}
void emu_watch(const char *name, const void *p, size_t bytes) {
    named.push_back(
        region{.name = name, .first = (uint64_t)(uintptr_t)p, .bytes = bytes, .unit = 4});
    named.back().cells.assign((bytes + 3) / 4, cell());
}

// ---- who knows of what

void emu_release(uint64_t at) {
    object &o = objects[at];
    join(&o.seen, own().seen), join(&o.fenced, own().fenced);
    tick();
}
void emu_complete(uint64_t at) {
    object &o = objects[at];
    o.seen_of_phase.swap(o.seen), o.fenced_of_phase.swap(o.fenced);
    std::fill(o.seen.begin(), o.seen.end(), 0), std::fill(o.fenced.begin(), o.fenced.end(), 0);
    o.phase++;
}
void emu_acquire(uint64_t at) {
    const object &o = objects[at];
    uint64_t *phase = &own().acquired[at];
    if (*phase == o.phase)
        return;
    *phase = o.phase;
    join(&own().seen, o.seen_of_phase), join(&own().fenced, o.fenced_of_phase);
}
void emu_tell(uint64_t at) {
    join(&objects[at].seen, own().seen);
    objects[at].phase++;
    tick();
}
void emu_hear(uint64_t at) {
    const auto found = objects.find(at);
    if (found == objects.end())
        return;
    uint64_t *phase = &own().acquired[at];
    if (*phase == found->second.phase)
        return;
    *phase = found->second.phase;
    join(&own().seen, found->second.seen);
}
void emu_fence_async(void) {
    own().fenced = own().seen;
    tick();
}

// ---- shared memory

static std::string name_of(size_t number) {
    const bool is_warp = number < n_blocks * n_warps;
    const size_t block = is_warp ? number / n_warps : number - n_blocks * n_warps;
    return "block " + std::to_string(block) +
           (is_warp ? "'s warp " + std::to_string(number % n_warps) : "'s copy engine");
}
static void say(const char *what, const region &r, const cell &c, size_t before,
                uint32_t place_before, uint32_t place) {
    if (said.size() >= MOST_SAID || said[{place_before, place}]++ > 0)
        return;
    fprintf(stderr, "race: %s, at %zu: %s: %s, then %s: WRONG\n", r.name.c_str(),
            (size_t)(&c - r.cells.data()) * r.unit, what, name_of(before).c_str(),
            name_of(own_number()).c_str());
    fprintf(stderr, "  addr2line -i -f -C -e TEST %#x %#x\n", place_before, place);
}
static void read_one(region *r, cell *c, uint32_t place) {
    const agent &a = own();
    const size_t me = own_number();
    const uint32_t now = a.seen[me];
    if (c->write && c->writer != me && a.seen[c->writer] < c->write)
        say("read, not ordered behind a write", *r, *c, c->writer, c->write_place, place);
    else if (c->generic && emu_now->by_async_proxy && a.fenced[c->writer] < c->write)
        say("read by the async proxy, not fenced since a write", *r, *c, c->writer, c->write_place,
            place);
    c->read_place = place;
    if (!c->reads && c->read && c->reader != me) { // a second one
        r->reads.resize(r->reads.size() + r->n_readers);
        c->reads = (uint32_t)(r->reads.size() / r->n_readers);
        r->reads[(c->reads - 1) * r->n_readers + c->reader - r->first_reader] = c->read;
    }
    if (c->reads)
        r->reads[(c->reads - 1) * r->n_readers + me - r->first_reader] = now;
    c->read = now, c->reader = (uint16_t)me;
}
static void write_one(region *r, cell *c, uint32_t place, size_t writer, uint32_t time,
                      bool generic) {
    const agent &a = own();
    const size_t me = own_number();
    if (c->write && c->writer != me && a.seen[c->writer] < c->write)
        say("written over a write that need not be there", *r, *c, c->writer, c->write_place,
            place);
    const auto overtakes = [&](size_t reader, uint32_t when) {
        if (reader != me && a.seen[reader] < when)
            say("written over before it need have been read", *r, *c, reader, c->read_place, place);
    };
    if (c->reads) {
        uint32_t *times = &r->reads[(c->reads - 1) * r->n_readers];
        for (size_t i = 0; i < r->n_readers; i++)
            overtakes(r->first_reader + i, times[i]);
        std::fill_n(times, r->n_readers, 0u);
    } else if (c->read) {
        overtakes(c->reader, c->read);
    }
    c->read = 0, c->write = time, c->writer = (uint16_t)writer, c->write_place = place;
    c->generic = generic;
}
// f(region, cell) of each cell from here on.
template <class F> static void each_of(region *r, uint64_t at, uint32_t bytes, const F &f) {
    if (r->cells.empty())
        return;
    const uint64_t offset = at - r->first;
    for (size_t i = offset / r->unit; i < (offset + bytes + r->unit - 1) / r->unit; i++)
        f(r, &r->cells[i]);
}
template <class F> static inline void each(uint64_t at, uint32_t bytes, const F &f) {
    if (at - first_byte < all_bytes)
        return each_of(&blocks[(at - first_byte) / EMU_SHARED], at, bytes, f);
    if (all_bytes == 0)
        return;
    for (region &r : named) {
        if (at - r.first < r.bytes)
            return each_of(&r, at, bytes, f);
    }
}
static void reads(uint64_t at, uint32_t bytes, void *place) {
    each(at, bytes, [&](region *r, cell *c) { read_one(r, c, (uint32_t)(uintptr_t)place); });
}
static void writes(uint64_t at, uint32_t bytes, void *place) {
    each(at, bytes, [&](region *r, cell *c) {
        write_one(r, c, (uint32_t)(uintptr_t)place, own_number(), own().seen[own_number()], true);
    });
}
void emu_reads(uint64_t at, uint32_t bytes) {
    reads(at, bytes, __builtin_return_address(0));
}
void emu_writes(uint64_t at, uint32_t bytes) {
    writes(at, bytes, __builtin_return_address(0));
}
uint32_t emu_copies(uint32_t to, uint32_t bytes) {
    const size_t block = (to - first_byte) / EMU_SHARED; // whose engine is taken for it
    const uint32_t time = ++engines[block];
    void *place = __builtin_return_address(0);
    each(to, bytes, [&](region *r, cell *c) {
        write_one(r, c, (uint32_t)(uintptr_t)place, n_blocks * n_warps + block, time, false);
    });
    return time;
}
void emu_copied(uint64_t at, uint32_t to, uint32_t time) {
    object &o = objects[at];
    const size_t engine = n_blocks * n_warps + (to - first_byte) / EMU_SHARED;
    if (o.seen.empty())
        o.seen.assign(n_all, 0);
    o.seen[engine] = std::max(o.seen[engine], time);
}

// ---- what the compiler puts in front of loads and stores

extern "C" {
#define ACCESS(name, function, bytes)                                                              \
    void name(void *at) {                                                                          \
        function((uint64_t)(uintptr_t)at, bytes, __builtin_return_address(0));                     \
    }
ACCESS(__tsan_read1, reads, 1)
ACCESS(__tsan_read2, reads, 2)
ACCESS(__tsan_read4, reads, 4)
ACCESS(__tsan_read8, reads, 8)
ACCESS(__tsan_read16, reads, 16)
ACCESS(__tsan_unaligned_read2, reads, 2)
ACCESS(__tsan_unaligned_read4, reads, 4)
ACCESS(__tsan_unaligned_read8, reads, 8)
ACCESS(__tsan_unaligned_read16, reads, 16)
ACCESS(__tsan_write1, writes, 1)
ACCESS(__tsan_write2, writes, 2)
ACCESS(__tsan_write4, writes, 4)
ACCESS(__tsan_write8, writes, 8)
ACCESS(__tsan_write16, writes, 16)
ACCESS(__tsan_unaligned_write2, writes, 2)
ACCESS(__tsan_unaligned_write4, writes, 4)
ACCESS(__tsan_unaligned_write8, writes, 8)
ACCESS(__tsan_unaligned_write16, writes, 16)
void __tsan_init(void) {
}
void __tsan_read_range(void *at, unsigned long bytes) {
    reads((uint64_t)(uintptr_t)at, (uint32_t)bytes, __builtin_return_address(0));
}
void __tsan_write_range(void *at, unsigned long bytes) {
    writes((uint64_t)(uintptr_t)at, (uint32_t)bytes, __builtin_return_address(0));
}
}
#endif
