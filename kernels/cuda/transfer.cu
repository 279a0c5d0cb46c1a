// SPDX-License-Identifier: Apache-2.0
// Slots' states to the host and back, beside the steps, and rows of logits with them.
//
// A slot's canonical form is made on the device: on the step stream one kernel moves the state
// between the slot and a staging buffer, at the speed of device memory (23 MB of mamba-2.8b: 10
// us). A row of logits, which the next step overwrites, is copied there behind the state. The bus
// is crossed on streams of their own, one a direction, in order of events:
//
//     export   step stream: [wait: staging free] convert -> staging     (the slot may go on)
//              out stream:  [wait: converted] staging -> host; ticket
//     import   in stream:   [wait: staging free] host -> staging; ticket
//              step stream: [wait: arrived] convert -> slot
//
// So an export never holds up a step unless all STAGING_MOST buffers are still on their way out,
// and an import holds up only what the step stream is given after it: the bytes travel while the
// step before is running. From or to memory that is not page-locked the driver copies through
// buffers of its own and the caller waits; host_alloc's is.
//
// A ticket is a number of a lane, in order: 2 n + direction. Its event is used again LANE_EVENTS
// tickets later, which come later in the same stream, so that waiting for it is never too short.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cuda.h"

namespace ssm {

enum { OUT, IN, LANES };
enum { LANE_EVENTS = 64, STAGING_MOST = 8, STAGING_LEAST = 2 };
static const size_t STAGING_BYTES = (size_t)128 << 20, HUGE_PAGE = (size_t)2 << 20;

struct lane {
    cudaStream_t stream;
    cudaEvent_t done[LANE_EVENTS];
    uint64_t last;
};

struct staging {
    float *canonical;
    cudaEvent_t free; // recorded where its last use ends
    bool is_used;
};

struct transfer_state {
    lane lanes[LANES];
    staging ring[STAGING_MOST];
    int n, next;
    cudaEvent_t converted, arrived;
};

static size_t logits_bytes(const device *d) {
    return (size_t)d->g.vocab_size * sizeof(float);
}

static size_t canonical_bytes(const device *d, int32_t row) { // row -1: without logits
    return d->base.state_floats * sizeof(float) + (row < 0 ? 0 : logits_bytes(d));
}

static int n_stagings(const device *d) {
    const size_t n = STAGING_BYTES / canonical_bytes(d, 0);
    return n < STAGING_LEAST ? STAGING_LEAST : n > STAGING_MOST ? STAGING_MOST : (int)n;
}

size_t transfers_bytes(const device *d) {
    return (size_t)n_stagings(d) * (canonical_bytes(d, 0) + 256);
}

int transfers_create(device *d, ssm_error *err) {
    transfer_state *t = d->transfers = (transfer_state *)calloc(1, sizeof *t);
    if (!t)
        return ssm_error_set(err, SSM_ENOMEM, NULL, "no memory for the slots' copies");
    for (int l = 0; l < LANES; l++) {
        SSM_CUDA(d, cudaStreamCreateWithFlags(&t->lanes[l].stream, cudaStreamNonBlocking), err);
        for (int i = 0; i < LANE_EVENTS; i++)
            SSM_TRY(event_make(d, &t->lanes[l].done[i], err));
    }
    SSM_TRY(event_make(d, &t->converted, err));
    SSM_TRY(event_make(d, &t->arrived, err));
    for (t->n = 0; t->n < n_stagings(d); t->n++) {
        SSM_TRY(event_make(d, &t->ring[t->n].free, err));
        SSM_TRY(device_alloc(d, (void **)&t->ring[t->n].canonical, canonical_bytes(d, 0), err));
    }
    return 0;
}

void transfers_free(device *d) {
    transfer_state *t = d->transfers;
    if (!t)
        return;
    for (int l = 0; l < LANES; l++) {
        if (t->lanes[l].stream) {
            cudaStreamSynchronize(t->lanes[l].stream);
            cudaStreamDestroy(t->lanes[l].stream);
        }
        for (int i = 0; i < LANE_EVENTS; i++)
            event_free(t->lanes[l].done[i]);
    }
    for (int i = 0; i < STAGING_MOST; i++)
        event_free(t->ring[i].free);
    event_free(t->converted);
    event_free(t->arrived);
    free(t);
    d->transfers = NULL;
}

// ---- copies

// The next staging buffer, which `first` may write to when what it was used for is done.
static int take_staging(device *d, cudaStream_t first, staging **out, ssm_error *err) {
    transfer_state *t = d->transfers;
    staging *s = &t->ring[t->next];
    t->next = (t->next + 1) % t->n;
    if (s->is_used)
        SSM_CUDA(d, cudaStreamWaitEvent(first, s->free, 0), err);
    s->is_used = true;
    d->canonical = s->canonical; // where slots_convert finds it
    *out = s;
    return 0;
}

static int make_ticket(device *d, int l, uint64_t *ticket, ssm_error *err) {
    lane *lane = &d->transfers->lanes[l];
    const uint64_t n = lane->last + 1;
    SSM_CUDA(d, cudaEventRecord(lane->done[n % LANE_EVENTS], lane->stream), err);
    lane->last = n;
    *ticket = n * LANES + (uint64_t)l;
    return 0;
}

static cudaEvent_t event_of(const device *d, uint64_t ticket) {
    return d->transfers->lanes[ticket % LANES].done[ticket / LANES % LANE_EVENTS];
}

// A row of logits between its place and a staging buffer, on the stream; row -1: none.
static int convert_logits(device *d, const staging *s, int32_t row, bool write, ssm_error *err) {
    if (row < 0)
        return 0;
    float *at = d->logits + (size_t)row * d->g.vocab_size;
    float *staged = s->canonical + d->base.state_floats;
    SSM_CUDA(d,
             cudaMemcpyAsync(write ? at : staged, write ? staged : at, logits_bytes(d),
                             cudaMemcpyDeviceToDevice, d->stream),
             err);
    return 0;
}

int slot_export(ssm_device *dev, int32_t slot, int32_t row, float *out, uint64_t *ticket,
                ssm_error *err) {
    device *d = (device *)dev;
    transfer_state *t = d->transfers;
    const cudaStream_t bus = t->lanes[OUT].stream;
    staging *s;
    SSM_TRY(device_refuse(d, err));
    SSM_TRY(take_staging(d, d->stream, &s, err));
    SSM_CUDA(d, slots_convert(d, slot, false), err);
    SSM_TRY(convert_logits(d, s, row, false, err));
    SSM_CUDA(d, cudaEventRecord(t->converted, d->stream), err);
    SSM_CUDA(d, cudaStreamWaitEvent(bus, t->converted, 0), err);
    SSM_CUDA(
        d, cudaMemcpyAsync(out, s->canonical, canonical_bytes(d, row), cudaMemcpyDeviceToHost, bus),
        err);
    SSM_CUDA(d, cudaEventRecord(s->free, bus), err);
    return make_ticket(d, OUT, ticket, err);
}

int slot_import(ssm_device *dev, int32_t slot, int32_t row, const float *state, uint64_t after,
                uint64_t *ticket, ssm_error *err) {
    device *d = (device *)dev;
    transfer_state *t = d->transfers;
    const cudaStream_t bus = t->lanes[IN].stream;
    staging *s;
    SSM_TRY(device_refuse(d, err));
    SSM_TRY(take_staging(d, bus, &s, err));
    if (after)
        SSM_CUDA(d, cudaStreamWaitEvent(bus, event_of(d, after), 0), err);
    SSM_CUDA(
        d,
        cudaMemcpyAsync(s->canonical, state, canonical_bytes(d, row), cudaMemcpyHostToDevice, bus),
        err);
    SSM_TRY(make_ticket(d, IN, ticket, err));
    SSM_CUDA(d, cudaEventRecord(t->arrived, bus), err);
    SSM_CUDA(d, cudaStreamWaitEvent(d->stream, t->arrived, 0), err);
    SSM_CUDA(d, slots_convert(d, slot, true), err);
    SSM_TRY(convert_logits(d, s, row, true, err));
    SSM_CUDA(d, cudaEventRecord(s->free, d->stream), err);
    return 0;
}

int slot_read(ssm_device *dev, int32_t slot, float *out, ssm_error *err) {
    uint64_t ticket;
    SSM_TRY(slot_export(dev, slot, -1, out, &ticket, err));
    return ticket_wait(dev, ticket, err);
}

int slot_write(ssm_device *dev, int32_t slot, const float *state, ssm_error *err) {
    uint64_t ticket;
    SSM_TRY(slot_import(dev, slot, -1, state, 0, &ticket, err));
    return ticket_wait(dev, ticket, err); // `state` is the caller's again
}

// ---- from any thread: nothing of the device's own is written

int ticket_wait(ssm_device *dev, uint64_t ticket, ssm_error *err) {
    const device *d = (const device *)dev;
    if (ticket == 0)
        return 0;
    cudaSetDevice(d->index);
    const cudaError_t rc = cudaEventSynchronize(event_of(d, ticket));
    if (rc == cudaSuccess)
        return 0;
    return ssm_error_set(err, SSM_EDEVICE, NULL, "CUDA device %d: %s (a slot's copy)", d->index,
                         cudaGetErrorString(rc));
}

// Large pages where the kernel has them: a file is read into and a checksum taken over this memory.
void *host_alloc(ssm_device *dev, size_t bytes) {
    void *memory = NULL;
    cudaSetDevice(((const device *)dev)->index);
    if (posix_memalign(&memory, HUGE_PAGE, bytes) != 0)
        return NULL;
    madvise(memory, bytes, MADV_HUGEPAGE);
    if (cudaHostRegister(memory, bytes, cudaHostRegisterPortable) == cudaSuccess)
        return memory;
    cudaGetLastError(); // no error of a kernel's
    free(memory);
    return NULL;
}

void host_free(ssm_device *dev, void *memory) {
    cudaSetDevice(((const device *)dev)->index);
    cudaHostUnregister(memory);
    free(memory);
}

} // namespace ssm
