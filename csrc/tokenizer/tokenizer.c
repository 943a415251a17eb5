/* SPDX-License-Identifier: Apache-2.0 */
/* The handle: its parts are checked and its tables made here. */
#include "tokenizer.h"

#include "handle.h"

enum { MAX_ID = 1 << NF_SYMBOL_BITS, MAX_ADDED = 1 << 24 };

/* -------- making a handle -------- */

static nf_status check_ids(const nf_token_spec *s) {
    if (s->pieces.count < 0 || s->pieces.count >= MAX_ID)
        return nf_fail(NF_ERR_ARGUMENT, "a vocabulary of %lld pieces", (long long)s->pieces.count);
    const int least = s->model == NF_TOKENS_BYTES ? -1 : 0; /* as a fallback all are needed */
    for (int b = 0; s->byte_ids && b < 256; b++)
        if (s->byte_ids[b] < least || s->byte_ids[b] >= s->pieces.count)
            return nf_fail(NF_ERR_ARGUMENT, "byte 0x%02X has the id %d", b, s->byte_ids[b]);
    for (int64_t i = 0; i < 3 * s->merge_count; i++)
        if (s->merges[i] < 0 || s->merges[i] >= s->pieces.count)
            return nf_fail(NF_ERR_ARGUMENT, "merge %lld has the id %d", (long long)(i / 3), s->merges[i]);
    for (int64_t i = 0; i < s->added.count; i++)
        if (s->added_ids[i] < 0 || s->added_ids[i] >= MAX_ADDED)
            return nf_fail(NF_ERR_ARGUMENT, "added token %lld has the id %d", (long long)i, s->added_ids[i]);
    return NF_OK;
}

static nf_status check_spec(const nf_token_spec *s) {
    NF_TRY(check_ids(s));
    if (s->rule_count < 0 || s->rule_count > 4) return nf_fail(NF_ERR_ARGUMENT, "%d rules", s->rule_count);
    for (int i = 0; i < s->rule_count; i++)
        if (s->rules[i] < 0 || s->rules[i] >= NF_RULE_COUNT) return nf_fail(NF_ERR_ARGUMENT, "rule %d", s->rules[i]);
    if (s->model == NF_TOKENS_BYTES && !s->byte_ids) return nf_fail(NF_ERR_ARGUMENT, "no ids of bytes");
    if (s->model != NF_TOKENS_BYTES && !s->byte_ids && (s->unknown < 0 || s->unknown >= s->pieces.count))
        return nf_fail(NF_ERR_ARGUMENT, "neither ids of bytes nor one for unknown characters");
    if (s->form != NF_FORM_NONE && s->spm) return nf_fail(NF_ERR_ARGUMENT, "two normalisers");
    return NF_OK;
}

static nf_status make_unigram(nf_tokenizer *t) {
    const nf_token_spec *s = &t->spec;
    int64_t size, seen = 0, bytes = s->pieces.count ? s->pieces.ends[s->pieces.count - 1] : 0;
    nf_unigram *m = &t->unigram;
    m->scores = s->scores;
    m->kept = s->kept;
    m->unknown = (uint32_t)s->unknown;
    NF_TRY(nf_trie_new(&m->trie, bytes));
    for (int64_t i = 0; i < s->pieces.count; i++) {
        const uint8_t *text = nf_text_at(&s->pieces, i, &size);
        if (!s->used[i] || size == 0) continue;
        nf_trie_add(&m->trie, text, size, (uint32_t)i);
        if (s->kept[i]) continue;
        if (!seen || s->scores[i] > m->best) m->best = s->scores[i];
        if (!seen || s->scores[i] < m->worst) m->worst = s->scores[i];
        seen = 1;
    }
    return NF_OK;
}

static nf_status make_kept(nf_tokenizer *t) {
    int64_t size, bytes = 0;
    for (int64_t i = 0; t->spec.kept && i < t->spec.pieces.count; i++)
        if (t->spec.kept[i]) nf_text_at(&t->spec.pieces, i, &size), bytes += size;
    NF_TRY(nf_matcher_new(&t->kept, bytes));
    for (int64_t i = 0; t->spec.kept && i < t->spec.pieces.count; i++) {
        const uint8_t *text = nf_text_at(&t->spec.pieces, i, &size);
        if (t->spec.kept[i] && size > 0) nf_matcher_add(&t->kept, text, size, (uint32_t)i);
    }
    const nf_token_spec *s = &t->spec;
    t->spaces = (nf_spaces){s->map, s->map_size, s->prefix, s->squeeze, s->escape, t->kept.only == -2 ? NULL : &t->kept};
    return nf_spaces_check(&t->spaces);
}

static nf_status make_found(nf_tokenizer *t) {
    const nf_texts *added = &t->spec.added;
    int64_t size, bytes = added->count ? added->ends[added->count - 1] : 0;
    for (int special = 0; special < 2; special++)
        for (int normalized = 0; normalized < 2; normalized++) {
            nf_matcher *matcher = &t->found[special][normalized];
            NF_TRY(nf_matcher_new(matcher, bytes));
            for (int64_t i = 0; i < added->count; i++) {
                const uint8_t *text = nf_text_at(added, i, &size);
                int32_t flags = t->spec.added_flags[i];
                if (size == 0 || (flags & NF_TOKEN_SPECIAL && !special) || !(flags & NF_TOKEN_NORMALIZED) != !normalized)
                    continue;
                nf_matcher_add(matcher, text, size, (uint32_t)i);
            }
        }
    return NF_OK;
}

/* Whether text goes through in blocks: a rule must end words at spaces, and nothing may carry over from word to word. */
static int may_cut(const nf_token_spec *s) {
    if (s->spm || s->model == NF_TOKENS_UNIGRAM || !s->byte_ids) return 0;
    int cut = s->model == NF_TOKENS_MARKED;
    for (int i = 0; i < s->rule_count; i++) cut |= s->rules[i] >= NF_RULE_GPT2 && s->rules[i] <= NF_RULE_GPT4O;
    return cut && !(s->prefix && s->rule_count > 1);
}

static nf_status make(nf_tokenizer *t) {
    const nf_token_spec *s = &t->spec;
    if (s->model == NF_TOKENS_MARKED) NF_TRY(nf_marked_new(&t->marked, &s->pieces, s->used, !s->spm || s->escape, s->split));
    NF_TRY(s->model == NF_TOKENS_UNIGRAM ? make_unigram(t) : nf_build_merges(t));
    NF_TRY(make_kept(t));
    NF_TRY(make_found(t));
    t->rule = s->rule_count ? (nf_rule)s->rules[s->rule_count - 1] : NF_RULE_WHOLE;
    t->may_cut = may_cut(s);
    for (int b = 0; s->byte_ids && b < 256; b++) t->lacks_bytes |= s->byte_ids[b] < 0;
    return NF_OK;
}

nf_status nf_tokenizer_new(nf_tokenizer **out, const nf_token_spec *spec) {
    *out = NULL;
    NF_TRY(check_spec(spec));
    nf_tokenizer *t = calloc(1, sizeof *t);
    if (!t) return nf_fail(NF_ERR_MEMORY, "no memory for a tokenizer");
    t->spec = *spec;
    pthread_mutex_init(&t->lock, NULL);
    nf_status status = nf_known_new(&t->known);
    if (status == NF_OK) status = make(t);
    if (status != NF_OK)
        nf_tokenizer_free(t);
    else
        *out = t;
    return status;
}

void nf_token_worker_free(nf_token_worker *w) {
    nf_merger_free(&w->merger);
    nf_bytes_free(&w->lattice.nodes);
    nf_words_free(&w->ids);
    nf_words_free(&w->cut);
    nf_words_free(&w->symbols);
    nf_bytes_free(&w->normal);
    nf_bytes_free(&w->prefixed);
    free(w);
}

void nf_tokenizer_free(nf_tokenizer *t) {
    if (!t) return;
    for (nf_token_worker *w = t->idle, *next; w; w = next) {
        next = w->next;
        nf_token_worker_free(w);
    }
    nf_known_free(t->known);
    nf_words_free(&t->spare);
    nf_pieces_free(&t->whole);
    nf_merges_free(&t->merges);
    nf_marked_free(&t->marked);
    nf_trie_free(&t->unigram.trie);
    nf_matcher_free(&t->kept);
    for (int i = 0; i < 4; i++) nf_matcher_free(&t->found[i / 2][i % 2]);
    pthread_mutex_destroy(&t->lock);
    free(t);
}
