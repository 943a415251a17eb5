/* SPDX-License-Identifier: Apache-2.0 */
/* SentencePiece's normaliser (Kudo & Richardson 2018). The map is a double-array trie (Aoe 1989) of 32-bit units, with its
   size in bytes in front, and behind it the replacements, each ended by a zero byte. */
#include "spaces.h"

#include "unicode.h"

typedef struct stretch {
    const uint8_t *text;
    int64_t size;  /* of the replacement */
    int64_t taken; /* of the input */
} stretch;

static uint32_t unit_at(const nf_spaces *rules, uint32_t i) {
    const uint8_t *p = rules->map + 4 + 4 * (int64_t)i;
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint32_t trie_bytes(const nf_spaces *rules) {
    const uint8_t *p = rules->map;
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

nf_status nf_spaces_check(const nf_spaces *rules) {
    if (!rules->map) return NF_OK;
    int64_t size = rules->map_size;
    if (size < 8 || trie_bytes(rules) % 4 || (int64_t)trie_bytes(rules) + 4 > size || trie_bytes(rules) == 0)
        return nf_fail(NF_ERR_ARGUMENT, "precompiled_charsmap of %lld bytes is cut short", (long long)size);
    if (size > (int64_t)trie_bytes(rules) + 4 && rules->map[size - 1] != 0)
        return nf_fail(NF_ERR_ARGUMENT, "precompiled_charsmap does not end with a zero byte");
    return NF_OK;
}

/* A unit of the double array: bit 8 says that a value follows, bit 31 that it is one, the rest is label and offset. */
static uint32_t offset_of(uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); }

/* The longest rule at p: 1 and its replacement, or 0. */
static int find_rule(const nf_spaces *rules, const uint8_t *p, const uint8_t *end, stretch *found) {
    const uint32_t units = trie_bytes(rules) / 4;
    const int64_t texts = 4 + (int64_t)trie_bytes(rules);
    uint32_t node = 0, value = NF_NO_ID;
    node ^= offset_of(unit_at(rules, 0));
    for (const uint8_t *q = p; q < end; q++) {
        node ^= *q;
        if (node >= units) break;
        uint32_t unit = unit_at(rules, node);
        if ((unit & (1u << 31 | 0xFF)) != *q) break;
        node ^= offset_of(unit);
        if (!(unit >> 8 & 1)) continue;
        if (node >= units) break;
        value = unit_at(rules, node) & ~(1u << 31);
        found->taken = q + 1 - p;
    }
    if (value == NF_NO_ID || texts + value >= rules->map_size) return 0;
    found->text = rules->map + texts + value;
    found->size = (int64_t)strlen((const char *)found->text);
    return 1;
}

/* What the text from p on becomes next. */
static stretch next_stretch(const nf_spaces *rules, const uint8_t *p, const uint8_t *end) {
    static const uint8_t unknown[] = {0xEF, 0xBF, 0xBD};
    stretch s = {p, 0, 0};
    if (rules->kept && nf_matcher_at(rules->kept, p, end, &s.size) != NF_NO_ID) {
        s.taken = s.size;
        return s;
    }
    if (rules->map && find_rule(rules, p, end, &s)) return s;
    uint32_t code;
    s.size = s.taken = nf_utf8_read(p, end, &code);
    if (*p >= 0x80 && s.size == 1) {
        s.text = unknown;
        s.size = 3;
    }
    return s;
}

static nf_status append(nf_bytes *out, const nf_spaces *rules, const uint8_t *text, int64_t size) {
    static const uint8_t mark[] = {0xE2, 0x96, 0x81};
    NF_TRY(nf_bytes_reserve(out, 3 * size));
    for (int64_t i = 0; i < size; i++) {
        if (text[i] != ' ' || !rules->escape) {
            out->at[out->size++] = text[i];
            continue;
        }
        memcpy(out->at + out->size, mark, 3);
        out->size += 3;
    }
    return NF_OK;
}

static void drop_last_spaces(nf_bytes *out, const nf_spaces *rules, int64_t begin) {
    const char *space = rules->escape ? "\xE2\x96\x81" : " ";
    const int64_t width = rules->escape ? 3 : 1;
    while (out->size - begin >= width && memcmp(out->at + out->size - width, space, (size_t)width) == 0) out->size -= width;
}

nf_status nf_spaces_apply(nf_bytes *out, const nf_spaces *rules, const uint8_t *text, int64_t size, int prefix) {
    const uint8_t *p = text, *end = text + size;
    const int64_t begin = out->size;
    while (rules->squeeze && p < end) {
        stretch s = next_stretch(rules, p, end);
        if (s.size != 1 || s.text[0] != ' ') break;
        p += s.taken;
    }
    if (p == end) return NF_OK;
    if (prefix && rules->prefix) NF_TRY(append(out, rules, (const uint8_t *)" ", 1));
    int after_space = rules->squeeze;
    while (p < end) {
        stretch s = next_stretch(rules, p, end);
        p += s.taken;
        while (after_space && s.size > 0 && s.text[0] == ' ') {
            s.text++;
            s.size--;
        }
        NF_TRY(append(out, rules, s.text, s.size));
        if (s.size > 0) after_space = s.text[s.size - 1] == ' ';
        after_space = after_space && rules->squeeze;
    }
    if (rules->squeeze) drop_last_spaces(out, rules, begin);
    return NF_OK;
}
