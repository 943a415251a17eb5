/* SPDX-License-Identifier: Apache-2.0 */
/* What tokenizer.c, build.c, batch.c and encode.c share: the handle, and the scratch of one thread. */
#ifndef NF_TOKENIZER_HANDLE_H
#define NF_TOKENIZER_HANDLE_H

#include <pthread.h>

#include "cache.h"
#include "marked.h"
#include "matcher.h"
#include "merge.h"
#include "spaces.h"
#include "tokenizer.h"
#include "unicode.h"
#include "unigram.h"
#include "words.h"

/* A word whose bucket is on its way from memory. */
typedef struct nf_waiting {
    nf_word_key key;
    const uint8_t *p;
    const nf_cached *bucket;
} nf_waiting;

enum { NF_WAITING = 128 }; /* a power of two; half of it has room for the words of 64 bytes */

typedef struct nf_token_worker {
    struct nf_token_worker *next; /* idle ones */
    nf_cache *cache;              /* while it encodes */
    nf_merger merger;
    nf_lattice lattice;
    nf_words ids;                 /* what was encoded */
    nf_words cut;                 /* pieces of a unigram cut, or of a word with characters that are no piece */
    nf_words symbols;             /* characters of a word */
    nf_bytes normal;              /* a block in its normal form */
    nf_bytes prefixed;            /* a word or block with a space in front */
    nf_waiting queue[NF_WAITING]; /* a ring: numbers done to queued - 1 */
    unsigned queued, done;
    int after_unknown; /* the last id is the unknown one, and another would melt into it */
    nf_status status;
    char message[256];
} nf_token_worker;

void nf_token_worker_free(nf_token_worker *worker);

struct nf_tokenizer {
    nf_token_spec spec;
    nf_pieces whole; /* words that are one piece, by text; for NF_TOKENS_BYTES */
    nf_merges merges;
    nf_marked marked;
    nf_unigram unigram;
    nf_matcher kept;        /* user-defined pieces */
    nf_matcher found[2][2]; /* added tokens: [special too][normalized] */
    nf_spaces spaces;
    nf_rule rule;         /* the last one, which makes the words */
    int lacks_bytes;      /* some bytes have no id */
    int may_cut;          /* a long text may go through in blocks, see nf_encode_cut */
    nf_known *known;      /* words that were encoded before */
    pthread_mutex_t lock; /* for what follows */
    nf_token_worker *idle;
    nf_words spare; /* memory of ids that were freed */
};

/* Text number i and its size. */
static inline const uint8_t *nf_text_at(const nf_texts *texts, int64_t i, int64_t *size) {
    int64_t begin = i ? texts->ends[i - 1] : 0;
    *size = texts->ends[i] - begin;
    return texts->at + begin;
}

/* Fill t->merges and t->whole from the spec; t->marked is there already. */
nf_status nf_build_merges(nf_tokenizer *t);

/* Append the ids of a stretch of text without added tokens to worker->ids; `prefix`: a space may be put in front. */
nf_status nf_encode_stretch(nf_token_worker *worker, const nf_tokenizer *t, const uint8_t *text, int64_t size, int prefix);

/* A place to cut at in (p, end), such that both sides encoded by themselves give what the whole gives; or NULL. */
const uint8_t *nf_encode_cut(const nf_tokenizer *t, const uint8_t *p, const uint8_t *end);

#endif
