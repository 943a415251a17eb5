/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "mil.h"

static int bytes_of(const sim_value *v) { return v->type.dtype == SIM_F16 ? 2 : 4; }

sim_port sim_port_of(const sim_value *v) {
    sim_port p = {{1, 1, 1, 1}, 0, 0, 0};
    for (int i = 0; i < v->type.rank; i++) p.shape[4 - v->type.rank + i] = v->type.shape[i];
    int64_t step = sim_get("row_bytes");
    p.row = (p.shape[3] * bytes_of(v) + step - 1) / step * step;
    p.plane = p.row * p.shape[2];
    p.batch = p.plane * p.shape[1];
    return p;
}

static void read_half(float *values, const unsigned char *row, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        _Float16 half;
        memcpy(&half, row + 2 * i, 2);
        values[i] = (float)half;
    }
}

static void write_half(const float *values, unsigned char *row, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        _Float16 half = (_Float16)values[i];
        memcpy(row + 2 * i, &half, 2);
    }
}

static void move_row(const sim_value *v, float *values, unsigned char *row, int64_t n, int in) {
    if (v->type.dtype == SIM_F16 && in)
        read_half(values, row, n);
    else if (v->type.dtype == SIM_F16)
        write_half(values, row, n);
    else if (in)
        memcpy(values, row, (size_t)n * 4);
    else
        memcpy(row, values, (size_t)n * 4);
}

void sim_move_port(sim_value *v, unsigned char *base, int in) {
    sim_port p = sim_port_of(v);
    float *values = v->data;
    for (int64_t b = 0; b < p.shape[0]; b++)
        for (int64_t c = 0; c < p.shape[1]; c++)
            for (int64_t h = 0; h < p.shape[2]; h++, values += p.shape[3])
                move_row(v, values, base + b * p.batch + c * p.plane + h * p.row, p.shape[3], in);
}
