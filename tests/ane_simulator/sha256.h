/* SPDX-License-Identifier: Apache-2.0 */
/* SHA-256 (FIPS 180-4) as 64 hex digits; the simulator names programs with it as the system does. */
#ifndef ANE_SIMULATOR_SHA256_H
#define ANE_SIMULATOR_SHA256_H

#include <stddef.h>

void sim_sha256(char out[65], const void *data, size_t size);

#endif
