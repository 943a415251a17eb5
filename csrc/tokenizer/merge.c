/* SPDX-License-Identifier: Apache-2.0 */
/* Byte-pair merging: a scan for short words, a heap for longer ones, overlapping windows for very long ones.

   Why windows are exact. Take a sequence of symbols that the merging of the whole word ends with. No merge ever crossed a
   border between two neighbours of it, so what happened to these two did not depend on the rest: merging their text alone
   picks the same pairs in the same order and ends with the same two. Conversely, if each two neighbours of some sequence come
   out of the merging of their text, then the first merge across a border in the whole word would also have happened in the
   text of those two; so there is none, and the sequence is the result. Hence windows may be put together wherever the two
   symbols at the seam pass that test. */
#include "merge.h"

enum {
    SHORT = 32,   /* symbols up to which looking for the lowest rank each time beats a heap */
    WINDOW = 512, /* symbols merged at once; their heap stays in the fastest cache */
    DROPPED = 2   /* symbols at the end of a window that may still change with what follows */
};
#define NONE UINT32_MAX

void nf_merger_free(nf_merger *merger) {
    nf_words_free(&merger->symbols);
    nf_words_free(&merger->starts);
    nf_words_free(&merger->scratch);
    nf_words_free(&merger->kept);
}

static inline uint32_t rank_of(const nf_merges *merges, uint32_t left, uint32_t right, uint32_t *made) {
    *made = nf_merges_find(merges, left, right);
    return *made == NF_NO_ID ? NONE : merges->ranks[*made];
}

/* Merge `ids` (n <= SHORT) and the places `starts` along with them, if not NULL; returns how many are left. */
static inline int64_t merge_short(uint32_t *ids, uint32_t *starts, int64_t n, const nf_merges *merges) {
    uint32_t rank[SHORT], made[SHORT];
    for (int64_t i = 0; i + 1 < n; i++) nf_merges_prefetch(merges, ids[i], ids[i + 1]);
    for (int64_t i = 0; i + 1 < n; i++) rank[i] = rank_of(merges, ids[i], ids[i + 1], &made[i]);
    for (;;) {
        uint32_t best = NONE;
        for (int64_t i = 0; i + 1 < n; i++) best = rank[i] < best ? rank[i] : best;
        if (best == NONE) return n;
        int64_t at = 0;
        while (rank[at] != best) at++;
        ids[at] = made[at];
        n--;
        for (int64_t i = at + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            if (starts) starts[i] = starts[i + 1];
            rank[i - 1] = rank[i];
            made[i - 1] = made[i];
        }
        if (at > 0) rank[at - 1] = rank_of(merges, ids[at - 1], ids[at], &made[at - 1]);
        if (at + 1 < n) rank[at] = rank_of(merges, ids[at], ids[at + 1], &made[at]);
    }
}

/* -------- the heap: places by (rank, place); an entry whose rank is no longer that of its place is skipped -------- */

static void sift_down(uint64_t *heap, int64_t n, int64_t i) {
    uint64_t entry = heap[i];
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= entry) break;
        heap[i] = heap[child];
    }
    heap[i] = entry;
}

static void push(uint64_t *heap, int64_t *n, uint64_t entry) {
    int64_t i = (*n)++;
    for (int64_t parent; i > 0 && heap[parent = (i - 1) / 2] > entry; i = parent) heap[i] = heap[parent];
    heap[i] = entry;
}

static uint64_t pop(uint64_t *heap, int64_t *n) {
    uint64_t top = heap[0];
    heap[0] = heap[--*n];
    if (*n > 0) sift_down(heap, *n, 0);
    return top;
}

typedef struct chain {
    uint32_t *ids, *next, *before, *rank, *made;
    uint64_t *heap;
    int64_t entries;
    uint32_t n;
} chain;

/* Look up the pair that begins at place i again. */
static void look(chain *c, uint32_t i, const nf_merges *merges) {
    uint32_t right = c->next[i];
    c->rank[i] = right < c->n ? rank_of(merges, c->ids[i], c->ids[right], &c->made[i]) : NONE;
}

static void join(chain *c, uint32_t i, const nf_merges *merges) {
    uint32_t gone = c->next[i], left = c->before[i];
    c->ids[i] = c->made[i];
    c->next[i] = c->next[gone];
    if (c->next[gone] < c->n) c->before[c->next[gone]] = i;
    c->rank[gone] = NONE;
    look(c, i, merges);
    if (c->rank[i] != NONE) push(c->heap, &c->entries, (uint64_t)c->rank[i] << 32 | i);
    if (left == NONE) return;
    look(c, left, merges);
    if (c->rank[left] != NONE) push(c->heap, &c->entries, (uint64_t)c->rank[left] << 32 | left);
}

/* As merge_short, for any n; `scratch` has room for 10 n words. */
static int64_t merge_heap(uint32_t *ids, uint32_t *starts, int64_t n, const nf_merges *merges, uint32_t *scratch) {
    uint32_t *rest = scratch + 6 * n; /* the heap holds at most one entry per place and two per join: 3 n of 64 bits */
    chain c = {ids, rest, rest + n, rest + 2 * n, rest + 3 * n, (uint64_t *)(void *)scratch, 0, (uint32_t)n};
    for (uint32_t i = 0; i < c.n; i++) {
        c.next[i] = i + 1;
        c.before[i] = i - 1; /* NONE for the first */
    }
    for (uint32_t i = 0; i < c.n; i++) {
        look(&c, i, merges);
        if (c.rank[i] != NONE) c.heap[c.entries++] = (uint64_t)c.rank[i] << 32 | i;
    }
    for (int64_t i = c.entries / 2; i-- > 0;) sift_down(c.heap, c.entries, i);
    while (c.entries > 0) {
        uint64_t top = pop(c.heap, &c.entries);
        uint32_t i = (uint32_t)top;
        if (c.rank[i] == top >> 32) join(&c, i, merges);
    }
    int64_t left = 0;
    for (uint32_t i = 0; i < c.n; i = c.next[i]) {
        ids[left] = ids[i];
        starts[left++] = starts[i];
    }
    return left;
}

/* Merge `n` symbols that begin at place `first` of the word, into merger->scratch. Out: ids, starts and their number. */
static nf_status merge_part(nf_merger *merger, const nf_merges *merges, const uint32_t *symbols, int64_t first, int64_t n,
                            uint32_t **ids, uint32_t **starts, int64_t *count) {
    merger->scratch.size = 0;
    NF_TRY(nf_words_reserve(&merger->scratch, 12 * n));
    uint32_t *scratch = merger->scratch.at;
    *ids = scratch + 10 * n;
    *starts = scratch + 11 * n;
    memcpy(*ids, symbols + first, (size_t)n * sizeof **ids);
    for (int64_t i = 0; i < n; i++) (*starts)[i] = (uint32_t)(first + i);
    *count = n <= SHORT ? merge_short(*ids, *starts, n, merges) : merge_heap(*ids, *starts, n, merges, scratch);
    return NF_OK;
}

/* Whether merging the symbols from `a` up to `end` gives two symbols, the second from `b` on. */
static nf_status seam_holds(nf_merger *merger, const nf_merges *merges, const uint32_t *symbols, int64_t a, int64_t b,
                            int64_t end, int *holds) {
    uint32_t *ids, *starts;
    int64_t count;
    NF_TRY(merge_part(merger, merges, symbols, a, end - a, &ids, &starts, &count));
    *holds = count == 2 && starts[1] == b;
    return NF_OK;
}

/* Append what the window of `part` symbols at `at` merges to. */
static nf_status append_window(nf_merger *merger, const nf_merges *merges, int64_t at, int64_t part) {
    uint32_t *ids, *starts;
    int64_t count;
    nf_words *kept = &merger->kept, *places = &merger->starts;
    NF_TRY(merge_part(merger, merges, merger->symbols.at, at, part, &ids, &starts, &count));
    NF_TRY(nf_words_reserve(kept, count));
    NF_TRY(nf_words_reserve(places, count));
    memcpy(kept->at + kept->size, ids, (size_t)count * sizeof *ids);
    memcpy(places->at + places->size, starts, (size_t)count * sizeof *starts);
    kept->size = places->size += count;
    return NF_OK;
}

/* The result goes to merger->kept. When a seam does not hold, the next try begins further back with a larger window. */
static nf_status merge_windows(nf_merger *merger, const nf_merges *merges) {
    const int64_t n = merger->symbols.size;
    nf_words *kept = &merger->kept, *places = &merger->starts;
    int64_t at = 0, window = WINDOW, back = DROPPED;
    kept->size = places->size = 0;
    for (;;) {
        const int64_t seam = kept->size, part = n - at < window ? n - at : window;
        int holds = 1;
        NF_TRY(append_window(merger, merges, at, part));
        if (seam > 0) {
            int64_t end = seam + 1 < places->size ? places->at[seam + 1] : at + part;
            NF_TRY(seam_holds(merger, merges, merger->symbols.at, places->at[seam - 1], at, end, &holds));
        }
        if (holds && at + part == n) return NF_OK;
        int64_t keep = holds ? kept->size - DROPPED : seam - back;
        if (holds && keep <= seam) keep = seam + 1;
        if (keep < 0) keep = 0;
        at = keep < places->size ? places->at[keep] : at + part;
        kept->size = places->size = keep;
        back = holds ? DROPPED : 2 * back;
        if (!holds) window *= 2; /* and stays so: it reaches the whole word before anything could go round */
    }
}

nf_status nf_merge(nf_merger *merger, const nf_merges *merges) {
    nf_words *symbols = &merger->symbols;
    if (symbols->size < 2) return NF_OK;
    if (symbols->size <= SHORT) {
        symbols->size = merge_short(symbols->at, NULL, symbols->size, merges);
        return NF_OK;
    }
    if (symbols->size >= NONE) return nf_fail(NF_ERR_ARGUMENT, "a word of %lld symbols", (long long)symbols->size);
    if (symbols->size <= WINDOW) {
        uint32_t *ids, *starts;
        NF_TRY(merge_part(merger, merges, symbols->at, 0, symbols->size, &ids, &starts, &symbols->size));
        memcpy(symbols->at, ids, (size_t)symbols->size * sizeof *ids);
        return NF_OK;
    }
    NF_TRY(merge_windows(merger, merges));
    memcpy(symbols->at, merger->kept.at, (size_t)merger->kept.size * sizeof *symbols->at);
    symbols->size = merger->kept.size;
    return NF_OK;
}
