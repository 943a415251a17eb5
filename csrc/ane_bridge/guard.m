/* SPDX-License-Identifier: Apache-2.0 */
/* What the system said, or threw, becomes our message. */
#include <string.h>

#include "ane_inside.h"

typedef struct meaning {
    const char *symptom, *sentence;
} meaning;

static const meaning MEANINGS[] = {
    {"0x1d", "a surface is too small for the program's strides, or surfaces are in the wrong order: "},
    {"0x20004", "the program is too large to load (about 3.75 GiB is the limit): "},
    {"status=0x2 ", "wrong symbols for this procedure, or too little memory: "},
};

const char *nf_ane_text_of(NSString *text) {
    const char *bytes = [text UTF8String];
    return bytes ? bytes : "";
}

nf_status nf_ane_refuse(NSError *error, const char *what) {
    if (!error) return nf_fail(NF_ERR_DEVICE, "%s: the Neural Engine refused without saying why", what);
    const char *text = nf_ane_text_of([error localizedDescription]), *reason = nf_ane_text_of([error localizedFailureReason]),
               *sense = "";
    for (size_t i = 0; i < sizeof MEANINGS / sizeof *MEANINGS; i++)
        if (strstr(text, MEANINGS[i].symptom)) sense = MEANINGS[i].sentence;
    return nf_fail(NF_ERR_DEVICE, "%s: %s%s%s%s (%s, code %ld)", what, sense, text, *reason ? ": " : "", reason,
                   nf_ane_text_of([error domain]), (long)[error code]);
}

nf_status nf_ane_refuse_exception(id thrown, const char *what) {
    if (![thrown isKindOfClass:[NSException class]])
        return nf_fail(NF_ERR_DEVICE, "%s: an Objective-C object was thrown", what);
    return nf_fail(NF_ERR_DEVICE, "%s: exception %s: %s", what, nf_ane_text_of([thrown name]), nf_ane_text_of([thrown reason]));
}

static nf_status release(id a, id b) {
    [a release];
    [b release];
    return NF_OK;
}

nf_status nf_ane_release(id a, id b) { NF_ANE_GUARDED("release", release(a, b)); }
