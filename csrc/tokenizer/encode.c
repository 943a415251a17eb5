/* SPDX-License-Identifier: Apache-2.0 */
/* The way of a stretch of text: normal form, words, ids. This is where the time goes; see "The tokenizer" in
   docs/architecture.md for what makes it fast. */
#include "handle.h"
#include "starts.h"

/* -------- one word -------- */

static nf_status append_ids(nf_token_worker *w, const uint32_t *ids, int64_t count) {
    NF_TRY(nf_words_reserve(&w->ids, count));
    memcpy(w->ids.at + w->ids.size, ids, (size_t)count * sizeof *ids);
    w->ids.size += count;
    return NF_OK;
}

/* The symbols of a word: characters, all of which have one. */
static nf_status character_symbols(nf_words *out, const nf_tokenizer *t, const uint8_t *p, int64_t size) {
    const uint8_t *end = p + size;
    NF_TRY(nf_words_reserve(out, size));
    while (p < end) {
        uint32_t code;
        p += nf_utf8_read(p, end, &code);
        out->at[out->size++] = nf_marked_symbol(&t->marked, code);
    }
    return NF_OK;
}

/* A character that is no piece: its bytes, or the unknown id, of which a run counts once. */
static nf_status append_unknown(nf_token_worker *w, const nf_tokenizer *t, uint32_t code) {
    uint8_t bytes[4];
    if (code == ' ' && t->spec.escape) code = NF_MARK_CODE;
    if (code == NF_MARK_CODE && !t->spec.escape && !t->spec.spm) code = ' ';
    int size = nf_utf8_write(bytes, code);
    if (t->spec.byte_ids) {
        NF_TRY(nf_words_reserve(&w->ids, size));
        for (int i = 0; i < size; i++) w->ids.at[w->ids.size++] = (uint32_t)t->spec.byte_ids[bytes[i]];
        return NF_OK;
    }
    if (!w->after_unknown) NF_TRY(nf_words_push(&w->ids, (uint32_t)t->spec.unknown));
    w->after_unknown = 1;
    return NF_OK;
}

/* The id of a symbol: a piece, or a character that occurs in pieces only. */
static nf_status append_symbol(nf_token_worker *w, const nf_tokenizer *t, uint32_t symbol) {
    if (t->spec.model == NF_TOKENS_MARKED && symbol >= t->marked.count)
        return append_unknown(w, t, t->marked.loose.at[symbol - t->marked.count]);
    w->after_unknown = 0;
    return nf_words_push(&w->ids, symbol);
}

/* Merge a word of bytes that is not in the cache. */
static nf_status merge_bytes(nf_token_worker *w, const nf_tokenizer *t, const uint8_t *p, int64_t size) {
    uint32_t whole = nf_pieces_find(&t->whole, p, size);
    w->after_unknown = 0;
    if (whole != NF_NO_ID) return nf_words_push(&w->ids, whole);
    for (int64_t i = 0; t->lacks_bytes && i < size; i++)
        if (t->spec.byte_ids[p[i]] < 0) return nf_fail(NF_ERR_ARGUMENT, "the vocabulary has no token for byte 0x%02X", p[i]);
    return nf_merge(&w->ids, &w->merger, &t->merges, (nf_symbols){p, (const uint32_t *)t->spec.byte_ids, size});
}

/* Merge a word of characters that is not in the cache. */
static nf_status merge_characters(nf_token_worker *w, const nf_tokenizer *t, const uint8_t *p, int64_t size) {
    nf_words *symbols = &w->symbols, *merged = t->marked.loose.size ? &w->cut : &w->ids;
    symbols->size = w->cut.size = 0;
    NF_TRY(character_symbols(symbols, t, p, size));
    w->after_unknown &= t->marked.loose.size > 0;
    NF_TRY(nf_merge(merged, &w->merger, &t->merges, (nf_symbols){NULL, symbols->at, symbols->size}));
    for (int64_t i = 0; i < w->cut.size; i++) NF_TRY(append_symbol(w, t, w->cut.at[i]));
    return NF_OK;
}

static nf_status merge_word(nf_token_worker *w, const nf_tokenizer *t, const uint8_t *p, int64_t size) {
    return t->spec.model == NF_TOKENS_BYTES ? merge_bytes(w, t, p, size) : merge_characters(w, t, p, size);
}

/* Whether the ids of a word depend on its bytes alone; not where it may begin or end with an unknown id that melts. */
static int may_keep(const nf_tokenizer *t) {
    return t->spec.model == NF_TOKENS_BYTES || t->spec.byte_ids || !t->marked.loose.size;
}

/* The table of words is full: go on with another one. The words that wait have their buckets there. */
static nf_status change_cache(nf_token_worker *w, const nf_tokenizer *t) {
    NF_TRY(nf_known_replace(t->known, &w->cache));
    for (unsigned i = w->done; i != w->queued; i++) {
        nf_waiting *word = &w->queue[i % NF_WAITING];
        word->bucket = nf_cache_bucket(w->cache, &word->key);
    }
    return NF_OK;
}

/* A longer word, one with many ids, or one that is not in its bucket. */
static nf_status encode_rare(nf_token_worker *w, const nf_tokenizer *t, const nf_waiting *word, const nf_cached *slot) {
    if (!slot) slot = nf_cache_find_behind(w->cache, word->bucket, &word->key);
    if (slot) {
        int64_t count = slot->ids[0] >> 24;
        w->after_unknown = 0;
        if (count == NF_CACHE_MANY) {
            const uint32_t *many = nf_cache_many(w->cache, slot, word->p, &count);
            if (many) return append_ids(w, many, count);
        } else {
            NF_TRY(append_ids(w, slot->ids, count));
            w->ids.at[w->ids.size - count] &= NF_CACHE_ID_MASK;
            return NF_OK;
        }
    }
    const int64_t before = w->ids.size;
    NF_TRY(merge_word(w, t, word->p, nf_cache_size(&word->key)));
    if (!may_keep(t) || nf_cache_put(w->cache, word->key, word->p, w->ids.at + before, w->ids.size - before)) return NF_OK;
    return change_cache(w, t);
}

/* Ids were written up to `out`. */
static inline void written_to(nf_token_worker *w, const uint32_t *out) {
    const int64_t size = out - w->ids.at;
    if (size > w->ids.size) w->after_unknown = 0;
    w->ids.size = size;
}

/* Append the ids of `count` words of the queue. */
static nf_status encode_waiting(nf_token_worker *w, const nf_tokenizer *t, unsigned count) {
    NF_TRY(nf_words_reserve(&w->ids, NF_WAITING * NF_CACHE_IDS));
    uint32_t *out = w->ids.at + w->ids.size;
    for (unsigned done = w->done, end = done + count; done != end; done++) {
        const nf_waiting *word = &w->queue[done % NF_WAITING];
        const nf_cached *slot = word->bucket;
        const uint64_t low = word->key.low, high = word->key.high;
        const uint64_t first = nf_cache_differs(&slot[0], low, high), second = nf_cache_differs(&slot[1], low, high);
        slot += first != 0;
        const uint32_t number = __atomic_load_n(&slot->ids[0], __ATOMIC_RELAXED) >> 24;
        if ((first && second) || number == NF_CACHE_MANY) {
            written_to(w, out);
            NF_TRY(encode_rare(w, t, word, first && second ? NULL : slot));
            NF_TRY(nf_words_reserve(&w->ids, NF_WAITING * NF_CACHE_IDS));
            out = w->ids.at + w->ids.size;
            continue;
        }
        uint64_t few[2];
        memcpy(few, slot->ids, sizeof few);
        few[0] &= ~((uint64_t)NF_CACHE_MANY << 24); /* the first id without the number */
        memcpy(out, few, sizeof few);
        out += number;
    }
    w->done += count;
    written_to(w, out);
    return NF_OK;
}

static nf_status flush(nf_token_worker *w, const nf_tokenizer *t) { return encode_waiting(w, t, w->queued - w->done); }

/* Encode the older words when half of the queue is full: there is always room for a block, and the buckets of the words that go
   on waiting are still on their way. */
static inline nf_status encode_early(nf_token_worker *w, const nf_tokenizer *t) {
    const unsigned count = w->queued - w->done;
    return count < NF_WAITING / 2 ? NF_OK : encode_waiting(w, t, count - NF_WAITING / 4);
}

/* Let a word wait in the queue; `p` stays readable until it is its turn. */
static inline void queue_word(nf_token_worker *w, const uint8_t *p, nf_word_key key) {
    const nf_cached *bucket = nf_cache_bucket(w->cache, &key);
    __builtin_prefetch(bucket);
    w->queue[w->queued++ % NF_WAITING] = (nf_waiting){key, p, bucket};
}

/* Append the ids of one word, later if it may be in the cache; `readable` bytes may be read from p on. */
static inline nf_status encode_word(nf_token_worker *w, const nf_tokenizer *t, const uint8_t *p, int64_t size,
                                    int64_t readable) {
    if (size > NF_CACHE_LONG) {
        NF_TRY(flush(w, t));
        return merge_word(w, t, p, size);
    }
    queue_word(w, p, size <= NF_CACHE_BYTES ? nf_cache_key(p, size, readable) : nf_cache_long_key(p, size));
    return encode_early(w, t);
}

/* -------- bytes: words by rules -------- */

static nf_status encode_rest(nf_token_worker *w, const nf_tokenizer *t, nf_rule rule, const uint8_t *p, const uint8_t *end) {
    while (p < end) {
        const uint8_t *stop = nf_word_end(rule, p, end);
        NF_TRY(encode_word(w, t, p, stop - p, end - p));
        p = stop;
    }
    return flush(w, t);
}

/* The words of a block: the first begins at p, one ends behind each byte from p on whose bit is set. 16 bytes can be read from
   each. */
static inline nf_status queue_block(nf_token_worker *w, const nf_tokenizer *t, const uint8_t *p, uint64_t ends) {
    const uint8_t *base = p + 1;
    for (; ends; ends &= ends - 1) {
        const uint8_t *stop = base + __builtin_ctzll(ends);
        const int64_t size = stop - p;
        queue_word(w, p, size <= NF_CACHE_BYTES ? nf_cache_key(p, size, 16) : nf_cache_long_key(p, size));
        p = stop;
    }
    return encode_early(w, t);
}

/* The words of a stretch: those that begin in 64 bytes of plain text at once, others one by one. Where the next block begins is
   known before the words of this one are, and so the next is looked at first: that takes long until something comes of it. */
static inline nf_status encode_words_by(nf_token_worker *w, const nf_tokenizer *t, nf_rule rule, const uint8_t *p,
                                        const uint8_t *end) {
    const uint8_t *next = p;
    uint64_t ends = 0; /* of the words from p to next */
    while (end - next >= 80) {
        const uint8_t first = next[*next == ' '];
        const uint64_t then = first < 0x80 || nf_begins_letter(first) ? nf_word_starts(rule, next) >> 1 : 0;
        NF_TRY(queue_block(w, t, p, ends));
        p = next;
        ends = then;
        if (ends) {
            next += 64 - __builtin_clzll(ends);
        } else {
            next = nf_word_end(rule, p, end);
            NF_TRY(encode_word(w, t, p, next - p, end - p));
        }
    }
    NF_TRY(queue_block(w, t, p, ends));
    return encode_rest(w, t, rule, next, end);
}

static nf_status encode_words(nf_token_worker *w, const nf_tokenizer *t, const uint8_t *p, const uint8_t *end) {
    switch (t->rule) { /* each rule gets a loop of its own */
    case NF_RULE_GPT2:
        return encode_words_by(w, t, NF_RULE_GPT2, p, end);
    case NF_RULE_LLAMA3:
        return encode_words_by(w, t, NF_RULE_LLAMA3, p, end);
    case NF_RULE_QWEN2:
        return encode_words_by(w, t, NF_RULE_QWEN2, p, end);
    default:
        return encode_rest(w, t, t->rule, p, end);
    }
}

static nf_status with_prefix(nf_token_worker *w, const uint8_t *p, const uint8_t *end) {
    w->prefixed.size = 0;
    NF_TRY(nf_bytes_append(&w->prefixed, " ", 1));
    return nf_bytes_append(&w->prefixed, p, end - p);
}

/* Apply the rules from number `rule` on; `prefix`: the stretch may get its space in front. */
static nf_status encode_rules(nf_token_worker *w, const nf_tokenizer *t, int rule, const uint8_t *p, const uint8_t *end,
                              int prefix) {
    if (rule + 1 >= t->spec.rule_count) {
        if (!t->spec.prefix || !prefix || p == end || *p == ' ') return encode_words(w, t, p, end);
        NF_TRY(with_prefix(w, p, end));
        return encode_words(w, t, w->prefixed.at, w->prefixed.at + w->prefixed.size);
    }
    while (p < end) {
        const uint8_t *stop = nf_word_end((nf_rule)t->spec.rules[rule], p, end);
        NF_TRY(encode_rules(w, t, rule + 1, p, stop, prefix));
        prefix = 1;
        p = stop;
    }
    return NF_OK;
}

/* -------- characters: words between which nothing merges -------- */

static inline uint32_t read_symbol(const nf_tokenizer *t, const uint8_t *p, const uint8_t *end, const uint8_t **next,
                                   uint32_t *code) {
    *next = p + nf_utf8_read(p, end, code);
    return nf_marked_symbol(&t->marked, *code);
}

/* End of the word that goes on at p after a character with symbol `before`; *more counts its further characters. */
static const uint8_t *marked_end(const nf_tokenizer *t, uint32_t before, const uint8_t *p, const uint8_t *end) {
    while (p < end) {
        const uint8_t *next;
        uint32_t code, symbol = read_symbol(t, p, end, &next, &code);
        if (symbol == NF_NO_ID || !nf_marked_joins(&t->marked, before, symbol)) break;
        before = symbol;
        p = next;
    }
    return p;
}

/* End of the word that begins at p; *symbol and *code are those of its first character. */
static inline const uint8_t *marked_word(const nf_tokenizer *t, const uint8_t *p, const uint8_t *end, uint32_t *symbol,
                                         uint32_t *code) {
    const nf_marked *m = &t->marked;
    const uint8_t *next = p + 1;
    *code = *p;
    if (*p >= 0x80) {
        *symbol = read_symbol(t, p, end, &next, code);
        return *symbol == NF_NO_ID ? next : marked_end(t, *symbol, next, end);
    }
    *symbol = m->ascii[*p];
    while (next < end && *next < 0x80 && m->ascii_joins[next[-1] << 7 | *next]) next++;
    if (next == end || *next < 0x80 || *symbol == NF_NO_ID) return next;
    return marked_end(t, m->ascii[next[-1]], next, end);
}

static nf_status encode_marked(nf_token_worker *w, const nf_tokenizer *t, const uint8_t *p, const uint8_t *end) {
    while (p < end) {
        uint32_t symbol, code;
        const uint8_t *next = marked_word(t, p, end, &symbol, &code);
        if (symbol != NF_NO_ID && next - p > (code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4)) {
            NF_TRY(encode_word(w, t, p, next - p, end - p));
        } else {
            if (w->queued != w->done) NF_TRY(flush(w, t));
            NF_TRY(symbol == NF_NO_ID ? append_unknown(w, t, code) : append_symbol(w, t, symbol));
        }
        p = next;
    }
    return flush(w, t);
}

/* The same with user-defined pieces, which nothing merges with. */
static nf_status encode_kept(nf_token_worker *w, const nf_tokenizer *t, const uint8_t *p, const uint8_t *end) {
    const uint8_t *place;
    int64_t size;
    uint32_t id;
    while ((id = nf_matcher_next(&t->kept, p, end, &place, &size)) != NF_NO_ID) {
        NF_TRY(encode_marked(w, t, p, place));
        w->after_unknown = 0;
        NF_TRY(nf_words_push(&w->ids, id));
        p = place + size;
    }
    return encode_marked(w, t, p, end);
}

/* -------- unigram -------- */

static nf_status encode_unigram(nf_token_worker *w, const nf_tokenizer *t, const uint8_t *text, int64_t size) {
    w->cut.size = 0;
    NF_TRY(nf_unigram_cut(&w->cut, &w->lattice, &t->unigram, text, size));
    for (int64_t i = 0; i < w->cut.size; i += 2) {
        uint32_t id = w->cut.at[i], code;
        if (id != t->unigram.unknown) {
            w->after_unknown = 0;
            NF_TRY(nf_words_push(&w->ids, id));
        } else {
            nf_utf8_read(text, text + size, &code);
            NF_TRY(append_unknown(w, t, code));
        }
        text += w->cut.at[i + 1];
        size -= w->cut.at[i + 1];
    }
    return NF_OK;
}

/* -------- a stretch -------- */

static nf_status encode_normal(nf_token_worker *w, const nf_tokenizer *t, const uint8_t *text, int64_t size, int prefix) {
    if (t->spec.model == NF_TOKENS_BYTES) return encode_rules(w, t, 0, text, text + size, prefix);
    if (t->spec.model == NF_TOKENS_UNIGRAM) return encode_unigram(w, t, text, size);
    if (t->kept.only != -2) return encode_kept(w, t, text, text + size);
    return encode_marked(w, t, text, text + size);
}

static int begins_marked(const uint8_t *p, int64_t size) {
    return *p == ' ' || (size >= 3 && memcmp(p, "\xE2\x96\x81", 3) == 0);
}

nf_status nf_encode_stretch(nf_token_worker *w, const nf_tokenizer *t, const uint8_t *text, int64_t size, int prefix) {
    if (size == 0) return NF_OK;
    NF_TRY(nf_words_reserve(&w->ids, size / 2 + NF_CACHE_IDS));
    if (t->spec.form != NF_FORM_NONE && !nf_is_normal(text, size, (nf_form)t->spec.form)) {
        w->normal.size = 0;
        NF_TRY(nf_normalize(&w->normal, text, size, (nf_form)t->spec.form));
        text = w->normal.at;
        size = w->normal.size;
    }
    if (t->spec.spm) {
        w->normal.size = 0;
        NF_TRY(nf_spaces_apply(&w->normal, &t->spaces, text, size, prefix));
        text = w->normal.at;
        size = w->normal.size;
    } else if (t->spec.model == NF_TOKENS_MARKED && t->spec.prefix && prefix &&
               !(t->spec.prefix_once && begins_marked(text, size))) {
        NF_TRY(with_prefix(w, text, text + size));
        text = w->prefixed.at;
        size = w->prefixed.size;
    }
    return encode_normal(w, t, text, size, prefix);
}

/* -------- where a text may be cut -------- */

static inline int is_letter(uint8_t c) { return (unsigned)((c | 32) - 'a') < 26; }

/* An ASCII letter, a space and an ASCII letter: no rule joins the first two, no normal form changes them. Where the symbols
   are characters, a letter and a space must stand side by side in no piece. */
const uint8_t *nf_encode_cut(const nf_tokenizer *t, const uint8_t *p, const uint8_t *end) {
    if (!t->may_cut) return NULL;
    for (p++; end - p >= 2 && (p = memchr(p, ' ', (size_t)(end - p - 1))); p++) {
        if (!is_letter(p[-1]) || !is_letter(p[1])) continue;
        if (t->spec.model == NF_TOKENS_BYTES || !t->marked.ascii_joins[p[-1] << 7 | ' ']) return p;
    }
    return NULL;
}
