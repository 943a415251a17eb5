/* SPDX-License-Identifier: Apache-2.0 */
/* Constants in the weight file, in the layout of coremltools' mlmodel/src/MILBlob/Blob/StorageFormat.hpp: a header of 64 bytes
   (count, version 2), then for each entry, aligned to 64, its metadata of 64 bytes and its data.  The text names the place of
   the metadata. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../core/half.h"
#include "inside.h"

enum { ALIGN = 64, SENTINEL = (int)0xDEADBEEF, TYPE_FP16 = 1, TYPE_INT8 = 4 };

static int64_t entry_bytes(const nf_mil_blob *b) { return b->count * (b->form == NF_MIL_BLOB_INT8 ? 1 : 2); }

static int64_t aligned(int64_t n) { return (n + ALIGN - 1) / ALIGN * ALIGN; }

static int equal(const nf_mil_blob *a, const nf_mil_blob *b) {
    if (a->form != b->form || a->transposed != b->transposed || a->source.rows != b->source.rows ||
        a->source.cols != b->source.cols || a->source.stored != b->source.stored || !a->owned != !b->owned)
        return 0;
    if (a->owned) return !memcmp(a->owned, b->owned, (size_t)a->count * sizeof *a->owned);
    if (!a->source.data && !b->source.data) return a->source.key && a->source.key == b->source.key;
    return a->source.data == b->source.data;
}

/* The entry with these values, an earlier one or a new one that takes over `owned`; -1 after an error. */
static int32_t keep(nf_mil *p, nf_mil_blob entry) {
    for (int32_t i = 0; i < p->blobs.count; i++)
        if (equal(nf_mil_blob_at(p, i), &entry)) {
            free(entry.owned);
            return i;
        }
    nf_mil_blob *kept = nf_mil_grow(p, &p->blobs, sizeof *kept);
    if (!kept) {
        free(entry.owned);
        return -1;
    }
    *kept = entry;
    kept->offset = p->blob_end;
    p->blob_end = aligned(p->blob_end + 64 + entry_bytes(kept));
    return p->blobs.count - 1;
}

/* A value for an entry: the procedure's own, once. */
static nf_mil_value value_of(nf_mil *p, nf_mil_type type, int32_t blob) {
    if (blob < 0 || p->status != NF_OK || !p->functions.count) return 0;
    const nf_mil_function *f = nf_mil_function_at(p, p->functions.count - 1);
    for (nf_mil_value v = f->first_value; v <= f->last_value; v++) {
        const nf_mil_record *r = nf_mil_record_of(p, v);
        if (r->origin == NF_MIL_FROM_BLOB && r->from == blob && !r->inlined && !memcmp(&r->type, &type, sizeof type)) return v;
    }
    return nf_mil_add_value(p, type, NF_MIL_FROM_BLOB, blob);
}

static int check_size(nf_mil *p, const nf_mil_type *type, int64_t count, const char *what) {
    char shape[96];
    if (type->rank < 1 || type->rank > 4) return nf_mil_refuse(p, NF_ERR_ARGUMENT, "a %s of rank %d", what, type->rank);
    return nf_mil_size(type) == count || nf_mil_refuse(p, NF_ERR_ARGUMENT, "a %s of %lld values cannot be %s", what,
                                                       (long long)count, nf_mil_shape_text(shape, type));
}

nf_mil_value nf_mil_table(nf_mil *p, nf_mil_type type, const float *values) {
    if (p->status != NF_OK || !check_size(p, &type, nf_mil_size(&type), "table")) return 0;
    int64_t count = nf_mil_size(&type);
    /* a bound for what is copied: a mask of the widest sequence */
    uint16_t *copy = count <= p->limits.width * p->limits.width ? malloc((size_t)count * sizeof *copy) : NULL;
    if (!copy) return nf_mil_refuse(p, NF_ERR_MEMORY, "no memory for a table of %lld values", (long long)count);
    for (int64_t i = 0; i < count; i++) copy[i] = nf_float_to_half(values[i]);
    nf_mil_array source = {copy, NF_MIL_STORED_F16, count, 1, 0};
    return value_of(p, type, keep(p, (nf_mil_blob){.form = NF_MIL_BLOB_FP16, .source = source, .owned = copy, .count = count}));
}

nf_mil_value nf_mil_weight(nf_mil *p, nf_mil_type type, const nf_mil_array *array, int transposed) {
    int64_t count = array->rows * array->cols;
    if (p->status != NF_OK || !check_size(p, &type, count, "weight")) return 0;
    transposed = transposed && array->rows > 1 && array->cols > 1;
    return value_of(
        p, type, keep(p, (nf_mil_blob){.form = NF_MIL_BLOB_FP16, .source = *array, .transposed = transposed, .count = count}));
}

nf_mil_value nf_mil_weight_int8(nf_mil *p, const nf_mil_array *array, int transposed) {
    if (p->status != NF_OK) return 0;
    int64_t rows = transposed ? array->cols : array->rows, cols = transposed ? array->rows : array->cols;
    nf_mil_blob entry = {.form = NF_MIL_BLOB_INT8, .source = *array, .transposed = transposed, .count = rows * cols};
    int32_t data = keep(p, entry);
    entry.form = NF_MIL_BLOB_SCALES;
    entry.count = rows;
    int32_t scales = keep(p, entry);
    int old = p->dialect == NF_MIL_IOS16;
    nf_mil_type scale_type = {NF_MIL_FP16, old ? 1 : 4, {rows, old ? 0 : 1, old ? 0 : 1, old ? 0 : 1}};
    nf_mil_type type = {NF_MIL_INT8, 4, {rows, cols, 1, 1}};
    /* the constants of the old form stand inside their op, each time anew */
    int32_t d = data < 0 ? 0 : old ? nf_mil_add_value(p, type, NF_MIL_FROM_BLOB, data) : value_of(p, type, data);
    int32_t s = scales < 0 ? 0
                : old      ? nf_mil_add_value(p, scale_type, NF_MIL_FROM_BLOB, scales)
                           : value_of(p, scale_type, scales);
    static const int32_t zero = 0;
    if (!old)
        return nf_mil_apply(p, "constexpr_blockwise_shift_scale", (nf_mil_arg[]){{"data", &d, 1, 0}, {"scale", &s, 1, 0}}, 2);
    nf_mil_arg args[] = {{"quantized_data", &d, 1, 0}, {"scale", &s, 1, 0}, {"axis", &zero, 1, 0}, {"zero_point", &zero, 1, 0}};
    return nf_mil_apply(p, "constexpr_affine_dequantize", args, 4);
}

/* --- the file */

int64_t nf_mil_blob_bytes(const nf_mil *p) { return p->blobs.count ? p->blob_end : 0; }

static float at(const nf_mil_array *a, int64_t i) {
    if (a->stored == NF_MIL_STORED_F32) return ((const float *)a->data)[i];
    uint16_t bits = ((const uint16_t *)a->data)[i];
    if (a->stored == NF_MIL_STORED_F16) return nf_half_to_float(bits);
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Writes value i in fp16; 1 when that is not finite. */
static int put_half(uint8_t *out, int64_t i, float value) {
    uint16_t bits = nf_float_to_half(value);
    out[2 * i] = (uint8_t)bits;
    out[2 * i + 1] = (uint8_t)(bits >> 8);
    return (bits & 0x7c00) == 0x7c00;
}

/* The scale of a row as it is stored; quantised values are relative to it. */
static float row_scale(const nf_mil_array *a, int64_t begin, int64_t step, int64_t cols) {
    float most = 0.0f;
    for (int64_t c = 0; c < cols; c++) most = fmaxf(most, fabsf(at(a, begin + c * step)));
    return nf_half_to_float(nf_float_to_half(fmaxf(most / 127.0f, 0x1p-14f))); /* the least normal fp16 */
}

/* Rows of 64 columns at a time, so that a transpose does not read each line of memory for one value.  As put_rows, gives
   how many values are not finite in fp16. */
static int64_t put_fp16(uint8_t *out, const nf_mil_blob *b) {
    const nf_mil_array *a = &b->source;
    int64_t bad = 0;
    if (!b->transposed)
        for (int64_t i = 0; i < b->count; i++) bad += put_half(out, i, at(a, i));
    for (int64_t c0 = 0; b->transposed && c0 < a->cols; c0 += 64)
        for (int64_t r = 0; r < a->rows; r++)
            for (int64_t c = c0; c < a->cols && c < c0 + 64; c++) bad += put_half(out, c * a->rows + r, at(a, r * a->cols + c));
    return bad;
}

static int64_t put_rows(uint8_t *out, const nf_mil_blob *b) {
    const nf_mil_array *a = &b->source;
    int64_t rows = b->transposed ? a->cols : a->rows, cols = b->transposed ? a->rows : a->cols;
    int64_t next = b->transposed ? 1 : a->cols, step = b->transposed ? a->cols : 1;
    int64_t bad = 0;
    for (int64_t r = 0; r < rows; r++) {
        float scale = row_scale(a, r * next, step, cols);
        if (b->form == NF_MIL_BLOB_SCALES) {
            bad += put_half(out, r, scale);
            continue;
        }
        for (int64_t c = 0; c < cols; c++) {
            float q = rintf(at(a, r * next + c * step) / scale);
            bad += !(fabsf(q) <= 128.0f); /* NaN too */
            out[r * cols + c] = (uint8_t)(int8_t)fmaxf(-127.0f, fminf(127.0f, q));
        }
    }
    return bad;
}

static void put_u32(uint8_t *out, uint32_t v) {
    for (int i = 0; i < 4; i++) out[i] = (uint8_t)(v >> 8 * i);
}

static void put_u64(uint8_t *out, uint64_t v) {
    put_u32(out, (uint32_t)v);
    put_u32(out + 4, (uint32_t)(v >> 32));
}

nf_status nf_mil_write_blob(const nf_mil *p, uint8_t *out) {
    for (int32_t i = 0; i < p->blobs.count; i++)
        if (!nf_mil_blob_at(p, i)->source.data)
            return nf_fail(NF_ERR_STATE, "entry %d of the weight file has no values: the program was built from shapes alone",
                           i);
    if (!p->blobs.count) return NF_OK;
    memset(out, 0, 64);
    put_u32(out, (uint32_t)p->blobs.count);
    put_u32(out + 4, 2);
    for (int32_t i = 0; i < p->blobs.count; i++) {
        const nf_mil_blob *b = nf_mil_blob_at(p, i);
        uint8_t *entry = out + b->offset;
        int64_t bytes = entry_bytes(b);
        memset(entry, 0, 64);
        put_u32(entry, (uint32_t)SENTINEL);
        put_u32(entry + 4, b->form == NF_MIL_BLOB_INT8 ? TYPE_INT8 : TYPE_FP16);
        put_u64(entry + 8, (uint64_t)bytes);
        put_u64(entry + 16, (uint64_t)b->offset + 64);
        int64_t bad = (b->form == NF_MIL_BLOB_FP16 ? put_fp16 : put_rows)(entry + 64, b);
        if (bad)
            return nf_fail(NF_ERR_ARGUMENT, "%lld of the %lld weights in entry %d of the weight file are not finite in fp16",
                           (long long)bad, (long long)b->count, i);
        memset(entry + 64 + bytes, 0, (size_t)(aligned(bytes) - bytes));
    }
    return NF_OK;
}

void nf_mil_free_blobs(nf_mil *p) {
    for (int32_t i = 0; i < p->blobs.count; i++) free(nf_mil_blob_at(p, i)->owned);
}
