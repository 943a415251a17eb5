/* SPDX-License-Identifier: Apache-2.0 */
/* Open addressing with linear probing, at most half full. */
#include "pieces.h"

#include <stdlib.h>
#include <string.h>

static uint64_t slots_for(int64_t count, int *bits) {
    *bits = 4;
    while ((int64_t)1 << *bits < 2 * count) ++*bits;
    return (uint64_t)1 << *bits;
}

nf_status nf_pieces_new(nf_pieces *out, int64_t count) {
    int bits;
    uint64_t slots = slots_for(count, &bits);
    out->slots = calloc(slots, sizeof *out->slots);
    if (!out->slots) return nf_fail(NF_ERR_MEMORY, "no memory for a vocabulary of %lld pieces", (long long)count);
    out->mask = slots - 1;
    return NF_OK;
}

void nf_pieces_free(nf_pieces *pieces) { free(pieces->slots); }

static uint64_t hash_bytes(const uint8_t *text, int64_t size) {
    uint64_t hash = (uint64_t)size * 0x9E3779B97F4A7C15u, part;
    for (; size >= 8; text += 8, size -= 8) {
        memcpy(&part, text, 8);
        hash = (hash ^ part) * 0xD6E8FEB86659FD93u;
        hash ^= hash >> 32;
    }
    part = 0;
    memcpy(&part, text, (size_t)size);
    hash = (hash ^ part) * 0xD6E8FEB86659FD93u;
    return hash ^ hash >> 32;
}

/* The slot of a piece, or the free one where it belongs. */
static struct nf_piece *slot_of(const nf_pieces *pieces, const uint8_t *text, int64_t size) {
    for (uint64_t i = hash_bytes(text, size);; i++) {
        struct nf_piece *slot = &pieces->slots[i & pieces->mask];
        if (!slot->text || (slot->size == size && memcmp(slot->text, text, (size_t)size) == 0)) return slot;
    }
}

void nf_pieces_add(nf_pieces *pieces, const uint8_t *text, int64_t size, uint32_t id) {
    struct nf_piece *slot = slot_of(pieces, text, size);
    if (slot->text) return;
    *slot = (struct nf_piece){text, (uint32_t)size, id};
    if (size > pieces->longest) pieces->longest = (uint32_t)size;
}

uint32_t nf_pieces_find(const nf_pieces *pieces, const uint8_t *text, int64_t size) {
    if (size > pieces->longest) return NF_NO_ID;
    const struct nf_piece *slot = slot_of(pieces, text, size);
    return slot->text ? slot->id : NF_NO_ID;
}

nf_status nf_pairs_new(nf_pairs *out, int64_t count) {
    int bits;
    uint64_t slots = slots_for(count, &bits);
    out->slots = malloc(slots * sizeof *out->slots);
    if (!out->slots) return nf_fail(NF_ERR_MEMORY, "no memory for %lld merges", (long long)count);
    memset(out->slots, 0xFF, slots * sizeof *out->slots);
    out->mask = slots - 1;
    out->shift = 64 - bits;
    return NF_OK;
}

void nf_pairs_free(nf_pairs *pairs) { free(pairs->slots); }

void nf_pairs_add(nf_pairs *pairs, nf_pair pair) {
    for (uint64_t i = nf_pair_slot(pairs, pair.left, pair.right);; i++) {
        nf_pair *slot = &pairs->slots[i & pairs->mask];
        if (slot->left != NF_NO_ID && (slot->left != pair.left || slot->right != pair.right)) continue;
        *slot = pair;
        return;
    }
}
