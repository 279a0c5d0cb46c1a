// SPDX-License-Identifier: Apache-2.0
#include "draws.h"

#include <stdlib.h>

int ssm_draws_init(ssm_draws *d, size_t cap) {
    *d = (ssm_draws){.cap = cap, .ring = malloc(cap * sizeof *d->ring)};
    return d->ring ? 0 : SSM_ENOMEM;
}

void ssm_draws_dispose(ssm_draws *d) {
    free(d->ring);
    *d = (ssm_draws){0};
}

int ssm_draws_push(ssm_draws *d, int32_t n, size_t *first, ssm_error *err) {
    if (n < 0 || d->n_calls == DRAWS_MAX_CALLS || d->used + (size_t)n > d->cap)
        return ssm_error_set(err, SSM_EBUSY, "n", "%d draws do not fit: collect earlier ones first",
                             n);
    d->calls[(d->first_call + d->n_calls++) % DRAWS_MAX_CALLS] = n;
    *first = d->first + d->used;
    d->used += (size_t)n;
    return 0;
}

ssm_sampled *ssm_draws_at(ssm_draws *d, size_t i) {
    return &d->ring[i % d->cap];
}

int ssm_draws_pop(ssm_draws *d, ssm_sampled *out, int32_t n, ssm_error *err) {
    if (d->n_calls == 0 || d->calls[d->first_call] != n)
        return ssm_error_set(err, SSM_EINVAL, "n", "no sample call of %d draws is uncollected", n);
    for (int32_t i = 0; i < n; i++)
        out[i] = *ssm_draws_at(d, d->first + (size_t)i);
    d->first = (d->first + (size_t)n) % d->cap;
    d->used -= (size_t)n;
    d->first_call = (d->first_call + 1) % DRAWS_MAX_CALLS;
    d->n_calls--;
    return 0;
}
