/* SPDX-License-Identifier: Apache-2.0 */
/* UTF-8 (RFC 3629) and normalisation forms (Unicode Standard Annex 15), over generated tables. */
#include "unicode.h"

enum { STABLE_NFC = 1 << 8, STABLE_NFKC = 1 << 9, CODES = 0x110000 };
enum { S_BASE = 0xAC00, L_BASE = 0x1100, V_BASE = 0x1161, T_BASE = 0x11A7, L_COUNT = 19, V_COUNT = 21, T_COUNT = 28 };
enum { S_COUNT = L_COUNT * V_COUNT * T_COUNT };

static inline unsigned paged(const uint8_t *page, uint32_t code) {
    return (unsigned)page[code >> NF_PAGE_BITS] << NF_PAGE_BITS | (code & ((1 << NF_PAGE_BITS) - 1));
}

static unsigned form_of(uint32_t code) { return nf_unicode_forms[paged(nf_unicode_forms_page, code)]; }

int nf_utf8_read_rare(const uint8_t *p, const uint8_t *end, uint32_t *code) {
    unsigned a = p[0];
    *code = a;
    const int64_t left = end - p;
    if (a >= 0xE0 && a < 0xF0 && left >= 3 && (p[1] & 0xC0) == 0x80 && (p[2] & 0xC0) == 0x80) {
        *code = (a & 15) << 12 | (p[1] & 63u) << 6 | (p[2] & 63);
        if (*code >= 0x800 && (*code < 0xD800 || *code > 0xDFFF)) return 3;
    }
    if (a >= 0xF0 && a < 0xF5 && left >= 4 && (p[1] & 0xC0) == 0x80 && (p[2] & 0xC0) == 0x80 && (p[3] & 0xC0) == 0x80) {
        *code = (a & 7) << 18 | (p[1] & 63u) << 12 | (p[2] & 63u) << 6 | (p[3] & 63);
        if (*code >= 0x10000 && *code < CODES) return 4;
    }
    *code = 0xFFFD;
    return 1;
}

int nf_utf8_write(uint8_t *out, uint32_t code) {
    if (code < 0x80) {
        out[0] = (uint8_t)code;
        return 1;
    }
    int length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (int i = length - 1; i > 0; i--, code >>= 6) out[i] = (uint8_t)(0x80 | (code & 63));
    out[0] = (uint8_t)((length == 2 ? 0xC0 : length == 3 ? 0xE0 : 0xF0) | code);
    return length;
}

const uint8_t *nf_utf8_back(const uint8_t *begin, const uint8_t *p) {
    const uint8_t *start = p - 1;
    while (start > begin && p - start < 4 && (*start & 0xC0) == 0x80) start--;
    uint32_t code;
    return start + nf_utf8_read(start, p, &code) == p ? start : p - 1;
}

/* -------- normalisation -------- */

static unsigned stable_bit(nf_form form) { return form == NF_FORM_NFKC ? STABLE_NFKC : STABLE_NFC; }

int nf_is_normal(const uint8_t *text, int64_t size, nf_form form) {
    const uint8_t *p = text, *end = text + size;
    while (p < end) {
        uint64_t eight;
        while (end - p >= 8 && (memcpy(&eight, p, 8), (eight & 0x8080808080808080u) == 0)) p += 8;
        if (p == end) break;
        uint32_t code;
        p += nf_utf8_read(p, end, &code);
        if (code >= 0x80 && !(form_of(code) & stable_bit(form))) return 0;
    }
    return 1;
}

static int find(const uint32_t *codes, int32_t count, uint32_t code) {
    int32_t low = 0, high = count;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (codes[middle] < code)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && codes[low] == code ? low : -1;
}

/* Append the full decomposition of one code point. */
static nf_status decompose(nf_words *out, uint32_t code, nf_form form) {
    NF_TRY(nf_words_reserve(out, 3));
    if (code - S_BASE < S_COUNT) {
        uint32_t s = code - S_BASE;
        out->at[out->size++] = L_BASE + s / (V_COUNT * T_COUNT);
        out->at[out->size++] = V_BASE + s % (V_COUNT * T_COUNT) / T_COUNT;
        if (s % T_COUNT) out->at[out->size++] = T_BASE + s % T_COUNT;
        return NF_OK;
    }
    const uint32_t *text = nf_unicode_compatible_text;
    const uint16_t *start = nf_unicode_compatible_start;
    int found = form == NF_FORM_NFKC ? find(nf_unicode_compatible_code, nf_unicode_compatible_count, code) : -1;
    if (found < 0) {
        text = nf_unicode_canonical_text;
        start = nf_unicode_canonical_start;
        found = find(nf_unicode_canonical_code, nf_unicode_canonical_count, code);
    }
    if (found < 0) return nf_words_push(out, code);
    int length = start[found + 1] - start[found];
    NF_TRY(nf_words_reserve(out, length));
    memcpy(out->at + out->size, text + start[found], (size_t)length * sizeof *text);
    out->size += length;
    return NF_OK;
}

static unsigned combining(uint32_t code) { return form_of(code) & 255; }

/* Sort a run of marks by combining class, equal ones in their order; `spare` has room for n. */
static void sort_marks(uint32_t *marks, int64_t n, uint32_t *spare) {
    int64_t first[257] = {0};
    for (int64_t i = 0; i < n; i++) first[combining(marks[i]) + 1]++;
    for (int c = 0; c < 256; c++) first[c + 1] += first[c];
    for (int64_t i = 0; i < n; i++) spare[first[combining(marks[i])]++] = marks[i];
    memcpy(marks, spare, (size_t)n * sizeof *marks);
}

static nf_status reorder(nf_words *text, nf_words *spare) {
    for (int64_t i = 0; i < text->size;) {
        int64_t end = i;
        while (end < text->size && combining(text->at[end])) end++;
        if (end - i > 1) {
            spare->size = 0;
            NF_TRY(nf_words_reserve(spare, end - i));
            sort_marks(text->at + i, end - i, spare->at);
        }
        i = end + 1;
    }
    return NF_OK;
}

/* The character that two compose to, or 0. */
static uint32_t compose_pair(uint32_t a, uint32_t b) {
    if (a - L_BASE < L_COUNT && b - V_BASE < V_COUNT) return S_BASE + ((a - L_BASE) * V_COUNT + (b - V_BASE)) * T_COUNT;
    if (a - S_BASE < S_COUNT && (a - S_BASE) % T_COUNT == 0 && b > T_BASE && b < T_BASE + T_COUNT) return a + (b - T_BASE);
    int32_t low = 0, high = nf_unicode_pair_count;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        const uint32_t *pair = nf_unicode_pairs + 3 * middle;
        if (pair[0] < a || (pair[0] == a && pair[1] < b))
            low = middle + 1;
        else
            high = middle;
    }
    const uint32_t *pair = nf_unicode_pairs + 3 * low;
    return low < nf_unicode_pair_count && pair[0] == a && pair[1] == b ? pair[2] : 0;
}

static void compose(nf_words *text) {
    int64_t starter = -1, n = 0;
    int last = -1; /* class of the character before, since the starter; -1: none between */
    for (int64_t i = 0; i < text->size; i++) {
        uint32_t code = text->at[i];
        int class = (int)combining(code);
        uint32_t whole = starter >= 0 && last < class ? compose_pair(text->at[starter], code) : 0;
        if (whole) {
            text->at[starter] = whole;
            continue;
        }
        if (class == 0) {
            starter = n;
            last = -1;
        } else
            last = class;
        text->at[n++] = code;
    }
    text->size = n;
}

/* Append codes in the form; `codes` are a stretch that nothing around it touches. */
static nf_status finish(nf_bytes *out, nf_words *codes, nf_words *spare) {
    NF_TRY(reorder(codes, spare));
    compose(codes);
    NF_TRY(nf_bytes_reserve(out, 4 * codes->size));
    for (int64_t i = 0; i < codes->size; i++) out->size += nf_utf8_write(out->at + out->size, codes->at[i]);
    codes->size = 0;
    return NF_OK;
}

/* Stretches of stable characters are copied; the others are worked on together with the one stable character before. */
static nf_status normalize(nf_bytes *out, const uint8_t *p, const uint8_t *end, nf_form form, nf_words *codes,
                           nf_words *spare) {
    const unsigned stable = stable_bit(form);
    const uint8_t *done = p, *last = p; /* `last`: the character before p, or p itself */
    uint32_t code;
    while (p < end) {
        int length = nf_utf8_read(p, end, &code);
        if (form_of(code) & stable) {
            last = p;
            p += length;
            continue;
        }
        NF_TRY(nf_bytes_append(out, done, last - done));
        if (last < p) {
            nf_utf8_read(last, end, &code);
            NF_TRY(decompose(codes, code, form));
        }
        while (p < end && (length = nf_utf8_read(p, end, &code), !(form_of(code) & stable))) {
            NF_TRY(decompose(codes, code, form));
            p += length;
        }
        NF_TRY(finish(out, codes, spare));
        done = last = p;
    }
    return nf_bytes_append(out, done, end - done);
}

nf_status nf_normalize(nf_bytes *out, const uint8_t *text, int64_t size, nf_form form) {
    nf_words codes = {0}, spare = {0};
    nf_status status = normalize(out, text, text + size, form, &codes, &spare);
    nf_words_free(&codes);
    nf_words_free(&spare);
    return status;
}
