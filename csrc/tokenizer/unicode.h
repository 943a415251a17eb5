/* SPDX-License-Identifier: Apache-2.0 */
/* UTF-8, classes of characters (Unicode 16) and normalisation forms. */
#ifndef NF_TOKENIZER_UNICODE_H
#define NF_TOKENIZER_UNICODE_H

#include <stdint.h>

#include "buffer.h"
#include "unicode_tables.h"

enum {
    NF_LETTER = 1, /* \p{L} */
    NF_NUMBER = 2, /* \p{N} */
    NF_SPACE = 4,  /* \s, the property White_Space */
    NF_UPPER = 8,  /* \p{Lu} \p{Lt} \p{Lm} \p{Lo} \p{M} */
    NF_LOWER = 16, /* \p{Ll} \p{Lm} \p{Lo} \p{M} */
    NF_MARK = 32,  /* \p{M} */
    NF_WORD = 64   /* \w */
};

/* The classes of a code point. */
static inline unsigned nf_class_of(uint32_t code) {
    return nf_unicode_classes[(unsigned)nf_unicode_classes_page[code >> NF_PAGE_BITS] << NF_PAGE_BITS |
                              (code & ((1 << NF_PAGE_BITS) - 1))];
}

/* As nf_utf8_read, for characters that may need a closer look. */
int nf_utf8_read_rare(const uint8_t *p, const uint8_t *end, uint32_t *code);

/* Length of the character at p, p < end, and its code point. A byte that begins no valid UTF-8 is one character, U+FFFD. */
static inline int nf_utf8_read(const uint8_t *p, const uint8_t *end, uint32_t *code) {
    const unsigned a = p[0];
    const int64_t left = end - p;
    *code = a;
    if (a < 0x80) return 1;
    if (a >= 0xC2 && a < 0xE0 && left >= 2 && (p[1] & 0xC0) == 0x80) {
        *code = (a & 31) << 6 | (p[1] & 63u);
        return 2;
    }
    if (a > 0xE0 && a < 0xF0 && a != 0xED && left >= 3 && (p[1] & 0xC0) == 0x80 && (p[2] & 0xC0) == 0x80) {
        *code = (a & 15) << 12 | (p[1] & 63u) << 6 | (p[2] & 63u);
        return 3;
    }
    return nf_utf8_read_rare(p, end, code);
}

/* Write a code point at most 0x10FFFF as UTF-8 (up to 4 bytes); returns the length. */
int nf_utf8_write(uint8_t *out, uint32_t code);

/* Where the character begins that ends at p > begin. */
const uint8_t *nf_utf8_back(const uint8_t *begin, const uint8_t *p);

typedef enum nf_form { NF_FORM_NONE = 0, NF_FORM_NFC = 1, NF_FORM_NFKC = 2 } nf_form;

/* 1 when the text is in the form for certain; 0 when it must be looked at. */
int nf_is_normal(const uint8_t *text, int64_t size, nf_form form);

/* Append the text in the form (Unicode Standard Annex 15) to out. Linear in size, but for a logarithm in runs of marks. */
nf_status nf_normalize(nf_bytes *out, const uint8_t *text, int64_t size, nf_form form);

#endif
