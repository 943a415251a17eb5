/* SPDX-License-Identifier: Apache-2.0 */
/* The private classes of the Neural Engine as far as public reports describe them, and the IOSurface that they use.

   Compiling reads <folder>/model.mil and <folder>/weights, and writes <folder>/net.plist (here: an index and the text) and
   <folder>/data (the weight files); loading reads these two alone, so weights are fixed once they are compiled.  The folder is
   that of setModelURL:, or NSTemporaryDirectory()/<name of the program>. */
#import <Foundation/Foundation.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mil.h"
#include "sha256.h"

enum { MOST_FILES = 512 };
static const char index_head[] = "ANE simulator 1\n";

NSString *const kIOSurfaceWidth = @"IOSurfaceWidth";
NSString *const kIOSurfaceHeight = @"IOSurfaceHeight";
NSString *const kIOSurfaceBytesPerElement = @"IOSurfaceBytesPerElement";
NSString *const kIOSurfaceBytesPerRow = @"IOSurfaceBytesPerRow";
NSString *const kIOSurfaceAllocSize = @"IOSurfaceAllocSize";
NSString *const kIOSurfacePixelFormat = @"IOSurfacePixelFormat";

static BOOL refuse(NSError **error, NSString *domain, NSInteger code, NSString *text, const char *reason) {
    if (!error) return NO;
    NSMutableDictionary *info = [NSMutableDictionary dictionaryWithObject:text forKey:NSLocalizedDescriptionKey];
    if (reason && *reason) [info setObject:[NSString stringWithUTF8String:reason] forKey:NSLocalizedFailureReasonErrorKey];
    *error = [NSError errorWithDomain:domain code:code userInfo:info];
    return NO;
}

static BOOL refuse_request(NSError **error, NSString *status, const char *reason) {
    NSString *text = [NSString stringWithFormat:@"ANEProgramProcessRequestDirect() Failed with status=%@ : simulated", status];
    return refuse(error, @"com.apple.appleneuralengine", 8, text, reason);
}

/* --- IOSurface */

struct __IOSurface;

@interface IOSurface : NSObject {
    void *base;
    NSInteger size;
    int locks;
}
- (id)initWithProperties:(NSDictionary *)properties;
- (void *)baseAddress;
- (NSInteger)allocationSize;
- (int)lockWithOptions:(uint32_t)options seed:(uint32_t *)seed;
- (int)unlockWithOptions:(uint32_t)options seed:(uint32_t *)seed;
- (int)locks;
@end

@implementation IOSurface
- (id)initWithProperties:(NSDictionary *)properties {
    self = [super init];
    sim_add("living_surfaces", 1);
    size = [[properties objectForKey:kIOSurfaceAllocSize] integerValue];
    NSInteger row = [[properties objectForKey:kIOSurfaceBytesPerRow] integerValue];
    NSInteger height = [[properties objectForKey:kIOSurfaceHeight] integerValue];
    BOOL whole = size > 0 && row * height == size && [[properties objectForKey:kIOSurfaceBytesPerElement] integerValue] == 1;
    if (!whole || posix_memalign(&base, 16384, (size_t)size) != 0) {
        base = NULL;
        [self release];
        return nil;
    }
    memset(base, 0xa5, (size_t)size); /* who needs zeros must write them */
    return self;
}
- (void)dealloc {
    sim_add("living_surfaces", -1);
    free(base);
    [super dealloc];
}
- (void *)baseAddress {
    return base;
}
- (NSInteger)allocationSize {
    return size;
}
- (int)lockWithOptions:(uint32_t)options seed:(uint32_t *)seed {
    (void)options, (void)seed;
    sim_add("locks", 1);
    @synchronized(self) {
        locks++;
    }
    return 0;
}
- (int)unlockWithOptions:(uint32_t)options seed:(uint32_t *)seed {
    (void)options, (void)seed;
    @synchronized(self) {
        if (locks == 0) return -1;
        locks--;
    }
    sim_add("locks", -1);
    return 0;
}
- (int)locks {
    return locks;
}
@end

@interface _ANEIOSurfaceObject : NSObject {
    IOSurface *surface;
}
+ (id)objectWithIOSurface:(struct __IOSurface *)surface;
- (IOSurface *)ioSurface;
@end

@implementation _ANEIOSurfaceObject
+ (id)objectWithIOSurface:(struct __IOSurface *)surface {
    _ANEIOSurfaceObject *object = [[self alloc] init];
    object->surface = [(IOSurface *)surface retain];
    return [object autorelease];
}
- (void)dealloc {
    [surface release];
    [super dealloc];
}
- (IOSurface *)ioSurface {
    return surface;
}
@end

@interface _ANEDeviceInfo : NSObject
@end

@implementation _ANEDeviceInfo
+ (NSString *)aneArchitectureType {
    return @"h16g";
}
+ (NSString *)aneSubType {
    return @"h16";
}
+ (unsigned int)numANECores {
    return 16;
}
+ (unsigned int)numANEs {
    return 1;
}
+ (BOOL)hasANE {
    return sim_get("no_ane") == 0;
}
+ (BOOL)isVirtualMachine {
    return NO;
}
@end

@interface _ANERequest : NSObject {
  @public
    NSArray *inputs, *inputIndices, *outputs, *outputIndices;
    NSNumber *procedure;
}
@end

@implementation _ANERequest
+ (id)requestWithInputs:(NSArray *)inputs
           inputIndices:(NSArray *)inputIndices
                outputs:(NSArray *)outputs
          outputIndices:(NSArray *)outputIndices
          weightsBuffer:(id)weights
              perfStats:(id)stats
         procedureIndex:(NSNumber *)procedure {
    (void)weights, (void)stats;
    if ([inputs count] != [inputIndices count] || [outputs count] != [outputIndices count] || !procedure) return nil;
    _ANERequest *r = [[self alloc] init];
    r->inputs = [inputs copy], r->inputIndices = [inputIndices copy];
    r->outputs = [outputs copy], r->outputIndices = [outputIndices copy];
    r->procedure = [procedure retain];
    return [r autorelease];
}
- (void)dealloc {
    [inputs release];
    [inputIndices release];
    [outputs release];
    [outputIndices release];
    [procedure release];
    [super dealloc];
}
@end

@interface _ANEInMemoryModelDescriptor : NSObject {
  @public
    NSData *text;
    NSDictionary *weights;
}
@end

@implementation _ANEInMemoryModelDescriptor
+ (id)modelWithMILText:(NSData *)text weights:(NSDictionary *)weights optionsPlist:(NSData *)options {
    (void)options;
    if (![text isKindOfClass:[NSData class]]) [NSException raise:NSInvalidArgumentException format:@"the text is no NSData"];
    if (!weights) return nil;
    _ANEInMemoryModelDescriptor *d = [[self alloc] init];
    d->text = [text retain];
    d->weights = [weights retain];
    return [d autorelease];
}
- (void)dealloc {
    [text release];
    [weights release];
    [super dealloc];
}
@end

/* --- ports */

static NSDictionary *live_port(const sim_value *v, NSString *suffix) {
    sim_port p = sim_port_of(v);
    NSString *name = [[NSString stringWithUTF8String:v->name] stringByAppendingString:suffix];
    return @{
        @"Name" : name,
        @"Type" : v->type.dtype == SIM_F16 ? @"Float16" : @"Float32",
        @"Batches" : @(p.shape[0]),
        @"Channels" : @(p.shape[1]),
        @"Height" : @(p.shape[2]),
        @"Width" : @(p.shape[3]),
        @"Depth" : @1,
        @"Interleave" : @(sim_get("interleave")),
        @"BatchStride" : @(p.batch),
        @"PlaneStride" : @(p.plane),
        @"RowStride" : @(p.row),
        @"PlaneCount" : @(p.shape[1]),
    };
}

/* Symbols are numbered through the whole program, those of each function in alphabetical order. */
static NSDictionary *attributes_of(const sim_program *program) {
    NSMutableArray *procedures = [NSMutableArray array], *networks = [NSMutableArray array];
    NSMutableArray *inputs = [NSMutableArray array], *outputs = [NSMutableArray array];
    NSMutableDictionary *numbers = [NSMutableDictionary dictionary];
    for (int i = 0; i < program->n_functions; i++) {
        const sim_function *f = &program->functions[i];
        NSMutableArray *in = [NSMutableArray array], *out = [NSMutableArray array];
        NSMutableArray *live_in = [NSMutableArray array], *live_out = [NSMutableArray array];
        for (int k = 0; k < f->n_inputs; k++) {
            const sim_value *v = &f->values[f->inputs[k]];
            [in addObject:@([inputs count])];
            [inputs addObject:[NSString stringWithUTF8String:v->name]];
            [live_in addObject:live_port(v, @"")];
        }
        for (int k = 0; k < f->n_outputs; k++) {
            const sim_value *v = &f->values[f->outputs[k]];
            [out addObject:@([outputs count])];
            [outputs addObject:[NSString stringWithFormat:@"%s@output", v->name]];
            [live_out addObject:live_port(v, @"@output")];
        }
        [procedures addObject:@{
            @"ANEFModelProcedureID" : @(i),
            @"ANEFModelInputSymbolIndexArray" : in,
            @"ANEFModelOutputSymbolIndexArray" : out
        }];
        [networks addObject:@{@"LiveInputList" : live_in, @"LiveOutputList" : live_out}];
        [numbers setObject:@(i) forKey:[NSString stringWithUTF8String:f->name]];
    }
    NSDictionary *description = @{
        @"ANEFModelProcedures" : procedures,
        @"kANEFModelInputSymbolsArrayKey" : inputs,
        @"kANEFModelOutputSymbolsArrayKey" : outputs,
        @"kANEFModelProcedureNameToIDMapKey" : numbers
    };
    return @{@"ANEFModelDescription" : description, @"NetworkStatusList" : networks};
}

@interface _ANEModel : NSObject {
  @public
    NSDictionary *attributes;
}
@end

@implementation _ANEModel
- (NSDictionary *)modelAttributes {
    return sim_get("mute") ? @{} : attributes;
}
- (void)dealloc {
    [attributes release];
    [super dealloc];
}
@end

/* --- the model */

@interface _ANEInMemoryModel : NSObject {
    _ANEInMemoryModelDescriptor *descriptor;
    NSString *name;
    NSURL *url;
    _ANEModel *inner;
    sim_program *program;
    BOOL compiled;
}
@end

@implementation _ANEInMemoryModel
static NSString *hash(NSData *data) {
    char hex[65];
    sim_sha256(hex, [data bytes], [data length]);
    return [NSString stringWithUTF8String:hex];
}

static NSString *name_of(_ANEInMemoryModelDescriptor *d) {
    NSMutableData *all = [NSMutableData data];
    for (NSString *path in [[d->weights allKeys] sortedArrayUsingSelector:@selector(compare:)]) {
        [all appendData:[path dataUsingEncoding:NSUTF8StringEncoding]];
        [all appendData:[[d->weights objectForKey:path] objectForKey:@"data"]];
    }
    return [NSString stringWithFormat:@"%@_%@_%@", hash(d->text), hash([NSData data]), hash(all)];
}

+ (id)inMemoryModelWithDescriptor:(id)descriptor {
    _ANEInMemoryModel *m = [[self alloc] init];
    m->descriptor = [descriptor retain];
    m->name = [name_of(descriptor) retain];
    m->inner = [[_ANEModel alloc] init];
    sim_add("living_models", 1);
    return [m autorelease];
}
- (void)dealloc {
    sim_add("living_models", -1);
    if (compiled) sim_add("living_compiles", -1);
    [descriptor release];
    [name release];
    [url release];
    [inner release];
    sim_free(program);
    [super dealloc];
}
- (NSString *)hexStringIdentifier {
    return name;
}
- (void)setModelURL:(NSURL *)to {
    [url autorelease];
    url = [to retain];
}
- (id)model {
    return inner;
}
- (NSString *)file:(NSString *)file {
    NSString *folder = url ? [url path] : [NSTemporaryDirectory() stringByAppendingPathComponent:name];
    return [folder stringByAppendingPathComponent:file];
}
- (BOOL)compiledModelExists {
    return !sim_get("no_cache") && [[NSFileManager defaultManager] fileExistsAtPath:[self file:@"net.plist"]];
}
- (void)purgeCompiledModel {
    [[NSFileManager defaultManager] removeFileAtPath:[self file:@"net.plist"] handler:nil];
    [[NSFileManager defaultManager] removeFileAtPath:[self file:@"data"] handler:nil];
}

static BOOL reject(NSError **error, const char *reason) {
    return refuse(error, @"com.apple.appleneuralengine.compiler", 1, @"ANECCompile() FAILED: InvalidMILProgram", reason);
}

/* All weight files one after the other, and an index of them before the text. */
static NSData *pack_weights(_ANEInMemoryModel *m, NSMutableData *index) {
    NSMutableData *data = [NSMutableData data];
    [index appendBytes:index_head length:sizeof index_head - 1];
    for (NSString *path in [[m->descriptor->weights allKeys] sortedArrayUsingSelector:@selector(compare:)]) {
        NSString *local = [path stringByReplacingOccurrencesOfString:@"@model_path/" withString:@""];
        NSData *file = [NSData dataWithContentsOfFile:[m file:local]];
        if (!file) return nil;
        [data increaseLengthBy:(64 - [data length] % 64) % 64];
        NSString *line =
            [NSString stringWithFormat:@"%@ %lu %lu\n", path, (unsigned long)[data length], (unsigned long)[file length]];
        [index appendData:[line dataUsingEncoding:NSUTF8StringEncoding]];
        [data appendData:file];
    }
    [index appendBytes:"\n" length:1];
    return data;
}

/* The program of an index and its data, NULL when they are damaged. */
static sim_program *unpack(NSData *index, NSData *data) {
    sim_file *files = (sim_file *)[[NSMutableData dataWithLength:MOST_FILES * sizeof *files] mutableBytes];
    int n = 0;
    NSMutableData *ended = [NSMutableData dataWithData:index];
    [ended appendBytes:"" length:1];
    const char *at = [ended bytes];
    if (strncmp(at, index_head, sizeof index_head - 1) != 0 || !data) return NULL;
    for (at += sizeof index_head - 1; *at && *at != '\n' && n < MOST_FILES; at = strchr(at, '\n') + 1) {
        unsigned long place, size;
        if (!strchr(at, '\n') || sscanf(at, "%255s %lu %lu", files[n].name, &place, &size) != 3) return NULL;
        if (place > [data length] || size > [data length] - place) return NULL;
        files[n].bytes = (const unsigned char *)[data bytes] + place, files[n++].size = size;
    }
    return *at == '\n' ? sim_read(at + 1, strlen(at + 1), files, n) : NULL;
}

static BOOL budget_is_spent(void) {
    return sim_get(sim_get("releasable") ? "living_compiles" : "compiles") >= sim_get("budget");
}

- (BOOL)compileWithQoS:(unsigned int)qos options:(NSDictionary *)options error:(NSError **)error {
    (void)options;
    if (qos > 63) return reject(error, "qos");
    if (url && sim_get("temporary_only")) return reject(error, "no model in the temporary folder");
    if (budget_is_spent()) return NO; /* and not a word */
    NSData *text = [NSData dataWithContentsOfFile:[self file:@"model.mil"]];
    NSMutableData *index = [NSMutableData data];
    NSData *data = text ? pack_weights(self, index) : nil;
    if (!data) return reject(error, "the folder has no model.mil, or not its weights");
    [index appendData:text];
    sim_program *read = unpack(index, data);
    NSString *reason = read ? [NSString stringWithUTF8String:read->error] : @"no program";
    sim_free(read);
    if ([reason length]) return reject(error, [reason UTF8String]);
    if (![data writeToFile:[self file:@"data"] atomically:YES] || ![index writeToFile:[self file:@"net.plist"] atomically:YES])
        return reject(error, "the folder cannot be written");
    sim_add("compiles", 1);
    if (!compiled) sim_add("living_compiles", 1);
    compiled = YES;
    return YES;
}

static BOOL take_load_failure(void) {
    if (sim_get("load_failures") <= 0) return NO;
    sim_add("load_failures", -1);
    return YES;
}

- (BOOL)loadWithQoS:(unsigned int)qos options:(NSDictionary *)options error:(NSError **)error {
    (void)qos, (void)options;
    NSString *domain = @"com.apple.appleneuralengine";
    if (take_load_failure()) return refuse(error, domain, 5, @"programLoadNewInstance failed", "simulated");
    if (sim_get("no_donor") && !url && !compiled) return refuse(error, domain, 10, @"verifyBundleAtPath: invalid model", NULL);
    NSData *index = [NSData dataWithContentsOfFile:[self file:@"net.plist"]],
           *data = [NSData dataWithContentsOfFile:[self file:@"data"]];
    if (sim_get("program_limit") && [data length] > (NSUInteger)sim_get("program_limit") << 20)
        return refuse(error, domain, 6, @"program load failed: 0x20004", NULL);
    sim_program *read = index ? unpack(index, data) : NULL;
    if (!read || *read->error) {
        sim_free(read);
        return refuse(error, domain, 10, @"verifyBundleAtPath: invalid model", NULL);
    }
    sim_free(program);
    program = read;
    [inner->attributes release];
    inner->attributes = [attributes_of(program) retain];
    sim_add("loads", 1);
    return YES;
}

- (BOOL)unloadWithQoS:(unsigned int)qos error:(NSError **)error {
    (void)qos;
    if (!program) return refuse(error, @"com.apple.appleneuralengine", 2, @"the model is not loaded", NULL);
    sim_free(program);
    program = NULL;
    sim_add("unloads", 1);
    return YES;
}

/* The surface of port `at` of a function, whose symbols begin at `first`; NULL with the error set. */
static _ANEIOSurfaceObject *surface_for(NSArray *objects, NSArray *indices, int first, int at, const sim_value *v,
                                        NSError **error) {
    NSUInteger place = [indices indexOfObject:@(first + at)];
    if (place == NSNotFound) {
        refuse_request(error, @"0x2", "a symbol of the procedure has no surface");
        return nil;
    }
    _ANEIOSurfaceObject *object = [objects objectAtIndex:place];
    sim_port p = sim_port_of(v);
    BOOL out_of_order = sim_get("strict_order") && place != (NSUInteger)at;
    BOOL unequal =
        sim_get("equal_sizes") && [[object ioSurface] allocationSize] != [[[objects objectAtIndex:0] ioSurface] allocationSize];
    if (!out_of_order && !unequal && [[object ioSurface] allocationSize] >= p.batch * p.shape[0]) return object;
    refuse_request(error, @"0x1d", v->name);
    return nil;
}

static int first_symbol(const sim_program *program, int procedure, BOOL outputs) {
    int first = 0;
    for (int i = 0; i < procedure; i++) first += outputs ? program->functions[i].n_outputs : program->functions[i].n_inputs;
    return first;
}

/* Between the surfaces and the values of a function; NO with the error set. */
static BOOL move_ports(const sim_program *program, int procedure, _ANERequest *request, BOOL in, NSError **error) {
    sim_function *f = &program->functions[procedure];
    NSArray *objects = in ? request->inputs : request->outputs, *indices = in ? request->inputIndices : request->outputIndices;
    int n = in ? f->n_inputs : f->n_outputs, first = first_symbol(program, procedure, !in);
    if ((int)[objects count] != n) return refuse_request(error, @"0x2", "another number of surfaces than the procedure has");
    for (int i = 0; i < n; i++) {
        sim_value *v = &f->values[(in ? f->inputs : f->outputs)[i]];
        _ANEIOSurfaceObject *object = surface_for(objects, indices, first, i, v, error);
        if (!object) return NO;
        sim_move_port(v, [[object ioSurface] baseAddress], in);
    }
    return YES;
}

#if defined(OTHER_TYPES) /* a later system in which a type has changed */
typedef long long qos_type;
#else
typedef unsigned int qos_type;
#endif

- (BOOL)evaluateWithQoS:(qos_type)qos options:(NSDictionary *)options request:(id)request error:(NSError **)error {
    (void)qos, (void)options;
    while (sim_get("wedge")) usleep(2000);
    if (sim_get("throw")) [NSException raise:NSInternalInconsistencyException format:@"simulated"];
    @synchronized(self) {
        int at = [((_ANERequest *)request)->procedure intValue];
        if (!program || at < 0 || at >= program->n_functions) return refuse_request(error, @"0x2", "no such procedure");
        if (!move_ports(program, at, request, YES, error)) return NO;
        sim_run(&program->functions[at]);
        if (!move_ports(program, at, request, NO, error)) return NO;
    }
    sim_add("evaluations", 1);
    return YES;
}
@end
