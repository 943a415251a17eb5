/* SPDX-License-Identifier: Apache-2.0 */
#include "linear.h"

#include <string.h>

#include "../core/cpu.h"
#include "matmul.h"
#include "narrow.h"
#include "rows.h"

enum { STRIP = 64 };      /* columns of blocks that are turned into bf16 at a time */
enum { WIDEN_ROWS = 32 }; /* rows of a narrow weight that are turned into float32 at a time */

nf_linear nf_linear_of(nf_linear_kind kind, int64_t out, int64_t in, const void *w, const float *scale) {
    nf_linear l = {.kind = kind, .out = out, .in = in, .ld = in, .w = w, .scale = scale};
    if (kind != NF_LINEAR_F32) l.narrow = nf_narrow_best(kind == NF_LINEAR_INT8, nf_cpu_features());
    if (kind == NF_LINEAR_INT8) l.rows = nf_kernels_for(nf_cpu_isa());
    return l;
}

nf_linear nf_linear_of_blocks(nf_block_kind kind, int64_t out, int64_t in, const void *w) {
    nf_block_path path = nf_block_path_here();
    nf_linear l = {.kind = NF_LINEAR_BLOCKS, .out = out, .in = in, .w = w, .blocks = {kind, path, w, in}};
    if (path == NF_BLOCK_VNNI) l.narrow = nf_narrow_best(0, nf_cpu_features()); /* of the gradient */
    return l;
}

/* -------- operands -------- */

static int64_t in_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/* Scales, and counts of outliers, lie before the prepared rows, the outliers behind them. */
static int64_t scale_bytes(int64_t rows) { return in_lines(rows * (int64_t)sizeof(float)); }
static int64_t prepared_bytes(int64_t rows, int64_t width) {
    return rows * nf_narrow_stride(width) * (int64_t)sizeof(uint16_t);
}

int64_t nf_operand_bytes(int64_t rows, int64_t width) {
    return 2 * scale_bytes(rows) + prepared_bytes(rows, width) + rows * (int64_t)sizeof(nf_outliers);
}

nf_operand nf_operand_in(void *memory, const float *x, int64_t ld, int64_t rows, int64_t width) {
    char *counts = (char *)memory + scale_bytes(rows), *prepared = counts + scale_bytes(rows);
    nf_taken taken = {(int32_t *)(void *)counts, (nf_outliers *)(void *)(prepared + prepared_bytes(rows, width))};
    return (nf_operand){x, ld, width, prepared, memory, taken};
}

static void *row_of(const nf_linear *l, const nf_operand *a, int64_t row) {
    int64_t size = l->narrow ? l->narrow->size : 1;
    return (char *)a->prepared + row * nf_narrow_stride(a->width) * size;
}

static void prepare(const nf_linear *l, const nf_operand *a, const float *factor, int64_t row, int64_t rows,
                    const nf_taken *taken) {
    if (!l->narrow) return;
    l->narrow->prepare(row_of(l, a, row), a->scale + row, a->x + row * a->ld, a->ld, factor, rows, a->width, taken);
}

nf_linear nf_linear_of_operand(const nf_linear *like, const nf_operand *a, int64_t rows) {
    nf_linear l = {.kind = like->narrow ? like->kind : NF_LINEAR_F32, .out = rows, .in = a->width, .narrow = like->narrow};
    l.w = like->narrow ? a->prepared : a->x;
    l.ld = like->narrow ? nf_narrow_stride(a->width) : a->ld;
    return l;
}

/* Prepared rows of blocks lie closer than nf_operand_bytes counts. */
static void *block_row_of(const nf_operand *a, int64_t row) {
    return (char *)a->prepared + row * nf_blocks_operand_bytes(a->width);
}

void nf_linear_prepare(const nf_linear *l, const nf_operand *a, int64_t row, int64_t rows) {
    if (l->kind == NF_LINEAR_BLOCKS)
        nf_blocks_prepare(l->blocks.path, block_row_of(a, row), nf_blocks_operand_bytes(a->width), a->x + row * a->ld, a->ld,
                          rows, a->width);
    else
        prepare(l, a, NULL, row, rows, &(nf_taken){a->taken.counts + row, a->taken.of_rows + row});
}

void nf_linear_prepare_gradient(const nf_linear *l, const nf_operand *a, int64_t o0, int64_t row, int64_t rows) {
    prepare(l, a, l->scale ? l->scale + o0 : NULL, row, rows, NULL);
}

/* -------- products -------- */

static float from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* out (n,) = W[o, i0 : i0+n] as float32. */
static void widen(const nf_linear *l, float *out, int64_t o, int64_t i0, int64_t n) {
    if (l->kind == NF_LINEAR_F32) {
        memcpy(out, (const float *)l->w + o * l->ld + i0, (size_t)n * sizeof *out);
    } else if (l->kind == NF_LINEAR_BF16) {
        const uint16_t *w = (const uint16_t *)l->w + o * l->ld + i0;
        for (int64_t i = 0; i < n; i++) out[i] = from_bf16(w[i]);
    } else if (l->kind == NF_LINEAR_BLOCKS) {
        nf_blocks_widen(&l->blocks, out, o, i0, n);
    } else {
        const int8_t *w = (const int8_t *)l->w + o * l->ld + i0;
        for (int64_t i = 0; i < n; i++) out[i] = (float)w[i] * l->scale[o];
    }
}

/* -------- outliers -------- */

enum { KEPT = 16, KEPT_ROWS = 128 };

/* Columns of a stripe of W as float32: mostly the same few are wanted for one row of activations after the other. */
typedef struct kept_columns {
    float values[KEPT][KEPT_ROWS];
    int64_t column[KEPT];
} kept_columns;

static const float *column_of(const nf_linear *l, kept_columns *kept, int64_t i, int64_t o0, int64_t n) {
    float *values = kept->values[i % KEPT];
    if (kept->column[i % KEPT] == i) return values;
    const int8_t *w = (const int8_t *)l->w + o0 * l->ld + i;
    for (int64_t o = 0; o < n; o++) values[o] = (float)w[o * l->ld] * l->scale[o0 + o];
    kept->column[i % KEPT] = i;
    return values;
}

static void add_outliers_to_stripe(const nf_linear *l, float *y, int64_t ldy, const nf_operand *x, int64_t row, int64_t rows,
                                   int64_t o0, int64_t n, kept_columns *kept) {
    for (int k = 0; k < KEPT; k++) kept->column[k] = -1;
    for (int64_t t = 0; t < rows; t++)
        for (int32_t k = 0; k < x->taken.counts[row + t]; k++) {
            nf_outlier outlier = x->taken.of_rows[row + t].list[k];
            l->rows->add_scaled(y + t * ldy, column_of(l, kept, outlier.at, o0, n), outlier.value, n);
        }
}

/* y (rows, o1-o0) += the products of what was taken out of x. */
static void add_outliers(const nf_linear *l, float *y, int64_t ldy, const nf_operand *x, int64_t row, int64_t rows, int64_t o0,
                         int64_t o1, void *scratch) {
    int32_t any = 0;
    for (int64_t t = row; t < row + rows; t++) any |= x->taken.counts[t];
    for (int64_t o = o0; any && o < o1; o += KEPT_ROWS)
        add_outliers_to_stripe(l, y + (o - o0), ldy, x, row, rows, o, o1 - o < KEPT_ROWS ? o1 - o : KEPT_ROWS, scratch);
}

/* -------- products of any kind -------- */

int64_t nf_linear_scratch(int64_t width, int64_t rank) {
    int64_t panel = nf_narrow_scratch(width, rank) + width * STRIP * (int64_t)sizeof(uint16_t);
    int64_t widened = WIDEN_ROWS * width * (int64_t)sizeof(float), most = panel > widened ? panel : widened;
    if (most < (int64_t)sizeof(kept_columns)) most = sizeof(kept_columns);
    return most > nf_blocks_scratch() ? most : nf_blocks_scratch();
}

/* Put the parts before and behind a product that nf_matmul adds to: returns its beta. */
static float before(const nf_addend *add, float *y, int64_t ldy, int64_t rows, int64_t cols) {
    if (!add->start) return 0.0f;
    if (add->start != y)
        for (int64_t t = 0; t < rows; t++) memcpy(y + t * ldy, add->start + t * add->ld, (size_t)cols * sizeof *y);
    return 1.0f;
}

static void behind(const nf_addend *add, float *y, int64_t ldy, int64_t rows, int64_t cols) {
    if (add->bias)
        for (int64_t t = 0; t < rows; t++)
            for (int64_t c = 0; c < cols; c++) y[t * ldy + c] += add->bias[c];
    if (add->r == 0) return;
    int transposed = add->v_k == 1;
    nf_matmul(0, transposed, rows, cols, add->r, add->scale, add->u, add->ldu, add->v, transposed ? add->v_c : add->v_k, 1.0f,
              y, ldy);
}

static const nf_addend nothing = {0};

static nf_narrow narrow_of(const nf_linear *l) { return (nf_narrow){l->w, l->scale, l->out, l->in, l->ld}; }

void nf_linear_tile(const nf_linear *l, float *y, int64_t ldy, const nf_operand *x, int64_t row, int64_t rows, int64_t o0,
                    int64_t o1, const nf_addend *add, void *scratch) {
    const float *from = x->x + row * x->ld;
    if (!add) add = &nothing;
    if (l->narrow && l->kind != NF_LINEAR_BLOCKS) {
        nf_narrow n = narrow_of(l);
        l->narrow->forward(&n, y, ldy, row_of(l, x, row), x->scale + row, rows, o0, o1, add, scratch);
        if (l->kind == NF_LINEAR_INT8) add_outliers(l, y, ldy, x, row, rows, o0, o1, scratch);
        return;
    }
    float beta = before(add, y, ldy, rows, o1 - o0);
    if (l->kind == NF_LINEAR_F32)
        nf_matmul(0, 1, rows, o1 - o0, l->in, 1.0f, from, x->ld, (const float *)l->w + o0 * l->ld, l->ld, beta, y, ldy);
    else if (l->narrow)
        nf_blocks_forward(&l->blocks, y, ldy, block_row_of(x, row), nf_blocks_operand_bytes(x->width), rows, o0, o1, beta,
                          scratch);
    else
        for (int64_t o = o0; o < o1; o += WIDEN_ROWS) {
            int64_t cols = o1 - o < WIDEN_ROWS ? o1 - o : WIDEN_ROWS;
            for (int64_t c = 0; c < cols; c++) widen(l, (float *)scratch + c * l->in, o + c, 0, l->in);
            nf_matmul(0, 1, rows, cols, l->in, 1.0f, from, x->ld, scratch, l->in, beta, y + (o - o0), ldy);
        }
    behind(add, y, ldy, rows, o1 - o0);
}

/* Each product of a row goes over the same columns in the same order, however many rows there are. */
void nf_linear_decode(const nf_linear *l, float *y, int64_t ldy, const nf_operand *x, int64_t rows, int64_t o0, int64_t o1,
                      void *scratch) {
    if (l->kind == NF_LINEAR_BLOCKS) {
        nf_blocks_decode(&l->blocks, y, ldy, block_row_of(x, 0), nf_blocks_operand_bytes(x->width), rows, o0, o1);
        return;
    }
    for (int64_t o = o0; o < o1; o += WIDEN_ROWS)
        for (int64_t t = 0; t < rows; t++)
            nf_linear_tile(l, y + t * ldy + (o - o0), ldy, x, t, 1, o, o1 - o < WIDEN_ROWS ? o1 : o + WIDEN_ROWS, NULL,
                           scratch);
}

/* Strips of columns as bf16, with what narrow.c has for that. */
static void input_of_blocks(const nf_linear *l, float *dx, int64_t lddx, const nf_operand *dy, int64_t row, int64_t rows,
                            int64_t o0, int64_t i0, int64_t i1, const nf_addend *add, void *scratch) {
    uint16_t *strip = scratch;
    nf_narrow w = {strip, NULL, dy->width, STRIP, STRIP};
    for (int64_t from = i0 / STRIP * STRIP; from < i1; from += STRIP) {
        int64_t first = from < i0 ? i0 : from, end = i1 < from + STRIP ? i1 : from + STRIP;
        nf_blocks_strip(&l->blocks, strip, o0, dy->width, from / STRIP);
        nf_addend part = *add;
        if (part.start) part.start += first - i0;
        if (part.bias) part.bias += first - i0;
        if (part.v) part.v += (first - i0) * part.v_c;
        l->narrow->input(&w, dx + (first - i0), lddx, row_of(l, dy, row), dy->scale + row, rows, 0, dy->width, first - from,
                         end - from, &part, strip + dy->width * STRIP);
    }
}

void nf_linear_tile_input(const nf_linear *l, float *dx, int64_t lddx, const nf_operand *dy, int64_t row, int64_t rows,
                          int64_t o0, int64_t i0, int64_t i1, const nf_addend *add, void *scratch) {
    const float *from = dy->x + row * dy->ld;
    int64_t n = i1 - i0;
    if (!add) add = &nothing;
    if (l->narrow && l->kind == NF_LINEAR_BLOCKS) {
        input_of_blocks(l, dx, lddx, dy, row, rows, o0, i0, i1, add, scratch);
        return;
    }
    if (l->narrow) {
        nf_narrow w = narrow_of(l);
        l->narrow->input(&w, dx, lddx, row_of(l, dy, row), dy->scale + row, rows, o0, o0 + dy->width, i0, i1, add, scratch);
        return;
    }
    float beta = before(add, dx, lddx, rows, n);
    if (l->kind == NF_LINEAR_F32)
        nf_matmul(0, 0, rows, n, dy->width, 1.0f, from, dy->ld, (const float *)l->w + o0 * l->ld + i0, l->ld, beta, dx, lddx);
    else
        for (int64_t o = 0; o < dy->width; o += WIDEN_ROWS, beta = 1.0f) {
            int64_t count = dy->width - o < WIDEN_ROWS ? dy->width - o : WIDEN_ROWS;
            for (int64_t c = 0; c < count; c++) widen(l, (float *)scratch + c * n, o0 + o + c, i0, n);
            nf_matmul(0, 0, rows, n, count, 1.0f, from + o, dy->ld, scratch, n, beta, dx, lddx);
        }
    behind(add, dx, lddx, rows, n);
}

void nf_linear_prepare_transposed(const nf_linear *l, const nf_operand *dy, int64_t rows, int64_t o0, int64_t o1) {
    if (!l->narrow) return;
    uint16_t *out = (uint16_t *)dy->prepared + o0 * nf_narrow_stride(rows);
    l->narrow->prepare_transposed(out, dy->x + o0, dy->ld, rows, o1 - o0);
}

void nf_linear_gradient_tile(const nf_linear *l, float *d_w, int64_t ldw, const nf_operand *dy, const nf_operand *x,
                             int64_t rows, int64_t o0, int64_t o1, int64_t i0, int64_t i1, int add, void *scratch) {
    if (!l->narrow) {
        nf_matmul(1, 0, o1 - o0, i1 - i0, rows, 1.0f, dy->x + o0, dy->ld, x->x + i0, x->ld, (float)add, d_w, ldw);
        return;
    }
    nf_linear inputs = nf_linear_of_operand(l, x, rows);
    nf_operand transposed = {.ld = rows, .width = rows, .prepared = dy->prepared, .scale = dy->scale};
    nf_addend so_far = {.start = add ? d_w : NULL, .ld = ldw, .past = !add};
    nf_linear_tile_input(&inputs, d_w, ldw, &transposed, o0, o1 - o0, 0, i0, i1, &so_far, scratch);
}

void nf_linear_row(const nf_linear *l, float *row, int64_t index) { widen(l, row, index, 0, l->in); }
