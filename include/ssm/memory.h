// SPDX-License-Identifier: Apache-2.0
// How far back a model remembers.
//
// A linear time-invariant one by its poles, whatever it reads. // A pole of magnitude r keeps a
// share of r^k of an input k tokens ago: its time constant is -1 / ln r tokens, after which 1/e is
// left. Computed from the weights, on the calling thread.
#ifndef SSM_MEMORY_H
#define SSM_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include <ssm/error.h>
#include <ssm/model.h>

enum { SSM_MEMORY_BINS = 8 };

typedef struct ssm_layer_memory {
    double radius;                    // spectral radius: the slowest pole's magnitude
    double shortest, median, longest; // time constants of the poles, in tokens
    // Shares of poles by time constant: below 1 token, 1 to 10^0.5, to 10, ..., 10^3 and above.
    double shares[SSM_MEMORY_BINS];
    // The tokens from which the layer's kernels say less than 1% of all that they say of an input:
    // the most of its channels, and of half of them. -1: more than SSM_MEMORY_MOST. s4: of the
    // slowest pole alone, an upper bound, for both.
    int32_t reach, median_reach;
} ssm_layer_memory;

enum { SSM_MEMORY_MOST = 16384 };

// Layer i of an s4d, s4 or h3 model (h3: its diagonal SSM; the shift before it reaches state_size
// tokens). SSM_EUNSUPPORTED: another architecture, whose memory depends on the text; SSM_ENOTFOUND
// past the last layer; SSM_ENOMEM.
int ssm_model_get_memory(const ssm_model *model, int32_t layer, ssm_layer_memory *out,
                         ssm_error *err);

// A selective one by what it reads: every token's step delta is made from it, and a state keeps
// exp(delta A) of what it was. Quantiles of what a text makes of a layer, over its tokens, channels
// (Mamba-2: heads) and states, to 1% or so.
enum { SSM_STEP_QUANTILES = 5 };
extern const double ssm_step_shares[SSM_STEP_QUANTILES]; // 0.05, 0.25, 0.5, 0.75, 0.95

typedef struct ssm_layer_steps {
    double delta[SSM_STEP_QUANTILES];
    double decay[SSM_STEP_QUANTILES];     // exp(delta A), a token
    double half_life[SSM_STEP_QUANTILES]; // tokens like this one until half is left
    double shares[SSM_MEMORY_BINS];       // of half-lives, as of time constants above
} ssm_layer_steps;

// Of every layer of a mamba, falcon_mamba or mamba2 model: out[n_layers]. Runs the text through the
// reference, on the calling thread: about a second for 10 tokens of 130 million parameters.
// SSM_EUNSUPPORTED: its poles are fixed; SSM_EINVAL: no tokens, or not of the vocabulary;
// SSM_ENOMEM.
int ssm_model_get_steps(const ssm_model *model, const int32_t *tokens, size_t n,
                        ssm_layer_steps *out, ssm_error *err);

#endif
