/* SPDX-License-Identifier: Apache-2.0 */
/* The tokenizer on a tiny vocabulary against merging by definition; words; normal forms; damaged maps and wild bytes.
   Under the sanitizers this is where a read out of bounds would show. */
#include <string.h>

#include "../../csrc/tokenizer/handle.h"
#include "../../csrc/tokenizer/starts.h"
#include "check.h"

enum { BYTES = 256, MERGES = 6, PIECES = BYTES + MERGES };

/* Pieces: the bytes, then "ab" "bc" "abc" "aa" "aaaa" " a". */
static const char *const made[MERGES] = {"ab", "bc", "abc", "aa", "aaaa", " a"};
static const int32_t merges[3 * MERGES] = {'a', 'b', 256, 'b', 'c', 257, 256, 'c', 258,
                                           'a', 'a', 259, 259, 259, 260, ' ', 'a', 261};

typedef struct tiny {
    uint8_t text[512], used[PIECES];
    int64_t ends[PIECES];
    int32_t byte_ids[BYTES];
    nf_token_spec spec;
} tiny;

static void make_tiny(tiny *t, nf_rule rule) {
    int64_t size = 0;
    memset(t, 0, sizeof *t);
    for (int i = 0; i < PIECES; i++) {
        if (i < BYTES)
            t->text[size++] = (uint8_t)i;
        else
            for (const char *c = made[i - BYTES]; *c; c++) t->text[size++] = (uint8_t)*c;
        t->ends[i] = size;
        t->used[i] = 1;
        if (i < BYTES) t->byte_ids[i] = i;
    }
    t->spec = (nf_token_spec){.model = NF_TOKENS_BYTES, .pieces = {t->text, t->ends, PIECES}, .used = t->used};
    t->spec.merges = merges;
    t->spec.merge_count = MERGES;
    t->spec.byte_ids = t->byte_ids;
    t->spec.unknown = -1;
    t->spec.escape = 1;
    t->spec.rules[0] = rule;
    t->spec.rule_count = 1;
}

/* Lowest rank first, leftmost among equals, over the whole text. Returns the number of ids. */
static int64_t merge_by_definition(int32_t *ids, int64_t n) {
    for (;;) {
        int64_t at = -1;
        int rank = MERGES;
        for (int64_t i = 0; i + 1 < n; i++)
            for (int m = 0; m < rank; m++)
                if (merges[3 * m] == ids[i] && merges[3 * m + 1] == ids[i + 1]) rank = m, at = i;
        if (at < 0) return n;
        ids[at] = merges[3 * rank + 2];
        memmove(ids + at + 1, ids + at + 2, (size_t)(n - at - 2) * sizeof *ids);
        n--;
    }
}

static uint64_t state = 7;
static uint64_t draw(uint64_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % below;
}

static nf_token_ids *encode(nf_tokenizer *t, const uint8_t *text, int64_t size, int special, int threads) {
    nf_token_ids *ids = NULL;
    if (nf_tokenizer_encode(&ids, t, &text, &size, 1, NF_BEFORE_START, 0, special, threads) != NF_OK) return NULL;
    return ids;
}

static void test_merging(void) {
    static uint8_t text[5000];
    static int32_t expected[5000];
    tiny t;
    nf_tokenizer *tokenizer;
    make_tiny(&t, NF_RULE_WHOLE);
    int ok = nf_tokenizer_new(&tokenizer, &t.spec) == NF_OK;
    for (int round = 0; ok && round < 200; round++) {
        int64_t size = round < 190 ? (int64_t)draw(120) + 1 : 5000 - (int64_t)draw(500);
        for (int64_t i = 0; i < size; i++) text[i] = (uint8_t)"aaaabc "[draw(round % 2 ? 7 : 5)];
        for (int64_t i = 0; i < size; i++) expected[i] = text[i];
        int64_t count = merge_by_definition(expected, size);
        nf_token_ids *ids = encode(tokenizer, text, size, 0, 1 + round % 3);
        ok = ids && ids->count == count && memcmp(ids->ids, expected, (size_t)count * sizeof *expected) == 0;
        nf_token_ids_free(tokenizer, ids);
    }
    check(ok, "words up to 5000 symbols merge as by definition");
    nf_tokenizer_free(tokenizer);
}

/* Any bytes, UTF-8 or not: the words cover the text, and the ids of the bytes alone spell it. */
static void test_wild_bytes(void) {
    static uint8_t text[400];
    int ok = 1;
    for (int rule = 0; rule < NF_RULE_COUNT; rule++) {
        tiny t;
        nf_tokenizer *tokenizer;
        make_tiny(&t, (nf_rule)rule);
        t.spec.form = rule % 3;
        ok &= nf_tokenizer_new(&tokenizer, &t.spec) == NF_OK;
        for (int round = 0; ok && round < 300; round++) {
            int64_t size = (int64_t)draw(sizeof text);
            uint8_t *copy = malloc((size_t)size + 1); /* of exactly this size, so that reading beyond is seen */
            if (!copy) abort();
            for (int64_t i = 0; i < size; i++)
                copy[i] = (uint8_t)(draw(3) ? draw(256) : (uint64_t)"a' 1\n\xE2\x96\x81\xCC"[draw(9)]);
            for (const uint8_t *p = copy; p < copy + size;) {
                const uint8_t *stop = nf_word_end((nf_rule)rule, p, copy + size);
                ok &= stop > p && stop <= copy + size;
                if (!ok) break;
                p = stop;
            }
            copy = realloc(copy, (size_t)(size ? size : 1));
            nf_token_ids *ids = encode(tokenizer, copy, size, round % 2, 1);
            int64_t spelt = 0;
            for (int64_t i = 0; ids && i < ids->count; i++)
                spelt += ids->ids[i] < BYTES ? 1 : (int64_t)strlen(made[ids->ids[i] - BYTES]);
            ok &= ids && (t.spec.form != NF_FORM_NONE || spelt == size);
            nf_token_ids_free(tokenizer, ids);
            free(copy);
        }
        nf_tokenizer_free(tokenizer);
    }
    check(ok, "any bytes are encoded, under every rule and form");
}

/* Memory of many ids is taken again for as many, not for few, and what is in use is left alone. */
static void test_memory_again(void) {
    enum { SIZE = 1 << 20 };
    tiny t;
    nf_tokenizer *tokenizer;
    uint8_t *text = malloc(SIZE);
    if (!text) abort();
    for (int i = 0; i < SIZE; i++) text[i] = (uint8_t)"aaaabc "[draw(7)];
    make_tiny(&t, NF_RULE_WHOLE);
    check(nf_tokenizer_new(&tokenizer, &t.spec) == NF_OK, "a tokenizer");
    for (int threads = 1; threads <= 2; threads++) {
        nf_token_ids *first = encode(tokenizer, text, SIZE, 0, threads), *second = encode(tokenizer, text, SIZE, 0, threads);
        check(first && second && first->ids != second->ids, "each result has its memory");
        const int32_t *freed = first->ids;
        nf_token_ids_free(tokenizer, first);
        nf_token_ids *few = encode(tokenizer, text, 10, 0, threads), *third = encode(tokenizer, text, SIZE, 0, threads);
        check(few && few->ids != freed && third && third->ids == freed, "freed memory is taken again");
        check(third->count == second->count && memcmp(third->ids, second->ids, (size_t)second->count * 4) == 0, "the same ids");
        nf_token_ids_free(tokenizer, few), nf_token_ids_free(tokenizer, second), nf_token_ids_free(tokenizer, third);
    }
    nf_tokenizer_free(tokenizer);
    free(text);
}

/* 64 places at once and word by word agree, on texts of every mixture of classes. */
static void test_starts(void) {
    static const nf_rule rules[] = {NF_RULE_GPT2, NF_RULE_LLAMA3, NF_RULE_QWEN2};
    static const char alphabet[] = "abSTdlerv''   \n\r\t.,(12\xC2\xA0\xC3\xA9\xC5\xBF";
    uint8_t text[NF_STARTS_BYTES + 64];
    int ok = 1;
    int64_t found = 0;
    for (int round = 0; ok && round < 600000; round++) {
        const nf_rule rule = rules[round % 3];
        const uint64_t from = draw(sizeof alphabet - 1), kinds = draw(sizeof alphabet - 1 - from) + 1;
        for (size_t i = 0; i < sizeof text; i++) text[i] = (uint8_t)alphabet[from + draw(kinds)];
        const uint8_t *p = text, *end = text + sizeof text;
        for (uint64_t starts = nf_word_starts(rule, p) & ~(uint64_t)1; ok && starts; starts &= starts - 1, found++) {
            const uint8_t *stop = nf_word_end(rule, p, end);
            ok = stop - text == __builtin_ctzll(starts);
            p = stop;
        }
    }
    check(ok && found > 1000000, "the starts of words, found together, are those found one by one");
}

static void test_refusals(void) {
    tiny t;
    nf_tokenizer *tokenizer;
    make_tiny(&t, NF_RULE_GPT2);
    t.byte_ids['x'] = -1;
    check(nf_tokenizer_new(&tokenizer, &t.spec) == NF_OK && !encode(tokenizer, (const uint8_t *)"ax", 2, 0, 1) &&
              strstr(nf_last_error(), "0x78"),
          "a byte without id is named");
    nf_tokenizer_free(tokenizer);
    make_tiny(&t, NF_RULE_COUNT);
    check(nf_tokenizer_new(&tokenizer, &t.spec) == NF_ERR_ARGUMENT && !tokenizer, "an unknown rule is refused");
    make_tiny(&t, NF_RULE_GPT2);
    t.byte_ids[3] = PIECES;
    check(nf_tokenizer_new(&tokenizer, &t.spec) == NF_ERR_ARGUMENT, "an id beyond the pieces is refused");
    nf_tokenizer_free(NULL);
    nf_token_ids_free(NULL, NULL);
}

/* Damaged maps: refused, or every text is normalised within bounds. */
static void test_maps(void) {
    int ok = 1;
    for (int round = 0; round < 2000; round++) {
        int64_t size = (int64_t)draw(80);
        uint8_t *map = malloc((size_t)(size ? size : 1));
        if (!map) abort();
        for (int64_t i = 0; i < size; i++) map[i] = (uint8_t)(draw(2) ? draw(256) : 0);
        if (size >= 8 && draw(4)) {
            uint32_t units = 4 * (uint32_t)draw((uint64_t)size / 4);
            memcpy(map, &units, 4);
            map[size - 1] = 0;
        }
        nf_spaces rules = {map, size, 1, round % 2, round % 3 > 0, NULL};
        nf_bytes out = {0};
        if (nf_spaces_check(&rules) == NF_OK)
            ok &= nf_spaces_apply(&out, &rules, (const uint8_t *)"a \xC3\xA9\xFF  b ", 9, 1) == NF_OK;
        nf_bytes_free(&out);
        free(map);
    }
    check(ok, "damaged maps are refused or harmless");
}

static void test_forms(void) {
    static const struct {
        nf_form form;
        const char *text, *expected, *what;
    } cases[] = {
        {NF_FORM_NFC, "e\xCC\x81", "\xC3\xA9", "NFC composes"},
        {NF_FORM_NFC, "a\xCC\x81\xCC\xA7", "\xC3\xA1\xCC\xA7", "NFC sorts marks"},
        {NF_FORM_NFC, "\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB", "\xED\x95\x9C", "NFC composes Hangul"},
        {NF_FORM_NFC, "\xEF\xAC\x81", "\xEF\xAC\x81", "NFC keeps ligatures"},
        {NF_FORM_NFKC, "\xEF\xAC\x81", "fi", "NFKC opens ligatures"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nf_bytes out = {0};
        int ok = nf_normalize(&out, (const uint8_t *)cases[i].text, (int64_t)strlen(cases[i].text), cases[i].form) == NF_OK;
        ok = ok && out.size == (int64_t)strlen(cases[i].expected) && memcmp(out.at, cases[i].expected, (size_t)out.size) == 0;
        check(ok, cases[i].what);
        nf_bytes_free(&out);
    }
}

int main(void) {
    test_merging();
    test_wild_bytes();
    test_memory_again();
    test_starts();
    test_refusals();
    test_maps();
    test_forms();
    return report();
}
