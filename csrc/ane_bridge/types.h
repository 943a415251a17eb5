/* SPDX-License-Identifier: Apache-2.0 */
/* Objective-C type encodings ("B40@0:8I16@20^@28"), as the runtime keeps them for each method. */
#ifndef NF_ANE_BRIDGE_TYPES_H
#define NF_ANE_BRIDGE_TYPES_H

/* 1 when a method of type `found` may be called as one of type `claimed`: sizes, qualifiers, names and signedness do not count,
   all pointers are one, and where `claimed` returns nothing, any result may be returned. */
int nf_same_types(const char *claimed, const char *found);

#endif
