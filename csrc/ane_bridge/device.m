/* SPDX-License-Identifier: Apache-2.0 */
/* Open the framework: its images, classes and constants, and what it says of the device. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#include <sys/types.h>
#else
#include <sys/utsname.h>
#endif

#include "ane_inside.h"

static const char *const system_framework = "/System/Library/PrivateFrameworks/AppleNeuralEngine.framework/AppleNeuralEngine";
static const char *const system_surfaces = "/System/Library/Frameworks/IOSurface.framework/IOSurface";

static nf_status find_class(Class *out, NSString *name, Protocol *protocol, int of_class) {
    Class class = NSClassFromString(name);
    if (!class) return nf_fail(NF_ERR_UNSUPPORTED, "the framework has no class %s", nf_ane_text_of(name));
    NF_TRY(nf_ane_check_methods(class, protocol, of_class));
    *out = class;
    return NF_OK;
}

static void copy_text(char *out, size_t size, NSString *text) {
    if ([text isKindOfClass:[NSString class]]) snprintf(out, size, "%s", nf_ane_text_of(text));
}

static void read_os_build(char *out, size_t size) {
#if defined(__APPLE__)
    if (sysctlbyname("kern.osversion", out, &size, NULL, 0) != 0) out[0] = '\0';
#else
    struct utsname name;
    snprintf(out, size, "%s", uname(&name) == 0 ? name.release : "");
#endif
}

/* Nothing here is needed: what the class does not offer, or offers otherwise than we think, stays unknown. */
static void read_info(nf_ane_info *info) {
    Class class = NSClassFromString(@"_ANEDeviceInfo");
    *info = (nf_ane_info){.cores = -1, .engines = -1, .virtual_machine = -1};
    read_os_build(info->os_build, sizeof info->os_build);
    if (class && nf_ane_check_methods(class, @protocol(NFDeviceInfoText), 1) == NF_OK) {
        Class<NFDeviceInfoText> device = class;
        copy_text(info->architecture, sizeof info->architecture, [device aneArchitectureType]);
        copy_text(info->subtype, sizeof info->subtype, [device aneSubType]);
    }
    if (class && nf_ane_check_methods(class, @protocol(NFDeviceInfoCounts), 1) == NF_OK) {
        Class<NFDeviceInfoCounts> device = class;
        info->cores = (int)[device numANECores], info->engines = (int)[device numANEs];
    }
    if (class && nf_ane_check_methods(class, @protocol(NFDeviceInfoFlags), 1) == NF_OK) {
        Class<NFDeviceInfoFlags> device = class;
        info->virtual_machine = [device isVirtualMachine];
        if (![device hasANE]) info->cores = 0;
    }
}

static nf_status open_images(nf_ane_device *d, const char *framework) {
#if !defined(__APPLE__)
    if (!framework) return nf_fail(NF_ERR_UNSUPPORTED, "only Apple's own processors have a Neural Engine; use the cpu backend");
#endif
    d->image = dlopen(framework ? framework : system_framework, RTLD_NOW);
    if (!d->image) return nf_fail(NF_ERR_UNSUPPORTED, "the framework of the Neural Engine does not open: %s", dlerror());
    d->surface_image = framework ? d->image : dlopen(system_surfaces, RTLD_NOW);
    return d->surface_image ? NF_OK : nf_fail(NF_ERR_UNSUPPORTED, "the framework IOSurface does not open: %s", dlerror());
}

static nf_status find_surface_keys(nf_ane_device *d) {
    static const char *const names[NF_ANE_SURFACE_PROPERTIES] = {"kIOSurfaceWidth",           "kIOSurfaceHeight",
                                                                 "kIOSurfaceBytesPerElement", "kIOSurfaceBytesPerRow",
                                                                 "kIOSurfaceAllocSize",       "kIOSurfacePixelFormat"};
    for (int i = 0; i < NF_ANE_SURFACE_PROPERTIES; i++) {
        NSString **key = dlsym(d->surface_image, names[i]);
        if (!key) return nf_fail(NF_ERR_UNSUPPORTED, "the framework IOSurface has no %s", names[i]);
        d->surface_keys[i] = *key;
    }
    return NF_OK;
}

static nf_status find_classes(nf_ane_device *d) {
    Class model = Nil;
    NF_TRY(find_class((Class *)&d->descriptors, @"_ANEInMemoryModelDescriptor", @protocol(NFDescriptorClass), 1));
    NF_TRY(find_class(&model, @"_ANEInMemoryModel", @protocol(NFModelClass), 1));
    NF_TRY(nf_ane_check_methods(model, @protocol(NFModel), 0));
    d->models = model;
    d->can_cache = nf_ane_check_methods(model, @protocol(NFCachedModel), 0) == NF_OK;
    NF_TRY(find_class((Class *)&d->requests, @"_ANERequest", @protocol(NFRequestClass), 1));
    NF_TRY(find_class((Class *)&d->surface_objects, @"_ANEIOSurfaceObject", @protocol(NFSurfaceObjectClass), 1));
    return find_class(&d->surfaces, @"IOSurface", @protocol(NFSurface), 0);
}

static nf_status open_device(nf_ane_device *d, const char *framework, const char *cache) {
    NF_TRY(open_images(d, framework));
    NF_TRY(find_classes(d));
    NF_TRY(find_surface_keys(d));
    read_info(&d->info);
    if (d->info.cores == 0) return nf_fail(NF_ERR_UNSUPPORTED, "this machine has no Neural Engine; use the cpu or mlx backend");
    snprintf(d->scratch, sizeof d->scratch, "%s", [NSTemporaryDirectory() fileSystemRepresentation]);
    d->info.scratch = d->scratch;
    nf_folder_reap(d->scratch);
    if (cache) NF_TRY(nf_path_join(d->cache, cache, *d->info.os_build ? d->info.os_build : "unknown"));
    return NF_OK;
}

static nf_status open_guarded(nf_ane_device *d, const char *framework, const char *cache) {
    NF_ANE_GUARDED("open", open_device(d, framework, cache));
}

int nf_ane_built(void) { return 1; }

nf_status nf_ane_open(nf_ane_device **out, const char *framework, const char *cache) {
    *out = NULL;
    nf_ane_device *d = calloc(1, sizeof *d);
    if (!d) return nf_fail(NF_ERR_MEMORY, "no memory for the device");
    nf_status status = open_guarded(d, framework, cache);
    if (status == NF_OK)
        *out = d;
    else
        free(d);
    return status;
}

/* The images stay: what has registered classes must not be unmapped. */
void nf_ane_close(nf_ane_device *device) { free(device); }

void nf_ane_device_info(const nf_ane_device *device, nf_ane_info *out) { *out = device->info; }
