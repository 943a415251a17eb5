/* SPDX-License-Identifier: Apache-2.0 */
/* SentencePiece's normaliser: a table of replacements (`precompiled_charsmap`), then the rules about spaces. */
#ifndef NF_TOKENIZER_SPACES_H
#define NF_TOKENIZER_SPACES_H

#include "buffer.h"
#include "matcher.h"

typedef struct nf_spaces {
    const uint8_t *map; /* precompiled_charsmap, checked by nf_spaces_check; the caller's; NULL: none */
    int64_t map_size;
    int prefix;             /* add_dummy_prefix */
    int squeeze;            /* remove_extra_whitespaces */
    int escape;             /* escape_whitespaces: a space becomes U+2581 */
    const nf_matcher *kept; /* user-defined pieces, which are not changed */
} nf_spaces;

/* Refuses a map that is cut short. */
nf_status nf_spaces_check(const nf_spaces *rules);

/* Append the normalised text to out; `prefix` = 0 leaves the space in front out. */
nf_status nf_spaces_apply(nf_bytes *out, const nf_spaces *rules, const uint8_t *text, int64_t size, int prefix);

#endif
