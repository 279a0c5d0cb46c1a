// SPDX-License-Identifier: Apache-2.0
// Who is sure to see whose writes, in an emulated launch (emulator.h).
//
// A test is built a second time with -fsanitize=thread, of which only the calls in front of loads
// and stores are used, and EMU_RACES. A warp has a clock, and what it knows of every other warp's
// and copy engine's: by barriers, and by what blocks tell each other in memory. Each two bytes of
// some blocks' shared memory, and each four of the memory that a test names, have their last
// writer's and readers' times. A write that the next reader or writer need not know of, or a read
// that the next writer need not, is an error even where the order happened to be right this time;
// and so is what the copy engine or the matrix units read of shared memory and nobody has fenced
// (fence.proxy.async) since threads wrote it.
//
// A warp is one: its lanes go on in their order until they wait, so that a lane that arrives for
// the others before they have come to it is found, too. What blocks count, and totals and packets,
// which say themselves whether they are there, are taken to order what is around them, whatever
// PTX promises (resident.cuh, exchange()). Not known of: reads that an arrive overtakes, cp.async
// that is still under way, what the copy engine reads of memory.
#ifndef SSM_TESTS_RACES_H
#define SSM_TESTS_RACES_H

#include <stddef.h>
#include <stdint.h>

#ifdef EMU_RACES

enum { EMU_FINDS_RACES = 1 };
void emu_races_begin(int blocks, int threads, const char *shared);
void emu_races_end(void); // the program, if there were any
// Of the launch to come: memory that blocks tell each other things in, by four bytes.
void emu_watch(const char *name, const void *p, size_t bytes);

// Of the warp that calls. object: anything's address. A phase of it is released by some, completed,
// and acquired by others; what is told is heard by all that come later.
void emu_release(uint64_t object);
void emu_complete(uint64_t object);
void emu_acquire(uint64_t object);
void emu_tell(uint64_t object);
void emu_hear(uint64_t object);
void emu_fence_async(void);

void emu_reads(uint64_t at, uint32_t bytes);
void emu_writes(uint64_t at, uint32_t bytes);
// The block's copy engine, once it is asked; returns the copy's time. Later: it is there.
uint32_t emu_copies(uint32_t to, uint32_t bytes);
void emu_copied(uint64_t object, uint32_t to, uint32_t time);

#else

enum { EMU_FINDS_RACES = 0 };
inline void emu_races_begin(int, int, const char *) {
}
inline void emu_races_end(void) {
}
inline void emu_watch(const char *, const void *, size_t) {
}
inline void emu_release(uint64_t) {
}
inline void emu_complete(uint64_t) {
}
inline void emu_acquire(uint64_t) {
}
inline void emu_tell(uint64_t) {
}
inline void emu_hear(uint64_t) {
}
inline void emu_fence_async(void) {
}
inline void emu_reads(uint64_t, uint32_t) {
}
inline void emu_writes(uint64_t, uint32_t) {
}
inline uint32_t emu_copies(uint32_t, uint32_t) {
    return 0;
}
inline void emu_copied(uint64_t, uint32_t, uint32_t) {
}

#endif

#endif
