/* SPDX-License-Identifier: Apache-2.0 */
/* Procedures and ports, as the loaded model says.  Every object of its dictionaries is foreign: its kind is checked. */
#include <objc/runtime.h>
#include <stdlib.h>
#include <string.h>

#include "ane_inside.h"

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
    return *out >= 0 && *out <= NF_ANE_LARGEST ? NF_OK : no_attribute(nf_ane_text_of(key));
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
    const char *digits = strpbrk(nf_ane_text_of(type), "0123456789");
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
                       nf_ane_text_of([[live objectForKey:@"Type"] description]));
    if (depth != 1 || interleave != 1)
        return nf_fail(NF_ERR_DEVICE, "port %s has depth %lld and interleave %lld, which are not supported", p->name,
                       (long long)depth, (long long)interleave);
    if (!fits(p) || p->batches * p->batch_stride > NF_ANE_LARGEST)
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
    if (!networks || !symbols || !indices) return no_attribute(nf_ane_text_of(networks ? way.symbols : @"NetworkStatusList"));
    nf_ane_port *ports = *out = calloc([indices count] + 1, sizeof *ports);
    if (!ports) return nf_fail(NF_ERR_MEMORY, "no memory for %lu ports", (unsigned long)[indices count]);
    for (*n = 0; *n < (int)[indices count]; ++*n) {
        NSNumber *index = [indices objectAtIndex:(NSUInteger)*n];
        BOOL usable = [index isKindOfClass:[NSNumber class]] && [index unsignedLongLongValue] < [symbols count];
        NSString *symbol = usable ? [symbols objectAtIndex:[index unsignedIntegerValue]] : nil;
        if (![symbol isKindOfClass:[NSString class]]) return no_attribute(nf_ane_text_of(way.indices));
        NSDictionary *live = live_port(networks, at, way.list, plain_name(symbol));
        if (!live) return no_attribute(nf_ane_text_of(symbol));
        ports[*n].symbol = [index intValue];
        ports[*n].name = strdup(nf_ane_text_of(plain_name(symbol)));
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
        nf_ane_procedure *one = &p->procedures[i];
        int64_t number;
        NF_TRY(read_number(&number, [procedures objectAtIndex:(NSUInteger)i], @"ANEFModelProcedureID", i));
        one->number = (int)number;
        NF_TRY(read_ports(&one->inputs, &one->n_inputs, attributes, (NSUInteger)i, in));
        NF_TRY(read_ports(&one->outputs, &one->n_outputs, attributes, (NSUInteger)i, out));
    }
    return NF_OK;
}

nf_status nf_ane_describe(nf_ane_program *p) {
    id<NFInnerModel> inner = [p->model model];
    if (!inner) return no_attribute("it has no inner model");
    NF_TRY(nf_ane_check_methods(object_getClass(inner), @protocol(NFInnerModel), 0));
    return read_procedures(p, [inner modelAttributes]);
}

static void free_ports(nf_ane_port *ports, int n) {
    for (int i = 0; i < n; i++) free((void *)(uintptr_t)ports[i].name);
    free(ports);
}

void nf_ane_free_procedures(nf_ane_program *p) {
    for (int i = 0; i < p->n_procedures; i++) {
        free_ports(p->procedures[i].inputs, p->procedures[i].n_inputs);
        free_ports(p->procedures[i].outputs, p->procedures[i].n_outputs);
    }
    free(p->procedures);
}

int nf_ane_program_procedures(const nf_ane_program *program) { return program->n_procedures; }

static nf_status find_procedure(const nf_ane_program *p, const char *name, int *out) {
    NSNumber *number = item(p->numbers, [NSString stringWithUTF8String:name], [NSNumber class]);
    for (*out = 0; number && *out < p->n_procedures; ++*out)
        if (p->procedures[*out].number == [number intValue]) return NF_OK;
    *out = -1;
    return nf_fail(NF_ERR_ARGUMENT, "the program has no procedure '%s'", name);
}

nf_status nf_ane_program_procedure(const nf_ane_program *program, const char *name, int *out) {
    NF_ANE_GUARDED("procedure", find_procedure(program, name, out));
}

nf_status nf_ane_check_procedure(const nf_ane_program *p, int at) {
    if (at >= 0 && at < p->n_procedures) return NF_OK;
    return nf_fail(NF_ERR_ARGUMENT, "procedure %d: the program has %d", at, p->n_procedures);
}

nf_status nf_ane_program_inputs(const nf_ane_program *program, int procedure, const nf_ane_port **out, int *n) {
    NF_TRY(nf_ane_check_procedure(program, procedure));
    *out = program->procedures[procedure].inputs, *n = program->procedures[procedure].n_inputs;
    return NF_OK;
}

nf_status nf_ane_program_outputs(const nf_ane_program *program, int procedure, const nf_ane_port **out, int *n) {
    NF_TRY(nf_ane_check_procedure(program, procedure));
    *out = program->procedures[procedure].outputs, *n = program->procedures[procedure].n_outputs;
    return NF_OK;
}
