/* SPDX-License-Identifier: Apache-2.0 */
/* Byte-pair merging without a queue of merges: tokens are taken from the left, the longest first, and a token may follow
   another if merging the text of both gives these two again.

   Why this is exact. Take the sequence of tokens that merging the whole word ends with. No merge ever crossed a border
   between two neighbours of it, so what happened to these two did not depend on the rest: merging their text alone picks the
   same pairs in the same order and ends with the same two. Conversely, if each two neighbours of some sequence come out of
   the merging of their text, then the first merge across a border in the whole word would also have happened in the text of
   those two; so there is none, and the sequence is the result.

   Why it is linear. The same holds for every beginning of the word, so only one such sequence ends at a place. Where the
   search finds no way on from a place, the place is dead: it is marked and never tried again. */
#include "merge.h"

void nf_merger_free(nf_merger *merger) {
    nf_words_free(&merger->dead);
    nf_words_free(&merger->plain);
}

static inline uint32_t symbol_at(const nf_symbols *word, int64_t i) { return word->symbols[word->text ? word->text[i] : i]; }

/* The longest token that begins at place i: at least the symbol there. */
static inline uint32_t longest_at(const nf_merges *merges, const nf_symbols *word, int64_t i) {
    uint32_t node = symbol_at(word, i), found = node;
    if (++i == word->count) return found;
    if (word->text) { /* the first two bytes at once */
        const uint32_t begin = merges->begins[word->text[i - 1] << 8 | word->text[i]];
        if (begin == NF_NO_ID) return found;
        node = begin & NF_SYMBOL_MASK;
        if (node < merges->symbols) found = node;
        if (!(begin & NF_BEGIN_ON)) return found;
        i++;
    }
    for (; i < word->count; i++) {
        const uint64_t edge = nf_merges_edge(merges, node, symbol_at(word, i));
        if (!edge) break;
        node = (uint32_t)edge & NF_SYMBOL_MASK;
        if (node < merges->symbols) found = node;
        if (!(edge & NF_EDGE_ON)) break;
    }
    return found;
}

/* Whether merging the text of two tokens gives these two, where both are ordered. Their merges are undone, the last one first;
   `limit` is the time of the one undone before. A merge across the border that comes earlier would have happened. Of equal
   ranks the left one is first. */
static int stays_apart(const nf_merges *merges, uint32_t left, uint32_t right) {
    uint32_t limit = UINT32_MAX;
    for (;;) {
        const uint32_t across = nf_merges_find(merges, left, right);
        const nf_made *a = &merges->made[left], *b = &merges->made[right];
        if (across != NF_NO_ID && merges->made[across].when < limit) return 0;
        if (a->when > b->when) {
            limit = a->when;
            left = a->right;
        } else if (b->when > 0) {
            limit = b->when + 1;
            right = b->left;
        } else {
            return 1;
        }
    }
}

/* Merge a few symbols by definition. */
static void merge_plainly(nf_words *ids, const nf_merges *merges) {
    for (;;) {
        uint32_t best = NF_NO_ID;
        int64_t at = 0;
        for (int64_t i = 0; i + 1 < ids->size; i++) {
            uint32_t id = nf_merges_find(merges, ids->at[i], ids->at[i + 1]);
            if (id == NF_NO_ID || (best != NF_NO_ID && merges->made[id].when >= merges->made[best].when)) continue;
            best = id;
            at = i;
        }
        if (best == NF_NO_ID) return;
        ids->at[at] = best;
        ids->size--;
        memmove(ids->at + at + 1, ids->at + at + 2, (size_t)(ids->size - at - 1) * sizeof *ids->at);
    }
}

/* The same for any tokens, the right one at place `at`: rare ones, so that a few answers are kept. */
static nf_status stays_apart_plainly(int *apart, nf_merger *merger, const nf_merges *merges, const nf_symbols *word, int64_t at,
                                     uint32_t left, uint32_t right) {
    const uint64_t key = (uint64_t)left << 23 | (uint64_t)right << 2 | 1;
    uint64_t *verdict = &merger->verdicts[key * 0x9E3779B97F4A7C15u >> (64 - NF_VERDICT_BITS)];
    *apart = *verdict >> 1 & 1;
    if ((*verdict & ~(uint64_t)2) == key) return NF_OK;
    const int64_t from = at - merges->made[left].length, end = at + merges->made[right].length;
    nf_words *ids = &merger->plain;
    ids->size = 0;
    NF_TRY(nf_words_reserve(ids, end - from));
    for (int64_t i = from; i < end; i++) ids->at[ids->size++] = symbol_at(word, i);
    merge_plainly(ids, merges);
    *apart = ids->size == 2 && ids->at[0] == left && ids->at[1] == right;
    *verdict = key | (uint64_t)*apart << 1;
    return NF_OK;
}

static inline int is_dead(const nf_words *dead, int64_t at) { return dead->at[at >> 5] >> (at & 31) & 1; }

/* Appends to out, which has room for a token per symbol. */
static inline nf_status search(nf_words *out, nf_merger *merger, const nf_merges *merges, const nf_symbols *word) {
    const nf_made *made = merges->made;
    uint32_t *tokens = out->at + out->size, token = longest_at(merges, word, 0);
    int64_t count = 0, at = 0;
    for (;;) {
        const int64_t next = at + made[token].length;
        int fits = !is_dead(&merger->dead, next);
        if (fits && count > 0) {
            const uint32_t last = tokens[count - 1];
            if (made[last].ordered & made[token].ordered)
                fits = stays_apart(merges, last, token);
            else
                NF_TRY(stays_apart_plainly(&fits, merger, merges, word, at, last, token));
        }
        if (fits) {
            tokens[count++] = token;
            at = next;
            if (at == word->count) break;
            token = longest_at(merges, word, at);
            continue;
        }
        token = made[token].shorter;
        while (token == NF_NO_ID) { /* nothing fits here, so the token before is wrong */
            if (count == 0) return nf_fail(NF_ERR_STATE, "a word of %lld symbols has no tokens", (long long)word->count);
            merger->dead.at[at >> 5] |= 1u << (at & 31);
            token = tokens[--count];
            at -= made[token].length;
            token = made[token].shorter;
        }
    }
    out->size += count;
    return NF_OK;
}

nf_status nf_merge(nf_words *out, nf_merger *merger, const nf_merges *merges, nf_symbols word) {
    if (word.count == 0) return NF_OK;
    NF_TRY(nf_words_reserve(out, word.count));
    NF_TRY(nf_words_reserve(&merger->dead, word.count / 32 + 1));
    memset(merger->dead.at, 0, (size_t)(word.count / 32 + 1) * sizeof *merger->dead.at);
    return search(out, merger, merges, &word);
}
