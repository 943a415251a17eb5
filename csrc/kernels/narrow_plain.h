/* SPDX-License-Identifier: Apache-2.0 */
/* bf16 through float32, for processors that do not multiply it: a unit of two is widened in registers, one half moved up, the
   other with its neighbour cut off.  The family gives vf, vi, NF_INLINE, put_high_halves, upper_halves, and as instructions,
   because compilers go through scalar registers and memory otherwise, in_vector (x as it is) and add_fused (*sum += x * w). */

/* To nearest even, in the upper halves of the lanes; NaN stays NaN. */
NF_INLINE void put_rounded(uint16_t *to, vf v) {
    vi bits = (vi)v, is_nan = v != v;
    vi rounded = bits + 0x7fff + ((bits >> 16) & 1);
    put_high_halves(to, (rounded & ~is_nan) | ((bits | 0x400000) & is_nan));
}

NF_INLINE vf half_of(vi units, const int half) { return (vf)(half ? upper_halves(units) : units << 16); }

/* sum += the products of NF_W units, one half after the other. */
NF_INLINE void add_halves(vi *sum, vi x, vi w) {
    vi unit = in_vector(x);
    for (int half = 0; half < 2; half++) add_fused(sum, half_of(unit, half), half_of(w, half));
}
