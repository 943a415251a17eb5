/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's inside, shared by the files of this folder. */
#ifndef NF_DECODER_ENGINE_H
#define NF_DECODER_ENGINE_H

#include "../core/pool.h"
#include "../kernels/attention.h"
#include "../kernels/cached.h"
#include "../kernels/linear.h"
#include "../kernels/rows.h"
#include "decoder.h"

/* The linear layers of a block. */
enum { P_Q, P_K, P_V, P_O, P_GATE, P_UP, P_DOWN, P_COUNT };

/* One linear layer: base weight, its gradient or its low-rank pair. */
typedef struct projection {
    nf_linear base;
    float *d_weight, *d_bias; /* full training */
    int64_t r;                /* 0: no LoRA */
    float scale, dropout;
    const float *a, *b; /* (r, in), (out, r) */
    float *d_a, *d_b;
    float *h;    /* (T, r): A dropout(x), kept from forward to backward */
    int32_t key; /* which dropout mask: layer * P_COUNT + place */
} projection;

typedef struct norm {
    const float *gain;
    float *d_gain;
} norm;

/* What the forward pass leaves for the backward pass, one set per layer in training and one in all in inference. */
typedef struct activations {
    float *x;             /* (T, hidden) input of the block */
    float *q, *k, *v;     /* (T, heads*d), (T, kv_heads*d) x2, after norm and rotation; q is shared where q_raw is kept */
    void *keys, *values;  /* k and v as attention reads them: themselves, or in bf16 (then k and v are shared scratch) */
    float *q_raw, *k_raw; /* before the q/k norm; NULL without one */
    float *attended;      /* (T, heads*d) */
    float *lse;           /* (T, heads) */
    float *middle;        /* (T, hidden) after the attention's residual */
    float *gate, *up;     /* (T, ffn) */
} activations;

typedef struct block {
    norm attn_norm, ffn_norm, q_norm, k_norm;
    projection p[P_COUNT];
    activations act;
} block;

struct nf_engine {
    nf_shape shape;
    nf_mode mode;
    nf_pool *pool;
    const nf_kernels *kernels;
    float *inverse_frequencies; /* (rotary/2) */
    block *blocks;
    nf_linear embed, head; /* head.w == embed.w when tied */
    float *d_embed, *d_head;
    norm final_norm;
    int64_t max_tokens;
    int recompute; /* one set of activations for all blocks, but for their inputs */
    float *arena;

    /* scratch in the arena, all (T, ...) of the current call */
    float *x;             /* residual stream in, later its gradient */
    float *cosine, *sine; /* (T, rotary/2) */
    float *normed;        /* (T, hidden) */
    float *acted;         /* (T, ffn): silu(gate) * up */
    float *q;             /* (T, heads*d) in training with a q norm: cheaper to compute again than to keep for every layer */
    float *d_q, *d_k, *d_v, *d_attended;
    float *d_gate, *d_up, *d_normed;
    float *d_h;               /* (T, sum of r over a block) */
    float *b_transposed;      /* (r, out) of the projections of one backward call */
    float *partial;           /* (row tiles, hidden or head_dim): norm gains' gradients before they are summed */
    float *picked, *d_picked; /* (T, hidden): normed rows of the trained tokens, and their gradient */
    float *losses;
    int32_t *picked_at, *picked_target;
    nf_span *spans;
    float *attention_scratch, *entropy_scratch, *worker_scratch;
    int64_t worker_floats;     /* of worker_scratch, for each worker */
    int64_t attention_floats;  /* of attention_scratch; at least what nf_attention_scratch says */
    int narrow;                /* some weight is not float32 */
    nf_linear kv_form;         /* how the keys and values are kept in training */
    void *input, *d_output[3]; /* prepared operands of the current projections */
    void *d_output_t[3];       /* full training: the gradients of their outputs, transposed */
    char *product_scratch;
    int64_t product_bytes; /* of product_scratch, for each worker */
};

/* What one pass works on. */
typedef struct stream {
    const int32_t *tokens, *positions;
    int64_t T;
    nf_span *spans;
    int64_t n_spans;
    nf_cache *cache; /* keys and values go here in inference; NULL in training */
    int keep;        /* keep the log-sum-exp and low-rank products for a backward pass */
    int add;         /* 0: gradients of the blocks' matrices are written, not added to; all others have been cleared */
    int dropout;     /* 1: apply it */
    uint64_t seed;
} stream;

struct nf_cache {
    nf_cache_kind kind;
    nf_isa isa;
    int64_t capacity, length, layers, heads, d, width; /* width = heads * d, of keys */
    void *k, *v;                                       /* (layers, capacity, width) */
    float *k_scale, *v_scale;                          /* (layers, capacity, heads) of int8 */
    float *wide_k, *wide_v;                            /* (capacity, width): one layer as float32, for many queries at once */
};

enum { ROW_TILE = 16 }; /* rows of one task of the row kernels */

static inline int64_t nf_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t nf_tiles(int64_t n, int64_t size) { return (n + size - 1) / size; }

/* forward.c: fill the activations of every block and leave the last block's output in e->x. */
void nf_forward(nf_engine *e, const stream *s);

/* forward.c: a block's attention in training. */
nf_attention nf_attention_of(const nf_engine *e, const stream *s, const activations *a);

/* forward.c: fill the activations of one block from its kept input, without its output. */
void nf_forward_again(nf_engine *e, const stream *s, int64_t layer);

/* Cosines and sines of one row. */
void nf_rope_angles(nf_engine *e, int64_t t, int32_t position);

/* Where the products leave q and k, before norm and rotation. */
static inline float *nf_q_before(const activations *a) { return a->q_raw ? a->q_raw : a->q; }
static inline float *nf_k_before(const activations *a) { return a->k_raw ? a->k_raw : a->k; }

/* q/k norm and rotation of some rows, and of their q alone. */
void nf_rotate(nf_engine *e, const block *b, int64_t row, int64_t rows);
void nf_rotate_queries(nf_engine *e, const block *b, int64_t row, int64_t rows);

/* backward.c: e->x holds the gradient of the last block's output on entry. */
void nf_backward(nf_engine *e, const stream *s);

/* projection.c */

/* Before a group of projections that read the same x: h = A dropout(x) of each, and x as the weights want it, for the
   rows [row, row+rows). */
void nf_project_rows(nf_engine *e, projection *const *p, int n, const stream *s, const float *x, int64_t row, int64_t rows,
                     int worker);

/* The same for all rows, in a loop of its own. */
void nf_project_prepare(nf_engine *e, projection *const *p, int n, const stream *s, const float *x);

/* y[i] = x W_i^T + bias_i + scale_i h_i B_i^T (+ residual, which may be NULL), all tiles of n projections in one loop. */
void nf_project(nf_engine *e, projection *const *p, int n, float *const *y, const float *x, const float *residual, int64_t T);

/* The backward pass of a group of projections that read the same x, in three calls: once before, for all rows, once after. */
void nf_project_begin_backward(nf_engine *e, projection *const *p, int n);

/* For the rows [row, row+rows): d_h = scale * d_y B of every pair and, when d_x is wanted, d_y as the weights want it; with
   trained weights also x as their gradients want it. */
void nf_project_gradient_rows(nf_engine *e, projection *const *p, int n, const stream *s, float *const *d_y, const float *x,
                              int wants_d_x, int64_t row, int64_t rows);

/* After all rows: gradients of n projections that read the same x, of their weights or pairs, and (unless NULL)
   d_x = sum over them. */
void nf_project_backward(nf_engine *e, projection *const *p, int n, float *const *d_y, const float *x, float *d_x,
                         const stream *s);

/* decode.c: the ids have been checked. */
void nf_decode(nf_engine *e, nf_cache *const *caches, const int32_t *tokens, int64_t n, float *logits);

/* cache.c */
nf_cached nf_cache_layer(const nf_cache *cache, int64_t layer);

/* The first `length` positions of a layer as float32, until the next call. */
void nf_cache_wide(nf_engine *e, nf_cache *cache, int64_t layer, int64_t length, const float **k, const float **v);

#endif
