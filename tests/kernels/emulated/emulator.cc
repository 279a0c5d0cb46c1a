// SPDX-License-Identifier: Apache-2.0
// See emulator.h. One thread goes round: each block in turn, its warps, a warp's lanes until all
// wait, then some of the block's copies.
#include "emulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <vector>

enum { STACK = 64 << 10, QUEUE = 256, PATIENCE = 200 };
enum { NOT_A_NUMBER = 0x7fc1 }; // in bf16; in fp32 if twice

struct barrier {
    uint32_t at;
    int arrivals, pending, phase;
    int64_t bytes;
};
struct copy {
    uint32_t to, bytes, barrier, time;
    std::vector<char> from;
};
struct emu_block {
    char *shared;
    int threads, ended;
    struct {
        int count, threads;
        uint64_t generation;
    } named[EMU_NAMED];
    std::vector<barrier> barriers;
    std::vector<copy> copies;
};
struct cluster {
    int count;
    uint64_t generation;
};

emu_fiber *emu_now;
dim3 blockDim, gridDim;
bool emu_waits_for_four;
long emu_l2_asks;
long long emu_time;
static std::vector<emu_block> blocks;
static std::vector<cluster> clusters;
static unsigned of_cluster; // blocks
static uint32_t shared_bytes;
static uint64_t visit;  // of a warp
static uint64_t events; // which others may have waited for
static void *scheduler;
static void (*kernel_now)(const void *);
static const void *arguments_now;

// ---- fibers

extern "C" void emu_swap(void **from, void *to);
asm(".text\n.globl emu_swap\nemu_swap:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

static void leave(void) {
    emu_swap(&emu_now->stack, scheduler);
}
static void entry(void) {
    kernel_now(arguments_now);
    if (!emu_now->products.empty())
        emu_fail("products that nobody has waited for");
    if (!emu_now->stores.empty())
        emu_fail("stores that nobody has waited for");
    emu_block *b = emu_now->warp->block;
    if (++b->ended == b->threads) {
        if (!b->copies.empty())
            emu_fail("a block ends before copies to it do");
        for (const auto &named : b->named) {
            if (named.count > 0)
                emu_fail("a block ends before all have come to a named barrier");
        }
    }
    emu_now->waits = emu_fiber::DONE;
    leave();
}
void emu_fail(const char *what) {
    fprintf(stderr, "emulator: %s, block %u, thread %u\n", what, emu_block_number(), threadIdx.x);
    abort();
}
void emu_yield(void) {
    emu_now->waits = emu_fiber::LATER, emu_now->generation = visit;
    leave();
}
void emu_event(void) {
    events++;
}
char *emu_shared(void) {
    return emu_now->warp->block->shared;
}
char *emu_static(void) {
    return emu_shared() + shared_bytes - EMU_STATIC;
}
void emu_check(uint32_t at, int alignment) {
    const uint32_t first = (uint32_t)(uintptr_t)emu_shared();
    if (at < first || at + (uint32_t)alignment > first + shared_bytes || at % (uint32_t)alignment)
        emu_fail("outside of shared memory, or not aligned");
}

// ---- barriers

static const uint64_t INTACT = 0xba1127e6de5ca1ed; // where a barrier lies in shared memory

static barrier *find(emu_block *b, uint32_t at) {
    for (barrier &one : b->barriers) {
        if (one.at != at)
            continue;
        if (memcmp(emu_memory(at), &INTACT, 8) != 0)
            emu_fail("something was written over a barrier");
        return &one;
    }
    emu_fail("no such barrier");
}
static barrier *own(uint32_t at) {
    return find(emu_now->warp->block, at);
}
static void look(barrier *b) { // behind an arrival, or bytes
    emu_event();
    if (b->pending < 0)
        emu_fail("too many arrivals at a barrier");
    if (b->pending == 0 && b->bytes == 0) {
        b->phase ^= 1, b->pending = b->arrivals;
        emu_complete(b->at);
    }
}
void emu_barrier_init(uint32_t at, int arrivals) {
    emu_check(at, 8);
    memcpy(emu_memory(at), &INTACT, 8);
    emu_now->warp->block->barriers.push_back({at, arrivals, arrivals, 0, 0});
}
static void arrive(barrier *b, int arrivals) {
    emu_release(b->at);
    b->pending -= arrivals;
    look(b);
}
void emu_barrier_arrive(uint32_t at, int arrivals) {
    arrive(own(at), arrivals);
}
void emu_barrier_expect(uint32_t at, uint32_t bytes) {
    own(at)->bytes += bytes;
    emu_barrier_arrive(at);
}
bool emu_barrier_is(uint32_t at, int parity) {
    const bool is = own(at)->phase != (parity & 1);
    if (is)
        emu_acquire(at);
    return is;
}
void emu_wait_barrier(uint32_t at, int parity) {
    emu_now->waits = emu_fiber::BARRIER, emu_now->barrier = at, emu_now->parity = parity;
    leave();
}
static uint64_t object_of(int named) { // of a block, or (-1) of its cluster
    const uint64_t of = named < 0 ? emu_block_number() / of_cluster : emu_block_number();
    return 1ull << 62 | of << 8 | (uint64_t)(named + 1);
}
void emu_named_arrive(int id, int threads) {
    emu_block *b = emu_now->warp->block;
    auto &named = b->named[id];
    threads = threads < 0 ? b->threads : threads;
    if (named.count > 0 && named.threads != threads)
        emu_fail("a named barrier of other threads");
    if (emu_now->met[id] == named.generation + 1)
        emu_fail("twice at a named barrier");
    emu_now->met[id] = named.generation + 1;
    named.threads = threads;
    emu_release(object_of(id));
    if (++named.count == threads) {
        named.count = 0, named.generation++, emu_event();
        emu_complete(object_of(id));
    }
}
void emu_named(int id, int threads) {
    const auto &named = emu_now->warp->block->named[id];
    emu_now->generation = named.generation, emu_now->named = id;
    emu_named_arrive(id, threads);
    if (named.generation == emu_now->generation) {
        emu_now->waits = emu_fiber::NAMED;
        leave();
    }
    emu_acquire(object_of(id));
}
void emu_cluster_arrive(void) {
    cluster &c = clusters[emu_block_number() / of_cluster];
    emu_now->cluster_generation = c.generation;
    emu_release(object_of(-1));
    if (++c.count == (int)of_cluster * emu_now->warp->block->threads) {
        c.count = 0, c.generation++, emu_event();
        emu_complete(object_of(-1));
    }
}
void emu_cluster_wait(void) {
    while (clusters[emu_block_number() / of_cluster].generation == emu_now->cluster_generation)
        emu_yield();
    emu_acquire(object_of(-1));
}

// ---- copies

static emu_block *block_of(uint32_t at) {
    return &blocks[(at - (uint32_t)(uintptr_t)blocks[0].shared) / EMU_SHARED];
}
// What is told to a block, or copied there.
static emu_block *not_ended(emu_block *b) {
    if (b->ended == b->threads)
        emu_fail("to a block that has ended");
    return b;
}
static void ask_of(emu_block *b, uint32_t to, std::vector<char> from, uint32_t at) {
    const uint32_t bytes = (uint32_t)from.size();
    for (uint32_t i = 0; i < bytes; i += 2)
        *(uint16_t *)emu_memory(to + i) = NOT_A_NUMBER;
    not_ended(b)->copies.push_back({to, bytes, at, emu_copies(to, bytes), std::move(from)});
    if (b->copies.size() > QUEUE)
        emu_fail("no end of copies");
}
static void ask(uint32_t to, std::vector<char> from, uint32_t at) {
    emu_check(to, 16), emu_check(to + (uint32_t)from.size() - 16, 16);
    ask_of(emu_now->warp->block, to, std::move(from), at);
}
// What the copy engine takes from the block's memory.
static const char *engine_reads(uint32_t from, uint32_t bytes) {
    emu_check(from, 16), emu_check(from + bytes - 16, 16);
    emu_now->by_async_proxy = true;
    emu_reads(from, bytes);
    emu_now->by_async_proxy = false;
    return (const char *)emu_memory(from);
}
void emu_copy(uint32_t to, const void *from, uint32_t bytes, uint32_t at) {
    if ((uintptr_t)from % 16 || bytes % 16)
        emu_fail("a copy that is not aligned");
    ask(to, std::vector<char>((const char *)from, (const char *)from + bytes), at);
}
void emu_copy_async(void *to, const void *from, bool live, uint32_t bytes) {
    emu_check((uint32_t)(uintptr_t)to, (int)bytes);
    if ((uintptr_t)from % bytes)
        emu_fail("cp.async from what is not aligned");
    emu_writes((uint32_t)(uintptr_t)to, bytes);
    if (!live) {
        memset(to, 0, bytes);
        return;
    }
    emu_reads((uint64_t)(uintptr_t)from, bytes);
    memcpy(to, from, bytes);
}
void emu_set_word(uint32_t at, int v) {
    emu_check(at, 4);
    *(int *)emu_memory(at) = v;
    emu_event();
}
int emu_word(uint32_t at) {
    emu_yield();
    return *(const int *)emu_memory(at);
}
// f(offset in shared memory from `at` on, number in memory) of all that a box has there. Bytes are
// swizzled by their address.
template <class F>
static void each_number(const emu_map *m, int column, int row, uint32_t at, const F &f) {
    for (int r = 0; r < m->box_rows; r++) {
        for (int c = 0; c < m->box_columns; c++) {
            uint32_t place = at + (uint32_t)(r * m->box_columns + c) * (uint32_t)m->number;
            place ^= m->swizzle == 128  ? (place >> 7 & 7) << 4
                     : m->swizzle == 64 ? (place >> 7 & 3) << 4
                                        : 0;
            if (row + r < m->rows && column + c < m->columns)
                f(place - at, (char *)(uintptr_t)m->base +
                                  ((size_t)(row + r) * (size_t)m->columns + (size_t)(column + c)) *
                                      (size_t)m->number);
        }
    }
}
static std::vector<char> box_of(const emu_map *m, int column, int row, uint32_t to) {
    std::vector<char> box((size_t)m->box_columns * (size_t)m->box_rows * (size_t)m->number);
    if (to % (m->swizzle ? 8 * (unsigned)m->swizzle : 128))
        emu_fail("a box that is not aligned");
    each_number(m, column, row, to, [&](uint32_t place, const char *of) {
        memcpy(&box[place], of, (size_t)m->number);
    });
    return box;
}
void emu_copy_box(uint32_t to, const void *map, int column, int row, uint32_t at) {
    ask(to, box_of((const emu_map *)map, column, row, to), at);
}
void emu_copy_box_to(uint32_t which, uint32_t to, const void *map, int column, int row,
                     uint32_t at) {
    for (int rank = 0; which >> rank; rank++) {
        if (which >> rank & 1)
            ask_of(block_of(emu_peer(to, rank)), emu_peer(to, rank),
                   box_of((const emu_map *)map, column, row, to), emu_peer(at, rank));
    }
}
void emu_store_run(void *to, uint32_t from, uint32_t bytes) {
    if ((uintptr_t)to % 16 || bytes % 16)
        emu_fail("a copy that is not aligned");
    emu_now->stores.push_back({NULL, to, 0, 0, from, bytes, emu_now->store_groups});
}
void emu_store_box(const void *map, int column, int row, uint32_t from) {
    const emu_map *m = (const emu_map *)map;
    const uint32_t bytes = (uint32_t)(m->box_columns * m->box_rows * m->number);
    emu_check(from, 128);
    emu_now->stores.push_back({m, NULL, column, row, from, bytes, emu_now->store_groups});
}
void emu_stores_commit(void) {
    emu_now->store_groups++;
}
static void make_store(const emu_store &one) {
    const char *from = engine_reads(one.from, one.bytes);
    if (!one.map) {
        emu_writes((uint64_t)(uintptr_t)one.to, one.bytes);
        memcpy(one.to, from, one.bytes);
        return;
    }
    each_number(one.map, one.column, one.row, one.from, [&](uint32_t place, char *of) {
        emu_writes((uint64_t)(uintptr_t)of, (uint32_t)one.map->number);
        memcpy(of, from + place, (size_t)one.map->number);
    });
}
void emu_stores_read(int left) {
    auto &stores = emu_now->stores;
    size_t made = 0;
    for (; made < stores.size() && stores[made].group < emu_now->store_groups - left; made++)
        make_store(stores[made]);
    stores.erase(stores.begin(), stores.begin() + (long)made);
}
uint32_t emu_peer(uint32_t address, int rank) {
    if ((unsigned)rank >= of_cluster)
        emu_fail("no such block of the cluster");
    const char *there =
        blocks[emu_block_number() / of_cluster * of_cluster + (unsigned)rank].shared;
    return address - (uint32_t)(uintptr_t)emu_shared() + (uint32_t)(uintptr_t)there;
}
void emu_arrive_at_peer(uint32_t at) {
    arrive(find(not_ended(block_of(at)), at), 1);
}
void emu_copy_to_peer(uint32_t to, uint32_t from, uint32_t bytes, uint32_t at) {
    const uint32_t offset = to % EMU_SHARED;
    if (to % 16 || bytes % 16 || offset + bytes > shared_bytes || block_of(to) != block_of(at))
        emu_fail("a copy to a peer that is not aligned, or not to its memory");
    const char *first = engine_reads(from, bytes);
    ask_of(block_of(at), to, std::vector<char>(first, first + bytes), at);
}
void emu_store_to_peer(uint32_t to, const void *v, uint32_t bytes, uint32_t at) {
    emu_block *b = not_ended(block_of(at));
    if (to % bytes)
        emu_fail("st.async to what is not aligned");
    emu_writes(to, bytes);
    emu_release(at);
    memcpy(emu_memory(to), v, bytes);
    barrier *there = find(b, at);
    there->bytes -= bytes;
    look(there);
}

// ---- a warp's

static float of_half(uint16_t v) {
    __half_raw raw;
    raw.x = v;
    return __half2float(__half(raw));
}
// Lane l, g = l / 4, q = l % 4: rows g and g + 8 of a, row g of b, columns 2 q, 2 q + 1 and 8 on.
static void multiply(emu_warp *w, float (*number)(uint16_t)) {
    float a[16][16], b[8][16];
    for (int l = 0; l < EMU_LANES; l++) {
        const int g = l / 4, q = l % 4;
        const uint32_t *in = w->in[l];
        for (int i = 0; i < 2; i++) {
            for (int half = 0; half < 2; half++) {
                const int k = half * 8 + 2 * q + i;
                a[g][k] = number((uint16_t)(in[2 * half] >> 16 * i));
                a[g + 8][k] = number((uint16_t)(in[2 * half + 1] >> 16 * i));
                b[g][k] = number((uint16_t)(in[4 + half] >> 16 * i));
            }
        }
    }
    for (int l = 0; l < EMU_LANES; l++) {
        for (int i = 0; i < 4; i++) {
            for (int k = 0; k < 16; k++)
                w->sums[l][i] += a[l / 4 + i / 2 * 8][k] * b[l % 4 * 2 + i % 2][k];
        }
    }
}
// The same of m16n8k8, whose lane has columns q and q + 4 of a and b, cut to tf32.
static void multiply_tf32(emu_warp *w) {
    auto number = [&](int lane, int i) { return __uint_as_float(w->in[lane][i] & ~0x1fffu); };
    for (int l = 0; l < EMU_LANES; l++) {
        for (int i = 0; i < 4; i++) {
            for (int k = 0; k < 8; k++)
                w->sums[l][i] += number(l / 4 * 4 + k % 4, i / 2 + k / 4 * 2) *
                                 number((l % 4 * 2 + i % 2) * 4 + k % 4, 4 + k / 4);
        }
    }
}
void emu_collect(emu_collective at) {
    emu_warp *w = emu_now->warp;
    if (w->arrived > 0 && w->at != at)
        emu_fail("a warp is at two places");
    w->at = at;
    if (++w->arrived < EMU_LANES) {
        emu_now->waits = emu_fiber::COLLECTIVE, emu_now->generation = w->generation;
        leave();
        return;
    }
    w->arrived = 0, w->generation++;
    uint32_t votes = 0;
    for (int l = 0; l < EMU_LANES; l++)
        votes |= (w->in[l][0] != 0 ? 1u : 0u) << l;
    if (at == EMU_MMA || at == EMU_MMA_F16)
        multiply(w, at == EMU_MMA ? emu_bf16 : of_half);
    if (at == EMU_MMA_TF32)
        multiply_tf32(w);
    for (int l = 0; l < EMU_LANES; l++)
        w->out[l] = at == EMU_SHUFFLE ? w->in[w->in[l][1]][0]
                    : at == EMU_ALL   ? votes == ~0u
                                      : votes;
}
void emu_mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
             uint32_t b1, emu_collective of) {
    const uint32_t in[] = {a0, a1, a2, a3, b0, b1};
    memcpy(emu_now->warp->in[emu_now->lane], in, sizeof in);
    memcpy(emu_now->warp->sums[emu_now->lane], c, sizeof c);
    emu_collect(of);
    memcpy(c, emu_now->warp->sums[emu_now->lane], sizeof c);
}
void emu_ldmatrix(uint32_t (&r)[4], const void *row) {
    const uint32_t at = (uint32_t)(uintptr_t)row;
    emu_check(at, 16);
    emu_reads(at, 16);
    for (int m = 0; m < 4; m++)
        r[m] = *(const uint32_t *)emu_memory(emu_shuffle(at, 8 * m + emu_now->lane / 4) +
                                             (uint32_t)(emu_now->lane % 4 * 4));
}
// Of each matrix a lane has column l / 4, rows 2 (l % 4) and the one behind.
void emu_ldmatrix_transposed(uint32_t (&r)[4], const void *row) {
    const uint32_t at = (uint32_t)(uintptr_t)row;
    emu_check(at, 16);
    emu_reads(at, 16);
    for (int m = 0; m < 4; m++) {
        r[m] = 0;
        for (int i = 0; i < 2; i++) {
            const uint32_t of = emu_shuffle(at, 8 * m + emu_now->lane % 4 * 2 + i);
            r[m] |= (uint32_t) * (const uint16_t *)emu_memory(of + emu_now->lane / 4 * 2) << 16 * i;
        }
    }
}
uint32_t emu_transpose(uint32_t v) {
    uint32_t r = 0;
    for (int i = 0; i < 2; i++) {
        const int row = emu_now->lane % 4 * 2 + i, column = emu_now->lane / 4;
        r |= (emu_shuffle(v, row * 4 + column / 2) >> 16 * (column % 2) & 0xffff) << 16 * i;
    }
    return r;
}

// ---- the launch

static bool can_go_on(const emu_fiber *f) {
    switch (f->waits) {
    case emu_fiber::COLLECTIVE:
        return f->warp->generation != f->generation;
    case emu_fiber::BARRIER:
        return find(f->warp->block, f->barrier)->phase != (f->parity & 1);
    case emu_fiber::NAMED:
        return f->warp->block->named[f->named].generation != f->generation;
    case emu_fiber::LATER:
        return f->generation != visit;
    case emu_fiber::DONE:
        return false;
    default:
        return true;
    }
}
// Until all lanes wait.
static void run(emu_warp *w, size_t *left) {
    visit++;
    for (bool more = true; more;) {
        more = false;
        for (emu_fiber *f : w->fibers) {
            emu_now = f;
            if (!can_go_on(f))
                continue;
            f->waits = emu_fiber::READY;
            emu_swap(&scheduler, f->stack);
            *left -= f->waits == emu_fiber::DONE;
            more |= f->waits != emu_fiber::LATER && f->waits != emu_fiber::DONE;
        }
    }
}
static void finish_copies(emu_block *b) {
    for (size_t i = 0; i < b->copies.size();) {
        if (rand() % 3) {
            i++;
            continue;
        }
        copy c = std::move(b->copies[i]);
        b->copies[i] = std::move(b->copies.back());
        b->copies.pop_back();
        memcpy(emu_memory(c.to), c.from.data(), c.bytes);
        barrier *at = find(b, c.barrier);
        at->bytes -= c.bytes;
        emu_copied(c.barrier, c.to, c.time);
        look(at);
    }
}
static char *map_memory(size_t bytes, int flags) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
    if (p == MAP_FAILED) {
        perror("emulator: mmap");
        abort();
    }
    return (char *)p;
}

void emu_launch(dim3 grid, int threads, uint32_t shared, void (*kernel)(const void *),
                const void *arguments, unsigned seed, int cluster_blocks) {
    const size_t n_blocks = (size_t)grid.x * grid.y, n = n_blocks * (size_t)threads,
                 all = (n_blocks + 1) * EMU_SHARED;
    char *stacks = map_memory(n * STACK, 0), *memory = map_memory(all, MAP_32BIT);
    char *first = (char *)(((uintptr_t)memory + EMU_SHARED - 1) / EMU_SHARED * EMU_SHARED);
    std::vector<emu_warp> warps(n / EMU_LANES);
    std::vector<emu_fiber> fibers(n);
    kernel_now = kernel, arguments_now = arguments, shared_bytes = shared;
    blockDim = dim3((unsigned)threads), gridDim = grid;
    blocks.assign(n_blocks, emu_block());
    of_cluster = (unsigned)cluster_blocks;
    clusters.assign(n_blocks / of_cluster, cluster());
    srand(seed);
    emu_time = 1LL << 31; // as an int it is negative, as a device's is half of the time
    for (size_t i = 0; i < all / 2; i++)
        ((uint16_t *)memory)[i] = NOT_A_NUMBER;
    for (size_t i = 0; i < n; i++) {
        emu_fiber *f = &fibers[i];
        const size_t of = i / (size_t)threads;
        blocks[of].shared = first + of * EMU_SHARED, blocks[of].threads = threads;
        f->block = {(unsigned)of % grid.x, (unsigned)of / grid.x, 0};
        f->thread = {(unsigned)(i % (size_t)threads), 0, 0};
        f->warp = &warps[i / EMU_LANES], f->lane = (int)(i % EMU_LANES);
        f->warp->block = &blocks[of], f->warp->fibers[f->lane] = f;
        void **top = (void **)(stacks + (i + 1) * STACK - 64);
        *--top = NULL, *--top = (void *)entry;
        for (int k = 0; k < 6; k++)
            *--top = NULL;
        f->stack = top;
    }
    emu_races_begin((int)n_blocks, threads, first);
    int idle = 0;
    for (size_t left = n; left > 0;) {
        const uint64_t before = events;
        for (size_t b = 0; b < blocks.size(); b++) {
            if (rand() % 8 == 0)
                continue;
            for (size_t w = 0; w < (size_t)threads / EMU_LANES; w++) {
                if (rand() % 4)
                    run(&warps[b * ((size_t)threads / EMU_LANES) + w], &left);
            }
            finish_copies(&blocks[b]);
        }
        idle = events != before ? 0 : idle + 1;
        if (idle > PATIENCE)
            emu_fail("all wait for each other");
    }
    emu_races_end();
    munmap(stacks, n * STACK);
    munmap(memory, all);
}
