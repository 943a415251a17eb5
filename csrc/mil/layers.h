/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of a transformer of the Llama family as procedures of a MIL program, forward and backward; see docs/ane.md.

   A backward procedure takes what its forward one took, computes it again, and gives the gradient of the input and of every
   trained value.  So a step keeps only the inputs of the parts.  Activations and their gradients are [1, C, 1, S].
   Gradients are those of the loss that d_y comes from, loss scale and all; the caller divides.

   Ports, in this order, are called i00_x, i01_..., o00_y, o01_...; what follows the number says what it is:
     x            the input of the part                        y, dx      its result; the gradient of x
     dy           the gradient of its result                   acc        added to dx (chunks of the head)
     documents    [1, 1, 1, S], with `packed`: the number of each token's document, not falling
     q_lora_a     A [1, r, 1, in], trained                     q_lora_b   B transposed: [1, r, 1, out], trained
     q_weight     W [1, out, 1, in] in nf_mil_full             q_bias     [1, 1, 1, out]
     norm_gain    [1, 1, 1, C]                                 q_norm_gain, k_norm_gain, ffn_norm_gain
   and an output d_... for the gradient of each trained one, in its shape. */
#ifndef NF_MIL_LAYERS_H
#define NF_MIL_LAYERS_H

#include "mil.h"

/* Frozen weights are constants and low-rank pairs are inputs; or all weights are inputs and get gradients. */
typedef enum nf_mil_trained { NF_MIL_LORA = 0, NF_MIL_FULL = 1 } nf_mil_trained;

/* How a constant matrix is stored and used. */
typedef enum nf_mil_form {
    NF_MIL_FORM_FP16 = 0,
    NF_MIL_FORM_INT8 = 1, /* weights alone, widened before the product */
    NF_MIL_FORM_W8A8 = 2  /* activations too, with the linear's input_scale; forward products only */
} nf_mil_form;

typedef struct nf_mil_shape {
    int64_t hidden, heads, kv_heads, head_dim, ffn;
    int64_t seq;                      /* S, a multiple of 32 */
    int64_t rotary;                   /* leading values of each head that are rotated, even */
    int32_t interleaved;              /* pairs (2i, 2i+1) instead of (i, i + rotary/2) */
    float rope_factor;                /* multiplies cos and sin */
    const float *inverse_frequencies; /* (rotary/2), read during the call */
    float eps;                        /* of every RMSNorm */
    nf_mil_trained trained;
    nf_mil_form form;
    int32_t packed; /* several documents share the tokens */
} nf_mil_shape;

/* y = W x + bias + scale * B A x.  rank 0: no pair. bias.rows 0: none. */
typedef struct nf_mil_linear {
    nf_mil_array weight; /* (out, in) */
    nf_mil_array bias;   /* (out, 1) */
    int64_t rank;
    float scale;
    float input_scale; /* of W8A8: the step of the activations; 0: weights alone, as in the head */
} nf_mil_linear;

/* x + Wo attention(rope(Wq n), rope(Wk n), Wv n), n = norm(x).  q_norm.rows 0: no norm of heads. */
typedef struct nf_mil_attention {
    nf_mil_array norm, q_norm, k_norm;
    nf_mil_linear q, k, v, o;
} nf_mil_attention;

/* x + Wdown (silu(Wgate n) * Wup n), n = norm(x) (Shazeer 2020). */
typedef struct nf_mil_ffn {
    nf_mil_array norm;
    nf_mil_linear gate, up, down;
} nf_mil_ffn;

/* Rows `first` to `first + rows` of the classifier; norm.rows 0: x is normed already. */
typedef struct nf_mil_head {
    nf_mil_array norm;
    nf_mil_array weight; /* those rows: (rows, hidden) */
    int32_t accumulate;  /* backward: dx = acc + ... */
} nf_mil_head;

/* Each writes one procedure; errors are kept in the program.  `dx`: whether the gradient of x is wanted, which the part with
   the lowest adapters does not need; all weights together always give it. */
void nf_mil_attention_forward(nf_mil *p, const char *name, const nf_mil_shape *shape, const nf_mil_attention *w);
void nf_mil_attention_backward(nf_mil *p, const char *name, const nf_mil_shape *shape, const nf_mil_attention *w, int dx);
void nf_mil_ffn_forward(nf_mil *p, const char *name, const nf_mil_shape *shape, const nf_mil_ffn *w);
void nf_mil_ffn_backward(nf_mil *p, const char *name, const nf_mil_shape *shape, const nf_mil_ffn *w, int dx);
/* Both in one procedure: half the calls, and the attention's output is computed once more on the way back. */
void nf_mil_layer_forward(nf_mil *p, const char *name, const nf_mil_shape *shape, const nf_mil_attention *attention,
                          const nf_mil_ffn *ffn);
void nf_mil_layer_backward(nf_mil *p, const char *name, const nf_mil_shape *shape, const nf_mil_attention *attention,
                           const nf_mil_ffn *ffn, int dx);
/* norm(x) alone, for a classifier in several chunks. */
void nf_mil_norm_forward(nf_mil *p, const char *name, const nf_mil_shape *shape, const nf_mil_array *gain);
void nf_mil_norm_backward(nf_mil *p, const char *name, const nf_mil_shape *shape, const nf_mil_array *gain);
void nf_mil_head_forward(nf_mil *p, const char *name, const nf_mil_shape *shape, const nf_mil_head *w);
void nf_mil_head_backward(nf_mil *p, const char *name, const nf_mil_shape *shape, const nf_mil_head *w);

#endif
