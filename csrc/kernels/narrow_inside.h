/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of narrow products share beside the body: a tile of work, and memory asked for while it is multiplied. */
#ifndef NF_KERNELS_NARROW_INSIDE_H
#define NF_KERNELS_NARROW_INSIDE_H

#include <stdint.h>

#include "../core/cpu.h"
#include "narrow.h"

enum {
    STEP = 64,            /* elements to which rows are padded */
    LINE = 64,            /* bytes of a cache line */
    FLOATS_PER_LINE = 16, /* of float32 */
    UNITS_PER_LINE = 4,   /* units that are multiplied for each line that is asked for */
    BLOCK = 4096,         /* bytes of a weight's row into which the summed index is cut: a panel of one stays in the cache */
    AHEAD = 8192,         /* bytes: how early memory is asked for, for one row of activations */
    MOST_COLUMNS = 32     /* of a panel in any form */
};

/* Rows with no larger value are taken for zeros: 127 divided by it would not be finite. */
#define NF_NARROW_SMALLEST 1e-30f

/* The forms of each family, the better first, and NULL behind the last. */
extern const nf_narrow_form *const nf_narrow_avx512[], *const nf_narrow_avx2[], *const nf_narrow_neon[];

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* What the next panel is made of: `lines` cache lines in each of `rows` rows, `apart` bytes from one row to the next. */
typedef struct source {
    const char *at;
    int64_t rows, lines, apart;
} source;

typedef struct tile {
    float *y;
    int64_t ldy, units, a_stride; /* a_stride in bytes */
    const char *a;
    const float *a_scale; /* int8: of the rows */
    const float *w_scale; /* int8: of the columns, or NULL for 1 */
    const void *panel;
    int64_t cols;
    int past;      /* whole lines are written past the caches */
    nf_addend add; /* its pointers at the tile's first column; v as (r, columns of a panel) */
    source next;
} tile;

/* Where the sums of a group of rows are written, or what is added to them is read, when they are done: one line or two of
   each row, from the last one up. */
typedef struct ends {
    const char *at;
    int64_t apart, left, two; /* two: 1 or 0 */
} ends;

/* Lines that are asked for, one after the other, while a group of rows is multiplied. */
typedef struct request {
    const char *row; /* of what the next panel is made of */
    int64_t line, lines, apart, left;
    ends y, start;
} request;

static inline __attribute__((always_inline)) void ask_end(ends *e) {
    e->left--;
    __builtin_prefetch(e->at + (e->left >> e->two) * e->apart + (e->left & e->two) * LINE, 0, 3);
}

static inline __attribute__((always_inline)) void ask(request *r) {
    if (r->left > 0) {
        __builtin_prefetch(r->row + r->line * LINE, 0, 2);
        r->left--;
        if (++r->line == r->lines) r->line = 0, r->row += r->apart;
    }
    if (r->y.left > 0)
        ask_end(&r->y);
    else if (r->start.left > 0)
        ask_end(&r->start);
}

/* To behind what was to be asked for. */
static inline void go_on(request *r) {
    if (r->left == 0) return;
    for (r->line += r->left; r->line >= r->lines; r->line -= r->lines) r->row += r->apart;
}

/* The part of what is added that belongs to columns from `col` on; `memory` takes v as (r, columns). */
static inline nf_addend addend_at(const nf_addend *add, int64_t col, int64_t cols, int64_t columns, float *memory) {
    nf_addend at = *add;
    if (at.start) at.start += col;
    if (at.bias) at.bias += col;
    for (int64_t k = 0; k < at.r; k++)
        for (int64_t c = 0; c < columns; c++) {
            const float *v = at.v + k * at.v_k + (col + c) * at.v_c;
            memory[k * columns + c] = c < cols ? at.scale * *v : 0.0f;
            if ((at.v_c == 1 ? c : k) % FLOATS_PER_LINE == 0)
                __builtin_prefetch(v + columns * at.v_c, 0, 2); /* the next ones */
        }
    at.v = memory;
    return at;
}

static inline float *behind_panel(void *scratch, int64_t width) {
    return (float *)((char *)scratch + nf_narrow_stride(width) * MOST_COLUMNS * (int64_t)sizeof(uint16_t));
}

#endif
