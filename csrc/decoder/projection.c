/* SPDX-License-Identifier: Apache-2.0 */
/* Linear layers with their low-rank pairs, in tiles of rows and columns that depend on the shape alone. */
#include <string.h>

#include "../kernels/matmul.h"
#include "engine.h"

enum { TILE_ROWS = 256, TILE_COLS = 384, PANEL = 32, GRAD_COLS = 128 };

/* A tile of one of n matrices. */
typedef struct place {
    int which;
    int64_t row, rows, col, cols;
} place;

static int64_t count_tiles(int64_t rows, int64_t cols) { return nf_tiles(rows, TILE_ROWS) * nf_tiles(cols, TILE_COLS); }

/* Columns of a tile: all but the last the same, in whole panels, so that no thread is left with a small rest. */
static int64_t tile_cols(int64_t cols) { return nf_tiles(cols, nf_tiles(cols, TILE_COLS) * PANEL) * PANEL; }

static place locate(int64_t index, int64_t rows, const int64_t *cols) {
    place at = {0};
    while (index >= count_tiles(rows, cols[at.which])) index -= count_tiles(rows, cols[at.which++]);
    int64_t all = cols[at.which], across = nf_tiles(all, TILE_COLS), width = tile_cols(all);
    at.row = index / across * TILE_ROWS, at.col = index % across * width;
    at.rows = nf_min(TILE_ROWS, rows - at.row), at.cols = nf_min(width, all - at.col);
    return at;
}

typedef struct job {
    nf_engine *e;
    projection *const *p;
    const stream *s;
    int n;
    int64_t T, cols[4];
    float *const *y; /* outputs, or their gradients in the backward pass */
    const float *x, *residual;
    float *d_x;
    float *d_h[4]; /* (T, r) of each projection */
} job;

/* -------- dropout: the mask is a function of (seed, projection, element), so nothing is stored -------- */

static uint32_t mix(uint32_t h) {
    h ^= h >> 16;
    h *= 0x7feb352du;
    h ^= h >> 15;
    h *= 0x846ca68bu;
    return h ^ (h >> 16);
}

/* out = x where kept, scaled by 1/(1-p), else 0; element (t, i) of a (T, in) matrix. */
static void drop(float *out, const float *x, const projection *p, uint64_t seed, int64_t t, int64_t i0, int64_t n) {
    uint32_t limit = (uint32_t)(p->dropout * 4294967296.0),
             key = mix((uint32_t)seed ^ mix((uint32_t)(seed >> 32) + (uint32_t)p->key));
    uint32_t row = mix(key ^ (uint32_t)t);
    float keep = 1.0f / (1.0f - p->dropout);
    for (int64_t i = 0; i < n; i++) out[i] = mix(row + (uint32_t)(i0 + i)) >= limit ? x[i] * keep : 0.0f;
}

static int drops(const projection *p, const stream *s) { return s->dropout && p->dropout > 0.0f; }

/* -------- forward -------- */

void nf_project_rows(nf_engine *e, projection *const *p, int n, const stream *s, const float *x, int64_t row, int64_t rows,
                     int worker) {
    float *scratch = e->worker_scratch + worker * e->worker_floats;
    for (int i = 0; i < n; i++) {
        if (p[i]->r == 0) continue;
        int64_t in = p[i]->base.in, r = p[i]->r;
        const float *from = x + row * in;
        if (drops(p[i], s)) {
            for (int64_t t = 0; t < rows; t++) drop(scratch + t * in, from + t * in, p[i], s->seed, row + t, 0, in);
            from = scratch;
        }
        e->kernels->low_rank(p[i]->h + row * r, from, in, p[i]->a, rows, in, r, 1.0f);
    }
    nf_operand a = nf_operand_in(e->input, x, p[0]->base.in, s->T, p[0]->base.in);
    nf_linear_prepare(&p[0]->base, &a, row, rows);
}

static void prepare_rows(void *context, int64_t index, int worker) {
    const job *j = context;
    int64_t row = index * ROW_TILE;
    nf_project_rows(j->e, j->p, j->n, j->s, j->x, row, nf_min(ROW_TILE, j->T - row), worker);
}

void nf_project_prepare(nf_engine *e, projection *const *p, int n, const stream *s, const float *x) {
    job j = {.e = e, .p = p, .s = s, .n = n, .T = s->T, .x = x};
    nf_pool_run(e->pool, nf_tiles(s->T, ROW_TILE), prepare_rows, &j);
}

static void project_tile(void *context, int64_t index, int worker) {
    const job *j = context;
    place at = locate(index, j->T, j->cols);
    const projection *p = j->p[at.which];
    int64_t out = p->base.out, in = p->base.in;
    float *y = j->y[at.which] + at.row * out + at.col;
    nf_operand x = nf_operand_in(j->e->input, j->x, in, j->T, in);
    nf_addend add = {.bias = p->base.bias ? p->base.bias + at.col : NULL, .ld = out};
    if (j->residual) add.start = j->residual + at.row * out + at.col;
    if (p->r) {
        add.r = add.ldu = add.v_c = p->r, add.v_k = 1, add.scale = p->scale;
        add.u = p->h + at.row * p->r, add.v = p->b + at.col * p->r;
    }
    nf_linear_tile(&p->base, y, out, &x, at.row, at.rows, at.col, at.col + at.cols, &add,
                   j->e->product_scratch + worker * j->e->product_bytes);
}

void nf_project(nf_engine *e, projection *const *p, int n, float *const *y, const float *x, const float *residual, int64_t T) {
    job j = {.e = e, .p = p, .n = n, .T = T, .y = y, .x = x, .residual = residual};
    int64_t tiles = 0;
    for (int i = 0; i < n; i++) tiles += count_tiles(T, j.cols[i] = p[i]->base.out);
    nf_pool_run(e->pool, tiles, project_tile, &j);
}

/* -------- backward -------- */

static nf_operand gradient_of(const job *j, int i) {
    int64_t out = j->p[i]->base.out;
    return nf_operand_in(j->e->d_output[i], j->y[i], out, j->T, out);
}

/* Low-rank gradients and transposed B of each projection lie one behind the other. */
static float *d_h_of(const nf_engine *e, projection *const *p, int which, int64_t T) {
    int64_t used = 0;
    for (int i = 0; i < which; i++) used += p[i]->r * T;
    return e->d_h + used;
}

static float *b_of(const nf_engine *e, projection *const *p, int which) {
    int64_t used = 0;
    for (int i = 0; i < which; i++) used += p[i]->r * p[i]->base.out;
    return e->b_transposed + used;
}

void nf_project_begin_backward(nf_engine *e, projection *const *p, int n) {
    for (int i = 0; i < n; i++) e->kernels->transpose(b_of(e, p, i), p[i]->base.out, p[i]->b, p[i]->r, p[i]->base.out, p[i]->r);
}

void nf_project_gradient_rows(nf_engine *e, projection *const *p, int n, const stream *s, float *const *d_y, const float *x,
                              int wants_d_x, int64_t row, int64_t rows) {
    if (p[0]->d_weight) {
        nf_operand input = nf_operand_in(e->input, x, p[0]->base.in, s->T, p[0]->base.in);
        nf_linear_prepare(&p[0]->base, &input, row, rows);
    }
    for (int i = 0; i < n; i++) {
        int64_t out = p[i]->base.out, r = p[i]->r;
        nf_operand gradient = nf_operand_in(e->d_output[i], d_y[i], out, s->T, out);
        if (wants_d_x) nf_linear_prepare_gradient(&p[i]->base, &gradient, 0, row, rows);
        if (r)
            e->kernels->low_rank(d_h_of(e, p, i, s->T) + row * r, d_y[i] + row * out, out, b_of(e, p, i), rows, out, r,
                                 p[i]->scale);
    }
}

/* d_x += dropout(d_h A), with the mask of the forward pass. */
static void add_dropped(const job *j, const projection *p, float *d_x, const float *d_h, place at, int worker) {
    float *row = j->e->worker_scratch + worker * j->e->worker_floats;
    int64_t in = p->base.in;
    for (int64_t t = 0; t < at.rows; t++) {
        nf_matmul(0, 0, 1, at.cols, p->r, 1.0f, d_h + t * p->r, p->r, p->a + at.col, in, 0.0f, row, at.cols);
        drop(row, row, p, j->s->seed, at.row + t, at.col, at.cols);
        j->e->kernels->add_scaled(d_x + t * in, row, 1.0f, at.cols);
    }
}

static void input_tile(void *context, int64_t index, int worker) {
    const job *j = context;
    place at = locate(index, j->T, j->cols);
    int64_t in = j->cols[0];
    float *d_x = j->d_x + at.row * in + at.col;
    for (int i = 0; i < j->n; i++) {
        const projection *p = j->p[i];
        nf_operand d_y = gradient_of(j, i);
        nf_addend add = {.start = i ? d_x : NULL, .ld = in};
        const float *d_h = j->d_h[i] + at.row * p->r, *a = p->a + at.col;
        if (p->r && !drops(p, j->s)) {
            add.r = add.ldu = p->r, add.v_k = in, add.v_c = 1, add.scale = 1.0f;
            add.u = d_h, add.v = a;
        }
        nf_linear_tile_input(&p->base, d_x, in, &d_y, at.row, at.rows, 0, at.col, at.col + at.cols, &add,
                             j->e->product_scratch + worker * j->e->product_bytes);
        if (p->r && drops(p, j->s)) add_dropped(j, p, d_x, d_h, at, worker);
    }
}

/* d_a (r, cols) += d_h^T dropout(x), d_b (cols, r) += scale * d_y^T h for one stripe of columns. */
static void lora_gradients(void *context, int64_t index, int worker) {
    const job *j = context;
    for (int i = 0; i < j->n; i++) {
        const projection *p = j->p[i];
        int64_t in = p->base.in, out = p->base.out, a_tiles = nf_tiles(in, GRAD_COLS), b_tiles = nf_tiles(out, GRAD_COLS);
        if (p->r == 0) continue;
        if (index < a_tiles) {
            int64_t col = index * GRAD_COLS, cols = nf_min(GRAD_COLS, in - col), ldx = in;
            const float *x = j->x + col;
            if (drops(p, j->s)) {
                float *kept = j->e->worker_scratch + worker * j->e->worker_floats;
                for (int64_t t = 0; t < j->T; t++) drop(kept + t * cols, x + t * in, p, j->s->seed, t, col, cols);
                x = kept, ldx = cols;
            }
            j->e->kernels->low_rank_gradient(p->d_a + col, in, 1, j->d_h[i], x, ldx, j->T, cols, p->r, 1.0f);
            return;
        }
        index -= a_tiles;
        if (index < b_tiles) {
            int64_t col = index * GRAD_COLS, cols = nf_min(GRAD_COLS, out - col);
            j->e->kernels->low_rank_gradient(p->d_b + col * p->r, 1, p->r, p->h, j->y[i] + col, out, j->T, cols, p->r,
                                             p->scale);
            return;
        }
        index -= b_tiles;
    }
}

static nf_operand output_gradient(const job *j, int i) {
    int64_t out = j->p[i]->base.out;
    return nf_operand_in(j->e->d_output_t[i], j->y[i], out, out, j->T);
}

/* d_y as the gradients of weights want it: transposed, a stripe of columns of one projection. */
static void transpose_outputs(void *context, int64_t index, int worker) {
    const job *j = context;
    (void)worker;
    for (int i = 0; i < j->n; i++) {
        int64_t out = j->p[i]->base.out, stripes = nf_tiles(out, GRAD_COLS), o = index * GRAD_COLS;
        nf_operand d_y = output_gradient(j, i);
        if (index < stripes) {
            nf_linear_prepare_transposed(&j->p[i]->base, &d_y, j->T, o, nf_min(o + GRAD_COLS, out));
            return;
        }
        index -= stripes;
    }
}

/* d_weight (rows of out, all in) = or += d_y^T x, d_bias += sum of d_y; tiles are (out x in). */
static void weight_gradients(void *context, int64_t index, int worker) {
    const job *j = context;
    for (int i = 0; i < j->n; i++) {
        const projection *p = j->p[i];
        int64_t in = p->base.in, out = p->base.out, cols = in;
        if (!p->d_weight) continue;
        if (index >= count_tiles(out, in)) {
            index -= count_tiles(out, in);
            continue;
        }
        place at = locate(index, out, &cols);
        nf_operand d_y = output_gradient(j, i), x = nf_operand_in(j->e->input, j->x, in, j->T, in);
        nf_linear_gradient_tile(&p->base, p->d_weight + at.row * in + at.col, in, &d_y, &x, j->T, at.row, at.row + at.rows,
                                at.col, at.col + at.cols, j->s->add, j->e->product_scratch + worker * j->e->product_bytes);
        if (p->d_bias && at.col == 0)
            for (int64_t t = 0; t < j->T; t++)
                j->e->kernels->add_scaled(p->d_bias + at.row, j->y[i] + t * out + at.row, 1.0f, at.rows);
        return;
    }
}

void nf_project_backward(nf_engine *e, projection *const *p, int n, float *const *d_y, const float *x, float *d_x,
                         const stream *s) {
    job j = {.e = e, .p = p, .s = s, .n = n, .T = s->T, .y = d_y, .x = x, .d_x = d_x};
    int64_t lora_tiles = 0, weight_tiles = 0, stripes = 0;
    for (int i = 0; i < n; i++) {
        j.d_h[i] = d_h_of(e, p, i, s->T);
        if (p[i]->r) lora_tiles += nf_tiles(p[i]->base.in, GRAD_COLS) + nf_tiles(p[i]->base.out, GRAD_COLS);
        if (p[i]->d_weight) weight_tiles += count_tiles(p[i]->base.out, p[i]->base.in);
        if (p[i]->d_weight && e->narrow) stripes += nf_tiles(p[i]->base.out, GRAD_COLS);
    }
    if (lora_tiles) nf_pool_run(e->pool, lora_tiles, lora_gradients, &j);
    if (stripes) nf_pool_run(e->pool, stripes, transpose_outputs, &j);
    if (weight_tiles) nf_pool_run(e->pool, weight_tiles, weight_gradients, &j);
    if (!d_x) return;
    j.cols[0] = p[0]->base.in;
    nf_pool_run(e->pool, count_tiles(s->T, j.cols[0]), input_tile, &j);
}
