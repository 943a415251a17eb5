/* SPDX-License-Identifier: Apache-2.0 */
/* A decoder of the Llama family: one call runs a whole micro-step (forward, loss, backward) or a piece of generation.

   Ownership: weights, LoRA matrices and all gradients belong to the caller and must outlive the engine; the engine owns
   its threads and one arena, which is allocated in nf_engine_reserve and nowhere else.  One caller at a time. */
#ifndef NF_DECODER_H
#define NF_DECODER_H

#include <stdint.h>

#include "../core/status.h"
#include "../kernels/blocks.h"
#include "../kernels/cached.h"

/* B T C H K D F V L of the papers, spelled out. */
typedef struct nf_shape {
    int64_t layers, hidden, heads, kv_heads, head_dim, ffn, vocab;
    int64_t rotary;      /* leading values of each head that are rotated, even */
    int32_t interleaved; /* pairs (2i, 2i+1) instead of (i, i + rotary/2) */
    float rope_factor;   /* multiplies cos and sin (longrope); 1 otherwise */
    int32_t qk_norm;     /* an RMSNorm on each q and k head before the rotation */
    float eps;           /* of every RMSNorm */
} nf_shape;

/* What is trained. */
typedef enum nf_mode { NF_MODE_INFER = 0, NF_MODE_LORA = 1, NF_MODE_FULL = 2 } nf_mode;

/* Weights, in the order of a forward pass.  Matrices are (out, in) row-major. */
typedef enum nf_slot {
    NF_EMBED, /* (vocab, hidden) */
    NF_ATTN_NORM,
    NF_Q,
    NF_K,
    NF_V,
    NF_Q_BIAS,
    NF_K_BIAS,
    NF_V_BIAS,
    NF_Q_NORM,
    NF_K_NORM,
    NF_O,
    NF_FFN_NORM,
    NF_GATE,
    NF_UP,
    NF_DOWN,
    NF_FINAL_NORM,
    NF_HEAD, /* (vocab, hidden); left unset when tied to NF_EMBED */
    NF_SLOT_COUNT
} nf_slot;

/* What a step does to the gradients: leaves them alone, adds its own, or puts its own in their place. */
typedef enum nf_gradients { NF_GRADIENTS_NONE = 0, NF_GRADIENTS_ADD = 1, NF_GRADIENTS_WRITE = 2 } nf_gradients;

typedef struct nf_engine nf_engine;
typedef struct nf_cache nf_cache;

/* inverse_frequencies: (rotary/2) float32, copied. threads >= 1. */
nf_status nf_engine_new(nf_engine **out, const nf_shape *shape, const float *inverse_frequencies, int threads);
void nf_engine_free(nf_engine *engine);

/* Take other frequencies from the next call on, (rotary/2) float32, copied: longrope has a second set for long texts. A
   cache must go on with the set that it began with. */
void nf_engine_set_frequencies(nf_engine *engine, const float *inverse_frequencies);

/* Give one weight.  `layer` is ignored for slots that are not per layer.  `gradient` has the weight's shape and is filled
   in NF_MODE_FULL (NULL otherwise). A slot that is not set is absent: no bias, no q/k norm, tied head. */
nf_status nf_engine_set(nf_engine *engine, nf_slot slot, int64_t layer, const float *weight, float *gradient);

/* Give a frozen matrix in a narrow form: bf16 bits, or with `scale` (out,) int8 rows; see kernels/linear.h. */
nf_status nf_engine_set_narrow(nf_engine *engine, nf_slot slot, int64_t layer, const void *weight, const float *scale);

/* Give a frozen matrix in blocks; its rows are whole blocks. */
nf_status nf_engine_set_blocks(nf_engine *engine, nf_slot slot, int64_t layer, const void *weight, nf_block_kind kind);

/* Give a low-rank pair of a matrix slot: a (r, in), b (out, r); y += scale * B A dropout(x).
   d_a, d_b: gradients, filled in NF_MODE_LORA (NULL otherwise). */
nf_status nf_engine_set_lora(nf_engine *engine, nf_slot slot, int64_t layer, int64_t r, float scale, float dropout,
                             const float *a, const float *b, float *d_a, float *d_b);

/* Allocate everything that calls with up to `max_tokens` tokens need.  recompute: keep only the input of each block from the
   forward to the backward pass, and compute the rest again (gradient checkpointing, Chen et al. 2016); the same bits. */
nf_status nf_engine_reserve(nf_engine *engine, nf_mode mode, int64_t max_tokens, int recompute);

/* Bytes that nf_engine_reserve would allocate for this shape, with `lora_width` = sum of r over one layer's pairs. */
int64_t nf_engine_arena_bytes(const nf_shape *shape, nf_mode mode, int narrow, int64_t max_tokens, int recompute,
                              int64_t lora_width, int threads);

/* One micro-step on a flat stream of T tokens.
   targets: id to be predicted at each place, -1 where none is; positions: rotary position; bounds: (documents+1) places
   where documents begin, bounds[0] = 0, bounds[documents] = T.
   loss: sum of -log p over the trained places; counted: how many they are.
   gradients: of that sum; none in NF_MODE_INFER.  seed decides the dropout mask and is not used without gradients. */
nf_status nf_engine_step(nf_engine *engine, const int32_t *tokens, const int32_t *targets, const int32_t *positions, int64_t T,
                         const int32_t *bounds, int64_t documents, nf_gradients gradients, uint64_t seed, double *loss,
                         int64_t *counted);

/* Key-value cache of one sequence of at most `capacity` tokens. */
nf_status nf_cache_new(nf_cache **out, const nf_engine *engine, int64_t capacity, nf_cache_kind kind);
void nf_cache_free(nf_cache *cache);
int64_t nf_cache_length(const nf_cache *cache);
/* Forget all but the first `length` tokens. */
nf_status nf_cache_truncate(nf_cache *cache, int64_t length);

/* Append T tokens to the cache and write their logits: (T, vocab), or (1, vocab) of the last one with last_only. */
nf_status nf_engine_logits(nf_engine *engine, nf_cache *cache, const int32_t *tokens, int64_t T, int last_only, float *logits);

/* Append tokens[i] to caches[i] for n sequences at once, at most max_tokens of them, and write n rows of logits (n, vocab).  A
   cache may be named several times: its tokens then follow each other.  A row is computed as it would be alone, to the bit. */
nf_status nf_engine_decode(nf_engine *engine, nf_cache *const *caches, const int32_t *tokens, int64_t n, float *logits);

#endif
