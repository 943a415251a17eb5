/* SPDX-License-Identifier: Apache-2.0 */
/* What tokenizer.c and encode.c share: the handle, and the scratch of one thread. */
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

typedef struct nf_token_worker {
    struct nf_token_worker *next; /* idle ones */
    nf_cache cache;
    nf_merger merger;
    nf_lattice lattice;
    nf_words ids;      /* what was encoded */
    nf_words cut;      /* pieces of a unigram cut */
    nf_bytes normal;   /* a block in its normal form */
    nf_bytes prefixed; /* a word or block with a space in front */
    int after_unknown; /* the last id is the unknown one, and another would melt into it */
    nf_status status;
    char message[256];
} nf_token_worker;

struct nf_tokenizer {
    nf_token_spec spec;
    nf_pieces pieces; /* by text, for take_whole */
    nf_pairs pairs;   /* merges */
    nf_marked marked;
    nf_unigram unigram;
    nf_matcher kept;        /* user-defined pieces */
    nf_matcher found[2][2]; /* added tokens: [special too][normalized] */
    nf_spaces spaces;
    nf_rule rule; /* the last one, which makes the words */
    int may_cut;  /* a long text may go through in blocks, see nf_encode_cut */
    pthread_mutex_t lock;
    nf_token_worker *idle;
};

/* Append the ids of a stretch of text without added tokens to worker->ids; `prefix`: a space may be put in front. */
nf_status nf_encode_stretch(nf_token_worker *worker, const nf_tokenizer *t, const uint8_t *text, int64_t size, int prefix);

/* A place to cut at in (p, end), such that both sides encoded by themselves give what the whole gives; or NULL. */
const uint8_t *nf_encode_cut(const nf_tokenizer *t, const uint8_t *p, const uint8_t *end);

#endif
