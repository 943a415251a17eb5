/* SPDX-License-Identifier: Apache-2.0 */
/* Where weights, gradients and low-rank pairs go: a slot of the engine each. */
#include <stddef.h>

#include "engine.h"

/* (out, in) of each projection */
static void projection_shape(const nf_shape *c, int which, int64_t *out, int64_t *in) {
    int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim, D = c->hidden, F = c->ffn;
    const int64_t shapes[P_COUNT][2] = {{q, D}, {kv, D}, {kv, D}, {D, q}, {F, D}, {F, D}, {D, F}};
    *out = shapes[which][0], *in = shapes[which][1];
}

static int projection_of(nf_slot slot) {
    switch (slot) {
    case NF_Q:
    case NF_Q_BIAS:
        return P_Q;
    case NF_K:
    case NF_K_BIAS:
        return P_K;
    case NF_V:
    case NF_V_BIAS:
        return P_V;
    case NF_O:
        return P_O;
    case NF_GATE:
        return P_GATE;
    case NF_UP:
        return P_UP;
    case NF_DOWN:
        return P_DOWN;
    default:
        return -1;
    }
}

/* The matrix of a slot, NULL if it has none. */
static nf_linear *matrix_of(nf_engine *e, nf_slot slot, int64_t layer) {
    if (slot == NF_EMBED) return &e->embed;
    if (slot == NF_HEAD) return &e->head;
    int which = slot == NF_Q_BIAS || slot == NF_K_BIAS || slot == NF_V_BIAS ? -1 : projection_of(slot);
    return which < 0 ? NULL : &e->blocks[layer].p[which].base;
}

/* Put a matrix into its slot, with the slot's shape. */
static void set_matrix(nf_engine *e, nf_slot slot, int64_t layer, nf_linear given) {
    nf_linear *l = matrix_of(e, slot, layer);
    given.bias = l->bias;
    *l = given;
    e->narrow |= given.kind != NF_LINEAR_F32;
    int which = projection_of(slot);
    if (which >= 0) e->blocks[layer].p[which].key = (int32_t)(layer * P_COUNT + which);
}

static void matrix_shape(const nf_engine *e, nf_slot slot, int64_t *out, int64_t *in) {
    *out = e->shape.vocab, *in = e->shape.hidden;
    if (slot != NF_EMBED && slot != NF_HEAD) projection_shape(&e->shape, projection_of(slot), out, in);
}

static nf_status check_matrix(nf_engine *e, nf_slot slot, int64_t layer) {
    int per_layer = slot > NF_EMBED && slot < NF_FINAL_NORM;
    if (slot < 0 || slot >= NF_SLOT_COUNT || (per_layer && (layer < 0 || layer >= e->shape.layers)) ||
        !matrix_of(e, slot, layer))
        return nf_fail(NF_ERR_ARGUMENT, "no matrix of slot %d in layer %lld", (int)slot, (long long)layer);
    return NF_OK;
}

nf_status nf_engine_set_blocks(nf_engine *e, nf_slot slot, int64_t layer, const void *weight, nf_block_kind kind) {
    int64_t out, in;
    NF_TRY(check_matrix(e, slot, layer));
    if (kind < 0 || kind >= NF_BLOCK_MULTIPLIED) return nf_fail(NF_ERR_ARGUMENT, "blocks of kind %d", (int)kind);
    matrix_shape(e, slot, &out, &in);
    if (in % nf_block_values(kind))
        return nf_fail(NF_ERR_ARGUMENT, "rows of %lld values are no whole blocks of %lld", (long long)in,
                       (long long)nf_block_values(kind));
    set_matrix(e, slot, layer, nf_linear_of_blocks(kind, out, in, weight));
    return NF_OK;
}

nf_status nf_engine_set_narrow(nf_engine *e, nf_slot slot, int64_t layer, const void *weight, const float *scale) {
    int64_t out, in;
    NF_TRY(check_matrix(e, slot, layer));
    matrix_shape(e, slot, &out, &in);
    set_matrix(e, slot, layer, nf_linear_of(scale ? NF_LINEAR_INT8 : NF_LINEAR_BF16, out, in, weight, scale));
    return NF_OK;
}

nf_status nf_engine_set(nf_engine *e, nf_slot slot, int64_t layer, const float *weight, float *gradient) {
    const nf_shape *c = &e->shape;
    int per_layer = slot > NF_EMBED && slot < NF_FINAL_NORM, which = projection_of(slot);
    if (slot < 0 || slot >= NF_SLOT_COUNT || (per_layer && (layer < 0 || layer >= c->layers)))
        return nf_fail(NF_ERR_ARGUMENT, "no slot %d in layer %lld", (int)slot, (long long)layer);
    block *b = per_layer ? &e->blocks[layer] : NULL;
    norm given = {weight, gradient};
    int64_t out = 0, in = 0;
    if (matrix_of(e, slot, layer)) matrix_shape(e, slot, &out, &in);
    switch (slot) {
    case NF_EMBED:
        set_matrix(e, slot, 0, nf_linear_of(NF_LINEAR_F32, out, in, weight, NULL));
        e->d_embed = gradient;
        return NF_OK;
    case NF_HEAD:
        set_matrix(e, slot, 0, nf_linear_of(NF_LINEAR_F32, out, in, weight, NULL));
        e->d_head = gradient;
        return NF_OK;
    case NF_ATTN_NORM:
        b->attn_norm = given;
        return NF_OK;
    case NF_FFN_NORM:
        b->ffn_norm = given;
        return NF_OK;
    case NF_Q_NORM:
        b->q_norm = given;
        return NF_OK;
    case NF_K_NORM:
        b->k_norm = given;
        return NF_OK;
    case NF_FINAL_NORM:
        e->final_norm = given;
        return NF_OK;
    case NF_Q_BIAS:
    case NF_K_BIAS:
    case NF_V_BIAS:
        b->p[which].base.bias = weight;
        b->p[which].d_bias = gradient;
        return NF_OK;
    default:
        break;
    }
    set_matrix(e, slot, layer, nf_linear_of(NF_LINEAR_F32, out, in, weight, NULL));
    b->p[which].d_weight = gradient;
    return NF_OK;
}

nf_status nf_engine_set_lora(nf_engine *e, nf_slot slot, int64_t layer, int64_t r, float scale, float dropout, const float *a,
                             const float *b, float *d_a, float *d_b) {
    int which = projection_of(slot);
    if (which < 0 || slot == NF_Q_BIAS || slot == NF_K_BIAS || slot == NF_V_BIAS || layer < 0 || layer >= e->shape.layers ||
        r < 1)
        return nf_fail(NF_ERR_ARGUMENT, "no low-rank pair of rank %lld for slot %d in layer %lld", (long long)r, (int)slot,
                       (long long)layer);
    projection *p = &e->blocks[layer].p[which];
    p->r = r, p->scale = scale, p->dropout = dropout;
    p->a = a, p->b = b, p->d_a = d_a, p->d_b = d_b;
    return NF_OK;
}
