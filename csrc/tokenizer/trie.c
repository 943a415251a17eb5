/* SPDX-License-Identifier: Apache-2.0 */
#include "trie.h"

nf_status nf_trie_new(nf_trie *out, int64_t bytes) {
    out->nodes = 1;
    return nf_pairs_new(&out->edges, bytes);
}

void nf_trie_free(nf_trie *trie) { nf_pairs_free(&trie->edges); }

void nf_trie_add(nf_trie *trie, const uint8_t *text, int64_t size, uint32_t value) {
    uint32_t node = 0;
    for (int64_t i = 0; i < size; i++) {
        const nf_pair *edge = nf_pairs_find(&trie->edges, node, text[i]);
        nf_pair changed = edge ? *edge : (nf_pair){node, text[i], NF_NO_ID, trie->nodes++};
        if (i == size - 1) changed.rank = value;
        if (!edge || i == size - 1) nf_pairs_add(&trie->edges, changed);
        node = changed.id;
    }
}

uint32_t nf_trie_longest(const nf_trie *trie, const uint8_t *p, const uint8_t *end, int64_t *size) {
    uint32_t node = 0, found = NF_NO_ID;
    for (const uint8_t *q = p; q < end; q++) {
        const nf_pair *edge = nf_pairs_find(&trie->edges, node, *q);
        if (!edge) break;
        node = edge->id;
        if (edge->rank != NF_NO_ID) {
            found = edge->rank;
            *size = q + 1 - p;
        }
    }
    return found;
}
