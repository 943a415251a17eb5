/* SPDX-License-Identifier: Apache-2.0 */
/* The body of products with narrow weights.  The file of an instruction family includes it once for each form, with
     NF_NAME(x)           a name of its own for each function
     NF_LABEL, NF_NEEDS   name and needs of the nf_narrow_form
     NF_TARGET            a function attribute that turns the instructions on
     NF_INT8              1 int8, 0 bf16
     NF_SIZE              bytes of a prepared element: 4 / NF_SIZE neighbours are a unit
     NF_OFFSET            what is added to prepared int8
     NF_ROWS              rows of a register tile
     NF_ADD(sum, x, w)    *sum += the products of NF_W units
     NF_UNITS(row, left)  NF_W units from the `left` bytes at `row` of a weight, 0 behind them
     NF_ACROSS(to, w, apart, rows, cols)  a unit of each column of two vectors of them, from rows that are `apart` bytes apart
     NF_ACROSS_PAIR(to, other, w, apart)  where it is defined, the same of four whole rows for two panels side by side
     NF_PUT(to, v)        NF_W prepared elements, from float32 for bf16 and from whole numbers for int8
     NF_SUMS              where it is defined, a function in place of the one below that multiplies a group of rows
   The family gives NF_W, the vectors vf and vi of NF_W lanes, floats_at, put_floats, put_past (past the caches) and past_done,
   sum_of_floats, sum_of_units, largest_of_units, splat, whole, larger and transpose.  What belongs to a form is undefined at
   the end. */

#define NF_FORM static inline __attribute__((always_inline)) NF_TARGET

enum { NF_NAME(ELEMENTS) = 4 / NF_SIZE, NF_NAME(W_SIZE) = NF_INT8 ? 1 : 2, NF_NAME(COLUMNS) = 2 * NF_W };
enum { NF_NAME(UNROLL) = NF_W == 16 ? UNITS_PER_LINE : 1 }; /* units; other families lack the registers */

/* -------- activations -------- */

#if NF_INT8
/* Values from i on; `all` of a vector are there, or those before `width`. */
NF_FORM vf NF_NAME(scaled)(const float *x, const float *factor, int64_t i, int64_t width, const int all) {
    const int64_t left = all ? NF_W : width - i;
    vf v = floats_at(x + i, left);
    return factor ? v * floats_at(factor + i, left) : v;
}

/* The largest magnitude of a row; *broken is set where a value is not finite. */
NF_FORM float NF_NAME(largest)(const float *x, const float *factor, int64_t width, int *broken) {
    const vi magnitude = splat(0x7fffffff);
    vi high[4] = {splat(0), splat(0), splat(0), splat(0)};
    int64_t i = 0;
    float value;
    /* As integers: magnitudes have the order of their bits, and what is not finite is above all others. */
    for (; i + 4 * NF_W <= width; i += 4 * NF_W)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++)
            high[k] = larger(high[k], (vi)NF_NAME(scaled)(x, factor, i + NF_W * k, width, 1) & magnitude);
    for (; i < width; i += NF_W) high[0] = larger(high[0], (vi)NF_NAME(scaled)(x, factor, i, width, 0) & magnitude);
    int32_t top = largest_of_units(larger(larger(high[0], high[1]), larger(high[2], high[3])));
    *broken = top >= 0x7f800000;
    memcpy(&value, &top, sizeof value);
    return value;
}

/* Whether no more than `most` magnitudes are above `limit`.  Mostly the first few are too many. */
NF_FORM int NF_NAME(few_above)(const float *x, int64_t width, float limit, int32_t most) {
    const vi magnitude = splat(0x7fffffff), least = (vi)(limit + (vf)splat(0));
    vi count = splat(0);
    int64_t i = 0;
    for (; i + 8 * NF_W <= width; i += 8 * NF_W) {
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) count -= ((vi)floats_at(x + i + NF_W * k, NF_W) & magnitude) > least;
        if (sum_of_units(count) > most) return 0;
    }
    for (; i < width; i += NF_W) count -= ((vi)floats_at(x + i, width - i) & magnitude) > least;
    return sum_of_units(count) <= most;
}

/* One row, in steps of its largest magnitude / 127. */
NF_FORM void NF_NAME(prepare_row)(char *to, float *scale, const float *x, const float *factor, int64_t width,
                                  const nf_taken *taken, int64_t t) {
    const int64_t filled = nf_narrow_stride(width) - STEP;
    int broken, outliers = 0;
    int64_t i = 0;
    float top = NF_NAME(largest)(x, factor, width, &broken);
    if (taken && !broken && NF_NAME(few_above)(x, width, top * NF_OUTLIER_RATIO, nf_outliers_most(width)))
        outliers = nf_outliers_find(&taken->of_rows[t], &top, x, width);
    if (taken) taken->counts[t] = outliers;
    *scale = broken ? NAN : top / 127.0f;
    if (broken || top < NF_NARROW_SMALLEST) {
        for (; i < filled; i += NF_W) NF_PUT(to + i * NF_SIZE, splat(0));
        return;
    }
    const float inverse = 127.0f / top;
    for (; i + NF_W <= width; i += NF_W) NF_PUT(to + i * NF_SIZE, whole(NF_NAME(scaled)(x, factor, i, width, 1) * inverse));
    for (; i < filled; i += NF_W) NF_PUT(to + i * NF_SIZE, whole(NF_NAME(scaled)(x, factor, i, width, 0) * inverse));
    for (int k = 0; k < outliers; k++) memset(to + taken->of_rows[t].list[k].at * NF_SIZE, NF_OFFSET, NF_SIZE);
}

static NF_TARGET void NF_NAME(prepare)(void *out, float *scale, const float *x, int64_t ldx, const float *factor, int64_t rows,
                                       int64_t width, const nf_taken *taken) {
    char *to = out;
    for (int64_t t = 0; t < rows; t++, to += nf_narrow_stride(width) * NF_SIZE, x += ldx)
        if (factor) /* a loop of its own for each */
            NF_NAME(prepare_row)(to, scale + t, x, factor, width, taken, t);
        else
            NF_NAME(prepare_row)(to, scale + t, x, NULL, width, taken, t);
}
#else
static NF_TARGET void NF_NAME(prepare)(void *out, float *scale, const float *x, int64_t ldx, const float *factor, int64_t rows,
                                       int64_t width, const nf_taken *taken) {
    const int64_t stride = nf_narrow_stride(width), filled = stride - STEP;
    uint16_t *to = out;
    (void)scale, (void)factor, (void)taken;
    for (int64_t t = 0; t < rows; t++, to += stride, x += ldx) {
        int64_t i = 0;
        for (; i + NF_W <= width; i += NF_W) NF_PUT(to + i, floats_at(x + i, NF_W));
        for (; i < filled; i += NF_W) NF_PUT(to + i, floats_at(x + i, width - i));
    }
}

static NF_TARGET void NF_NAME(prepare_transposed)(uint16_t *out, const float *x, int64_t ldx, int64_t rows, int64_t cols) {
    const int64_t stride = nf_narrow_stride(rows), filled = stride - STEP;
    for (int64_t c = 0; c < cols; c += NF_W)
        for (int64_t t = 0; t < filled; t += NF_W) {
            vi r[NF_W];
            for (int k = 0; k < NF_W; k++) r[k] = t + k < rows ? (vi)floats_at(x + (t + k) * ldx + c, cols - c) : splat(0);
            transpose(r);
            for (int k = 0; k < NF_W && c + k < cols; k++) NF_PUT(out + (c + k) * stride + t, (vf)r[k]);
        }
}
#endif

/* -------- panels: (units, 2) vectors -------- */

/* Unit u of column c is the elements from ELEMENTS * u on of row c of w, which has n of them; `cols` rows count. */
static NF_TARGET void NF_NAME(panel_of_rows)(vi *panel, const char *w, int64_t apart, int64_t n, int64_t cols) {
    const int64_t step = NF_W * NF_NAME(ELEMENTS);
    for (int half = 0; half < 2; half++)
        for (int64_t at = 0; at < n; at += step) {
            vi r[NF_W], *to = panel + at / NF_NAME(ELEMENTS) * 2 + half;
            const char *from = w + NF_W * half * apart + at * NF_NAME(W_SIZE);
            if (cols == NF_NAME(COLUMNS) && n - at >= step)
                for (int c = 0; c < NF_W; c++) r[c] = NF_UNITS(from + c * apart, step * NF_NAME(W_SIZE));
            else
                for (int c = 0; c < NF_W; c++)
                    r[c] = NF_W * half + c < cols ? NF_UNITS(from + c * apart, (n - at) * NF_NAME(W_SIZE)) : splat(0);
            transpose(r);
            for (int u = 0; u < NF_W; u++) to[2 * u] = r[u];
        }
}

/* Unit u of column c is the rows from ELEMENTS * u on of that column, 0 behind n of them. */
static NF_TARGET void NF_NAME(panel_of_columns)(vi *panel, const char *w, int64_t apart, int64_t n, int64_t units,
                                                int64_t cols) {
    for (int64_t u = 0; u < units; u++, w += NF_NAME(ELEMENTS) * apart)
        NF_ACROSS(panel + 2 * u, w, apart, n - u * NF_NAME(ELEMENTS), cols);
}

#ifdef NF_ACROSS_PAIR
/* Two panels from whole cache lines: a panel of bytes alone reads halves of them, and most are gone when the next one comes. */
static NF_TARGET void NF_NAME(pair_of_columns)(vi *panel, vi *other, const char *w, int64_t apart, int64_t n, int64_t units) {
    const int64_t cols = NF_NAME(COLUMNS), whole = n / NF_NAME(ELEMENTS);
    for (int64_t u = 0; u < whole; u++, w += NF_NAME(ELEMENTS) * apart) NF_ACROSS_PAIR(panel + 2 * u, other + 2 * u, w, apart);
    NF_NAME(panel_of_columns)(panel + 2 * whole, w, apart, n % NF_NAME(ELEMENTS), units - whole, cols);
    NF_NAME(panel_of_columns)(other + 2 * whole, w + cols, apart, n % NF_NAME(ELEMENTS), units - whole, cols);
}
#endif

/* -------- the product of some rows with a panel -------- */

NF_FORM vi NF_NAME(unit_of)(const char *row, int64_t u) {
    int32_t unit;
    memcpy(&unit, row + 4 * u, sizeof unit);
    return splat(unit);
}

/* sums += the low-rank product, for `rows` rows. */
NF_FORM void NF_NAME(add_low_rank)(const nf_addend *add, int64_t row, const int rows, vf sums[NF_ROWS][2]) {
    for (int64_t k = 0; k < add->r; k++) {
        const float *u = add->u + row * add->ldu + k, *v = add->v + k * NF_NAME(COLUMNS);
        vf left = floats_at(v, NF_W), right = floats_at(v + NF_W, NF_W);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            sums[r][0] += u[r * add->ldu] * left;
            sums[r][1] += u[r * add->ldu] * right;
        }
    }
}

/* y = sums + the other parts of what is added, for `rows` rows.  A loop over the halves that is not unrolled, here or below,
   would keep all sums in memory. */
NF_FORM void NF_NAME(put_whole_rows)(const tile *t, int64_t row, const int rows, vf sums[NF_ROWS][2]) {
    const nf_addend *add = &t->add;
    float *y = t->y + row * t->ldy;
    const float *start = add->start ? add->start + row * add->ld : NULL;
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        vf bias = add->bias ? floats_at(add->bias + NF_W * half, NF_W) : (vf)splat(0);
        if (add->bias)
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) sums[r][half] += bias;
        if (start)
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) sums[r][half] += floats_at(start + r * add->ld + NF_W * half, NF_W);
        if (t->past)
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) put_past(y + r * t->ldy + NF_W * half, sums[r][half]);
        else
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) put_floats(y + r * t->ldy + NF_W * half, sums[r][half], NF_W);
    }
}

/* The same for a panel with fewer columns, out of line. */
static NF_TARGET __attribute__((noinline)) void NF_NAME(put_part_of_rows)(const tile *t, int64_t row, int rows,
                                                                          const vf sums[NF_ROWS][2]) {
    const nf_addend *add = &t->add;
    for (int half = 0; half < 2; half++) {
        const int64_t at = NF_W * half, some = t->cols - at;
        vf bias = add->bias ? floats_at(add->bias + at, some) : (vf)splat(0);
        for (int r = 0; r < rows; r++) {
            vf value = sums[r][half] + bias;
            if (add->start) value += floats_at(add->start + (row + r) * add->ld + at, some);
            put_floats(t->y + (row + r) * t->ldy + at, value, some);
        }
    }
}

NF_FORM void NF_NAME(put_rows)(const tile *t, int64_t row, const int rows, vf sums[NF_ROWS][2]) {
    NF_NAME(add_low_rank)(&t->add, row, rows, sums);
    if (t->cols == NF_NAME(COLUMNS)) {
        NF_NAME(put_whole_rows)(t, row, rows, sums);
        return;
    }
    vf kept[NF_ROWS][2]; /* the sums themselves would have to lie in memory, else */
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) kept[r][0] = sums[r][0], kept[r][1] = sums[r][1];
    NF_NAME(put_part_of_rows)(t, row, rows, kept);
}

#ifndef NF_SUMS
#define NF_SUMS NF_NAME(sums)
/* One unit of each row, with the rows' addresses from every third one: more would not fit into registers. */
NF_FORM void NF_NAME(add_unit)(const char *const row[4], int64_t apart, const vi *panel, int64_t u, const int rows,
                               vi sums[NF_ROWS][2]) {
    vi left = panel[2 * u], right = panel[2 * u + 1];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        vi x = NF_NAME(unit_of)(row[r / 3] + r % 3 * apart, u);
        NF_ADD(&sums[r][0], x, left);
        NF_ADD(&sums[r][1], x, right);
    }
}

/* What comes next is asked for line by line, so that the sums never wait for memory. */
NF_FORM void NF_NAME(sums)(const tile *t, const char *const *a, vi sums[NF_ROWS][2], const int rows, request next) {
    const int64_t apart = t->a_stride, units = t->units;
    const char *row[4] = {a[0], a[0] + 3 * apart, a[0] + 6 * apart, a[0] + 9 * apart};
    const vi *panel = t->panel;
    int64_t u = 0;
    for (; u + NF_NAME(UNROLL) <= units; u += NF_NAME(UNROLL)) {
        if (u % UNITS_PER_LINE == 0) ask(&next);
#pragma GCC unroll 4
        for (int i = 0; i < (rows + 2) / 3; i++) __asm__("" : "+r"(row[i])); /* else there is an address for each row */
#pragma GCC unroll 4
        for (int k = 0; k < NF_NAME(UNROLL); k++) NF_NAME(add_unit)(row, apart, panel, u + k, rows, sums);
    }
    for (; u < units; u++) NF_NAME(add_unit)(row, apart, panel, u, rows, sums);
}
#endif

NF_FORM vf NF_NAME(column_scale)(const tile *t, int half) {
    return t->w_scale ? floats_at(t->w_scale + NF_W * half, t->cols - NF_W * half) : __builtin_convertvector(splat(1), vf);
}

NF_FORM void NF_NAME(multiply_rows)(const tile *t, int64_t row, const int rows, const vi offset[2], request next) {
    vi sums[NF_ROWS][2];
    vf values[NF_ROWS][2];
    const char *a[NF_ROWS];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        sums[r][0] = offset[0], sums[r][1] = offset[1];
        a[r] = t->a + (row + r) * t->a_stride;
    }
    const float *y = t->y + row * t->ldy, *start = t->add.start ? t->add.start + row * t->add.ld : NULL;
    const int64_t two = NF_W > 8, lines = (1 + two) * rows, size = sizeof *y;
    next.y = (ends){(const char *)y, t->ldy * size, t->past ? 0 : lines, two};
    next.start = (ends){(const char *)start, t->add.ld * size, start && start != y ? lines : 0, two};
    NF_SUMS(t, a, sums, rows, next);
    const vf scale[2] = {NF_NAME(column_scale)(t, 0), NF_NAME(column_scale)(t, 1)};
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++)
            values[r][half] =
                NF_INT8 ? __builtin_convertvector(sums[r][half], vf) * t->a_scale[row + r] * scale[half] : (vf)sums[r][half];
    NF_NAME(put_rows)(t, row, rows, values);
}

/* What the offset of the activations adds to each sum, taken away before it begins. */
NF_FORM void NF_NAME(take_offset)(const tile *t, vi start[2]) {
    const vi *panel = t->panel;
    vi sums[8]; /* several, because one would wait for itself */
    int64_t i = 0;
#pragma GCC unroll 8
    for (int k = 0; k < 8; k++) sums[k] = splat(0);
    for (; i + 8 <= 2 * t->units; i += 8)
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) NF_ADD(&sums[k], splat(0x01010101), panel[i + k]);
    for (; i < 2 * t->units; i += 2)
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) NF_ADD(&sums[k], splat(0x01010101), panel[i + k]);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++)
        start[half] = ((sums[half] + sums[half + 2]) + (sums[half + 4] + sums[half + 6])) * -NF_OFFSET;
}

static NF_TARGET void NF_NAME(multiply)(const tile *t, int64_t rows) {
    const int64_t groups = (rows + NF_ROWS - 1) / NF_ROWS, lines = t->next.rows * t->next.lines;
    request next = {.row = t->next.at, .lines = t->next.lines, .apart = t->next.apart};
    int64_t group = 0, asked = 0;
    vi start[2] = {splat(0), splat(0)};
    if (NF_OFFSET) NF_NAME(take_offset)(t, start);
    for (int64_t row = 0; row < rows; row += NF_ROWS) {
        next.left = lines * ++group / groups - asked;
#define NF_CASE(n)                                                                                                             \
    case n:                                                                                                                    \
        NF_NAME(multiply_rows)(t, row, n < NF_ROWS ? n : NF_ROWS, start, next);                                                \
        break;
        switch (min64(NF_ROWS, rows - row)) { /* a constant number in each case */
            NF_CASE(1)
            NF_CASE(2)
            NF_CASE(3)
            NF_CASE(4)
#if NF_ROWS > 4
            NF_CASE(5)
            NF_CASE(6)
#endif
#if NF_ROWS > 6
            NF_CASE(7)
            NF_CASE(8)
            NF_CASE(9)
            NF_CASE(10)
            NF_CASE(11)
            NF_CASE(12)
#endif
        }
#undef NF_CASE
        asked += next.left;
        go_on(&next);
    }
}

/* -------- one row of activations: each weight is used once, so it is read where it lies -------- */

/* The products of NF_W units from element i on, of which `left` count. */
NF_FORM void NF_NAME(add_part)(vi *sum, vi *of_w, const char *a, const char *w, int64_t i, int64_t left) {
    const char *from = w + i * NF_NAME(W_SIZE);
    vi x, row;
    memcpy(&x, a + i * NF_SIZE, sizeof x);
    if (i * NF_NAME(W_SIZE) % LINE == 0) __builtin_prefetch(from + AHEAD, 0, 3);
    row = NF_UNITS(from, left * NF_NAME(W_SIZE));
    NF_ADD(sum, x, row);
    if (NF_OFFSET) NF_ADD(of_w, splat(0x01010101), row);
}

/* The product with row o of the weight.  Row after row is one stream of memory: a processor reads it a third faster than four
   rows side by side. */
NF_FORM float NF_NAME(dot)(const nf_narrow *n, const char *a, const float *a_scale, int64_t o) {
    const int64_t step = NF_W * NF_NAME(ELEMENTS);
    const char *w = (const char *)n->w + o * n->ld * NF_NAME(W_SIZE);
    vi sums[4], of_w[4]; /* several, because one would wait for itself */
    int64_t i = 0;
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) sums[k] = of_w[k] = splat(0);
    for (; i + 4 * step <= n->in; i += 4 * step)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) NF_NAME(add_part)(&sums[k], &of_w[k], a, w, i + k * step, step);
    for (; i < n->in; i += step) NF_NAME(add_part)(&sums[0], &of_w[0], a, w, i, n->in - i);
    if (!NF_INT8) return sum_of_floats(((vf)sums[0] + (vf)sums[1]) + ((vf)sums[2] + (vf)sums[3]));
    vi sum = (sums[0] + sums[1]) + (sums[2] + sums[3]), offset = (of_w[0] + of_w[1]) + (of_w[2] + of_w[3]);
    return (float)(sum_of_units(sum) - NF_OFFSET * sum_of_units(offset)) * *a_scale * n->scale[o];
}

static NF_TARGET void NF_NAME(one_row)(const nf_narrow *n, float *y, const void *a, const float *a_scale, int64_t o0,
                                       int64_t o1, const nf_addend *add) {
    for (int64_t o = o0, c = 0; o < o1; o++, c++) {
        float value = NF_NAME(dot)(n, a, a_scale, o) + (add->bias ? add->bias[c] : 0.0f) + (add->start ? add->start[c] : 0.0f);
        for (int64_t k = 0; k < add->r; k++) value += add->scale * add->u[k] * add->v[k * add->v_k + c * add->v_c];
        y[c] = value;
    }
}

/* -------- all panels of a tile -------- */

/* An even number, for instructions that take two units at once. */
NF_FORM int64_t NF_NAME(units_of)(int64_t n) { return ((n + NF_NAME(ELEMENTS) - 1) / NF_NAME(ELEMENTS) + 1) & ~1ll; }

static NF_TARGET void NF_NAME(forward)(const nf_narrow *n, float *y, int64_t ldy, const void *a, const float *a_scale,
                                       int64_t rows, int64_t o0, int64_t o1, const nf_addend *add, void *scratch) {
    const int64_t COLUMNS = NF_NAME(COLUMNS), size = NF_NAME(W_SIZE), apart = n->ld * size, block = BLOCK / size;
    if (rows == 1) {
        NF_NAME(one_row)(n, y, a, a_scale, o0, o1, add);
        return;
    }
    tile t = {.ldy = ldy, .a_stride = nf_narrow_stride(n->in) * NF_SIZE, .a_scale = a_scale, .panel = scratch};
    for (int64_t o = o0; o < o1; o += COLUMNS) {
        const char *w = (const char *)n->w + o * apart;
        t.y = y + (o - o0), t.cols = min64(COLUMNS, o1 - o), t.w_scale = NF_INT8 ? n->scale + o : NULL;
        t.add = addend_at(add, o - o0, t.cols, COLUMNS, behind_panel(scratch, n->in));
        for (int64_t k = 0; k < n->in; k += block) {
            int64_t part = min64(block, n->in - k), last = k + block >= n->in;
            t.a = (const char *)a + k * NF_SIZE, t.units = NF_NAME(units_of)(part);
            const char *next = last ? w + COLUMNS * apart : w + (k + block) * size;
            t.next = (source){0};
            if (!last || o + COLUMNS < n->out)
                t.next = (source){next, last ? min64(COLUMNS, n->out - o - COLUMNS) : t.cols, (part * size + LINE - 1) / LINE,
                                  apart};
            NF_NAME(panel_of_rows)(scratch, w + k * size, apart, part, t.cols);
            NF_NAME(multiply)(&t, rows);
            t.add = (nf_addend){.start = t.y, .ld = ldy};
        }
    }
}

static NF_TARGET void NF_NAME(input)(const nf_narrow *n, float *dx, int64_t lddx, const void *a, const float *a_scale,
                                     int64_t rows, int64_t o0, int64_t o1, int64_t i0, int64_t i1, const nf_addend *add,
                                     void *scratch) {
    const int64_t COLUMNS = NF_NAME(COLUMNS), size = NF_NAME(W_SIZE), apart = n->ld * size, block = BLOCK / size;
    const int64_t width = o1 - o0;
#ifdef NF_ACROSS_PAIR
    int paired = 0; /* the panel was made together with the one before it */
#endif
    tile t = {.ldy = lddx, .a_stride = nf_narrow_stride(width) * NF_SIZE, .a_scale = a_scale, .panel = scratch};
    for (int64_t i = i0; i < i1; i += COLUMNS) {
        const char *w = (const char *)n->w + o0 * apart + i * size;
        t.y = dx + (i - i0), t.cols = min64(COLUMNS, i1 - i);
        t.past = add->past && width <= block && t.cols == COLUMNS && (uintptr_t)t.y % LINE == 0 && lddx * 4 % LINE == 0;
        t.add = addend_at(add, i - i0, t.cols, COLUMNS, behind_panel(scratch, width));
        for (int64_t k = 0; k < width; k += block) {
            int64_t part = min64(block, width - k), last = k + block >= width;
            t.a = (const char *)a + k * NF_SIZE, t.units = NF_NAME(units_of)(part);
            t.next = (source){0};
            if (!last) t.next = (source){w + (k + block) * apart, min64(block, width - k - block), 1, apart};
            if (last && i + COLUMNS < n->in) t.next = (source){w + COLUMNS * size, min64(block, width), 1, apart};
#ifdef NF_ACROSS_PAIR
            vi *other = (vi *)scratch + 2 * t.units;
            const int64_t begins = (int64_t)((uintptr_t)w % LINE);
            if (paired) {
                t.panel = other, paired = 0;
            } else if (width <= block && i1 - i >= 2 * COLUMNS && begins < COLUMNS) {
                NF_NAME(pair_of_columns)(scratch, other, w, apart, part, t.units);
                t.panel = scratch, t.next = (source){0}, paired = 1;
            } else
#endif
            {
                NF_NAME(panel_of_columns)(scratch, w + k * apart, apart, part, t.units, t.cols);
                t.panel = scratch;
            }
            NF_NAME(multiply)(&t, rows);
            t.add = (nf_addend){.start = t.y, .ld = lddx};
        }
    }
    if (add->past) past_done();
}

static const nf_narrow_form NF_NAME(form) = {
    .name = NF_LABEL,
    .needs = NF_NEEDS,
    .int8 = NF_INT8,
    .size = NF_SIZE,
    .prepare = NF_NAME(prepare),
#if !NF_INT8
    .prepare_transposed = NF_NAME(prepare_transposed),
#endif
    .forward = NF_NAME(forward),
    .input = NF_NAME(input),
};

#undef NF_FORM
#undef NF_NAME
#undef NF_LABEL
#undef NF_NEEDS
#undef NF_TARGET
#undef NF_INT8
#undef NF_SIZE
#undef NF_OFFSET
#undef NF_ROWS
#undef NF_ADD
#undef NF_UNITS
#undef NF_ACROSS
#undef NF_ACROSS_PAIR
#undef NF_PUT
#undef NF_SUMS
