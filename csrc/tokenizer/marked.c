/* SPDX-License-Identifier: Apache-2.0 */
#include "marked.h"

#include "unicode.h"

enum { PAGES = 0x1100, BLOCK = 256 };

void nf_marked_free(nf_marked *marked) {
    free(marked->page);
    nf_words_free(&marked->blocks);
    nf_words_free(&marked->loose);
}

static nf_status add_block(nf_marked *m) {
    NF_TRY(nf_words_reserve(&m->blocks, BLOCK));
    memset(m->blocks.at + m->blocks.size, 0xFF, BLOCK * sizeof *m->blocks.at);
    m->blocks.size += BLOCK;
    return NF_OK;
}

static nf_status set_symbol(nf_marked *m, uint32_t code, uint32_t symbol) {
    if (code < 128) {
        m->ascii[code] = symbol;
        return NF_OK;
    }
    if (m->page[code >> 8] == 0) {
        m->page[code >> 8] = (uint16_t)(m->blocks.size / BLOCK);
        NF_TRY(add_block(m));
    }
    m->blocks.at[(uint32_t)m->page[code >> 8] * BLOCK + code % BLOCK] = symbol;
    return NF_OK;
}

/* Pieces of one character are the symbols of these; the first of equal ones stays. */
static nf_status set_characters(nf_marked *m, const nf_texts *pieces, const uint8_t *used) {
    for (uint32_t i = 0; i < m->count; i++) {
        const uint8_t *p = pieces->at + (i ? pieces->ends[i - 1] : 0), *end = pieces->at + pieces->ends[i];
        uint32_t code;
        if (!used[i] || p == end || p + nf_utf8_read(p, end, &code) != end) continue;
        if (nf_marked_symbol(m, code) == NF_NO_ID) NF_TRY(set_symbol(m, code, i));
    }
    return NF_OK;
}

static nf_status set_joins(nf_marked *m, const uint8_t *p, const uint8_t *end) {
    uint32_t before = NF_NO_ID, code;
    while (p < end) {
        p += nf_utf8_read(p, end, &code);
        uint32_t symbol = nf_marked_symbol(m, code);
        if (symbol == NF_NO_ID) {
            symbol = m->count + (uint32_t)m->loose.size;
            NF_TRY(nf_words_push(&m->loose, code));
            NF_TRY(set_symbol(m, code, symbol));
        }
        uint32_t bit = nf_join_bit(before, symbol);
        if (before != NF_NO_ID) m->joins[bit >> 6] |= (uint64_t)1 << (bit & 63);
        before = symbol;
    }
    return NF_OK;
}

/* What is between the symbols of ASCII characters, as a table; a space may have the symbol of U+2581. */
static void fill_ascii_joins(nf_marked *m) {
    for (uint32_t a = 0; a < 128; a++)
        for (uint32_t b = 0; b < 128; b++) {
            uint32_t left = m->ascii[a], right = m->ascii[b];
            m->ascii_joins[a << 7 | b] = left != NF_NO_ID && right != NF_NO_ID && nf_marked_joins(m, left, right);
        }
}

nf_status nf_marked_new(nf_marked *out, const nf_texts *pieces, const uint8_t *used, int spaces, int split) {
    memset(out->ascii, 0xFF, sizeof out->ascii);
    out->count = (uint32_t)pieces->count;
    out->begins_word = NF_NO_ID;
    out->page = calloc(PAGES, sizeof *out->page);
    if (!out->page) return nf_fail(NF_ERR_MEMORY, "no memory for a vocabulary");
    NF_TRY(add_block(out));
    NF_TRY(set_characters(out, pieces, used));
    for (int64_t i = 0, begin = 0; i < pieces->count; begin = pieces->ends[i++])
        if (used[i]) NF_TRY(set_joins(out, pieces->at + begin, pieces->at + pieces->ends[i]));
    if (spaces) out->ascii[' '] = nf_marked_symbol(out, NF_MARK_CODE);
    if (split) out->begins_word = nf_marked_symbol(out, NF_MARK_CODE);
    fill_ascii_joins(out);
    return NF_OK;
}
