/* SPDX-License-Identifier: Apache-2.0 */
/* What can be switched, and what is counted.  Tests reach them through ane_sim_set and ane_sim_get. */
#define _POSIX_C_SOURCE 200809L /* strtok_r */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "mil.h"

typedef struct entry {
    const char *name;
    int value, initial;
} entry;

/* clang-format off */
static entry entries[] = {
    /* the compiler */
    {"budget", 119, 119},          /* compiles that a process gets; then it refuses without a reason */
    {"releasable", 0, 0},          /* 1: a released model gives its compile back (reports differ) */
    {"width_limit", 16384, 16384}, /* last axis */
    {"axis_limit", 65536, 65536},  /* any axis */
    {"conv_limit", 31999, 31999},  /* input channels of conv: 32000 were refused */
    {"old_chip", 0, 0},            /* 1: takes program(1.0) only */
    {"program_limit", 0, 0},       /* megabytes of weights that load; 0: any */
    {"no_concat", 0, 0},           /* 1: concat is refused */
    {"one_procedure", 0, 0},       /* 1: so is a second func */
    /* the driver */
    {"load_failures", 0, 0},       /* that many loads fail */
    {"no_donor", 0, 0},            /* 1: loads only what this model, or the cache, compiled */
    {"wedge", 0, 0},               /* 1: evaluations wait until it is 0 again */
    {"throw", 0, 0},               /* 1: evaluations throw */
    {"strict_order", 0, 0},        /* 1: surfaces must come in the order of their symbols */
    {"equal_sizes", 0, 0},         /* 1: all inputs, and all outputs, must have surfaces of one size */
    {"row_bytes", 64, 64},         /* rows of a surface are padded to this */
    {"no_ane", 0, 0},              /* 1: the machine has none */
    {"mute", 0, 0},                /* 1: the loaded program does not describe itself */
    {"interleave", 1, 1},          /* what the loaded program says of it */
    {"no_cache", 0, 0},            /* 1: what was compiled is never found again */
    {"temporary_only", 0, 0},      /* 1: compiles in the temporary folder alone */
    /* the arithmetic */
    {"ignore_mask", 1, 1},         /* of scaled_dot_product_attention */
    {"matmul_limit", 32752, 32752}, /* products above become infinite; 0: never */
    {"half_sums", 0, 0},           /* 1: reductions add in float16 */
    /* counted */
    {"compiles", 0, 0}, {"loads", 0, 0}, {"unloads", 0, 0}, {"evaluations", 0, 0},
    {"living_models", 0, 0}, {"living_surfaces", 0, 0}, {"living_compiles", 0, 0}, {"locks", 0, 0},
};
/* clang-format on */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static entry *find(const char *name) {
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++)
        if (strcmp(entries[i].name, name) == 0) return &entries[i];
    return NULL;
}

/* -1 for an unknown name. */
int ane_sim_get(const char *name) {
    pthread_mutex_lock(&mutex);
    entry *e = find(name);
    int value = e ? e->value : -1;
    pthread_mutex_unlock(&mutex);
    return value;
}

int ane_sim_set(const char *name, int value) {
    pthread_mutex_lock(&mutex);
    entry *e = find(name);
    if (e) e->value = value;
    pthread_mutex_unlock(&mutex);
    return e ? 0 : -1;
}

/* All switches as at first, counters too except of what lives. */
void ane_sim_reset(void) {
    pthread_mutex_lock(&mutex);
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++)
        if (strncmp(entries[i].name, "living_", 7) != 0) entries[i].value = entries[i].initial;
    pthread_mutex_unlock(&mutex);
}

/* ANE_SIMULATOR="budget=2 no_cache=1" in the environment: switches of a process that a test starts. */
__attribute__((constructor)) static void from_environment(void) {
    char text[256], *rest = NULL;
    const char *given = getenv("ANE_SIMULATOR");
    if (!given || strlen(given) >= sizeof text) return;
    strcpy(text, given);
    for (char *word = strtok_r(text, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        char *equals = strchr(word, '=');
        if (!equals) continue;
        *equals = 0;
        ane_sim_set(word, atoi(equals + 1));
    }
}

int sim_get(const char *name) { return ane_sim_get(name); }

void sim_add(const char *name, int n) {
    pthread_mutex_lock(&mutex);
    entry *e = find(name);
    if (e) e->value += n;
    pthread_mutex_unlock(&mutex);
}
