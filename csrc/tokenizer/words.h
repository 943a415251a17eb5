/* SPDX-License-Identifier: Apache-2.0 */
/* How text is cut into words before merging: one state machine for each known pattern. */
#ifndef NF_TOKENIZER_WORDS_H
#define NF_TOKENIZER_WORDS_H

#include <stdint.h>

/* The patterns themselves stand in src/neuralforge/pretokenizer.py, beside these names. */
typedef enum nf_rule {
    NF_RULE_WHOLE = 0,  /* no cut */
    NF_RULE_GPT2 = 1,   /* GPT-2, SmolLM behind NF_RULE_DIGIT */
    NF_RULE_LLAMA3 = 2, /* Llama 3, GPT-4 */
    NF_RULE_QWEN2 = 3,  /* Qwen 2 to 3: digits one by one */
    NF_RULE_GPT4O = 4,  /* GPT-4o, Phi-4-mini */
    NF_RULE_DIGIT = 5,  /* each \p{N} by itself */
    NF_RULE_DIGITS = 6, /* runs of \p{N} */
    NF_RULE_COUNT = 7
} nf_rule;

/* Bytes of 's 't 're 've 'm 'll 'd at p, or 0. */
int nf_contraction(const uint8_t *p, const uint8_t *end, int any_case);

/* End of the word that begins at p, p < end; nothing behind `end` counts. The words of a text, joined, are the text. */
const uint8_t *nf_word_end(nf_rule rule, const uint8_t *p, const uint8_t *end);

#endif
