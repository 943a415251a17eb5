/* SPDX-License-Identifier: Apache-2.0 */
#include "matcher.h"

#include <string.h>

nf_status nf_matcher_new(nf_matcher *out, int64_t bytes) {
    out->only = -2;
    return nf_trie_new(&out->trie, bytes);
}

void nf_matcher_free(nf_matcher *matcher) { nf_trie_free(&matcher->trie); }

void nf_matcher_add(nf_matcher *matcher, const uint8_t *text, int64_t size, uint32_t value) {
    matcher->only = matcher->only == -2 || matcher->only == text[0] ? text[0] : -1;
    matcher->begins[text[0]] = 1;
    nf_trie_add(&matcher->trie, text, size, value);
}

uint32_t nf_matcher_next(const nf_matcher *m, const uint8_t *p, const uint8_t *end, const uint8_t **place, int64_t *size) {
    if (m->only == -2) return NF_NO_ID;
    for (; p < end; p++) {
        if (m->only >= 0 && !(p = memchr(p, m->only, (size_t)(end - p)))) return NF_NO_ID;
        uint32_t value = nf_matcher_at(m, p, end, size);
        if (value == NF_NO_ID) continue;
        *place = p;
        return value;
    }
    return NF_NO_ID;
}
