/* SPDX-License-Identifier: Apache-2.0 */
/* What is known of the Neural Engine's limits, each with its source and chip. None was measured by us. */
#include "mil.h"

const nf_mil_limits nf_mil_device_limits = {
    /* 16,384 compiles and 17,920 does not: ncdrone/rustane issue 13, M3 Ultra, fused feed-forward program */
    .width = 16384,
    /* any axis: sbryngelson/ANEForge issue 57, chips M1 to M6 */
    .axis = 65536,
    /* a convolution of 32,000 input channels is refused, of 32,000 outputs not: maderix/ANE ane_classifier.h, M4.
       What lies between is not known; half of the smallest refused power of two is taken. */
    .conv_inputs = 16384,
    /* ports are stored in rows of 64 bytes: ironmill's probes on an M3 Pro (PlaneStride of loaded models) */
    .row_values = 32,
    /* loading fails with status 0x20004 somewhat above 3.75 GiB: jundot/omlx issue 2781, M1 to M5 */
    .blob_bytes = 3750ll << 20,
    /* what omlx allows itself; 224 were in use: jundot/omlx pull request 2826 */
    .procedures = 256,
    /* about 119 compiles of a process succeed, later ones fail silently: maderix/ANE README, M4; it stops at 100 itself */
    .compiles = 100,
};
