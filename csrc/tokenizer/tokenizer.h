/* SPDX-License-Identifier: Apache-2.0 */
/* Text to token ids. A handle is read-only after nf_tokenizer_new, and any number of threads may encode with it. */
#ifndef NF_TOKENIZER_TOKENIZER_H
#define NF_TOKENIZER_TOKENIZER_H

#include <stdint.h>

#include "../core/status.h"

typedef enum nf_token_model {
    NF_TOKENS_BYTES = 0,  /* BPE, the symbols are bytes, text is cut into words first */
    NF_TOKENS_MARKED = 1, /* BPE, the symbols are characters, a space is U+2581 */
    NF_TOKENS_UNIGRAM = 2
} nf_token_model;

/* Flags of an added token. */
typedef enum nf_token_flag {
    NF_TOKEN_SPECIAL = 1,    /* found only when asked for */
    NF_TOKEN_NORMALIZED = 2, /* searched after the normal form was made */
    NF_TOKEN_LSTRIP = 4,     /* takes the white space on its left along */
    NF_TOKEN_RSTRIP = 8,
    NF_TOKEN_SINGLE_WORD = 16 /* not beside a letter, digit or underscore */
} nf_token_flag;

/* Texts one after the other: item i is at[ends[i - 1] .. ends[i]). */
typedef struct nf_texts {
    const uint8_t *at;
    const int64_t *ends;
    int64_t count;
} nf_texts;

/* What a tokenizer is made of. Everything that is pointed to stays the caller's and must outlive the handle. */
typedef struct nf_token_spec {
    nf_token_model model;
    nf_texts pieces;       /* UTF-8; raw bytes for NF_TOKENS_BYTES; the number is the id */
    const uint8_t *used;   /* (pieces) 1: text may become this piece */
    const uint8_t *kept;   /* (pieces) 1: a user-defined piece, taken before all others; NULL: none */
    const float *scores;   /* (pieces) for NF_TOKENS_UNIGRAM */
    const int32_t *ranks;  /* (pieces) any two neighbours may be merged whose text is a piece with rank >= 0; or NULL */
    const int32_t *merges; /* (merge_count, 3) left, right, result; in order of rank; where ranks is NULL */
    int64_t merge_count;
    const int32_t *byte_ids; /* (256) id of each byte, -1: none; for NF_TOKENS_BYTES, and as fallback for unknown characters */
    int32_t unknown;         /* id of a character that is nothing else, -1: none */
    int32_t take_whole;      /* a word that is a used piece is not merged */
    int32_t rules[4];        /* nf_rule: how text is cut, one after the other; for NF_TOKENS_BYTES */
    int32_t rule_count;
    int32_t form;         /* nf_form that text is brought to */
    int32_t prefix;       /* a space is put in front of a text (for NF_TOKENS_BYTES: of each word of all rules but the last) */
    int32_t prefix_again; /* after a special token too */
    int32_t prefix_once;  /* not where the text begins with a space */
    int32_t split;        /* every U+2581 begins a word */
    int32_t spm;          /* the normaliser of SentencePiece runs, with the next three */
    int32_t squeeze;      /* remove_extra_whitespaces */
    int32_t escape;       /* escape_whitespaces; 1 where spm is 0 */
    const uint8_t *map;   /* precompiled_charsmap, or NULL */
    int64_t map_size;
    nf_texts added; /* added tokens, UTF-8, none empty */
    const int32_t *added_ids;
    const int32_t *added_flags;
} nf_token_spec;

typedef struct nf_tokenizer nf_tokenizer;

/* NF_ERR_ARGUMENT: an id or rule out of range, a damaged map. */
nf_status nf_tokenizer_new(nf_tokenizer **out, const nf_token_spec *spec);
void nf_tokenizer_free(nf_tokenizer *tokenizer);

/* What stands before a text. */
typedef enum nf_token_before { NF_BEFORE_START = 0, NF_BEFORE_SPECIAL = 1, NF_BEFORE_TEXT = 2 } nf_token_before;

/* Ids of some texts, one after the other; those of text i end at ends[i]. Owned by the caller: nf_token_ids_free. */
typedef struct nf_token_ids {
    int32_t *ids;
    int64_t count, capacity;
    int64_t *ends; /* (texts) */
} nf_token_ids;

/* The tokenizer, which made them, keeps the memory of many ids for the next ones. */
void nf_token_ids_free(nf_tokenizer *tokenizer, nf_token_ids *ids);

/* Encode `count` UTF-8 texts with up to `threads` threads; the ids do not depend on their number. Special tokens are found
   where `special` is not 0. `before` says what stands before each text; `chained`: before the second text stands the first,
   and so on.
   NF_ERR_ARGUMENT: a byte that the vocabulary has no id for. */
nf_status nf_tokenizer_encode(nf_token_ids **out, nf_tokenizer *tokenizer, const uint8_t *const *texts, const int64_t *sizes,
                              int64_t count, nf_token_before before, int chained, int special, int threads);

#endif
