/* SPDX-License-Identifier: Apache-2.0 */
/* Two hash tables that are filled at load and then only read: piece -> id, and pair of ids -> merge. */
#ifndef NF_TOKENIZER_PIECES_H
#define NF_TOKENIZER_PIECES_H

#include <stddef.h>
#include <stdint.h>

#include "../core/status.h"

#define NF_NO_ID UINT32_MAX

/* Pieces by their bytes. The bytes stay the caller's; the table keeps pointers into them. */
typedef struct nf_pieces {
    struct nf_piece {
        const uint8_t *text;
        uint32_t size, id;
    } *slots; /* text NULL: free */
    uint64_t mask;
    uint32_t longest; /* bytes of the longest piece */
} nf_pieces;

nf_status nf_pieces_new(nf_pieces *out, int64_t count);
void nf_pieces_free(nf_pieces *pieces);
/* Add a piece; the first of two equal ones stays. */
void nf_pieces_add(nf_pieces *pieces, const uint8_t *text, int64_t size, uint32_t id);
/* Its id, or NF_NO_ID. */
uint32_t nf_pieces_find(const nf_pieces *pieces, const uint8_t *text, int64_t size);

/* What two neighbouring symbols are joined to. Lower ranks go first. */
typedef struct nf_pair {
    uint32_t left, right; /* left NF_NO_ID: a free slot */
    uint32_t rank, id;
} nf_pair;

typedef struct nf_pairs {
    nf_pair *slots;
    uint64_t mask;
    int shift;
} nf_pairs;

nf_status nf_pairs_new(nf_pairs *out, int64_t count);
void nf_pairs_free(nf_pairs *pairs);
/* Add a pair; of two equal ones the last stays. */
void nf_pairs_add(nf_pairs *pairs, nf_pair pair);

static inline uint64_t nf_pair_slot(const nf_pairs *pairs, uint32_t left, uint32_t right) {
    return ((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u >> pairs->shift;
}

/* The pair, or NULL. */
static inline const nf_pair *nf_pairs_find(const nf_pairs *pairs, uint32_t left, uint32_t right) {
    for (uint64_t i = nf_pair_slot(pairs, left, right);; i++) {
        const nf_pair *pair = &pairs->slots[i & pairs->mask];
        if (pair->left == left && pair->right == right) return pair;
        if (pair->left == NF_NO_ID) return NULL;
    }
}

#endif
