/* SPDX-License-Identifier: Apache-2.0 */
/* SentencePiece-style BPE (Kudo & Richardson 2018, arXiv:1808.06226): the symbols are characters, a space is U+2581.

   A text without pre-tokenisation is one long word. It is cut all the same, between two characters that stand side by side
   in no piece: a symbol is always a piece or a character, so no merge can ever cross such a place. */
#ifndef NF_TOKENIZER_MARKED_H
#define NF_TOKENIZER_MARKED_H

#include "buffer.h"
#include "pieces.h"
#include "tokenizer.h"

enum { NF_MARK_CODE = 0x2581, NF_JOIN_BITS = 17 };

typedef struct nf_marked {
    uint32_t ascii[128];                     /* symbol of each ASCII character, or NF_NO_ID */
    uint16_t *page;                          /* (0x1100) block of each 256 code points; block 0 has no symbols */
    nf_words blocks;                         /* 256 symbols each */
    nf_words loose;                          /* characters that occur in pieces without being one: symbols from `count` on */
    uint32_t count;                          /* pieces */
    uint32_t begins_word;                    /* the symbol of U+2581 where each one begins a word, else NF_NO_ID */
    uint8_t ascii_joins[128 * 128];          /* whether two ASCII characters stand side by side in a piece */
    uint64_t joins[1 << (NF_JOIN_BITS - 6)]; /* the same for all symbols: bits by hash, so a bit too many does no harm */
} nf_marked;

/* Symbols of the pieces i with used[i]. `spaces`: a space is read as U+2581. `split`: every U+2581 begins a word. */
nf_status nf_marked_new(nf_marked *out, const nf_texts *pieces, const uint8_t *used, int spaces, int split);
void nf_marked_free(nf_marked *marked);

static inline uint32_t nf_marked_symbol(const nf_marked *m, uint32_t code) {
    return code < 128 ? m->ascii[code] : m->blocks.at[(uint32_t)m->page[code >> 8] << 8 | (code & 255)];
}

static inline uint32_t nf_join_bit(uint32_t left, uint32_t right) {
    return (uint32_t)(((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u >> (64 - NF_JOIN_BITS));
}

static inline int nf_marked_joins(const nf_marked *m, uint32_t left, uint32_t right) {
    uint32_t bit = nf_join_bit(left, right);
    return right != m->begins_word && (int)(m->joins[bit >> 6] >> (bit & 63) & 1);
}

#endif
