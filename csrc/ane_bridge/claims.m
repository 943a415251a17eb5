/* SPDX-License-Identifier: Apache-2.0 */
/* Claims against the runtime's own types of methods. */
#include <objc/runtime.h>
#include <stdlib.h>
#include <string.h>

#include "claims.h"
#include "types.h"

static nf_status check_method(Class class, int of_class, struct objc_method_description claim) {
    Method method = of_class ? class_getClassMethod(class, claim.name) : class_getInstanceMethod(class, claim.name);
    const char *sign = of_class ? "+" : "-", *found = method ? method_getTypeEncoding(method) : NULL;
    if (!found)
        return nf_fail(NF_ERR_UNSUPPORTED, "%s has no method %s%s; this version of the system is not supported yet",
                       class_getName(class), sign, sel_getName(claim.name));
    if (!nf_same_types(claim.types, found))
        return nf_fail(NF_ERR_UNSUPPORTED, "%s%s of %s: expected the type %s, found %s", sign, sel_getName(claim.name),
                       class_getName(class), claim.types, found);
    return NF_OK;
}

/* GNU's runtime finishes only the protocols that a class adopts; in ours names are still text. */
static void finish_protocol(Protocol *protocol, struct objc_method_description *claims, unsigned int n) {
#if defined(__APPLE__)
    (void)protocol, (void)claims, (void)n;
#else
    object_setClass(protocol, objc_getClass("Protocol"));
    for (unsigned int i = 0; i < n; i++) {
        const char *name;
        memcpy(&name, &claims[i].name, sizeof name);
        claims[i].name = sel_registerName(name);
    }
#endif
}

nf_status nf_ane_check_methods(Class class, Protocol *protocol, int of_class) {
    unsigned int n = 0;
    finish_protocol(protocol, NULL, 0);
    struct objc_method_description *claims = protocol_copyMethodDescriptionList(protocol, YES, of_class ? NO : YES, &n);
    finish_protocol(protocol, claims, n);
    nf_status status =
        n ? NF_OK : nf_fail(NF_ERR_STATE, "protocol %s was built without its methods", protocol_getName(protocol));
    for (unsigned int i = 0; i < n && status == NF_OK; i++) status = check_method(class, of_class, claims[i]);
    free(claims);
    return status;
}
