/* SPDX-License-Identifier: Apache-2.0 */
#include "types.h"

#include <ctype.h>
#include <string.h>

/* After the bracket that closes the one before p. */
static const char *after_brackets(const char *p) {
    for (int depth = 1; *p && depth > 0; p++) {
        if (strchr("{([", *p)) depth++;
        if (strchr("})]", *p)) depth--;
    }
    return p;
}

/* The type at *at, folded to one character, 0 at the end. */
static int next_type(const char **at) {
    const char *p = *at;
    while (*p && (isdigit((unsigned char)*p) || strchr("rnNoORV+-", *p))) p++;
    int type = (unsigned char)*p;
    if (type) p++;
    while (type == '^' && *p == '^') p++;
    if (type == '^' && *p && !strchr("{([", *p)) p++; /* what it points at */
    if (type == '^' && p[-1] == '@' && *p == '?') p++;
    if (type == '@' && *p == '?') p++; /* a block */
    if (type == '@' && *p == '"') p += 1 + strcspn(p + 1, "\"");
    if (type == '@' && *p == '"') p++;
    if (type && strchr("{([", type)) p = after_brackets(p);
    if (type == '^' && *p && strchr("{([", *p)) p = after_brackets(p + 1);
    *at = p;
    return type && strchr("CSIQL", type) ? tolower(type) : type;
}

int nf_same_types(const char *claimed, const char *found) {
    for (int result = 1;; result = 0) {
        int a = next_type(&claimed), b = next_type(&found);
        if (a != b && !(result && a == 'v' && b)) return 0;
        if (a == 0) return 1;
    }
}
