/* SPDX-License-Identifier: Apache-2.0 */
/* Hash tables that are filled at load and then only read: piece -> id, pair of numbers -> merge or edge. */
#ifndef NF_TOKENIZER_PIECES_H
#define NF_TOKENIZER_PIECES_H

#include <stddef.h>
#include <stdint.h>

#include "../core/status.h"

#define NF_NO_ID UINT32_MAX
enum { NF_SYMBOL_BITS = 21, NF_FILTER_BITS = 20 };

/* Pieces by their bytes, which stay the caller's: piece `id` is at[ends[id - 1] .. ends[id]). */
typedef struct nf_pieces {
    const uint8_t *at;
    const int64_t *ends;
    uint64_t *slots;  /* upper bits of the hash << 21 | id; all ones: free */
    uint64_t *filter; /* a bit for each hash; most words that are no piece are told so without a look at the slots */
    uint64_t mask;
    int64_t longest; /* bytes of the longest piece */
} nf_pieces;

/* Room for `count` pieces, all ids below 2^21 - 1. */
nf_status nf_pieces_new(nf_pieces *out, const uint8_t *at, const int64_t *ends, int64_t count);
void nf_pieces_free(nf_pieces *pieces);
/* Add a piece; the first of two equal ones stays. */
void nf_pieces_add(nf_pieces *pieces, uint32_t id);
/* The id of a text of at least one byte, or NF_NO_ID. */
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

/* How a symbol is made. */
typedef struct nf_made {
    uint32_t when;        /* rank of the merge + 1; 0: not by a merge */
    uint32_t left, right; /* its parts */
    uint32_t shorter;     /* the longest other token that its text begins with, or NF_NO_ID */
    uint32_t length;      /* number of first symbols that it consists of */
    uint32_t ordered;     /* each merge in it ranks above those that make its parts */
} nf_made;

/* The merges that can happen, in 8 bytes each, so that they stay in the caches. A symbol is made in one way only: nothing
   crosses its borders while it is made, so what happens inside is what happens to its text alone. The pair of its last merge
   there is the only one that ever makes it, and its rank is a property of the symbol. */
typedef struct nf_merges {
    uint64_t *slots;  /* left << 42 | right << 21 | made; all ones: free */
    uint64_t *filter; /* a bit for each hash; most pairs have none, and are told so without a look at the slots */
    nf_made *made;    /* by symbol */
    uint64_t
        *edges; /* trie of what merging can make, over first symbols: leads on << 63 | node << 42 | symbol << 21 | child. The
                         node of a token is the token; those of other beginnings come behind the symbols */
    uint64_t edge_mask;
    uint32_t *begins; /* where the first symbols are bytes: the child of byte << 8 | byte, as in an edge; NF_NO_ID: none */
    uint32_t symbols;
    int edge_shift;
    uint64_t mask;
    int shift;
} nf_merges;

/* Room for `count` merges of symbols below `symbols`, at most 2^21; all of them are first symbols, made by no merge. */
nf_status nf_merges_new(nf_merges *out, int64_t count, int64_t symbols);
void nf_merges_free(nf_merges *merges);
void nf_merges_add(nf_merges *merges, nf_pair pair);

#define NF_EDGE_ON ((uint64_t)1 << 63)  /* the child has edges itself */
#define NF_BEGIN_ON ((uint32_t)1 << 31) /* the same in begins */
#define NF_SYMBOL_MASK ((1u << NF_SYMBOL_BITS) - 1)

/* The edge from a node, or 0. */
static inline uint64_t nf_merges_edge(const nf_merges *merges, uint32_t node, uint32_t symbol) {
    const uint64_t key = (uint64_t)node << NF_SYMBOL_BITS | symbol;
    for (uint64_t i = key * 0x9E3779B97F4A7C15u >> merges->edge_shift;; i++) {
        const uint64_t edge = merges->edges[i & merges->edge_mask];
        if ((edge & ~NF_EDGE_ON) >> NF_SYMBOL_BITS == key || edge == 0) return edge;
    }
}

/* Make the edges of a trie: left node, right symbol, id child, rank the token that ends there, or NF_NO_ID. The node of a first symbol
   is the symbol; `nodes` others come behind them. */
nf_status nf_merges_set_edges(nf_merges *merges, const nf_pairs *trie, uint32_t symbols, uint32_t nodes);
/* Make `begins`, where first symbols are the ids of the 256 bytes. */
nf_status nf_merges_set_begins(nf_merges *merges, const int32_t *byte_ids);

/* What two symbols are joined to, or NF_NO_ID. */
static inline uint32_t nf_merges_find(const nf_merges *merges, uint32_t left, uint32_t right) {
    const uint64_t key = (uint64_t)left << NF_SYMBOL_BITS | right, hash = key * 0x9E3779B97F4A7C15u;
    if (!(merges->filter[hash >> (70 - NF_FILTER_BITS)] >> (hash >> (64 - NF_FILTER_BITS) & 63) & 1)) return NF_NO_ID;
    for (uint64_t i = hash >> merges->shift;; i++) {
        uint64_t slot = merges->slots[i & merges->mask];
        if (slot >> NF_SYMBOL_BITS == key) return (uint32_t)slot & ((1u << NF_SYMBOL_BITS) - 1);
        if (slot == UINT64_MAX) return NF_NO_ID;
    }
}

#endif
