/* SPDX-License-Identifier: Apache-2.0 */
/* Compile programs and load them: in the scratch folder, from the cache, or by a donor. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ane_inside.h"

enum {
    LOAD_PAUSE_MS = 100, /* before the one retry of a load that failed, which it does now and then */
    COMPILE_BUDGET = 119 /* compiles that a process was seen to get */
};
static const double LOCK_SECONDS = 60.0; /* another process compiles the same program for about this long at most */

static _Atomic int compiles;

int nf_ane_compile_count(void) { return compiles; }

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
    if ([p->model compileWithQoS:NF_ANE_QOS options:@{} error:&error]) {
        compiles++;
        return NF_OK;
    }
    if (!error && nf_ane_compile_count() >= COMPILE_BUDGET - 20)
        return nf_fail(NF_ERR_DEVICE,
                       "compile: refused without a reason after %d compiles of this process; about %d is what the system gives",
                       nf_ane_compile_count(), COMPILE_BUDGET);
    return nf_ane_refuse(error, "compile");
}

static nf_status load(nf_ane_program *p) {
    NSError *error = nil;
    p->loaded = [p->model loadWithQoS:NF_ANE_QOS options:@{} error:&error];
    if (!p->loaded) {
        usleep(LOAD_PAUSE_MS * 1000);
        error = nil;
        p->loaded = [p->model loadWithQoS:NF_ANE_QOS options:@{} error:&error];
    }
    return p->loaded ? NF_OK : nf_ane_refuse(error, "load");
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
    if (p->loaded) [p->model unloadWithQoS:NF_ANE_QOS error:&error];
    p->loaded = 0;
    nf_folder_unlock(p->lock);
    p->lock = -1;
    [(id)p->model release];
    p->model = nil;
}

static nf_status name_of(NSString **out, nf_ane_program *p) {
    NSString *name = *out = [p->model hexStringIdentifier];
    if ([name length] == 0 || [name rangeOfString:@"/"].location != NSNotFound)
        return nf_fail(NF_ERR_DEVICE, "the program was given the unusable name '%s'", nf_ane_text_of(name));
    return NF_OK;
}

/* Trouble with the cache is no reason to fail: the program is then compiled in the scratch folder, which a program that the
   compiler refuses pays with a second refusal. */
static nf_status load_program(nf_ane_program *p, const source *s) {
    NSString *name;
    NF_TRY(make_model(p, s));
    NF_TRY(name_of(&name, p));
    if (*p->device->cache && p->device->can_cache) {
        if (load_from_cache(p, s, nf_ane_text_of(name)) == NF_OK) return nf_ane_describe(p);
        drop_model(p);
        NF_TRY(make_model(p, s));
    }
    NF_TRY(load_from_scratch(p, s, nf_ane_text_of(name)));
    return nf_ane_describe(p);
}

/* The compiler leaves net.plist, which does not depend on the weights, and data, which is the weight file. */
static nf_status load_from_donor(nf_ane_program *p, const source *s, const nf_ane_program *donor) {
    NSString *name, *folder = [NSString stringWithUTF8String:donor->folder];
    if (s->n_blobs != 1) return nf_fail(NF_ERR_ARGUMENT, "%d weight files: a donor has one", s->n_blobs);
    NSData *compiled = [NSData dataWithContentsOfFile:[folder stringByAppendingPathComponent:@"net.plist"]];
    if (!compiled) return nf_fail(NF_ERR_DEVICE, "%s: the compiler left no net.plist", donor->folder);
    NF_TRY(make_model(p, s));
    NF_TRY(name_of(&name, p));
    NF_TRY(nf_folder_claim(p->device->scratch, nf_ane_text_of(name), p->folder, p->marker));
    NF_TRY(write_source(p->folder, s));
    NF_TRY(nf_folder_write(p->folder, "net.plist", [compiled bytes], [compiled length]));
    NF_TRY(nf_folder_write(p->folder, "data", s->blobs[0].data, s->blobs[0].size));
    p->origin = NF_ANE_CACHED;
    NF_TRY(load(p));
    return nf_ane_describe(p);
}

static nf_status load_guarded(nf_ane_program *p, const source *s, const nf_ane_program *donor) {
    NF_ANE_GUARDED("load", donor ? load_from_donor(p, s, donor) : load_program(p, s));
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
    if (p->loaded && !p->lost) [p->model unloadWithQoS:NF_ANE_QOS error:&error];
    [(id)p->model release];
    [p->numbers release];
    return NF_OK;
}

static nf_status unload_guarded(nf_ane_program *p) { NF_ANE_GUARDED("unload", unload(p)); }

void nf_ane_program_free(nf_ane_program *p) {
    if (!p) return;
    unload_guarded(p);
    nf_worker_stop(p->worker);
    if (*p->marker && !p->lost) nf_folder_release(p->device->scratch, p->folder, p->marker);
    nf_folder_unlock(p->lock);
    nf_ane_free_procedures(p);
    pthread_mutex_destroy(&p->mutex);
    free(p);
}

nf_ane_origin nf_ane_program_origin(const nf_ane_program *program) { return program->origin; }
