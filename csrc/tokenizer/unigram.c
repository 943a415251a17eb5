/* SPDX-License-Identifier: Apache-2.0 */
/* Viterbi (1967) over the characters of a text. Sums are float32 from the left, as SentencePiece has them, so that near
   ties fall alike; the time is linear, since no piece is longer than the longest. */
#include "unigram.h"

#include "unicode.h"

/* The best way to the place where a piece ends. */
typedef struct node {
    float score;
    uint32_t id;
    uint32_t size; /* of the last piece; 0: no way found */
} node;

static const double KEPT_DISCOUNT = 0.1; /* SentencePiece's; below the best score of as many characters */
static const float UNKNOWN_PENALTY = 10.0f;

static void offer(node *end, float score, uint32_t id, int64_t size) {
    if (end->size == 0 || score > end->score) *end = (node){score, id, (uint32_t)size};
}

/* Every piece that begins at place `at`; returns whether one has the length of the character there. */
static int offer_pieces(node *nodes, const nf_unigram *m, const uint8_t *text, int64_t at, int64_t size, int64_t width) {
    const float before = nodes[at].score;
    int single = 0;
    uint32_t state = 0;
    for (int64_t i = at; i < size; i++) {
        const nf_pair *edge = nf_pairs_find(&m->trie.edges, state, text[i]);
        if (!edge) break;
        state = edge->id;
        uint32_t id = edge->rank;
        if (id == NF_NO_ID) continue;
        int64_t length = i + 1 - at;
        double score = m->kept[id] ? (double)((float)length * m->best) - KEPT_DISCOUNT : (double)m->scores[id];
        offer(&nodes[i + 1], (float)(score + (double)before), id, length);
        single |= length == width;
    }
    return single;
}

static nf_status collect(nf_words *out, const node *nodes, int64_t size) {
    int64_t count = 0;
    for (int64_t at = size; at > 0; at -= nodes[at].size) count++;
    NF_TRY(nf_words_reserve(out, 2 * count));
    uint32_t *last = out->at + out->size + 2 * count;
    for (int64_t at = size; at > 0; at -= nodes[at].size) {
        *--last = nodes[at].size;
        *--last = nodes[at].id;
    }
    out->size += 2 * count;
    return NF_OK;
}

nf_status nf_unigram_cut(nf_words *out, nf_lattice *lattice, const nf_unigram *model, const uint8_t *text, int64_t size) {
    if (size == 0) return NF_OK;
    if (size >= UINT32_MAX) return nf_fail(NF_ERR_ARGUMENT, "a text of %lld bytes", (long long)size);
    lattice->nodes.size = 0;
    NF_TRY(nf_bytes_reserve(&lattice->nodes, (size + 1) * (int64_t)sizeof(node)));
    node *nodes = (node *)(void *)lattice->nodes.at;
    memset(nodes, 0, (size_t)(size + 1) * sizeof *nodes);
    for (int64_t at = 0; at < size;) {
        uint32_t code;
        int64_t width = nf_utf8_read(text + at, text + size, &code);
        if (!offer_pieces(nodes, model, text, at, size, width))
            offer(&nodes[at + width], (model->worst - UNKNOWN_PENALTY) + nodes[at].score, model->unknown, width);
        at += width;
    }
    return collect(out, nodes, size);
}
