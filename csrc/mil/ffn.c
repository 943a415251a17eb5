/* SPDX-License-Identifier: Apache-2.0 */
/* x + Wdown (silu(Wgate n) * Wup n), n = norm(x), and its gradient; see layers.h. */
#include "compose.h"

nf_mil_feeding nf_mil_ffn_open(nf_mil_part *t, const nf_mil_ffn *w, nf_mil_v x) {
    const nf_mil_shape *s = t->shape;
    nf_mil_feeding f = {.about = w, .x = x};
    nf_mil_v gain = nf_mil_gain(t, "ffn_norm_gain", &w->norm, 1, s->hidden);
    f.gate = nf_mil_project(t, "gate", &w->gate, s->ffn, s->hidden);
    f.up = nf_mil_project(t, "up", &w->up, s->ffn, s->hidden);
    f.down = nf_mil_project(t, "down", &w->down, s->hidden, s->ffn);
    f.norm = nf_mil_norm(t, "ffn_norm", x, gain, 1, s->hidden);
    f.n = nf_mil_normed_value(t->p, &f.norm);
    return f;
}

/* `with_up`: u is needed; `with_gated`: a is. */
static void gate_up(nf_mil_part *t, nf_mil_feeding *f, int with_up, int with_gated) {
    f->g = nf_mil_projected(t, &f->gate, f->n);
    if (with_up) f->u = nf_mil_projected(t, &f->up, f->n);
    f->s = nf_mil_one(t->p, "sigmoid", f->g);
    if (with_gated) f->a = nf_mil_two(t->p, "mul", f->g, f->s);
}

nf_mil_v nf_mil_ffn_value(nf_mil_part *t, nf_mil_feeding *f) {
    gate_up(t, f, 1, 1);
    return nf_mil_two(t->p, "add", f->x, nf_mil_projected(t, &f->down, nf_mil_two(t->p, "mul", f->a, f->u)));
}

/* d_gate = dh * u * s (1 + g (1 - s)) */
static nf_mil_v gate_gradient(nf_mil *p, const nf_mil_feeding *f, nf_mil_v dh) {
    nf_mil_v one = nf_mil_scalar(p, 1.0f);
    nf_mil_v rest = nf_mil_two(p, "add", nf_mil_two(p, "mul", f->g, nf_mil_two(p, "sub", one, f->s)), one);
    return nf_mil_two(p, "mul", nf_mil_two(p, "mul", dh, f->u), nf_mil_two(p, "mul", f->s, rest));
}

nf_mil_v nf_mil_ffn_gradient(nf_mil_part *t, nf_mil_feeding *f, nf_mil_v dy, int dx) {
    nf_mil *p = t->p;
    const nf_mil_ffn *w = f->about;
    int gate = dx || w->gate.rank, up = dx || w->up.rank, down = nf_mil_is_trained(t, &w->down);
    gate_up(t, f, gate || down, up || down);
    nf_mil_v h = down ? nf_mil_two(p, "mul", f->a, f->u) : 0, dn = 0;
    nf_mil_v dh = nf_mil_projection_gradient(t, &f->down, dy, h, gate || up);
    if (gate) dn = nf_mil_projection_gradient(t, &f->gate, gate_gradient(p, f, dh), f->n, dx);
    if (up) dn = nf_mil_sum(p, dn, nf_mil_projection_gradient(t, &f->up, nf_mil_two(p, "mul", dh, f->a), f->n, dx));
    return dx ? nf_mil_two(p, "add", dy, nf_mil_norm_gradient(t, &f->norm, dn, 1)) : 0;
}
