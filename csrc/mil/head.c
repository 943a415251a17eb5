/* SPDX-License-Identifier: Apache-2.0 */
/* The last norm and rows of the classifier, and their gradients; the loss is the caller's. See layers.h. */
#include "compose.h"

typedef struct head {
    nf_mil_v x, dy, acc;
    nf_mil_linear linear;
    nf_mil_projection rows;
    nf_mil_normed norm;
    nf_mil_v n; /* what the rows are multiplied with */
} head;

static void open_head(nf_mil_part *t, head *h, const nf_mil_head *w, int backward) {
    const nf_mil_shape *s = t->shape;
    h->linear = (nf_mil_linear){.weight = w->weight};
    int read_n = !backward || s->trained == NF_MIL_FULL, read = read_n || w->norm.rows;
    if (read) h->x = nf_mil_part_input(t, "x", s->hidden, s->seq);
    if (backward) h->dy = nf_mil_part_input(t, "dy", w->weight.rows, s->seq);
    if (backward && w->accumulate) h->acc = nf_mil_part_input(t, "acc", s->hidden, s->seq);
    nf_mil_v gain = w->norm.rows ? nf_mil_gain(t, "norm_gain", &w->norm, 1, s->hidden) : 0;
    h->rows = nf_mil_project(t, "head", &h->linear, w->weight.rows, s->hidden);
    if (gain) h->norm = nf_mil_norm(t, "norm", h->x, gain, 1, s->hidden);
    h->n = h->x;
    if (gain && read_n) h->n = nf_mil_normed_value(t->p, &h->norm);
}

void nf_mil_head_forward(nf_mil *p, const char *name, const nf_mil_shape *shape, const nf_mil_head *w) {
    nf_mil_part t = nf_mil_part_begin(p, name, shape);
    head h = {0};
    open_head(&t, &h, w, 0);
    nf_mil_part_output(&t, "y", nf_mil_projected(&t, &h.rows, h.n));
    nf_mil_end(p);
}

/* Without a norm and with frozen rows x is not needed, and not a port. */
void nf_mil_head_backward(nf_mil *p, const char *name, const nf_mil_shape *shape, const nf_mil_head *w) {
    nf_mil_part t = nf_mil_part_begin(p, name, shape);
    head h = {0};
    open_head(&t, &h, w, 1);
    nf_mil_v dx = nf_mil_projection_gradient(&t, &h.rows, h.dy, h.n, 1);
    if (h.norm.direction) dx = nf_mil_norm_gradient(&t, &h.norm, dx, 1);
    nf_mil_part_end(&t, h.acc ? nf_mil_two(p, "add", dx, h.acc) : dx);
}

void nf_mil_norm_forward(nf_mil *p, const char *name, const nf_mil_shape *s, const nf_mil_array *gain) {
    nf_mil_part t = nf_mil_part_begin(p, name, s);
    nf_mil_v x = nf_mil_part_input(&t, "x", s->hidden, s->seq);
    nf_mil_v g = nf_mil_gain(&t, "norm_gain", gain, 1, s->hidden);
    nf_mil_normed norm = nf_mil_norm(&t, "norm", x, g, 1, s->hidden);
    nf_mil_part_output(&t, "y", nf_mil_normed_value(p, &norm));
    nf_mil_end(p);
}

void nf_mil_norm_backward(nf_mil *p, const char *name, const nf_mil_shape *s, const nf_mil_array *gain) {
    nf_mil_part t = nf_mil_part_begin(p, name, s);
    nf_mil_v x = nf_mil_part_input(&t, "x", s->hidden, s->seq), dy = nf_mil_part_input(&t, "dy", s->hidden, s->seq);
    nf_mil_v g = nf_mil_gain(&t, "norm_gain", gain, 1, s->hidden);
    nf_mil_normed norm = nf_mil_norm(&t, "norm", x, g, 1, s->hidden);
    nf_mil_part_end(&t, nf_mil_norm_gradient(&t, &norm, dy, 1));
}
