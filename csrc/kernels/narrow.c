/* SPDX-License-Identifier: Apache-2.0 */
#include <stddef.h>

#include "narrow_inside.h"

/* One STEP more than needed: rows a power of two apart would fall into the same few lines of the cache. */
int64_t nf_narrow_stride(int64_t width) { return (width + STEP - 1) / STEP * STEP + STEP; }

/* The panel (width/2 units of 16 bits), and as many columns of a low-rank product's right side. */
int64_t nf_narrow_scratch(int64_t width, int64_t rank) { return (nf_narrow_stride(width) * 2 + rank * 4) * MOST_COLUMNS; }

const nf_narrow_form *nf_narrow_form_at(int index) {
    const nf_narrow_form *const *const families[] = {nf_narrow_avx512, nf_narrow_avx2, nf_narrow_neon};
    for (int i = 0; i < 3; i++)
        for (const nf_narrow_form *const *form = families[i]; *form; form++)
            if (index-- == 0) return *form;
    return NULL;
}

const nf_narrow_form *nf_narrow_best(int int8, unsigned features) {
    const nf_narrow_form *form;
    for (int i = 0; (form = nf_narrow_form_at(i)); i++)
        if (form->int8 == int8 && !(form->needs & ~features)) return form;
    return NULL;
}
