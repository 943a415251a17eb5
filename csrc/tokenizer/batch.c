/* SPDX-License-Identifier: Apache-2.0 */
/* One call: texts are cut at added tokens and into blocks, groups of blocks go to threads, ids are put together in order. */
#include <stdio.h>

#include "../core/pool.h"
#include "handle.h"

/* Memory to which more than KEEP_IDS ids were written is not kept; what lies behind them was never touched, and takes none. */
enum { BLOCK = 1 << 18, KEEP_IDS = 1 << 24 };

/* -------- workers: as many as ever encoded at once -------- */

static nf_token_worker *take_worker(nf_tokenizer *t) {
    pthread_mutex_lock(&t->lock);
    nf_token_worker *w = t->idle;
    if (w) t->idle = w->next;
    pthread_mutex_unlock(&t->lock);
    if (w) return w;
    w = calloc(1, sizeof *w);
    if (!w) nf_fail(NF_ERR_MEMORY, "no memory for a thread of the tokenizer");
    return w;
}

static void give_back(nf_tokenizer *t, nf_token_worker *w) {
    nf_known_release(t->known, &w->cache);
    if (w->ids.size > KEEP_IDS) {
        nf_words_free(&w->ids);
        w->ids = (nf_words){0};
    }
    pthread_mutex_lock(&t->lock);
    w->next = t->idle;
    t->idle = w;
    pthread_mutex_unlock(&t->lock);
}

/* Room for `wanted` ids: what was freed before, unless it is far too large, since to touch new memory takes longer than to find
   the ids that go there. */
static nf_status take_buffer(nf_tokenizer *t, nf_words *buffer, int64_t wanted) {
    pthread_mutex_lock(&t->lock);
    if (buffer->capacity < wanted && t->spare.capacity >= wanted && t->spare.capacity / 4 <= wanted) {
        nf_words_free(buffer);
        *buffer = t->spare;
        t->spare = (nf_words){0};
    }
    pthread_mutex_unlock(&t->lock);
    buffer->size = 0;
    return nf_words_reserve(buffer, wanted);
}

static void keep_buffer(nf_tokenizer *t, nf_words buffer) {
    pthread_mutex_lock(&t->lock);
    if (buffer.size <= KEEP_IDS && buffer.capacity > t->spare.capacity) {
        nf_words smaller = t->spare;
        t->spare = buffer;
        buffer = smaller;
    }
    pthread_mutex_unlock(&t->lock);
    nf_words_free(&buffer);
}

/* -------- the plan of one call: parts of texts, and groups of parts that one worker takes -------- */

typedef struct part {
    const uint8_t *text; /* NULL: the added token `size` */
    int64_t size, count; /* count: of ids */
    int32_t prefix, ends_text;
} part;

typedef struct group {
    int64_t first, bytes; /* its first part */
    int64_t at, count;    /* where its ids begin in the worker's, and how many they are */
    int64_t place;        /* where they begin in the result */
    int32_t worker;
} group;

typedef struct plan {
    nf_tokenizer *t;
    nf_bytes parts, groups;
    nf_bytes *normal; /* texts in normal form, where added tokens are searched in these */
    int64_t normal_count;
    nf_token_before before;
    int special;
    nf_token_worker **workers;
    int32_t *joined; /* the result, where several workers made it */
} plan;

static part *parts_of(const plan *p) { return (part *)(void *)p->parts.at; }
static group *groups_of(const plan *p) { return (group *)(void *)p->groups.at; }
static int64_t part_count(const plan *p) { return p->parts.size / (int64_t)sizeof(part); }
static int64_t group_count(const plan *p) { return p->groups.size / (int64_t)sizeof(group); }

static nf_status add_part(plan *p, part new) {
    int64_t n = group_count(p);
    if (n == 0 || groups_of(p)[n - 1].bytes >= BLOCK / 2) {
        group next = {.first = part_count(p)};
        NF_TRY(nf_bytes_append(&p->groups, &next, sizeof next));
        n++;
    }
    groups_of(p)[n - 1].bytes += new.text ? new.size : 1;
    return nf_bytes_append(&p->parts, &new, sizeof new);
}

/* Text without added tokens, in blocks. */
static nf_status add_text(plan *p, const uint8_t *text, int64_t size) {
    if (size == 0) return NF_OK;
    int prefix = p->before == NF_BEFORE_START || (p->before == NF_BEFORE_SPECIAL && p->t->spec.prefix_again);
    const uint8_t *end = text + size, *cut;
    for (; end - text > 2 * BLOCK && (cut = nf_encode_cut(p->t, text + BLOCK, end)); text = cut, prefix = 0)
        NF_TRY(add_part(p, (part){text, cut - text, 0, prefix, 0}));
    p->before = NF_BEFORE_TEXT;
    return add_part(p, (part){text, end - text, 0, prefix, 0});
}

static int beside_word(const uint8_t *begin, const uint8_t *p, const uint8_t *next, const uint8_t *end) {
    uint32_t code;
    if (p > begin && (nf_utf8_read(nf_utf8_back(begin, p), p, &code), nf_class_of(code) & NF_WORD)) return 1;
    return next < end && (nf_utf8_read(next, end, &code), (nf_class_of(code) & NF_WORD) != 0);
}

static const uint8_t *skip_spaces(const uint8_t *p, const uint8_t *end) {
    for (uint32_t code; p < end; p += nf_utf8_read(p, end, &code))
        if (nf_utf8_read(p, end, &code), !(nf_class_of(code) & NF_SPACE)) break;
    return p;
}

static const uint8_t *skip_spaces_back(const uint8_t *begin, const uint8_t *p) {
    for (uint32_t code; p > begin;) {
        const uint8_t *last = nf_utf8_back(begin, p);
        if (nf_utf8_read(last, p, &code), !(nf_class_of(code) & NF_SPACE)) break;
        p = last;
    }
    return p;
}

typedef nf_status (*handle_text)(plan *p, const uint8_t *text, int64_t size);

/* Cut text at the added tokens that `matcher` finds, and hand what lies between to `between`. */
static nf_status add_found(plan *p, const nf_matcher *matcher, const uint8_t *text, int64_t size, handle_text between) {
    const uint8_t *end = text + size, *at = text, *from = text, *place;
    const nf_token_spec *s = &p->t->spec;
    uint32_t which;
    int64_t width;
    while ((which = nf_matcher_next(matcher, from, end, &place, &width)) != NF_NO_ID) {
        const uint8_t *start = place, *stop = from = place + width;
        int32_t flags = s->added_flags[which];
        if (flags & NF_TOKEN_SINGLE_WORD && beside_word(text, start, stop, end)) continue;
        if (flags & NF_TOKEN_LSTRIP && start > at) start = skip_spaces_back(at, start);
        if (flags & NF_TOKEN_RSTRIP) stop = skip_spaces(stop, end);
        if (start > at) NF_TRY(between(p, at, start - at));
        NF_TRY(add_part(p, (part){NULL, s->added_ids[which], 0, 0, 0}));
        p->before = NF_BEFORE_SPECIAL;
        at = stop;
    }
    return at < end ? between(p, at, end - at) : NF_OK;
}

/* The search after normalisation; the normal form is made here only where there is something to search for. */
static nf_status add_normal(plan *p, const uint8_t *text, int64_t size) {
    const nf_matcher *matcher = &p->t->found[p->special][1];
    nf_form form = (nf_form)p->t->spec.form;
    if (matcher->only == -2) return add_text(p, text, size);
    if (form != NF_FORM_NONE && !nf_is_normal(text, size, form)) {
        nf_bytes *grown = realloc(p->normal, (size_t)(p->normal_count + 1) * sizeof *grown);
        if (!grown) return nf_fail(NF_ERR_MEMORY, "no memory for a text of %lld bytes", (long long)size);
        p->normal = grown;
        p->normal[p->normal_count] = (nf_bytes){0};
        nf_bytes *normal = &p->normal[p->normal_count++];
        NF_TRY(nf_normalize(normal, text, size, form));
        text = normal->at;
        size = normal->size;
    }
    return add_found(p, matcher, text, size, add_text);
}

static nf_status make_plan(plan *p, const uint8_t *const *texts, const int64_t *sizes, int64_t count, nf_token_before before,
                           int chained) {
    p->before = before;
    for (int64_t i = 0; i < count; i++) {
        if (!chained) p->before = before;
        NF_TRY(add_found(p, &p->t->found[p->special][0], texts[i], sizes[i], add_normal));
        NF_TRY(add_part(p, (part){NULL, -1, 0, 0, 1}));
    }
    return NF_OK;
}

/* -------- running it -------- */

static nf_status encode_group(nf_token_worker *w, const plan *p, group *g, int64_t end) {
    g->at = w->ids.size;
    NF_TRY(nf_known_take(p->t->known, &w->cache));
    for (int64_t i = g->first; i < end; i++) {
        part *each = &parts_of(p)[i];
        int64_t before = w->ids.size;
        w->after_unknown = 0;
        if (each->text)
            NF_TRY(nf_encode_stretch(w, p->t, each->text, each->size, each->prefix));
        else if (each->size >= 0)
            NF_TRY(nf_words_push(&w->ids, (uint32_t)each->size));
        each->count = w->ids.size - before;
    }
    g->count = w->ids.size - g->at;
    return NF_OK;
}

static void run_group(void *context, int64_t index, int worker) {
    plan *p = context;
    nf_token_worker *w = p->workers[worker];
    if (w->status != NF_OK) return;
    group *g = &groups_of(p)[index];
    g->worker = worker;
    w->status = encode_group(w, p, g, index + 1 < group_count(p) ? g[1].first : part_count(p));
    if (w->status != NF_OK) snprintf(w->message, sizeof w->message, "%s", nf_last_error());
}

static void copy_group(void *context, int64_t index, int worker) {
    const plan *p = context;
    const group *g = &groups_of(p)[index];
    (void)worker;
    memcpy(p->joined + g->place, p->workers[g->worker]->ids.at + g->at, (size_t)g->count * sizeof *p->joined);
}

static void hand_over(nf_token_ids *out, nf_words *ids) {
    out->ids = (int32_t *)(void *)ids->at;
    out->capacity = ids->capacity;
    *ids = (nf_words){0};
}

static nf_status gather(nf_token_ids *out, plan *p, int64_t texts, nf_pool *pool) {
    int64_t total = 0;
    for (int64_t i = 0; i < group_count(p); i++) {
        groups_of(p)[i].place = total;
        total += groups_of(p)[i].count;
    }
    out->count = total;
    out->ends = malloc((size_t)(texts ? texts : 1) * sizeof *out->ends);
    if (!out->ends) return nf_fail(NF_ERR_MEMORY, "no memory for %lld texts", (long long)texts);
    for (int64_t i = 0, text = 0, at = 0; i < part_count(p); i++) {
        at += parts_of(p)[i].count;
        if (parts_of(p)[i].ends_text) out->ends[text++] = at;
    }
    nf_words *first = &p->workers[0]->ids;
    if (nf_pool_threads(pool) == 1) { /* in order already: the buffer itself is handed over */
        hand_over(out, first);
        return NF_OK;
    }
    nf_words joined = {0};
    NF_TRY(take_buffer(p->t, &joined, total));
    hand_over(out, &joined);
    p->joined = out->ids;
    nf_pool_run(pool, group_count(p), copy_group, p);
    return NF_OK;
}

static nf_status run_plan(nf_token_ids *out, plan *p, int64_t texts, int threads) {
    nf_pool *pool = NULL;
    NF_TRY(nf_pool_new(&pool, threads));
    nf_pool_run(pool, group_count(p), run_group, p);
    nf_status status = NF_OK;
    for (int i = 0; i < threads && status == NF_OK; i++)
        if (p->workers[i]->status != NF_OK) status = nf_fail(p->workers[i]->status, "%s", p->workers[i]->message);
    if (status == NF_OK) status = gather(out, p, texts, pool);
    nf_pool_free(pool);
    return status;
}

static nf_status encode_with(nf_token_ids *out, plan *p, int64_t texts, int threads) {
    int taken = 0;
    int64_t bytes = 0;
    nf_status status = NF_OK;
    for (int64_t i = 0; i < group_count(p); i++) bytes += groups_of(p)[i].bytes;
    p->workers = calloc((size_t)threads, sizeof *p->workers);
    if (!p->workers) return nf_fail(NF_ERR_MEMORY, "no memory for %d threads", threads);
    for (; taken < threads && status == NF_OK; taken++) {
        nf_token_worker *w = p->workers[taken] = take_worker(p->t);
        if (!w) {
            status = NF_ERR_MEMORY;
            break;
        }
        w->queued = w->done = 0;
        status = w->status = take_buffer(p->t, &w->ids, 3 * bytes / (threads + 2)); /* more than most texts need */
    }
    if (status == NF_OK) status = run_plan(out, p, texts, threads);
    while (taken > 0) give_back(p->t, p->workers[--taken]);
    free(p->workers);
    return status;
}

nf_status nf_tokenizer_encode(nf_token_ids **out, nf_tokenizer *tokenizer, const uint8_t *const *texts, const int64_t *sizes,
                              int64_t count, nf_token_before before, int chained, int special, int threads) {
    *out = NULL;
    plan p = {.t = tokenizer, .special = special != 0};
    nf_token_ids *ids = calloc(1, sizeof *ids);
    nf_status status = ids ? make_plan(&p, texts, sizes, count, before, chained) : nf_fail(NF_ERR_MEMORY, "no memory for ids");
    if (threads > group_count(&p)) threads = (int)group_count(&p);
    if (status == NF_OK) status = encode_with(ids, &p, count, threads < 1 ? 1 : threads);
    for (int64_t i = 0; i < p.normal_count; i++) nf_bytes_free(&p.normal[i]);
    free(p.normal);
    nf_bytes_free(&p.parts);
    nf_bytes_free(&p.groups);
    if (status == NF_OK)
        *out = ids;
    else
        nf_token_ids_free(tokenizer, ids);
    return status;
}

void nf_token_ids_free(nf_tokenizer *tokenizer, nf_token_ids *ids) {
    if (!ids) return;
    keep_buffer(tokenizer, (nf_words){(uint32_t *)(void *)ids->ids, ids->count, ids->capacity});
    free(ids->ends);
    free(ids);
}
