/* SPDX-License-Identifier: Apache-2.0 */
/* Open addressing with linear probing, at most half full. */
#include "pieces.h"

#include "buffer.h"

#include <stdlib.h>
#include <string.h>

static uint64_t slots_for(int64_t count, int *bits) {
    *bits = 4;
    while ((int64_t)1 << *bits < 2 * count) ++*bits;
    return (uint64_t)1 << *bits;
}

nf_status nf_pieces_new(nf_pieces *out, const uint8_t *at, const int64_t *ends, int64_t count) {
    int bits;
    uint64_t slots = slots_for(count, &bits);
    uint64_t *filter = calloc((size_t)1 << (NF_FILTER_BITS - 6), sizeof *filter);
    *out = (nf_pieces){at, ends, nf_table_new((int64_t)(slots * sizeof *out->slots)), filter, slots - 1, 0};
    if (!out->slots || !filter) return nf_fail(NF_ERR_MEMORY, "no memory for a vocabulary of %lld pieces", (long long)count);
    memset(out->slots, 0xFF, slots * sizeof *out->slots);
    return NF_OK;
}

void nf_pieces_free(nf_pieces *pieces) {
    free(pieces->slots);
    free(pieces->filter);
}

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

static int is_text(const nf_pieces *pieces, uint32_t id, const uint8_t *text, int64_t size) {
    int64_t begin = id ? pieces->ends[id - 1] : 0;
    return pieces->ends[id] - begin == size && memcmp(pieces->at + begin, text, (size_t)size) == 0;
}

static uint64_t *filter_word(const nf_pieces *pieces, uint64_t hash) { return &pieces->filter[hash >> (70 - NF_FILTER_BITS)]; }
static uint64_t filter_bit(uint64_t hash) { return (uint64_t)1 << (hash >> (64 - NF_FILTER_BITS) & 63); }

/* The slot of a text, or the free one where it belongs. */
static uint64_t *slot_of(const nf_pieces *pieces, const uint8_t *text, int64_t size, uint64_t hash) {
    const uint32_t low = (1u << NF_SYMBOL_BITS) - 1;
    for (uint64_t i = hash;; i++) {
        uint64_t *slot = &pieces->slots[i & pieces->mask];
        if (*slot == UINT64_MAX) return slot;
        if (*slot >> NF_SYMBOL_BITS == hash >> NF_SYMBOL_BITS && is_text(pieces, (uint32_t)*slot & low, text, size))
            return slot;
    }
}

void nf_pieces_add(nf_pieces *pieces, uint32_t id) {
    const int64_t begin = id ? pieces->ends[id - 1] : 0, size = pieces->ends[id] - begin;
    const uint64_t hash = hash_bytes(pieces->at + begin, size);
    uint64_t *slot = slot_of(pieces, pieces->at + begin, size, hash);
    if (*slot == UINT64_MAX) *slot = hash >> NF_SYMBOL_BITS << NF_SYMBOL_BITS | id;
    *filter_word(pieces, hash) |= filter_bit(hash);
    if (size > pieces->longest) pieces->longest = size;
}

uint32_t nf_pieces_find(const nf_pieces *pieces, const uint8_t *text, int64_t size) {
    if (size > pieces->longest) return NF_NO_ID;
    const uint64_t hash = hash_bytes(text, size);
    if (!(*filter_word(pieces, hash) & filter_bit(hash))) return NF_NO_ID;
    const uint64_t slot = *slot_of(pieces, text, size, hash);
    return slot == UINT64_MAX ? NF_NO_ID : (uint32_t)slot & ((1u << NF_SYMBOL_BITS) - 1);
}

nf_status nf_pairs_new(nf_pairs *out, int64_t count) {
    int bits;
    uint64_t slots = slots_for(count, &bits);
    out->slots = nf_table_new((int64_t)(slots * sizeof *out->slots));
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

nf_status nf_merges_new(nf_merges *out, int64_t count, int64_t symbols) {
    int bits;
    uint64_t slots = slots_for(count, &bits);
    out->slots = nf_table_new((int64_t)(slots * sizeof *out->slots));
    out->filter = calloc((size_t)1 << (NF_FILTER_BITS - 6), sizeof *out->filter);
    out->made = malloc((size_t)(symbols + 1) * sizeof *out->made);
    if (!out->slots || !out->filter || !out->made) return nf_fail(NF_ERR_MEMORY, "no memory for %lld merges", (long long)count);
    for (int64_t i = 0; i < symbols; i++) out->made[i] = (nf_made){0, NF_NO_ID, NF_NO_ID, NF_NO_ID, 1, 1};
    memset(out->slots, 0xFF, slots * sizeof *out->slots);
    out->mask = slots - 1;
    out->shift = 64 - bits;
    return NF_OK;
}

void nf_merges_free(nf_merges *merges) {
    free(merges->slots);
    free(merges->filter);
    free(merges->made);
    free(merges->edges);
    free(merges->begins);
}

void nf_merges_add(nf_merges *merges, nf_pair pair) {
    const uint64_t key = (uint64_t)pair.left << NF_SYMBOL_BITS | pair.right;
    const uint64_t hash = key * 0x9E3779B97F4A7C15u;
    merges->filter[hash >> (70 - NF_FILTER_BITS)] |= (uint64_t)1 << (hash >> (64 - NF_FILTER_BITS) & 63);
    uint64_t i = hash >> merges->shift;
    while (merges->slots[i & merges->mask] != UINT64_MAX) i++;
    merges->slots[i & merges->mask] = key << NF_SYMBOL_BITS | pair.id;
    merges->made[pair.id] = (nf_made){pair.rank + 1, pair.left, pair.right, NF_NO_ID, 0, 1};
}

static void add_edge(nf_merges *merges, uint64_t edge) {
    uint64_t i = ((edge & ~NF_EDGE_ON) >> NF_SYMBOL_BITS) * 0x9E3779B97F4A7C15u >> merges->edge_shift;
    while (merges->edges[i & merges->edge_mask]) i++;
    merges->edges[i & merges->edge_mask] = edge;
}

/* The edges; names[n]: the final number of node symbols + n, of which there are `nodes`. */
static nf_status add_edges(nf_merges *merges, const nf_pairs *trie, uint32_t nodes, uint32_t *names) {
    uint32_t next = merges->symbols;
    for (uint64_t i = 0; i <= trie->mask; i++) {
        const nf_pair *pair = &trie->slots[i];
        if (pair->left != NF_NO_ID) names[pair->id - merges->symbols] = pair->rank != NF_NO_ID ? pair->rank : next++;
    }
    if (next > NF_SYMBOL_MASK) return nf_fail(NF_ERR_MEMORY, "no room for the %u beginnings of the pieces", nodes);
    uint8_t *inner = calloc((size_t)next + 1, 1);
    if (!inner) return nf_fail(NF_ERR_MEMORY, "no memory for %u beginnings of pieces", nodes);
    for (int pass = 0; pass < 2; pass++) {
        for (uint64_t i = 0; i <= trie->mask; i++) {
            const nf_pair *pair = &trie->slots[i];
            if (pair->left == NF_NO_ID) continue;
            const uint32_t from = pair->left < merges->symbols ? pair->left : names[pair->left - merges->symbols];
            const uint32_t to = names[pair->id - merges->symbols];
            const uint64_t key = (uint64_t)from << NF_SYMBOL_BITS | pair->right;
            if (pass == 0)
                inner[from] = 1;
            else
                add_edge(merges, (inner[to] ? NF_EDGE_ON : 0) | key << NF_SYMBOL_BITS | to);
        }
    }
    free(inner);
    return NF_OK;
}

nf_status nf_merges_set_edges(nf_merges *merges, const nf_pairs *trie, uint32_t symbols, uint32_t nodes) {
    int bits;
    const uint64_t slots = slots_for(nodes, &bits);
    merges->edges = nf_table_new((int64_t)(slots * sizeof *merges->edges));
    merges->edge_mask = slots - 1;
    merges->edge_shift = 64 - bits;
    merges->symbols = symbols;
    uint32_t *names = calloc((size_t)nodes + 1, sizeof *names);
    const nf_status status = merges->edges && names ? add_edges(merges, trie, nodes, names)
                                                    : nf_fail(NF_ERR_MEMORY, "no memory for %u beginnings of pieces", nodes);
    free(names);
    return status;
}

nf_status nf_merges_set_begins(nf_merges *merges, const int32_t *byte_ids) {
    merges->begins = malloc(sizeof *merges->begins << 16);
    if (!merges->begins) return nf_fail(NF_ERR_MEMORY, "no memory for a table of pairs of bytes");
    for (int i = 0; i < 1 << 16; i++) {
        const int32_t first = byte_ids[i >> 8], second = byte_ids[i & 255];
        const uint64_t edge = first < 0 || second < 0 ? 0 : nf_merges_edge(merges, (uint32_t)first, (uint32_t)second);
        merges->begins[i] = edge ? ((uint32_t)edge & NF_SYMBOL_MASK) | (edge & NF_EDGE_ON ? NF_BEGIN_ON : 0) : NF_NO_ID;
    }
    return NF_OK;
}
