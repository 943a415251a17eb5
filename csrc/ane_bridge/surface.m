/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that processor and Neural Engine share. */
#include <stdlib.h>
#include <string.h>

#include "ane_inside.h"

enum {
    SURFACE_STEP = 16384, /* surfaces are whole pages of Apple silicon */
    READ_ONLY = 1         /* kIOSurfaceLockReadOnly */
};

/* One row of bytes, as all public users of the private interface make them. */
static nf_status new_surface(nf_ane_surface *s, nf_ane_device *d, int64_t bytes) {
    NSNumber *size = [NSNumber numberWithLongLong:(bytes + SURFACE_STEP - 1) / SURFACE_STEP * SURFACE_STEP];
    NSArray *values = @[ size, @1, @1, size, size, @0 ];
    NSArray *keys = [NSArray arrayWithObjects:d->surface_keys count:NF_ANE_SURFACE_PROPERTIES];
    s->surface = [(id<NFSurface>)[d->surfaces alloc] initWithProperties:[NSDictionary dictionaryWithObjects:values
                                                                                                    forKeys:keys]];
    s->bytes = [s->surface allocationSize];
    if (!s->surface || s->bytes < bytes)
        return nf_fail(NF_ERR_MEMORY, "no surface of %lld bytes could be made", (long long)bytes);
    s->object = [[d->surface_objects objectWithIOSurface:(struct __IOSurface *)s->surface] retain];
    if (!s->object) return nf_fail(NF_ERR_DEVICE, "the Neural Engine does not take a surface of %lld bytes", (long long)bytes);
    void *base;
    NF_TRY(nf_ane_surface_lock(s, 0, &base));
    memset(base, 0, (size_t)s->bytes);
    return nf_ane_surface_unlock(s, 0);
}

static nf_status new_surface_guarded(nf_ane_surface *s, nf_ane_device *d, int64_t bytes) {
    NF_ANE_GUARDED("surface", new_surface(s, d, bytes));
}

nf_status nf_ane_surface_new(nf_ane_surface **out, nf_ane_device *device, int64_t bytes) {
    *out = NULL;
    if (bytes < 1 || bytes > NF_ANE_LARGEST)
        return nf_fail(NF_ERR_ARGUMENT, "a surface cannot have %lld bytes", (long long)bytes);
    nf_ane_surface *s = calloc(1, sizeof *s);
    if (!s) return nf_fail(NF_ERR_MEMORY, "no memory for a surface");
    nf_status status = new_surface_guarded(s, device, bytes);
    if (status == NF_OK)
        *out = s;
    else
        nf_ane_surface_free(s);
    return status;
}

void nf_ane_surface_free(nf_ane_surface *surface) {
    if (surface) nf_ane_release(surface->object, surface->surface);
    free(surface);
}

int64_t nf_ane_surface_bytes(const nf_ane_surface *surface) { return surface->bytes; }

static nf_status lock_surface(nf_ane_surface *s, int read_only, void **base) {
    int code = [s->surface lockWithOptions:read_only ? READ_ONLY : 0 seed:NULL];
    *base = code == 0 ? [s->surface baseAddress] : NULL;
    return *base ? NF_OK : nf_fail(NF_ERR_DEVICE, "a surface could not be locked (code %d)", code);
}

nf_status nf_ane_surface_lock(nf_ane_surface *surface, int read_only, void **base) {
    NF_ANE_GUARDED("lock", lock_surface(surface, read_only, base));
}

static nf_status unlock_surface(nf_ane_surface *s, int read_only) {
    int code = [s->surface unlockWithOptions:read_only ? READ_ONLY : 0 seed:NULL];
    return code == 0 ? NF_OK : nf_fail(NF_ERR_DEVICE, "a surface could not be unlocked (code %d)", code);
}

nf_status nf_ane_surface_unlock(nf_ane_surface *surface, int read_only) {
    NF_ANE_GUARDED("unlock", unlock_surface(surface, read_only));
}
