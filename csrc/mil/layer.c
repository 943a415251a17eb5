/* SPDX-License-Identifier: Apache-2.0 */
/* The procedures of a layer: attention, feed-forward, or both in one, forward and backward; see layers.h. */
#include "compose.h"

static nf_mil_v input_x(nf_mil_part *t, const char *role) {
    return nf_mil_part_input(t, role, t->shape->hidden, t->shape->seq);
}

static nf_mil_v input_documents(nf_mil_part *t) {
    return t->shape->packed ? nf_mil_part_input(t, "documents", 1, t->shape->seq) : 0;
}

/* Either of the two may be missing. */
static void forward(nf_mil *p, const char *name, const nf_mil_shape *shape, const nf_mil_attention *attention,
                    const nf_mil_ffn *ffn) {
    nf_mil_part t = nf_mil_part_begin(p, name, shape);
    nf_mil_v x = input_x(&t, "x");
    if (attention) {
        nf_mil_attending a = nf_mil_attention_open(&t, attention, x, input_documents(&t));
        x = nf_mil_attention_value(&t, &a);
    }
    if (ffn) {
        nf_mil_feeding f = nf_mil_ffn_open(&t, ffn, x);
        x = nf_mil_ffn_value(&t, &f);
    }
    nf_mil_part_output(&t, "y", x);
    nf_mil_end(p);
}

static void backward(nf_mil *p, const char *name, const nf_mil_shape *shape, const nf_mil_attention *attention,
                     const nf_mil_ffn *ffn, int dx) {
    nf_mil_part t = nf_mil_part_begin(p, name, shape);
    nf_mil_v x = input_x(&t, "x"), dy = input_x(&t, "dy");
    dx = dx || shape->trained == NF_MIL_FULL;
    int inner = dx || (attention && nf_mil_attention_trained(&t, attention)); /* whether anything before ffn needs dy */
    nf_mil_attending a = {0};
    if (attention) a = nf_mil_attention_open(&t, attention, x, input_documents(&t));
    if (ffn) {
        nf_mil_feeding f = nf_mil_ffn_open(&t, ffn, attention ? nf_mil_attention_value(&t, &a) : x);
        dy = nf_mil_ffn_gradient(&t, &f, dy, inner);
    }
    if (attention && inner) dy = nf_mil_attention_gradient(&t, &a, dy, dx);
    nf_mil_part_end(&t, dx ? dy : 0);
}

void nf_mil_attention_forward(nf_mil *p, const char *name, const nf_mil_shape *s, const nf_mil_attention *w) {
    forward(p, name, s, w, 0);
}

void nf_mil_attention_backward(nf_mil *p, const char *name, const nf_mil_shape *s, const nf_mil_attention *w, int dx) {
    backward(p, name, s, w, 0, dx);
}

void nf_mil_ffn_forward(nf_mil *p, const char *name, const nf_mil_shape *s, const nf_mil_ffn *w) { forward(p, name, s, 0, w); }

void nf_mil_ffn_backward(nf_mil *p, const char *name, const nf_mil_shape *s, const nf_mil_ffn *w, int dx) {
    backward(p, name, s, 0, w, dx);
}

void nf_mil_layer_forward(nf_mil *p, const char *name, const nf_mil_shape *s, const nf_mil_attention *attention,
                          const nf_mil_ffn *ffn) {
    forward(p, name, s, attention, ffn);
}

void nf_mil_layer_backward(nf_mil *p, const char *name, const nf_mil_shape *s, const nf_mil_attention *attention,
                           const nf_mil_ffn *ffn, int dx) {
    backward(p, name, s, attention, ffn, dx);
}
