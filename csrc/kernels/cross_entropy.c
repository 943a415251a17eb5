/* SPDX-License-Identifier: Apache-2.0 */
#include "cross_entropy.h"

#include <math.h>
#include <string.h>

#include "matmul.h"

enum {
    ROWS = 128,        /* rows of one task */
    CHUNK = 512,       /* logits of one row at a time */
    STRIPES = 16,      /* with few rows the vocabulary is cut into up to this many stripes, to have work for all threads */
    BLOCK = 4 * CHUNK, /* with a trained head: vocabulary rows whose gradient is computed at a time */
    COLUMNS = 256      /* and how many columns of d_x or d_w a task owns */
};

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t tiles_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

/* A function of the shape alone, so that the result does not depend on the number of threads.  No stripe is empty. */
static int64_t stripes_of(int64_t n, int64_t V) {
    int64_t wanted = STRIPES / tiles_of(n, ROWS), chunks = tiles_of(V, CHUNK);
    return tiles_of(chunks, tiles_of(chunks, wanted < 1 ? 1 : wanted));
}

static int64_t align(int64_t bytes) { return (bytes + 63) / 64 * 64; }

static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* What one worker needs for its products: prepared rows of x, prepared logits, scratch; n: rows that a trained head sums. */
static int64_t worker_bytes(int64_t D, int64_t n) {
    return align(nf_operand_bytes(ROWS, D)) + align(nf_operand_bytes(ROWS, CHUNK)) +
           align(nf_linear_scratch(max64(max64(D, BLOCK), n), 0));
}

typedef struct job {
    const nf_kernels *kernels;
    const nf_linear *head;
    const float *x;
    const int32_t *targets;
    int64_t n, stripes, block, block_size;
    int add; /* to d_w */
    float *losses, *d_x, *d_w, *logits;
    char *workers;                             /* worker_bytes of each */
    void *inputs, *probabilities, *transposed; /* of a trained head: memory of its operands */
    float *part_x;                             /* (stripes, n, D): sum over the stripe of exp(logit - m) * W[v] */
    float *m, *l;                              /* (stripes, n): running maximum and sum */
    float *target;                             /* (n,): the logit of the target */
} job;

static void stripe_forward(void *context, int64_t index, int worker) {
    const job *j = context;
    const nf_linear *head = j->head;
    int64_t D = head->in, V = head->out, per = tiles_of(tiles_of(V, CHUNK), j->stripes) * CHUNK;
    int64_t stripe = index % j->stripes, row = index / j->stripes * ROWS, rows = min64(ROWS, j->n - row);
    float *m = j->m + stripe * j->n + row, *l = j->l + stripe * j->n + row;
    float *acc = j->part_x ? j->part_x + (stripe * j->n + row) * D : NULL, *logits = j->logits + (int64_t)worker * ROWS * CHUNK;
    char *memory = j->workers + worker * worker_bytes(D, j->n);
    nf_operand x = nf_operand_in(memory, j->x + row * D, D, ROWS, D);
    nf_operand p = nf_operand_in(memory + align(nf_operand_bytes(ROWS, D)), logits, CHUNK, ROWS, CHUNK);
    void *scratch = memory + align(nf_operand_bytes(ROWS, D)) + align(nf_operand_bytes(ROWS, CHUNK));
    nf_linear_prepare(head, &x, 0, rows);
    for (int64_t t = 0; t < rows; t++) m[t] = -INFINITY, l[t] = 0.0f;
    for (int64_t first = stripe * per, v = first, end = min64(V, v + per); v < end; v += CHUNK) {
        int64_t cols = min64(CHUNK, end - v);
        nf_linear_tile(head, logits, CHUNK, &x, 0, rows, v, v + cols, NULL, scratch);
        p.width = cols;
        for (int64_t t = 0; t < rows; t++) { /* all that is done with a row, while it is in the cache */
            float *logit = logits + t * CHUNK;
            int64_t target = j->targets[row + t] - v;
            if (target >= 0 && target < cols) j->target[row + t] = logit[target];
            float correction = j->kernels->softmax_row(logit, cols, &m[t], &l[t]);
            if (!acc) continue;
            if (v > first && correction != 1.0f) j->kernels->scale(acc + t * D, correction, D);
            nf_linear_prepare_gradient(head, &p, v, t, 1);
        }
        if (!acc) continue;
        nf_addend so_far = {.start = v > first ? acc : NULL, .ld = D};
        nf_linear_tile_input(head, acc, D, &p, 0, rows, v, 0, D, &so_far, scratch);
    }
}

/* The target's share of the gradients comes last: a one among thousands of small probabilities would cost them digits. */
static void subtract_target(const job *j, int64_t t, float *row) {
    int64_t D = j->head->in;
    nf_linear_row(j->head, row, j->targets[t]);
    j->kernels->add_scaled(j->d_x + t * D, row, -1.0f, D);
    if (j->d_w) j->kernels->add_scaled(j->d_w + j->targets[t] * D, j->x + t * D, -1.0f, D);
}

/* Join the stripes of one row: loss, and the frozen head's d_x = softmax-weighted mean of W, less the target's row. */
static void join_row(void *context, int64_t t, int worker) {
    const job *j = context;
    int64_t D = j->head->in, n = j->n;
    float top = -INFINITY, total = 0.0f;
    for (int64_t s = 0; s < j->stripes; s++) top = fmaxf(top, j->m[s * n + t]);
    for (int64_t s = 0; s < j->stripes; s++) total += j->l[s * n + t] * expf(j->m[s * n + t] - top);
    j->losses[t] = (top - j->target[t]) + logf(total);
    if (!j->part_x) { /* a trained head reads them again, in the place of stripe 0 */
        j->m[t] = top, j->l[t] = total;
        return;
    }
    memset(j->d_x + t * D, 0, (size_t)D * sizeof *j->d_x);
    for (int64_t s = 0; s < j->stripes; s++)
        j->kernels->add_scaled(j->d_x + t * D, j->part_x + (s * n + t) * D, expf(j->m[s * n + t] - top) / total, D);
    subtract_target(j, t, (float *)(void *)(j->workers + worker * worker_bytes(D, n))); /* where rows of x were prepared */
}

/* -------- a trained head -------- */

/* Operands of the current block of the vocabulary: x, its probabilities, and those transposed. */
static nf_operand inputs_of(const job *j) { return nf_operand_in(j->inputs, j->x, j->head->in, j->n, j->head->in); }
static nf_operand probabilities_of(const job *j) {
    return nf_operand_in(j->probabilities, j->logits, BLOCK, j->n, j->block_size);
}
static nf_operand transposed_of(const job *j) { return nf_operand_in(j->transposed, j->logits, BLOCK, BLOCK, j->n); }

static void prepare_inputs(void *context, int64_t index, int worker) {
    const job *j = context;
    int64_t row = index * ROWS;
    nf_operand x = inputs_of(j);
    (void)worker;
    nf_linear_prepare(j->head, &x, row, min64(ROWS, j->n - row));
}

/* One tile of the softmax for the current block. */
static void block_probabilities(void *context, int64_t index, int worker) {
    const job *j = context;
    int64_t chunks = tiles_of(j->block_size, CHUNK), row = index / chunks * ROWS, rows = min64(ROWS, j->n - row);
    int64_t col = index % chunks * CHUNK, cols = min64(CHUNK, j->block_size - col), v = j->block + col;
    float *p = j->logits + row * BLOCK + col;
    nf_operand x = inputs_of(j);
    nf_linear_tile(j->head, p, BLOCK, &x, row, rows, v, v + cols, NULL, j->workers + worker * worker_bytes(j->head->in, j->n));
    j->kernels->softmax_again(p, BLOCK, rows, cols, 1.0f, cols, 0, j->m + row);
    for (int64_t t = 0; t < rows; t++) j->kernels->scale(p + t * BLOCK, 1.0f / j->l[row + t], cols);
}

/* The probabilities as the two gradients want them: by rows, and by columns of the vocabulary. */
static void prepare_block(void *context, int64_t index, int worker) {
    const job *j = context;
    int64_t rows = tiles_of(j->n, ROWS), row = index * ROWS, col = (index - rows) * CHUNK;
    nf_operand p = probabilities_of(j), p_t = transposed_of(j);
    (void)worker;
    if (index < rows)
        nf_linear_prepare(j->head, &p, row, min64(ROWS, j->n - row));
    else
        nf_linear_prepare_transposed(j->head, &p_t, j->n, col, min64(col + CHUNK, j->block_size));
}

/* Columns of d_w for the block, then the same columns of d_x. */
static void block_gradients(void *context, int64_t index, int worker) {
    const job *j = context;
    int64_t D = j->head->in, col = index * COLUMNS, end = min64(col + COLUMNS, D), v = j->block;
    void *scratch = j->workers + worker * worker_bytes(D, j->n);
    nf_operand x = inputs_of(j), p = probabilities_of(j), p_t = transposed_of(j);
    nf_linear_gradient_tile(j->head, j->d_w + v * D + col, D, &p_t, &x, j->n, 0, j->block_size, col, end, j->add, scratch);
    nf_addend so_far = {.start = v > 0 ? j->d_x + col : NULL, .ld = D};
    nf_linear_tile_input(j->head, j->d_x + col, D, &p, 0, j->n, v, col, end, &so_far, scratch);
}

/* Operands of a trained head, n rows at a time. */
static int64_t trained_bytes(int64_t n, int64_t D) {
    return align(nf_operand_bytes(n, D)) + align(nf_operand_bytes(n, BLOCK)) + align(nf_operand_bytes(BLOCK, n));
}

int64_t nf_cross_entropy_scratch(int64_t n, int64_t D, int64_t V, int workers, int trained) {
    int64_t most = 0; /* the number of stripes falls as rows grow, so a smaller n may need more */
    for (int64_t tiles = 1; tiles <= tiles_of(n, ROWS); tiles++) {
        int64_t rows = min64(n, tiles * ROWS), stripes = stripes_of(rows, V);
        int64_t size = stripes * rows * 2 + (trained ? 0 : stripes * rows * D);
        most = size > most ? size : most;
    }
    int64_t logits = trained ? n * BLOCK : 0, tile = (int64_t)workers * ROWS * CHUNK;
    int64_t bytes = workers * worker_bytes(D, n) + (trained ? trained_bytes(n, D) : 0) + 64;
    return most + n + D + max64(logits, tile) + bytes / (int64_t)sizeof(float);
}

void nf_cross_entropy(nf_pool *pool, const nf_kernels *kernels, const nf_linear *head, const float *x, const int32_t *targets,
                      int64_t n, float *losses, float *d_x, float *d_w, int add, float *scratch) {
    if (n == 0) return;
    int64_t D = head->in, stripes = stripes_of(n, head->out);
    job j = {.kernels = kernels, .head = head, .x = x, .targets = targets, .n = n, .stripes = stripes, .losses = losses};
    j.d_x = d_x, j.d_w = d_w, j.add = add;
    j.m = scratch, j.l = j.m + stripes * n, j.target = j.l + stripes * n;
    float *row = j.target + n;
    j.logits = row + D;
    if (d_x && !d_w) j.part_x = j.logits, j.logits += stripes * n * D;
    int64_t logits = d_w ? n * BLOCK : 0, tile = (int64_t)nf_pool_threads(pool) * ROWS * CHUNK;
    j.workers = (char *)(((uintptr_t)(j.logits + max64(logits, tile)) + 63) / 64 * 64);
    j.inputs = j.workers + nf_pool_threads(pool) * worker_bytes(D, n);
    j.probabilities = (char *)j.inputs + align(nf_operand_bytes(n, D));
    j.transposed = (char *)j.probabilities + align(nf_operand_bytes(n, BLOCK));
    nf_pool_run(pool, tiles_of(n, ROWS) * stripes, stripe_forward, &j);
    nf_pool_run(pool, n, join_row, &j);
    if (d_w) nf_pool_run(pool, tiles_of(n, ROWS), prepare_inputs, &j);
    for (j.block = 0; d_w && j.block < head->out; j.block += BLOCK) {
        j.block_size = min64(BLOCK, head->out - j.block);
        int64_t rows = tiles_of(n, ROWS), chunks = tiles_of(j.block_size, CHUNK);
        nf_pool_run(pool, rows * chunks, block_probabilities, &j);
        if (head->narrow) nf_pool_run(pool, rows + chunks, prepare_block, &j);
        nf_pool_run(pool, tiles_of(D, COLUMNS), block_gradients, &j);
    }
    for (int64_t t = 0; d_w && t < n; t++) subtract_target(&j, t, row);
}
