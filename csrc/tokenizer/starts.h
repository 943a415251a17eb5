/* SPDX-License-Identifier: Apache-2.0 */
/* Where words begin, for 64 bytes at a time; what nf_word_end finds word by word. */
#ifndef NF_TOKENIZER_STARTS_H
#define NF_TOKENIZER_STARTS_H

#include <string.h>

#include "words.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { NF_STARTS_BYTES = 64 };

/* Bit i: byte i of the 64 at p, with the bits `set` set, is one of the `count` characters from `first` on. */
static inline uint64_t nf_bytes_among(const uint8_t *p, uint8_t set, uint8_t first, uint8_t count) {
    uint64_t bits = 0;
#ifdef __SSE2__
    for (int i = 0; i < 4; i++) {
        __m128i v = _mm_or_si128(_mm_loadu_si128((const __m128i *)(const void *)(p + 16 * i)), _mm_set1_epi8((char)set));
        v = _mm_sub_epi8(v, _mm_set1_epi8((char)first));
        const __m128i low = _mm_min_epu8(v, _mm_set1_epi8((char)(count - 1)));
        bits |= (uint64_t)(unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(low, v)) << 16 * i;
    }
#else
    const uint64_t each = 0x0101010101010101u, high = each * 0x80;
    for (int i = 0; i < 8; i++) {
        uint64_t v;
        memcpy(&v, p + 8 * i, 8);
        v |= each * set;
        const uint64_t low = v & ~high; /* first + count is at most 128 */
        const uint64_t are = (low + each * (uint8_t)(128 - first)) & ~(low + each * (uint8_t)(128 - first - count)) & ~v & high;
        bits |= ((are >> 7) * 0x0102040810204080u >> 56) << 8 * i;
    }
#endif
    return bits;
}

static inline uint64_t nf_bytes_beyond_ascii(const uint8_t *p) {
#ifdef __SSE2__
    uint64_t bits = 0;
    for (int i = 0; i < 4; i++)
        bits |= (uint64_t)(unsigned)_mm_movemask_epi8(_mm_loadu_si128((const __m128i *)(const void *)(p + 16 * i))) << 16 * i;
    return bits;
#else
    return ~nf_bytes_among(p, 0, 0, 128);
#endif
}

/* Whether a byte begins a character that nf_letters_beyond may know. */
static inline int nf_begins_letter(uint8_t c) {
    return (c >= 0xC3 && c <= 0xCA) || c == 0xD0 || c == 0xD1 || c == 0xD3 || c == 0xE1;
}

/* The bytes of letters beyond ASCII, of the alphabets that have hardly anything else: U+00C0 to U+02BF but for the two signs U+00D7
   and U+00F7, U+0400 to U+047F, U+04C0 to U+04FF, and U+1E00 to U+1EFF. */
static inline uint64_t nf_letters_beyond(const uint8_t *p) {
#ifdef __SSE2__
    const uint64_t more = nf_bytes_among(p, 0, 0x80, 64), latin = nf_bytes_among(p, 0, 0xC3, 8);
    const uint64_t cyrillic = nf_bytes_among(p, 0, 0xD0, 2) | nf_bytes_among(p, 0, 0xD3, 1);
    const uint64_t signs = nf_bytes_among(p, 0, 0xC3, 1) & nf_bytes_among(p, 0x20, 0xB7, 1) >> 1;
    const uint64_t three = nf_bytes_among(p, 0, 0xE1, 1) & nf_bytes_among(p, 0, 0xB8, 4) >> 1 & more >> 2;
    const uint64_t two = (((latin & ~signs) | cyrillic) & more >> 1) | three;
    return two | two << 1 | three << 2;
#else
    (void)p;
    return 0;
#endif
}

/* The classes of 64 characters, as bits. */
typedef struct nf_classes {
    uint64_t letters, digits, space, breaks, tabs, signs, beyond; /* tabs: other white space; signs: all other ASCII */
} nf_classes;

static inline nf_classes nf_classes_at(const uint8_t *p) {
    nf_classes c = {0};
    c.beyond = nf_bytes_beyond_ascii(p);
    c.letters = nf_bytes_among(p, 0x20, 'a', 26) & ~c.beyond;
    if (c.beyond) {
        const uint64_t more = nf_letters_beyond(p);
        c.letters |= more;
        c.beyond &= ~more;
    }
    c.digits = nf_bytes_among(p, 0, '0', 10);
    c.space = nf_bytes_among(p, 0, ' ', 1);
    c.breaks = nf_bytes_among(p, 0, '\n', 1) | nf_bytes_among(p, 0, '\r', 1);
    c.tabs = nf_bytes_among(p, 0, '\t', 5) & ~c.breaks;
    c.signs = ~(c.letters | c.digits | c.space | c.breaks | c.tabs | c.beyond);
    return c;
}

/* Contractions among the words that begin with a sign: what follows one is a word of its own. Places from the first doubtful one
   on go to *unknown. */
static inline uint64_t nf_cut_contractions(const uint8_t *p, uint64_t starts, uint64_t marks, int any_case, uint64_t *unknown) {
    for (marks &= starts; marks; marks &= marks - 1) {
        const int i = __builtin_ctzll(marks);
        if (i > 60) {
            *unknown |= (uint64_t)2 << i;
            break;
        }
        const int size = nf_contraction(p + i, p + 64, any_case);
        if (size) starts = (starts & ~((uint64_t)6 << i)) | (uint64_t)1 << (i + size);
    }
    return starts;
}

/* The highest bit of `bits`, which is not 0. */
static inline uint64_t nf_highest(uint64_t bits) { return (uint64_t)1 << (63 - __builtin_clzll(bits)); }

/* Bit i: a word begins at p + i. A word begins at p, where 64 bytes can be read, and bit 0 is set; where it is the only one, the
   word must be looked at by nf_word_end. White space is only followed as far as these rules are plain:
   - a run of spaces is its first ones together, and its last one with what follows;
   - in NF_RULE_LLAMA3 and NF_RULE_QWEN2, line breaks behind signs belong to these, and a run with line breaks ends with the last. */
static inline uint64_t nf_word_starts(nf_rule rule, const uint8_t *p) {
    const nf_classes c = nf_classes_at(p);
    const uint64_t last = (uint64_t)1 << 63;
    uint64_t unknown = c.beyond | last, starts;
    if (rule == NF_RULE_GPT2) {
        const uint64_t white = c.space | c.breaks | c.tabs, after_space = c.space << 1;
        starts = (white & ~(white << 1 & white >> 1)) | (c.letters & ~(c.letters << 1 | after_space)) |
                 (c.digits & ~(c.digits << 1 | after_space)) | (c.signs & ~(c.signs << 1 | after_space));
        unknown |= white & white << 1 & unknown >> 1;
    } else {
        const uint64_t begin_sign = c.signs & ~((c.signs | c.space) << 1);
        const uint64_t runs = c.space & ~(c.space << 1), spaces = c.space & ~last; /* where runs of spaces begin */
        starts = (c.space & ~(c.space << 1 & c.space >> 1)) | c.digits | begin_sign |
                 (c.breaks & ~((c.signs | c.breaks) << 1)) |
                 (c.letters & ((c.digits | c.breaks | (c.signs & ~begin_sign)) << 1));
        if (rule == NF_RULE_LLAMA3) {
            const uint64_t two = c.digits & c.digits << 1;
            starts &= ~(c.digits & c.digits << 1);
            unknown |= two & two << 2;
        }
        unknown |= c.tabs | (c.breaks & c.space << 1);
        /* the first run of spaces before something doubtful, unless it is one space that begins a word whatever follows */
        uint64_t doubtful = (spaces + (runs & ~last)) & ~spaces & (unknown | c.breaks);
        doubtful &= ~((runs & ~(c.breaks << 1)) << 1);
        if (doubtful) unknown |= nf_highest(runs & ((doubtful & -doubtful) - 1));
    }
    const uint64_t marks = nf_bytes_among(p, 0, '\'', 1);
    if (marks & starts) starts = nf_cut_contractions(p, starts, marks, rule != NF_RULE_GPT2, &unknown);
    return (starts & ((unknown & -unknown) - 1)) | 1;
}

#endif
