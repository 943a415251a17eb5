/* SPDX-License-Identifier: Apache-2.0 */
/* From the pieces and merges of a file to the table of merges that can happen (see nf_merges in pieces.h). */
#include "handle.h"

/* All pairs that the file allows, and the pieces that they are made of. */
typedef struct build {
    const nf_tokenizer *t;
    nf_pieces pieces; /* where merges are by rank of the joined text */
    nf_pairs pairs;
    nf_bytes found;   /* the pairs, one after the other */
    nf_words ids;     /* scratch: symbols of a piece */
    nf_bytes kept;    /* the pairs that happen */
    nf_pairs ways;    /* the trie of nf_merges, before its size is known */
    int64_t steps;    /* symbols of all pieces that merging makes */
    uint8_t *reached; /* by piece: text alone becomes it */
} build;

static nf_status collect_pieces(build *b) {
    const nf_token_spec *s = &b->t->spec;
    NF_TRY(nf_pieces_new(&b->pieces, s->pieces.at, s->pieces.ends, s->pieces.count));
    for (int64_t i = 0; i < s->pieces.count; i++) {
        int64_t size;
        nf_text_at(&s->pieces, i, &size);
        if (s->used[i] && size > 0) nf_pieces_add(&b->pieces, (uint32_t)i);
    }
    return NF_OK;
}

/* The symbol that a part of a piece is, if it is one. */
static uint32_t symbol_of(const build *b, const uint8_t *text, int64_t size) {
    const nf_token_spec *s = &b->t->spec;
    uint32_t code;
    if (s->model == NF_TOKENS_BYTES && size == 1) return (uint32_t)s->byte_ids[*text];
    if (s->model == NF_TOKENS_MARKED && nf_utf8_read(text, text + size, &code) == size)
        return nf_marked_symbol(&b->t->marked, code);
    return nf_pieces_find(&b->pieces, text, size);
}

/* Every way to make piece i of two symbols. */
static nf_status add_splits(build *b, int64_t i) {
    const nf_token_spec *s = &b->t->spec;
    int64_t size;
    const uint8_t *text = nf_text_at(&s->pieces, i, &size);
    for (int64_t k = 1; k < size; k++) {
        if (s->model == NF_TOKENS_MARKED && (text[k] & 0xC0) == 0x80) continue;
        nf_pair pair = {symbol_of(b, text, k), symbol_of(b, text + k, size - k), (uint32_t)s->ranks[i], (uint32_t)i};
        if (pair.left != NF_NO_ID && pair.right != NF_NO_ID) NF_TRY(nf_bytes_append(&b->found, &pair, sizeof pair));
    }
    return NF_OK;
}

static nf_status collect_pairs(build *b) {
    const nf_token_spec *s = &b->t->spec;
    for (int64_t i = 0; s->ranks && i < s->pieces.count; i++)
        if (s->used[i] && s->ranks[i] >= 0) NF_TRY(add_splits(b, i));
    for (int64_t i = 0; !s->ranks && i < s->merge_count; i++) {
        const int32_t *m = s->merges + 3 * i;
        nf_pair pair = {(uint32_t)m[0], (uint32_t)m[1], (uint32_t)i, (uint32_t)m[2]};
        NF_TRY(nf_bytes_append(&b->found, &pair, sizeof pair));
    }
    const int64_t count = b->found.size / (int64_t)sizeof(nf_pair);
    NF_TRY(nf_pairs_new(&b->pairs, count));
    for (int64_t i = 0; i < count; i++) {
        nf_pair pair;
        memcpy(&pair, b->found.at + i * (int64_t)sizeof pair, sizeof pair);
        nf_pairs_add(&b->pairs, pair);
    }
    return NF_OK;
}

/* The symbols of a piece's text; none where one is missing. */
static nf_status split_piece(build *b, const uint8_t *text, int64_t size) {
    nf_words *ids = &b->ids;
    ids->size = 0;
    for (int64_t at = 0, width = 1; at < size; at += width) {
        uint32_t code;
        if (b->t->spec.model == NF_TOKENS_MARKED) width = nf_utf8_read(text + at, text + size, &code);
        uint32_t symbol = symbol_of(b, text + at, width);
        if (symbol == NF_NO_ID) {
            ids->size = 0;
            return NF_OK;
        }
        NF_TRY(nf_words_push(ids, symbol));
    }
    return NF_OK;
}

/* Merge b->ids, which are few, by definition: look for the lowest rank each time. Returns the last merge. */
static nf_pair merge_piece(build *b) {
    nf_words *ids = &b->ids;
    nf_pair last = {NF_NO_ID, 0, 0, 0};
    for (;;) {
        const nf_pair *best = NULL;
        int64_t at = 0;
        for (int64_t i = 0; i + 1 < ids->size; i++) {
            const nf_pair *pair = nf_pairs_find(&b->pairs, ids->at[i], ids->at[i + 1]);
            if (pair && (!best || pair->rank < best->rank)) best = pair, at = i;
        }
        if (!best) return last;
        last = *best;
        ids->at[at] = last.id;
        ids->size--;
        memmove(ids->at + at + 1, ids->at + at + 2, (size_t)(ids->size - at - 1) * sizeof *ids->at);
    }
}

/* Keep the pair that makes each piece, if one does. */
static nf_status keep_pairs(build *b) {
    const nf_token_spec *s = &b->t->spec;
    for (int64_t i = 0; i < s->pieces.count; i++) {
        int64_t size;
        const uint8_t *text = nf_text_at(&s->pieces, i, &size);
        if (size == 0 || (s->ranks && !s->used[i])) continue;
        NF_TRY(split_piece(b, text, size));
        if (b->ids.size == 0) continue;
        const int64_t symbols = b->ids.size;
        nf_pair last = merge_piece(b);
        if (b->ids.size != 1 || b->ids.at[0] != (uint32_t)i) continue;
        b->reached[i] = 1;
        if (last.left == NF_NO_ID) continue;
        NF_TRY(nf_bytes_append(&b->kept, &last, sizeof last));
        b->steps += symbols;
    }
    return NF_OK;
}

/* Symbols: the pieces, and the characters that are none. */
static int64_t symbol_count(const nf_tokenizer *t) { return t->spec.pieces.count + t->marked.loose.size; }

/* A merge must not make what a byte is already. */
static nf_status check_bytes(const build *b, const nf_merges *merges) {
    const nf_token_spec *s = &b->t->spec;
    for (int i = 0; s->model == NF_TOKENS_BYTES && i < 256; i++)
        if (s->byte_ids[i] >= 0 && merges->made[s->byte_ids[i]].when > 0)
            return nf_fail(NF_ERR_ARGUMENT, "byte 0x%02X has the id %d of a longer piece", i, s->byte_ids[i]);
    return NF_OK;
}

static nf_status add_merges(const build *b, nf_merges *merges) {
    const int64_t count = b->kept.size / (int64_t)sizeof(nf_pair);
    NF_TRY(nf_merges_new(merges, count, symbol_count(b->t)));
    for (int64_t i = 0; i < count; i++) {
        nf_pair pair;
        memcpy(&pair, b->kept.at + i * (int64_t)sizeof pair, sizeof pair);
        nf_merges_add(merges, pair);
    }
    return check_bytes(b, merges);
}

/* Pieces in which each merge ranks above those that make its parts; others are rare. Round by round, as a piece may come before
   its parts; a round that finds nothing is the last. */
static void find_ordered(nf_merges *merges, int64_t count) {
    for (int changed = 1; changed;) {
        changed = 0;
        for (int64_t i = 0; i < count; i++) {
            nf_made *m = &merges->made[i];
            if (m->when == 0 || !m->ordered) continue;
            const nf_made *left = &merges->made[m->left], *right = &merges->made[m->right];
            m->ordered = left->ordered && right->ordered && left->when < m->when && right->when < m->when;
            changed |= !m->ordered;
        }
    }
}

/* The way of piece i, whose symbols are b->ids, into `edges`; new nodes are counted in *nodes. */
static void add_way(build *b, nf_pairs *edges, uint32_t i, uint32_t *nodes) {
    const nf_words *ids = &b->ids;
    for (int64_t k = 1, node = ids->at[0]; k < ids->size; k++) {
        const nf_pair *edge = nf_pairs_find(edges, (uint32_t)node, ids->at[k]);
        nf_pair changed = edge ? *edge : (nf_pair){(uint32_t)node, ids->at[k], NF_NO_ID, (*nodes)++};
        if (k + 1 == ids->size) changed.rank = i;
        if (!edge || k + 1 == ids->size) nf_pairs_add(edges, changed);
        node = changed.id;
    }
}

/* Length and next shorter token of piece i, whose symbols are b->ids. */
static void measure(build *b, nf_merges *merges, uint32_t i) {
    const nf_words *ids = &b->ids;
    uint32_t node = ids->at[0], shorter = node;
    for (int64_t k = 1; k + 1 < ids->size; k++) {
        node = (uint32_t)nf_merges_edge(merges, node, ids->at[k]) & NF_SYMBOL_MASK;
        if (node < merges->symbols) shorter = node;
    }
    merges->made[i].length = (uint32_t)ids->size;
    merges->made[i].shorter = shorter;
}

/* Whether piece i is made by a merge; then its symbols are put into b->ids. */
static nf_status split_made(build *b, const nf_merges *merges, int64_t i, int *made) {
    int64_t size;
    *made = merges->made[i].when > 0;
    if (!*made) return NF_OK;
    const uint8_t *text = nf_text_at(&b->t->spec.pieces, i, &size);
    return split_piece(b, text, size);
}

static nf_status add_tokens(build *b, nf_merges *merges) {
    const nf_token_spec *s = &b->t->spec;
    uint32_t nodes = (uint32_t)symbol_count(b->t);
    int made;
    NF_TRY(nf_pairs_new(&b->ways, b->steps));
    for (int64_t i = 0; i < s->pieces.count; i++) {
        NF_TRY(split_made(b, merges, i, &made));
        if (made) add_way(b, &b->ways, (uint32_t)i, &nodes);
    }
    find_ordered(merges, s->pieces.count);
    NF_TRY(nf_merges_set_edges(merges, &b->ways, (uint32_t)symbol_count(b->t), nodes - (uint32_t)symbol_count(b->t)));
    if (s->model == NF_TOKENS_BYTES) NF_TRY(nf_merges_set_begins(merges, s->byte_ids));
    for (int64_t i = 0; i < s->pieces.count; i++) {
        NF_TRY(split_made(b, merges, i, &made));
        if (made) measure(b, merges, (uint32_t)i);
    }
    return NF_OK;
}

static nf_status fill(nf_tokenizer *t, build *b) {
    const nf_token_spec *s = &t->spec;
    if (s->ranks) NF_TRY(collect_pieces(b));
    NF_TRY(collect_pairs(b));
    b->reached = calloc((size_t)s->pieces.count + 1, 1);
    if (!b->reached) return nf_fail(NF_ERR_MEMORY, "no memory for %lld pieces", (long long)s->pieces.count);
    NF_TRY(keep_pairs(b));
    NF_TRY(add_merges(b, &t->merges));
    NF_TRY(add_tokens(b, &t->merges));
    if (s->model != NF_TOKENS_BYTES) return NF_OK;
    NF_TRY(nf_pieces_new(&t->whole, s->pieces.at, s->pieces.ends, s->pieces.count));
    for (int64_t i = 0; i < s->pieces.count; i++) {
        int64_t size;
        nf_text_at(&s->pieces, i, &size);
        if (size > 0 && (b->reached[i] || (s->take_whole && s->used[i]))) nf_pieces_add(&t->whole, (uint32_t)i);
    }
    return NF_OK;
}

nf_status nf_build_merges(nf_tokenizer *t) {
    build b = {.t = t};
    nf_status status = fill(t, &b);
    nf_pieces_free(&b.pieces);
    nf_pairs_free(&b.pairs);
    nf_pairs_free(&b.ways);
    nf_bytes_free(&b.found);
    nf_bytes_free(&b.kept);
    nf_words_free(&b.ids);
    free(b.reached);
    return status;
}
