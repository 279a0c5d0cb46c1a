// SPDX-License-Identifier: Apache-2.0
// Which cluster of blocks makes which tiles of a large product (wide_kernel.cuh, wide_turns.cuh):
// those of one GPC (SMs that share a way to L2) neighbouring ones.
//
// What SMs of a GPC read of the same lines at the same time L2 gives once. Measured (one H200, ncu,
// SMs that each read 1 MB in runs of 4 KB): up to four readers in a GPC, and no more, share a
// fetch; never those of different GPCs; lines that lie in L2 if they are asked for within about 100
// cycles, lines that come from memory within about 600. So weights gain, which come from memory and
// which all row tiles of a column read, token rows hardly: patches of 4 row tiles by 2 columns were
// no better than columns of 8 and, at 2,048 tokens, worse.
//
// A launch's clusters come to any SMs, in any order, and some perhaps when others have ended. So
// each takes a ticket of its GPC (an atomic, ahead of everything) and with it one of the places
// that are meant for the GPC, or where those are taken one of another's: as many places as
// clusters, so each is taken once, wherever they run. Places are numbered GPC after GPC, which GPC
// an SM is of is found out when a device is opened, by clusters of blocks: they lie in one. A table
// that is wrong costs time alone. Tickets are a layer's own; in_proj's launch wipes the next
// layer's, which nobody has used since that layer's launches of the step before.
//
// The ticket delays the first weights by a trip to L2 and one to the cluster's other block, 1.5 to
// 3 us in chains of one product.
//
// 2.8b, us in chains of one product, 2.5 ms each in random order, and (ncu) MB that L2 gave, by
// block number / places mixed up, which have the delay alone / so:
//   in_proj and convolution, 512 rows  47.5 / 47.4 / 45.7    446 / 412 / 313
//   out_proj, 512                      26.8 / 30.4 / 27.1    250 / 186 / 159
//   in_proj, 2,048 tokens              143.1 / 145.4 / 141.8 1,272 / 1,200 / 996
//   out_proj, 2,048                    91.2 / 93.2 / 92.1    585 / 547 / 502
//   in_proj, 16,384                    1,142 / 1,135 / 1,114 10,600 / 10,070 / 8,650
// Energy of 512 rows' in_proj back to back 40.5 mJ and 37.7, of out_proj and of 2,048 tokens the
// same within the noise.
//
// Steps of 2.8b (one H200, both ways in turns in one process, fp16 states): 512 rows 8.897 to 8.616
// ms, all bits the same; 1 x 2,048 24.09 to 24.61; 130m 1,024 rows 1.521 to 1.544, 1 x 2,048 1.982
// to 2.010. So it is for 512 rows of 2.8b alone. See large-steps.md.
#include <stdlib.h>
#include <string.h>

#include "clusters.cuh"
#include "wide.h"
#include "wide_places.cuh"

namespace ssm {

struct gpc_table {
    int n;
    uint8_t of[PLACES_SMS]; // by %smid
    int sms[PLACES_GPCS];
};

size_t wide_places_bytes(const device *d) {
    return wide_kind_fits(d) && d->g.n_layers > 1 ? (size_t)d->g.n_layers * sizeof(place_tickets)
                                                  : 0;
}

bool wide_placed(const device *d, int32_t n_rows) {
    return d->gpcs && d->g.d_model > 2048 && n_rows == 512;
}

// ---- GPCs, by what clusters share

enum { PROBE_US = 10, PROBE_SHARED = 200 << 10 }; // one block an SM, all of them there at once

static __global__ void probe_kernel(int *sm_of) {
    if (threadIdx.x > 0)
        return;
    uint32_t sm;
    unsigned long long from, now;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(from));
    sm_of[blockIdx.x] = (int)sm;
    do
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    while (now - from < PROBE_US * 1000ull);
}

static int root_of(const int *up, int i) {
    while (up[i] != i)
        i = up[i];
    return i;
}

// up: of each SM that was met another one of its GPC, or itself; else -1.
static cudaError_t probe(device *d, int blocks, int *at, int *up) {
    const int clusters = d->n_sms / blocks, n = clusters * blocks;
    cluster_launch launch(d, dim3((unsigned)n), 32, PROBE_SHARED, blocks, BESIDE_PREDECESSOR);
    cudaError_t rc =
        cudaFuncSetAttribute(probe_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (rc || launch.most(probe_kernel) == 0 || launch.run(probe_kernel, at)) {
        cudaGetLastError(); // a part of a card, or one without such clusters
        return cudaSuccess;
    }
    int sm[PLACES_SMS];
    rc = cudaMemcpyAsync(sm, at, (size_t)n * sizeof *sm, cudaMemcpyDeviceToHost, d->stream);
    if (rc || (rc = cudaStreamSynchronize(d->stream)))
        return rc;
    for (int i = 0; i < n; i++) {
        const int first = sm[i - i % blocks];
        if (sm[i] < 0 || sm[i] >= d->n_sms || first < 0 || first >= d->n_sms)
            continue;
        up[sm[i]] = up[sm[i]] < 0 ? sm[i] : up[sm[i]];
        up[root_of(up, sm[i])] = root_of(up, first);
    }
    return cudaSuccess;
}

cudaError_t wide_places_find(device *d) {
    if (!d->tickets || d->n_sms > PLACES_SMS)
        return cudaSuccess;
    int *at, up[PLACES_SMS];
    cudaError_t rc = cudaMalloc((void **)&at, PLACES_SMS * sizeof *at);
    if (rc)
        return rc;
    memset(up, -1, sizeof up);
    const int sizes[] = {16, 12, 8, 4, 2};
    for (int blocks : sizes) {
        if (!rc)
            rc = probe(d, blocks, at, up);
    }
    cudaFree(at);
    if (rc)
        return rc;
    for (int i = 0; i < d->n_sms; i++) {
        if (up[i] < 0) // SMs are not numbered from 0 on: a part of a card
            return cudaSuccess;
    }
    gpc_table *t = (gpc_table *)calloc(1, sizeof *t);
    if (!t)
        return cudaErrorMemoryAllocation;
    int index[PLACES_SMS];
    memset(index, -1, sizeof index);
    for (int i = 0; i < d->n_sms; i++) {
        int &of = index[root_of(up, i)];
        if (of < 0)
            of = t->n < PLACES_GPCS ? t->n++ : t->n - 1;
        t->of[i] = (uint8_t)of, t->sms[of]++;
    }
    d->gpcs = t;
    return cudaSuccess;
}

bool wide_places_for(const device *d, int tiles, int cluster, bool split, const place_set *set,
                     wide_places *out) {
    const gpc_table *t = (const gpc_table *)d->gpcs;
    const int most = d->n_sms / cluster;
    if (!set || !t || (split && tiles > most))
        return false;
    place_tickets *all = (place_tickets *)d->tickets;
    out->tickets = set->out ? all[set->layer].out : all[set->layer].in;
    if (!set->out)
        out->wiped = (uint4 *)(all + (set->layer + 1) % d->g.n_layers);
    out->n_gpcs = t->n;
    memcpy(out->gpc_of, t->of, sizeof t->of);
    int place = 0;
    for (int g = 0; g < t->n; g++) {
        out->first[g] = (uint8_t)place;
        place += t->sms[g] / cluster;
    }
    out->first[t->n] = (uint8_t)most; // the last one's are what is left
    return true;
}

} // namespace ssm
