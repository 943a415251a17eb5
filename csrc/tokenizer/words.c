/* SPDX-License-Identifier: Apache-2.0 */
/* The patterns of the tokenizers, followed alternative by alternative as a backtracking engine would. */
#include "words.h"

#include <string.h>

#include "unicode.h"

/* A place in the text with the character that stands there. */
typedef struct cursor {
    const uint8_t *at, *next;
    uint32_t code; /* 0 at the end, with class 0 */
    unsigned class;
} cursor;

static inline cursor look(const uint8_t *p, const uint8_t *end) {
    cursor c = {p, p, 0, 0};
    if (p < end) {
        c.next = p + nf_utf8_read(p, end, &c.code);
        c.class = nf_class_of(c.code);
    }
    return c;
}

/* End of the run of characters of any of the classes, from p on, of at most `most` characters (0: any number). */
static const uint8_t *run(const uint8_t *p, const uint8_t *end, unsigned classes, int most) {
    for (int n = 0; p < end && (most == 0 || n < most); n++) {
        cursor c = look(p, end);
        if (!(c.class & classes)) break;
        p = c.next;
    }
    return p;
}

/* End of the run of characters of none of the classes. */
static const uint8_t *run_outside(const uint8_t *p, const uint8_t *end, unsigned classes) {
    while (p < end) {
        cursor c = look(p, end);
        if (c.class & classes) break;
        p = c.next;
    }
    return p;
}

static inline uint8_t lower(uint8_t c) { return c >= 'A' && c <= 'Z' ? c | 32 : c; }

/* Without case, U+017F (long s) counts as s, as in Unicode case folding. */
int nf_contraction(const uint8_t *p, const uint8_t *end, int any_case) {
    if (end - p < 2 || *p != '\'') return 0;
    uint8_t a = any_case ? lower(p[1]) : p[1];
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if (end - p < 3) return 0;
    uint8_t b = any_case ? lower(p[2]) : p[2];
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    return any_case && p[1] == 0xC5 && p[2] == 0xBF ? 3 : 0;
}

/* \s+(?!\S)|\s+ : the last white space before another character stays with that. p stands at white space. */
static const uint8_t *spaces(const uint8_t *p, const uint8_t *end) {
    const uint8_t *stop = run(p, end, NF_SPACE, 0);
    if (stop == end) return stop;
    const uint8_t *last = nf_utf8_back(p, stop);
    return last > p ? last : stop;
}

/* \s*[\r\n]+ before that: up to the last line break of the run, if there is one. */
static const uint8_t *lines_or_spaces(const uint8_t *p, const uint8_t *end) {
    const uint8_t *stop = run(p, end, NF_SPACE, 0), *line = stop;
    while (line > p && line[-1] != '\n' && line[-1] != '\r') line--; /* both are ASCII, never inside a character */
    if (line > p || stop == end) return line > p ? line : stop;
    const uint8_t *last = nf_utf8_back(p, stop);
    return last > p ? last : stop;
}

static const uint8_t *gpt2_end(const uint8_t *p, const uint8_t *end) {
    int short_form = nf_contraction(p, end, 0);
    if (short_form) return p + short_form;
    cursor first = look(p, end), c = *p == ' ' ? look(p + 1, end) : first;
    if (c.class & NF_LETTER) return run(c.next, end, NF_LETTER, 0);
    if (c.class & NF_NUMBER) return run(c.next, end, NF_NUMBER, 0);
    if (c.at < end && !(c.class & NF_SPACE)) return run_outside(c.next, end, NF_SPACE | NF_LETTER | NF_NUMBER);
    return spaces(p, end);
}

/* What Llama 3 and GPT-4o share:  ?[^\s\p{L}\p{N}]+[\r\n]* and the white space; `slash` allows / among the line breaks. */
static const uint8_t *signs_or_spaces(const uint8_t *p, const uint8_t *end, int slash) {
    cursor c = *p == ' ' ? look(p + 1, end) : look(p, end);
    if (c.at == end || c.class & (NF_SPACE | NF_LETTER | NF_NUMBER)) return lines_or_spaces(p, end);
    p = run_outside(c.next, end, NF_SPACE | NF_LETTER | NF_NUMBER);
    while (p < end && (*p == '\r' || *p == '\n' || (slash && *p == '/'))) p++;
    return p;
}

static inline int may_lead(cursor c) { return c.code != '\r' && c.code != '\n' && !(c.class & (NF_LETTER | NF_NUMBER)); }

static const uint8_t *llama3_end(const uint8_t *p, const uint8_t *end, int digits) {
    int short_form = nf_contraction(p, end, 1);
    if (short_form) return p + short_form;
    cursor first = look(p, end);
    if (first.class & NF_LETTER) return run(first.next, end, NF_LETTER, 0);
    if (first.class & NF_NUMBER) return run(p, end, NF_NUMBER, digits);
    if (may_lead(first) && look(first.next, end).class & NF_LETTER) return run(first.next, end, NF_LETTER, 0);
    return signs_or_spaces(p, end, 0);
}

/* Upper*Lower+ from p on, or NULL. Some characters are in both classes: where nothing is left for Lower+, the last of
   those that Upper* took is given back. */
static const uint8_t *upper_lower(const uint8_t *p, const uint8_t *end) {
    const uint8_t *both = NULL;
    cursor c = look(p, end);
    for (; c.class & NF_UPPER; c = look(c.next, end))
        if (c.class & NF_LOWER) both = c.next;
    return c.class & NF_LOWER ? run(c.at, end, NF_LOWER, 0) : both;
}

/* Upper+Lower* from p on, or NULL; as Upper*Lower+ found nothing, nothing of Lower follows. */
static const uint8_t *upper(const uint8_t *p, const uint8_t *end) {
    const uint8_t *stop = run(p, end, NF_UPPER, 0);
    return stop > p ? stop : NULL;
}

static const uint8_t *gpt4o_end(const uint8_t *p, const uint8_t *end) {
    cursor first = look(p, end);
    const uint8_t *stop = may_lead(first) ? upper_lower(first.next, end) : NULL;
    if (!stop) stop = upper_lower(p, end);
    if (!stop && may_lead(first)) stop = upper(first.next, end);
    if (!stop) stop = upper(p, end);
    if (stop) return stop + nf_contraction(stop, end, 1);
    if (first.class & NF_NUMBER) return run(p, end, NF_NUMBER, 3);
    return signs_or_spaces(p, end, 1);
}

const uint8_t *nf_word_end(nf_rule rule, const uint8_t *p, const uint8_t *end) {
    switch (rule) {
    case NF_RULE_GPT2:
        return gpt2_end(p, end);
    case NF_RULE_LLAMA3:
        return llama3_end(p, end, 3);
    case NF_RULE_QWEN2:
        return llama3_end(p, end, 1);
    case NF_RULE_GPT4O:
        return gpt4o_end(p, end);
    case NF_RULE_DIGIT:
    case NF_RULE_DIGITS:
        if (look(p, end).class & NF_NUMBER) return run(p, end, NF_NUMBER, rule == NF_RULE_DIGIT);
        return run_outside(p, end, NF_NUMBER);
    default:
        return end;
    }
}
