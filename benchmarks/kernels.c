/* SPDX-License-Identifier: Apache-2.0 */
/* Times single kernels of the engine on request: kernels.py compiles it with the sources of csrc, writes one request to a
   line, and reads one line of seconds for each.
     linear f32|bf16|int8 forward|input ROWS OUT IN THREADS CALLS   -> product, preparing of its operand
     attention f32|bf16 TOKENS HEADS KV_HEADS HEAD_DIM THREADS CALLS -> forward, backward
     read MEGABYTES THREADS CALLS                                   -> one pass over them
   A form may name the instructions after a slash, as nf_narrow_form does: int8/avx2; bf16/widened multiplies float32.
   Each figure is the mean of CALLS calls; before them, but for attention, comes one that is not counted. */
#define _POSIX_C_SOURCE 200809L
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/cpu.h"
#include "core/pool.h"
#include "kernels/attention.h"
#include "kernels/convert.h"
#include "kernels/linear.h"
#include "kernels/matmul.h"
#include "kernels/narrow.h"
#include "kernels/rows.h"

enum { TILE_ROWS = 256, TILE_COLS = 384, PANEL = 32, PREPARE_ROWS = 32 }; /* as decoder/projection.c cuts its products */
enum { ALIGN = 64, PATTERN = 1 << 16, READ_TILE = 1 << 16 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *memory(int64_t bytes) {
    void *p = aligned_alloc(ALIGN, (size_t)(bytes + ALIGN - 1) / ALIGN * ALIGN);
    if (!p) {
        fprintf(stderr, "no memory for %lld bytes\n", (long long)bytes);
        exit(1);
    }
    return p;
}

/* n values in [-1, 1), the same ones again after PATTERN of them. */
static float *floats(int64_t n) {
    float *x = memory(n * (int64_t)sizeof *x);
    uint64_t state = 1;
    for (int64_t i = 0; i < n && i < PATTERN; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        x[i] = (float)((int32_t)(state >> 33) - (1 << 30)) / (float)(1 << 30);
    }
    for (int64_t i = PATTERN; i < n; i++) x[i] = x[i - PATTERN];
    return x;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t tiles(int64_t n, int64_t size) { return (n + size - 1) / size; }

/* Seconds of a loop over the tasks, as a mean. */
static double timed(nf_pool *pool, int64_t count, nf_task task, void *context, int calls) {
    nf_pool_run(pool, count, task, context);
    double begun = now();
    for (int i = 0; i < calls; i++) nf_pool_run(pool, count, task, context);
    return (now() - begun) / calls;
}

/* -------- linear -------- */

typedef struct product {
    nf_linear w;
    nf_operand x;
    int input; /* 1: dX from dY */
    int64_t rows, cols;
    float *y;
    char *scratch;
    int64_t scratch_bytes;
} product;

static void prepare_task(void *context, int64_t index, int worker) {
    const product *p = context;
    int64_t row = index * PREPARE_ROWS, rows = least(PREPARE_ROWS, p->rows - row);
    (void)worker;
    if (p->input)
        nf_linear_prepare_gradient(&p->w, &p->x, 0, row, rows);
    else
        nf_linear_prepare(&p->w, &p->x, row, rows);
}

static void product_task(void *context, int64_t index, int worker) {
    const product *p = context;
    int64_t across = tiles(p->cols, TILE_COLS), width = tiles(p->cols, across * PANEL) * PANEL;
    int64_t row = index / across * TILE_ROWS, col = index % across * width;
    int64_t rows = least(TILE_ROWS, p->rows - row), end = least(p->cols, col + width);
    float *y = p->y + row * p->cols + col;
    void *scratch = p->scratch + worker * p->scratch_bytes;
    if (p->input)
        nf_linear_tile_input(&p->w, y, p->cols, &p->x, row, rows, 0, col, end, NULL, scratch);
    else
        nf_linear_tile(&p->w, y, p->cols, &p->x, row, rows, col, end, NULL, scratch);
}

/* 1 when `form` names the kind, with or without instructions after it. */
static int is_form(const char *form, const char *kind) {
    size_t n = strlen(kind);
    return strncmp(form, kind, n) == 0 && (form[n] == 0 || form[n] == '/');
}

/* The instructions that the form names, those of nf_linear_of where it names none. */
static nf_linear through(nf_linear l, const char *form) {
    const char *name = strchr(form, '/');
    if (!name) return l;
    const nf_narrow_form *found = NULL;
    for (int i = 0; (found = nf_narrow_form_at(i)); i++)
        if (strcmp(found->name, name + 1) == 0 && found->int8 == (l.kind == NF_LINEAR_INT8)) break;
    if (strcmp(name, "/widened") != 0 && (!found || found->needs & ~nf_cpu_features())) {
        fprintf(stderr, "%s: not on this machine\n", form);
        exit(1);
    }
    l.narrow = found;
    return l;
}

static nf_linear weight(const char *form, int64_t out, int64_t in, float *values, void *narrow, float *scale) {
    if (is_form(form, "bf16")) {
        nf_to_bf16(narrow, values, out * in);
        return through(nf_linear_of(NF_LINEAR_BF16, out, in, narrow, NULL), form);
    }
    if (is_form(form, "int8")) {
        nf_to_int8(narrow, scale, values, out, in);
        return through(nf_linear_of(NF_LINEAR_INT8, out, in, narrow, scale), form);
    }
    return nf_linear_of(NF_LINEAR_F32, out, in, values, NULL);
}

static void time_linear(const char *form, int input, int64_t rows, int64_t out, int64_t in, nf_pool *pool, int calls) {
    int64_t width = input ? out : in, cols = input ? in : out, widest = out > in ? out : in;
    float *values = floats(out * in), *scale = floats(out), *x = floats(rows * width), *y = floats(rows * cols);
    void *narrow = memory(out * in * 2), *operand = memory(nf_operand_bytes(rows, width));
    product p = {.w = weight(form, out, in, values, narrow, scale), .input = input, .rows = rows, .cols = cols, .y = y};
    p.x = nf_operand_in(operand, x, width, rows, width);
    p.scratch_bytes = tiles(nf_linear_scratch(widest, 0), ALIGN) * ALIGN;
    p.scratch = memory(p.scratch_bytes * nf_pool_threads(pool));
    double prepare = timed(pool, tiles(rows, PREPARE_ROWS), prepare_task, &p, calls);
    double multiply = timed(pool, tiles(rows, TILE_ROWS) * tiles(cols, TILE_COLS), product_task, &p, calls);
    printf("%.9f %.9f\n", multiply, prepare);
    free(values), free(scale), free(x), free(y), free(narrow), free(operand), free(p.scratch);
}

/* -------- attention -------- */

static void time_attention(const char *form, int64_t T, int64_t heads, int64_t kv_heads, int64_t d, nf_pool *pool, int calls) {
    nf_span span = {0, T, 0, T};
    nf_attention a = {
        .heads = heads, .kv_heads = kv_heads, .d = d, .scale = 1.0f / sqrtf((float)d), .spans = &span, .n_spans = 1};
    const nf_kernels *kernels = nf_kernels_for(nf_cpu_isa());
    int64_t n = T * heads * d, n_kv = T * kv_heads * d;
    float *q = floats(n), *k = floats(n_kv), *v = floats(n_kv), *out = floats(n), *lse = floats(T * heads), *d_out = floats(n);
    float *d_q = floats(n), *d_k = floats(n_kv), *d_v = floats(n_kv);
    void *narrow_k = memory(n_kv * 2), *narrow_v = memory(n_kv * 2);
    a.form = weight(form, T, kv_heads * d, k, narrow_k, NULL), a.k = a.form.w;
    a.v = weight(form, T, kv_heads * d, v, narrow_v, NULL).w;
    float *scratch = memory(nf_attention_scratch(d) * nf_pool_threads(pool) * (int64_t)sizeof *scratch);
    double forward = 0.0, backward = 0.0;
    for (int i = 0; i < calls; i++) {
        double begun = now();
        nf_attention_forward(pool, kernels, &a, out, lse, q, scratch);
        double middle = now();
        nf_attention_backward(pool, kernels, &a, d_q, d_k, d_v, d_out, out, lse, q, scratch);
        forward += middle - begun, backward += now() - middle;
    }
    printf("%.9f %.9f\n", forward / calls, backward / calls);
    free(q), free(k), free(v), free(out), free(lse), free(d_out), free(d_q), free(d_k), free(d_v), free(scratch),
        free(narrow_k), free(narrow_v);
}

/* -------- memory -------- */

typedef struct region {
    const nf_kernels *kernels;
    const float *x;
    float *sums;
} region;

static void read_task(void *context, int64_t index, int worker) {
    const region *r = context;
    const float *x = r->x + index * READ_TILE;
    (void)worker;
    r->sums[index] = r->kernels->dot(x, x, READ_TILE);
}

static void time_read(int64_t bytes, nf_pool *pool, int calls) {
    int64_t count = bytes / (READ_TILE * (int64_t)sizeof(float));
    region r = {nf_kernels_for(nf_cpu_isa()), floats(count * READ_TILE), floats(count)};
    printf("%.9f\n", timed(pool, count, read_task, &r, calls));
    free((void *)r.x), free(r.sums);
}

/* -------- requests -------- */

static int answer(const char *line) {
    char form[24], direction[8];
    long long a, b, c, d;
    int threads, calls, what;
    if (sscanf(line, "linear %23s %7s %lld %lld %lld %d %d", form, direction, &a, &b, &c, &threads, &calls) == 7)
        what = 0;
    else if (sscanf(line, "attention %23s %lld %lld %lld %lld %d %d", form, &a, &b, &c, &d, &threads, &calls) == 7)
        what = 1;
    else if (sscanf(line, "read %lld %d %d", &a, &threads, &calls) == 3)
        what = 2;
    else
        return 0;
    nf_pool *pool;
    if (nf_pool_new(&pool, threads) != NF_OK) return 0;
    if (what == 0) time_linear(form, strcmp(direction, "input") == 0, a, b, c, pool, calls);
    if (what == 1) time_attention(form, a, b, c, d, pool, calls);
    if (what == 2) time_read(a * 1000000, pool, calls);
    nf_pool_free(pool);
    fflush(stdout);
    return 1;
}

int main(void) {
    char line[256];
    nf_matmul_single_thread();
    while (fgets(line, sizeof line, stdin))
        if (!answer(line)) {
            fprintf(stderr, "not understood or not possible: %s", line);
            return 1;
        }
    return 0;
}
