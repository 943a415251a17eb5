/* SPDX-License-Identifier: Apache-2.0 */
/* ane.h over the private framework AppleNeuralEngine; the only Objective-C file.

   Manual reference counting: handles live in C structs.  Nothing private is linked: classes are looked up by name after dlopen,
   and their methods are called through the protocols below.  A protocol is our claim about the types of a method; at open each
   claim is compared with the type that the runtime has for it, because a wrong one would corrupt memory silently.
   Selectors, dictionary keys and the order of calls come from public reports; docs/ane_bridge.md tells what is assumed. */
#if !defined(__APPLE__)
#define _DEFAULT_SOURCE
#endif
#import <Foundation/Foundation.h>

#include <ctype.h>
#include <dlfcn.h>
#include <objc/runtime.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#else
#include <sys/utsname.h>
#endif

#include "ane.h"
#include "folders.h"
#include "types.h"
#include "worker.h"

/* --- what we claim of the private classes */

struct __IOSurface;

@protocol NFDescriptorClass
+ (id)modelWithMILText:(NSData *)text weights:(NSDictionary *)weights optionsPlist:(NSData *)options;
@end

@protocol NFModelClass
+ (id)inMemoryModelWithDescriptor:(id)descriptor;
@end

@protocol NFModel
- (NSString *)hexStringIdentifier;
- (BOOL)compileWithQoS:(unsigned int)qos options:(NSDictionary *)options error:(NSError **)error;
- (BOOL)loadWithQoS:(unsigned int)qos options:(NSDictionary *)options error:(NSError **)error;
- (BOOL)evaluateWithQoS:(unsigned int)qos options:(NSDictionary *)options request:(id)request error:(NSError **)error;
- (BOOL)unloadWithQoS:(unsigned int)qos error:(NSError **)error;
- (id)model;
@end

/* Without these there is no cache. */
@protocol NFCachedModel
- (void)setModelURL:(NSURL *)url;
- (BOOL)compiledModelExists;
- (void)purgeCompiledModel;
@end

@protocol NFInnerModel
- (NSDictionary *)modelAttributes;
@end

@protocol NFRequestClass
+ (id)requestWithInputs:(NSArray *)inputs
           inputIndices:(NSArray *)inputIndices
                outputs:(NSArray *)outputs
          outputIndices:(NSArray *)outputIndices
          weightsBuffer:(id)weights
              perfStats:(id)stats
         procedureIndex:(NSNumber *)procedure;
@end

@protocol NFSurfaceObjectClass
+ (id)objectWithIOSurface:(struct __IOSurface *)surface;
@end

/* A public class of macOS, looked up like the others so that one path serves everywhere. */
@protocol NFSurface
- (id)initWithProperties:(NSDictionary *)properties;
- (void *)baseAddress;
- (NSInteger)allocationSize;
- (int)lockWithOptions:(uint32_t)options seed:(uint32_t *)seed;
- (int)unlockWithOptions:(uint32_t)options seed:(uint32_t *)seed;
@end

@protocol NFDeviceInfoText
+ (NSString *)aneArchitectureType;
+ (NSString *)aneSubType;
@end
@protocol NFDeviceInfoCounts
+ (unsigned int)numANECores;
+ (unsigned int)numANEs;
@end
@protocol NFDeviceInfoFlags
+ (BOOL)hasANE;
+ (BOOL)isVirtualMachine;
@end

static const char *const system_framework = "/System/Library/PrivateFrameworks/AppleNeuralEngine.framework/AppleNeuralEngine";
static const char *const system_surfaces = "/System/Library/Frameworks/IOSurface.framework/IOSurface";

enum {
    QOS = 21,              /* user-initiated; 0 to 63 were seen to be accepted with equal speed */
    LOAD_PAUSE_MS = 100,   /* before the one retry of a load that failed, which it does now and then */
    COMPILE_BUDGET = 119,  /* compiles that a process was seen to get */
    SURFACE_STEP = 16384,  /* surfaces are whole pages of Apple silicon */
    SURFACE_READ_ONLY = 1, /* kIOSurfaceLockReadOnly */
    SURFACE_PROPERTIES = 6
};
static const double LOCK_SECONDS = 60.0; /* another process compiles the same program for about this long at most */
static const int64_t LARGEST = (int64_t)1 << 40;

static _Atomic int compiles;

struct nf_ane_device {
    void *image, *surface_image;
    Class<NFDescriptorClass> descriptors;
    Class<NFModelClass> models;
    Class<NFRequestClass> requests;
    Class<NFSurfaceObjectClass> surface_objects;
    Class surfaces;
    NSString *surface_keys[SURFACE_PROPERTIES];
    int can_cache;
    char scratch[NF_PATH], cache[NF_PATH]; /* cache: folder of this system's build, "" for none */
    nf_ane_info info;
};

typedef struct procedure {
    int number; /* of the request */
    nf_ane_port *inputs, *outputs;
    int n_inputs, n_outputs;
} procedure;

struct nf_ane_program {
    nf_ane_device *device;
    id<NFModel> model;
    int loaded, lost; /* lost: an evaluation has not returned */
    nf_ane_origin origin;
    char folder[NF_PATH], marker[NF_PATH]; /* marker: "" for a cached folder */
    int lock;                              /* of a cached folder, else -1 */
    procedure *procedures;
    int n_procedures;
    NSDictionary *numbers; /* name of a procedure -> number */
    pthread_mutex_t mutex; /* one evaluation at a time */
    nf_worker *worker;
};

struct nf_ane_surface {
    id<NFSurface> surface;
    id object; /* the framework's view of it */
    int64_t bytes;
};

struct nf_ane_request {
    nf_ane_program *program;
    id request;
};

/* --- what the system said becomes our message */

typedef struct meaning {
    const char *symptom, *sentence;
} meaning;

static const meaning MEANINGS[] = {
    {"0x1d", "a surface is too small for the program's strides, or surfaces are in the wrong order: "},
    {"0x20004", "the program is too large to load (about 3.75 GiB is the limit): "},
    {"status=0x2 ", "wrong symbols for this procedure, or too little memory: "},
};

static const char *text_of(NSString *text) {
    const char *bytes = [text UTF8String];
    return bytes ? bytes : "";
}

static nf_status refuse(NSError *error, const char *what) {
    if (!error) return nf_fail(NF_ERR_DEVICE, "%s: the Neural Engine refused without saying why", what);
    const char *text = text_of([error localizedDescription]), *reason = text_of([error localizedFailureReason]), *sense = "";
    for (size_t i = 0; i < sizeof MEANINGS / sizeof *MEANINGS; i++)
        if (strstr(text, MEANINGS[i].symptom)) sense = MEANINGS[i].sentence;
    return nf_fail(NF_ERR_DEVICE, "%s: %s%s%s%s (%s, code %ld)", what, sense, text, *reason ? ": " : "", reason,
                   text_of([error domain]), (long)[error code]);
}

static nf_status refuse_exception(id thrown, const char *what) {
    if (![thrown isKindOfClass:[NSException class]])
        return nf_fail(NF_ERR_DEVICE, "%s: an Objective-C object was thrown", what);
    return nf_fail(NF_ERR_DEVICE, "%s: exception %s: %s", what, text_of([thrown name]), text_of([thrown reason]));
}

/* The body of every entry: its own pool, and nothing thrown leaves it. */
#define GUARDED(what, expression)                                                                                              \
    @autoreleasepool {                                                                                                         \
        @try {                                                                                                                 \
            return (expression);                                                                                               \
        } @catch (id thrown) {                                                                                                 \
            return refuse_exception(thrown, what);                                                                             \
        }                                                                                                                      \
    }

/* --- types of methods */

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

/* Every method of the protocol, of the class itself (`of_class`) or of its instances. */
static nf_status check_methods(Class class, Protocol *protocol, int of_class) {
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

static nf_status find_class(Class *out, NSString *name, Protocol *protocol, int of_class) {
    Class class = NSClassFromString(name);
    if (!class) return nf_fail(NF_ERR_UNSUPPORTED, "the framework has no class %s", text_of(name));
    NF_TRY(check_methods(class, protocol, of_class));
    *out = class;
    return NF_OK;
}

/* --- device */

static void copy_text(char *out, size_t size, NSString *text) {
    if ([text isKindOfClass:[NSString class]]) snprintf(out, size, "%s", text_of(text));
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
    if (class && check_methods(class, @protocol(NFDeviceInfoText), 1) == NF_OK) {
        Class<NFDeviceInfoText> device = class;
        copy_text(info->architecture, sizeof info->architecture, [device aneArchitectureType]);
        copy_text(info->subtype, sizeof info->subtype, [device aneSubType]);
    }
    if (class && check_methods(class, @protocol(NFDeviceInfoCounts), 1) == NF_OK) {
        Class<NFDeviceInfoCounts> device = class;
        info->cores = (int)[device numANECores], info->engines = (int)[device numANEs];
    }
    if (class && check_methods(class, @protocol(NFDeviceInfoFlags), 1) == NF_OK) {
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
    static const char *const names[SURFACE_PROPERTIES] = {"kIOSurfaceWidth",           "kIOSurfaceHeight",
                                                          "kIOSurfaceBytesPerElement", "kIOSurfaceBytesPerRow",
                                                          "kIOSurfaceAllocSize",       "kIOSurfacePixelFormat"};
    for (int i = 0; i < SURFACE_PROPERTIES; i++) {
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
    NF_TRY(check_methods(model, @protocol(NFModel), 0));
    d->models = model;
    d->can_cache = check_methods(model, @protocol(NFCachedModel), 0) == NF_OK;
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
    GUARDED("open", open_device(d, framework, cache))
}

int nf_ane_built(void) { return 1; }
int nf_ane_compile_count(void) { return compiles; }

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

/* --- what the loaded model says of its ports.  Every object of these dictionaries is foreign: its kind is checked. */

static id item(NSDictionary *from, NSString *key, Class kind) {
    id found = [from isKindOfClass:[NSDictionary class]] ? [from objectForKey:key] : nil;
    return [found isKindOfClass:kind] ? found : nil;
}

static nf_status no_attribute(const char *key) {
    return nf_fail(NF_ERR_DEVICE, "the loaded program does not describe itself as expected: %s", key);
}

static nf_status read_number(int64_t *out, NSDictionary *from, NSString *key, int64_t otherwise) {
    NSNumber *found = item(from, key, [NSNumber class]);
    *out = found ? [found longLongValue] : otherwise;
    return *out >= 0 && *out <= LARGEST ? NF_OK : no_attribute(text_of(key));
}

static NSString *plain_name(NSString *symbol) {
    NSString *suffix = @"@output";
    return [symbol hasSuffix:suffix] ? [symbol substringToIndex:[symbol length] - [suffix length]] : symbol;
}

/* The entry `name` of a list of a network, that of the procedure itself before those of others. */
static NSDictionary *live_port(NSArray *networks, NSUInteger first, NSString *list, NSString *name) {
    for (NSUInteger i = 0, n = [networks count]; i < n; i++) {
        NSArray *ports = item([networks objectAtIndex:(first + i) % n], list, [NSArray class]);
        for (NSDictionary *port in ports) {
            NSString *found = item(port, @"Name", [NSString class]);
            if (found && [plain_name(found) isEqualToString:name]) return port;
        }
    }
    return nil;
}

/* "Float16" or "Float32": the size stands in the name. */
static int bytes_of_type(NSString *type) {
    const char *digits = strpbrk(text_of(type), "0123456789");
    return digits ? atoi(digits) / 8 : 0;
}

/* The last value of each direction lies inside the one around it. */
static int fits(const nf_ane_port *p) {
    return p->row_stride >= p->width * p->element_bytes && p->plane_stride >= (p->height - 1) * p->row_stride &&
           p->batch_stride >= (p->channels - 1) * p->plane_stride + p->height * p->row_stride;
}

static nf_status read_port(nf_ane_port *p, NSDictionary *live) {
    int64_t depth, interleave;
    NF_TRY(read_number(&p->batches, live, @"Batches", 1));
    NF_TRY(read_number(&p->channels, live, @"Channels", 0));
    NF_TRY(read_number(&p->height, live, @"Height", 1));
    NF_TRY(read_number(&p->width, live, @"Width", 0));
    NF_TRY(read_number(&p->batch_stride, live, @"BatchStride", 0));
    NF_TRY(read_number(&p->plane_stride, live, @"PlaneStride", 0));
    NF_TRY(read_number(&p->row_stride, live, @"RowStride", 0));
    NF_TRY(read_number(&depth, live, @"Depth", 1));
    NF_TRY(read_number(&interleave, live, @"Interleave", 1));
    p->element_bytes = bytes_of_type(item(live, @"Type", [NSString class]));
    const int64_t sizes[] = {p->batches, p->channels, p->height, p->width};
    for (int i = 0; i < 4; i++)
        if (sizes[i] < 1 || sizes[i] > 1 << 20) return no_attribute(p->name);
    if (p->element_bytes != 2 && p->element_bytes != 4)
        return nf_fail(NF_ERR_DEVICE, "port %s has the type '%s', neither Float16 nor Float32", p->name,
                       text_of([[live objectForKey:@"Type"] description]));
    if (depth != 1 || interleave != 1)
        return nf_fail(NF_ERR_DEVICE, "port %s has depth %lld and interleave %lld, which are not supported", p->name,
                       (long long)depth, (long long)interleave);
    if (!fits(p) || p->batches * p->batch_stride > LARGEST)
        return nf_fail(NF_ERR_DEVICE, "port %s has strides that do not fit its shape", p->name);
    p->bytes = p->batches * p->batch_stride;
    return NF_OK;
}

typedef struct direction {
    NSString *indices, *symbols, *list;
} direction;

static nf_status read_ports(nf_ane_port **out, int *n, NSDictionary *attributes, NSUInteger at, direction way) {
    NSDictionary *description = item(attributes, @"ANEFModelDescription", [NSDictionary class]);
    NSArray *networks = item(attributes, @"NetworkStatusList", [NSArray class]);
    NSArray *symbols = item(description, way.symbols, [NSArray class]);
    NSDictionary *info = [item(description, @"ANEFModelProcedures", [NSArray class]) objectAtIndex:at];
    NSArray *indices = item(info, way.indices, [NSArray class]);
    if (!networks || !symbols || !indices) return no_attribute(text_of(networks ? way.symbols : @"NetworkStatusList"));
    nf_ane_port *ports = *out = calloc([indices count] + 1, sizeof *ports);
    if (!ports) return nf_fail(NF_ERR_MEMORY, "no memory for %lu ports", (unsigned long)[indices count]);
    for (*n = 0; *n < (int)[indices count]; ++*n) {
        NSNumber *index = [indices objectAtIndex:(NSUInteger)*n];
        BOOL usable = [index isKindOfClass:[NSNumber class]] && [index unsignedLongLongValue] < [symbols count];
        NSString *symbol = usable ? [symbols objectAtIndex:[index unsignedIntegerValue]] : nil;
        if (![symbol isKindOfClass:[NSString class]]) return no_attribute(text_of(way.indices));
        NSDictionary *live = live_port(networks, at, way.list, plain_name(symbol));
        if (!live) return no_attribute(text_of(symbol));
        ports[*n].symbol = [index intValue];
        ports[*n].name = strdup(text_of(plain_name(symbol)));
        if (!ports[*n].name) return nf_fail(NF_ERR_MEMORY, "no memory for the name of a port");
        nf_status status = read_port(&ports[*n], live);
        if (status != NF_OK) {
            ++*n; /* its name is to be freed */
            return status;
        }
    }
    return NF_OK;
}

static nf_status read_procedures(nf_ane_program *p, NSDictionary *attributes) {
    const direction in = {@"ANEFModelInputSymbolIndexArray", @"kANEFModelInputSymbolsArrayKey", @"LiveInputList"};
    const direction out = {@"ANEFModelOutputSymbolIndexArray", @"kANEFModelOutputSymbolsArrayKey", @"LiveOutputList"};
    NSDictionary *description = item(attributes, @"ANEFModelDescription", [NSDictionary class]);
    NSArray *procedures = item(description, @"ANEFModelProcedures", [NSArray class]);
    if ([procedures count] == 0) return no_attribute("ANEFModelProcedures");
    p->procedures = calloc([procedures count], sizeof *p->procedures);
    if (!p->procedures) return nf_fail(NF_ERR_MEMORY, "no memory for %lu procedures", (unsigned long)[procedures count]);
    p->n_procedures = (int)[procedures count];
    p->numbers = [item(description, @"kANEFModelProcedureNameToIDMapKey", [NSDictionary class]) retain];
    for (int i = 0; i < p->n_procedures; i++) {
        procedure *one = &p->procedures[i];
        int64_t number;
        NF_TRY(read_number(&number, [procedures objectAtIndex:(NSUInteger)i], @"ANEFModelProcedureID", i));
        one->number = (int)number;
        NF_TRY(read_ports(&one->inputs, &one->n_inputs, attributes, (NSUInteger)i, in));
        NF_TRY(read_ports(&one->outputs, &one->n_outputs, attributes, (NSUInteger)i, out));
    }
    return NF_OK;
}

static nf_status describe(nf_ane_program *p) {
    id<NFInnerModel> inner = [p->model model];
    if (!inner) return no_attribute("it has no inner model");
    NF_TRY(check_methods(object_getClass(inner), @protocol(NFInnerModel), 0));
    return read_procedures(p, [inner modelAttributes]);
}

/* --- compile and load */

/* "weights/w.bin" of "@model_path/weights/w.bin", NULL when the path is another. */
static const char *inside(const char *path) {
    const char prefix[] = "@model_path/";
    return strncmp(path, prefix, sizeof prefix - 1) == 0 ? path + sizeof prefix - 1 : NULL;
}

static NSData *borrow(const void *bytes, size_t size) {
    return [NSData dataWithBytesNoCopy:(void *)(uintptr_t)bytes length:size freeWhenDone:NO];
}

typedef struct source {
    const char *mil;
    size_t mil_size;
    const nf_ane_blob *blobs;
    int n_blobs;
} source;

static nf_status make_model(nf_ane_program *p, const source *s) {
    NSMutableDictionary *weights = [NSMutableDictionary dictionary];
    for (int i = 0; i < s->n_blobs; i++) {
        if (!inside(s->blobs[i].path))
            return nf_fail(NF_ERR_ARGUMENT, "weight file '%s': its path must begin with @model_path/", s->blobs[i].path);
        NSDictionary *entry = @{@"offset" : @0, @"data" : borrow(s->blobs[i].data, s->blobs[i].size)};
        [weights setObject:entry forKey:[NSString stringWithUTF8String:s->blobs[i].path]];
    }
    id descriptor = [p->device->descriptors modelWithMILText:borrow(s->mil, s->mil_size) weights:weights optionsPlist:nil];
    if (!descriptor) return nf_fail(NF_ERR_DEVICE, "the program's text was not taken");
    p->model = [[p->device->models inMemoryModelWithDescriptor:descriptor] retain];
    return p->model ? NF_OK : nf_fail(NF_ERR_DEVICE, "no model could be made of the program");
}

static nf_status write_source(const char *folder, const source *s) {
    NF_TRY(nf_folder_write(folder, "model.mil", s->mil, s->mil_size));
    for (int i = 0; i < s->n_blobs; i++)
        NF_TRY(nf_folder_write(folder, inside(s->blobs[i].path), s->blobs[i].data, s->blobs[i].size));
    return NF_OK;
}

static nf_status compile(nf_ane_program *p) {
    NSError *error = nil;
    if ([p->model compileWithQoS:QOS options:@{} error:&error]) {
        compiles++;
        return NF_OK;
    }
    if (!error && nf_ane_compile_count() >= COMPILE_BUDGET - 20)
        return nf_fail(NF_ERR_DEVICE,
                       "compile: refused without a reason after %d compiles of this process; about %d is what the system gives",
                       nf_ane_compile_count(), COMPILE_BUDGET);
    return refuse(error, "compile");
}

static nf_status load(nf_ane_program *p) {
    NSError *error = nil;
    p->loaded = [p->model loadWithQoS:QOS options:@{} error:&error];
    if (!p->loaded) {
        usleep(LOAD_PAUSE_MS * 1000);
        error = nil;
        p->loaded = [p->model loadWithQoS:QOS options:@{} error:&error];
    }
    return p->loaded ? NF_OK : refuse(error, "load");
}

static nf_status load_from_scratch(nf_ane_program *p, const source *s, const char *name) {
    NF_TRY(nf_folder_claim(p->device->scratch, name, p->folder, p->marker));
    NF_TRY(write_source(p->folder, s));
    NF_TRY(compile(p));
    return load(p);
}

/* "1.3" of "program(1.3)", "unknown" of anything else. */
static void dialect_of(char out[16], const source *s) {
    const char head[] = "program(";
    size_t n = sizeof head - 1, at = n;
    while (at < s->mil_size && at - n < 15 && (isdigit((unsigned char)s->mil[at]) || s->mil[at] == '.')) at++;
    int found = s->mil_size > n && memcmp(s->mil, head, n) == 0 && at > n && s->mil[at - 1] != '.' && s->mil[n] != '.';
    snprintf(out, 16, "%.*s", found ? (int)(at - n) : 7, found ? s->mil + n : "unknown");
}

/* p->folder = cache/build/dialect/name, with its lock shared. */
static nf_status open_cached_folder(nf_ane_program *p, const source *s, const char *name, char lock[NF_PATH]) {
    char dialect[16], parent[NF_PATH], file[256];
    dialect_of(dialect, s);
    snprintf(file, sizeof file, "%s.lock", name);
    NF_TRY(nf_path_join(parent, p->device->cache, dialect));
    NF_TRY(nf_path_join(p->folder, parent, name));
    NF_TRY(nf_path_join(lock, parent, file));
    NF_TRY(nf_folder_make(p->folder));
    return nf_folder_lock(lock, 0, LOCK_SECONDS, &p->lock);
}

static int load_existing(nf_ane_program *p, id<NFCachedModel> cached) {
    if (![cached compiledModelExists] || load(p) != NF_OK) return 0;
    p->origin = NF_ANE_CACHED;
    return 1;
}

/* Compiled here once, whatever was in the folder. */
static nf_status load_from_cache(nf_ane_program *p, const source *s, const char *name) {
    id<NFCachedModel> cached = (id)p->model;
    char lock[NF_PATH];
    NF_TRY(open_cached_folder(p, s, name, lock));
    [cached setModelURL:[NSURL fileURLWithPath:[NSString stringWithUTF8String:p->folder]]];
    if (load_existing(p, cached)) return NF_OK;
    NF_TRY(nf_folder_lock(lock, 1, LOCK_SECONDS, &p->lock));
    if (load_existing(p, cached)) return nf_folder_lock(lock, 0, LOCK_SECONDS, &p->lock);
    [cached purgeCompiledModel];
    nf_folder_remove(p->folder);
    NF_TRY(nf_folder_make(p->folder));
    NF_TRY(write_source(p->folder, s));
    NF_TRY(compile(p));
    NF_TRY(load(p));
    return nf_folder_lock(lock, 0, LOCK_SECONDS, &p->lock);
}

static void drop_model(nf_ane_program *p) {
    NSError *error = nil; /* it was of no use anyway */
    if (p->loaded) [p->model unloadWithQoS:QOS error:&error];
    p->loaded = 0;
    nf_folder_unlock(p->lock);
    p->lock = -1;
    [(id)p->model release];
    p->model = nil;
}

static nf_status name_of(NSString **out, nf_ane_program *p) {
    NSString *name = *out = [p->model hexStringIdentifier];
    if ([name length] == 0 || [name rangeOfString:@"/"].location != NSNotFound)
        return nf_fail(NF_ERR_DEVICE, "the program was given the unusable name '%s'", text_of(name));
    return NF_OK;
}

/* Trouble with the cache is no reason to fail: the program is then compiled in the scratch folder, which a program that the
   compiler refuses pays with a second refusal. */
static nf_status load_program(nf_ane_program *p, const source *s) {
    NSString *name;
    NF_TRY(make_model(p, s));
    NF_TRY(name_of(&name, p));
    if (*p->device->cache && p->device->can_cache) {
        if (load_from_cache(p, s, text_of(name)) == NF_OK) return describe(p);
        drop_model(p);
        NF_TRY(make_model(p, s));
    }
    NF_TRY(load_from_scratch(p, s, text_of(name)));
    return describe(p);
}

/* The compiler leaves net.plist, which does not depend on the weights, and data, which is the weight file. */
static nf_status load_from_donor(nf_ane_program *p, const source *s, const nf_ane_program *donor) {
    NSString *name, *folder = [NSString stringWithUTF8String:donor->folder];
    if (s->n_blobs != 1) return nf_fail(NF_ERR_ARGUMENT, "%d weight files: a donor has one", s->n_blobs);
    NSData *compiled = [NSData dataWithContentsOfFile:[folder stringByAppendingPathComponent:@"net.plist"]];
    if (!compiled) return nf_fail(NF_ERR_DEVICE, "%s: the compiler left no net.plist", donor->folder);
    NF_TRY(make_model(p, s));
    NF_TRY(name_of(&name, p));
    NF_TRY(nf_folder_claim(p->device->scratch, text_of(name), p->folder, p->marker));
    NF_TRY(write_source(p->folder, s));
    NF_TRY(nf_folder_write(p->folder, "net.plist", [compiled bytes], [compiled length]));
    NF_TRY(nf_folder_write(p->folder, "data", s->blobs[0].data, s->blobs[0].size));
    p->origin = NF_ANE_CACHED;
    NF_TRY(load(p));
    return describe(p);
}

static nf_status load_guarded(nf_ane_program *p, const source *s, const nf_ane_program *donor) {
    GUARDED("load", donor ? load_from_donor(p, s, donor) : load_program(p, s))
}

static nf_status new_program(nf_ane_program **out, nf_ane_device *device, const source *s, const nf_ane_program *donor) {
    *out = NULL;
    nf_ane_program *p = calloc(1, sizeof *p);
    if (!p) return nf_fail(NF_ERR_MEMORY, "no memory for a program");
    p->device = device, p->lock = -1;
    pthread_mutex_init(&p->mutex, NULL);
    nf_status status = load_guarded(p, s, donor);
    if (status == NF_OK)
        *out = p;
    else
        nf_ane_program_free(p);
    return status;
}

nf_status nf_ane_program_load(nf_ane_program **out, nf_ane_device *device, const char *mil, size_t mil_size,
                              const nf_ane_blob *blobs, int n_blobs) {
    return new_program(out, device, &(source){mil, mil_size, blobs, n_blobs}, NULL);
}

nf_status nf_ane_program_load_by_donor(nf_ane_program **out, const nf_ane_program *donor, const char *mil, size_t mil_size,
                                       const nf_ane_blob *blobs, int n_blobs) {
    return new_program(out, donor->device, &(source){mil, mil_size, blobs, n_blobs}, donor);
}

static nf_status unload(nf_ane_program *p) {
    NSError *error = nil; /* nothing can be done about it */
    if (p->loaded && !p->lost) [p->model unloadWithQoS:QOS error:&error];
    [(id)p->model release];
    [p->numbers release];
    return NF_OK;
}

static nf_status unload_guarded(nf_ane_program *p) { GUARDED("unload", unload(p)) }

static void free_ports(nf_ane_port *ports, int n) {
    for (int i = 0; i < n; i++) free((void *)(uintptr_t)ports[i].name);
    free(ports);
}

void nf_ane_program_free(nf_ane_program *p) {
    if (!p) return;
    unload_guarded(p);
    nf_worker_stop(p->worker);
    if (*p->marker && !p->lost) nf_folder_release(p->device->scratch, p->folder, p->marker);
    nf_folder_unlock(p->lock);
    for (int i = 0; i < p->n_procedures; i++) {
        free_ports(p->procedures[i].inputs, p->procedures[i].n_inputs);
        free_ports(p->procedures[i].outputs, p->procedures[i].n_outputs);
    }
    free(p->procedures);
    pthread_mutex_destroy(&p->mutex);
    free(p);
}

nf_ane_origin nf_ane_program_origin(const nf_ane_program *program) { return program->origin; }
int nf_ane_program_procedures(const nf_ane_program *program) { return program->n_procedures; }

static nf_status find_procedure(const nf_ane_program *p, const char *name, int *out) {
    NSNumber *number = item(p->numbers, [NSString stringWithUTF8String:name], [NSNumber class]);
    for (*out = 0; number && *out < p->n_procedures; ++*out)
        if (p->procedures[*out].number == [number intValue]) return NF_OK;
    *out = -1;
    return nf_fail(NF_ERR_ARGUMENT, "the program has no procedure '%s'", name);
}

nf_status nf_ane_program_procedure(const nf_ane_program *program, const char *name, int *out) {
    GUARDED("procedure", find_procedure(program, name, out))
}

static nf_status check_procedure(const nf_ane_program *p, int at) {
    if (at >= 0 && at < p->n_procedures) return NF_OK;
    return nf_fail(NF_ERR_ARGUMENT, "procedure %d: the program has %d", at, p->n_procedures);
}

nf_status nf_ane_program_inputs(const nf_ane_program *program, int procedure, const nf_ane_port **out, int *n) {
    NF_TRY(check_procedure(program, procedure));
    *out = program->procedures[procedure].inputs, *n = program->procedures[procedure].n_inputs;
    return NF_OK;
}

nf_status nf_ane_program_outputs(const nf_ane_program *program, int procedure, const nf_ane_port **out, int *n) {
    NF_TRY(check_procedure(program, procedure));
    *out = program->procedures[procedure].outputs, *n = program->procedures[procedure].n_outputs;
    return NF_OK;
}

/* --- surfaces */

/* One row of bytes, as all public users of the private interface make them. */
static nf_status new_surface(nf_ane_surface *s, nf_ane_device *d, int64_t bytes) {
    NSNumber *size = [NSNumber numberWithLongLong:(bytes + SURFACE_STEP - 1) / SURFACE_STEP * SURFACE_STEP];
    NSArray *values = @[ size, @1, @1, size, size, @0 ];
    NSArray *keys = [NSArray arrayWithObjects:d->surface_keys count:SURFACE_PROPERTIES];
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

static nf_status new_surface_guarded(nf_ane_surface *s, nf_ane_device *d,
                                     int64_t bytes){GUARDED("surface", new_surface(s, d, bytes))}

nf_status nf_ane_surface_new(nf_ane_surface **out, nf_ane_device *device, int64_t bytes) {
    *out = NULL;
    if (bytes < 1 || bytes > LARGEST) return nf_fail(NF_ERR_ARGUMENT, "a surface cannot have %lld bytes", (long long)bytes);
    nf_ane_surface *s = calloc(1, sizeof *s);
    if (!s) return nf_fail(NF_ERR_MEMORY, "no memory for a surface");
    nf_status status = new_surface_guarded(s, device, bytes);
    if (status == NF_OK)
        *out = s;
    else
        nf_ane_surface_free(s);
    return status;
}

static nf_status release(id a, id b) {
    [a release];
    [b release];
    return NF_OK;
}

static nf_status release_guarded(id a, id b) { GUARDED("release", release(a, b)) }

void nf_ane_surface_free(nf_ane_surface *surface) {
    if (surface) release_guarded(surface->object, surface->surface);
    free(surface);
}

int64_t nf_ane_surface_bytes(const nf_ane_surface *surface) { return surface->bytes; }

static nf_status lock_surface(nf_ane_surface *s, int read_only, void **base) {
    int code = [s->surface lockWithOptions:read_only ? SURFACE_READ_ONLY : 0 seed:NULL];
    *base = code == 0 ? [s->surface baseAddress] : NULL;
    return *base ? NF_OK : nf_fail(NF_ERR_DEVICE, "a surface could not be locked (code %d)", code);
}

nf_status nf_ane_surface_lock(nf_ane_surface *surface, int read_only, void **base) {
    GUARDED("lock", lock_surface(surface, read_only, base))
}

static nf_status unlock_surface(nf_ane_surface *s, int read_only) {
    int code = [s->surface unlockWithOptions:read_only ? SURFACE_READ_ONLY : 0 seed:NULL];
    return code == 0 ? NF_OK : nf_fail(NF_ERR_DEVICE, "a surface could not be unlocked (code %d)", code);
}

nf_status nf_ane_surface_unlock(nf_ane_surface *surface, int read_only) {
    GUARDED("unlock", unlock_surface(surface, read_only))
}

/* --- requests */

static nf_status bind_ports(NSMutableArray *objects, NSMutableArray *symbols, const nf_ane_port *ports, int n,
                            nf_ane_surface *const *surfaces, int given) {
    if (given != n) return nf_fail(NF_ERR_ARGUMENT, "%d surfaces for %d ports", given, n);
    for (int i = 0; i < n; i++) {
        if (nf_ane_surface_bytes(surfaces[i]) < ports[i].bytes)
            return nf_fail(NF_ERR_ARGUMENT, "port %s needs %lld bytes, its surface has %lld", ports[i].name,
                           (long long)ports[i].bytes, (long long)nf_ane_surface_bytes(surfaces[i]));
        [objects addObject:surfaces[i]->object];
        [symbols addObject:[NSNumber numberWithInt:ports[i].symbol]];
    }
    return NF_OK;
}

typedef struct surfaces {
    nf_ane_surface *const *inputs, *const *outputs;
    int n_inputs, n_outputs;
} surfaces;

static nf_status new_request(nf_ane_request *r, int at, surfaces bound) {
    const procedure *p = &r->program->procedures[at];
    NSMutableArray *inputs = [NSMutableArray array], *outputs = [NSMutableArray array];
    NSMutableArray *input_symbols = [NSMutableArray array], *output_symbols = [NSMutableArray array];
    NF_TRY(bind_ports(inputs, input_symbols, p->inputs, p->n_inputs, bound.inputs, bound.n_inputs));
    NF_TRY(bind_ports(outputs, output_symbols, p->outputs, p->n_outputs, bound.outputs, bound.n_outputs));
    r->request = [[r->program->device->requests requestWithInputs:inputs
                                                     inputIndices:input_symbols
                                                          outputs:outputs
                                                    outputIndices:output_symbols
                                                    weightsBuffer:nil
                                                        perfStats:nil
                                                   procedureIndex:[NSNumber numberWithInt:p->number]] retain];
    return r->request ? NF_OK : nf_fail(NF_ERR_DEVICE, "the Neural Engine did not take the surfaces");
}

static nf_status new_request_guarded(nf_ane_request *r, int at, surfaces bound){GUARDED("request", new_request(r, at, bound))}

nf_status nf_ane_request_new(nf_ane_request **out, nf_ane_program *program, int procedure, nf_ane_surface *const *inputs,
                             int n_inputs, nf_ane_surface *const *outputs, int n_outputs) {
    *out = NULL;
    NF_TRY(check_procedure(program, procedure));
    nf_ane_request *r = calloc(1, sizeof *r);
    if (!r) return nf_fail(NF_ERR_MEMORY, "no memory for a request");
    r->program = program;
    nf_status status = new_request_guarded(r, procedure, (surfaces){inputs, outputs, n_inputs, n_outputs});
    if (status == NF_OK)
        *out = r;
    else
        nf_ane_request_free(r);
    return status;
}

void nf_ane_request_free(nf_ane_request *request) {
    if (request) release_guarded(request->request, nil);
    free(request);
}

/* One evaluation.  It holds what it uses, so that it may outlive its caller's patience. */
typedef struct evaluation {
    id<NFModel> model;
    id request;
    nf_status status;
    char message[256];
} evaluation;

static nf_status evaluate(id<NFModel> model, id request) {
    NSError *error = nil;
    return [model evaluateWithQoS:QOS options:@{} request:request error:&error] ? NF_OK : refuse(error, "evaluate");
}

static nf_status evaluate_guarded(id<NFModel> model, id request) { GUARDED("evaluate", evaluate(model, request)) }

static void run_evaluation(void *context) {
    evaluation *e = context;
    e->status = evaluate_guarded(e->model, e->request);
    if (e->status != NF_OK) snprintf(e->message, sizeof e->message, "%s", nf_last_error());
}

static void discard_evaluation(void *context) {
    evaluation *e = context;
    release_guarded(e->request, e->model);
    free(e);
}

static nf_status evaluate_in_time(nf_ane_program *p, id request, double seconds) {
    if (!p->worker) NF_TRY(nf_worker_start(&p->worker));
    evaluation *e = calloc(1, sizeof *e);
    if (!e) return nf_fail(NF_ERR_MEMORY, "no memory for an evaluation");
    e->model = [(id)p->model retain], e->request = [request retain];
    if (nf_worker_run(p->worker, run_evaluation, discard_evaluation, e, seconds) != NF_OK) {
        p->lost = 1;
        return nf_fail(NF_ERR_TIMEOUT, "the Neural Engine did not answer within %g s", seconds);
    }
    nf_status status = e->status == NF_OK ? NF_OK : nf_fail(e->status, "%s", e->message);
    discard_evaluation(e);
    return status;
}

nf_status nf_ane_request_run(nf_ane_request *request, double seconds) {
    nf_ane_program *p = request->program;
    pthread_mutex_lock(&p->mutex);
    nf_status status;
    if (p->lost)
        status = nf_fail(NF_ERR_STATE, "an earlier evaluation of this program has not returned; load the program again");
    else if (seconds > 0.0)
        status = evaluate_in_time(p, request->request, seconds);
    else
        status = evaluate_guarded(p->model, request->request);
    pthread_mutex_unlock(&p->mutex);
    return status;
}
