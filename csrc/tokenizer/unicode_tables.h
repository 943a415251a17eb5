/* SPDX-License-Identifier: Apache-2.0 */
/* The generated tables behind unicode.h; of which others read the classes alone, through that. */
#ifndef NF_TOKENIZER_UNICODE_TABLES_H
#define NF_TOKENIZER_UNICODE_TABLES_H

#include <stdint.h>

enum { NF_PAGE_BITS = 7 };

/* Two stages: block number of each 128 code points, then the blocks. */
extern const uint8_t nf_unicode_classes_page[], nf_unicode_classes[];
extern const uint8_t nf_unicode_forms_page[];
extern const uint16_t nf_unicode_forms[]; /* combining class | NF_STABLE_NFC | NF_STABLE_NFKC */

/* Full decompositions, sorted by code point: those of NFD, and those of NFKD that differ. Hangul is computed. */
extern const uint32_t nf_unicode_canonical_code[], nf_unicode_canonical_text[];
extern const uint16_t nf_unicode_canonical_start[];
extern const int32_t nf_unicode_canonical_count;
extern const uint32_t nf_unicode_compatible_code[], nf_unicode_compatible_text[];
extern const uint16_t nf_unicode_compatible_start[];
extern const int32_t nf_unicode_compatible_count;

/* Triples (first, second, whole) that NFC composes, sorted. */
extern const uint32_t nf_unicode_pairs[];
extern const int32_t nf_unicode_pair_count;

#endif
