/* Recording: an event, and the two ends of a span.

   Runs in producers: from what has been made ready into the critical section. */
#ifndef SHMREC_NATIVE_RECORD_H
#define SHMREC_NATIVE_RECORD_H

#include "_native_threads.h"

/* The heads of a kind's events, without arguments and with them. */
typedef uint8_t Heads[2][2];
static const Heads INSTANT = {{SHMREC_PREFIX_INSTANT}, {SHMREC_PREFIX_INSTANT_ARGS}};
static const Heads BEGIN = {{SHMREC_PREFIX_BEGIN}, {SHMREC_PREFIX_BEGIN_ARGS}};
static const Heads END = {{SHMREC_PREFIX_END}, {SHMREC_PREFIX_END_ARGS}};
static const Heads COUNTER = {{SHMREC_PREFIX_COUNTER}, {SHMREC_PREFIX_COUNTER}};

hot Py_hash_t hash_of(PyObject *text)
{
    Py_hash_t hash = ((PyASCIIObject *)text)->hash;
    return likely(hash != -1) ? hash : PyObject_Hash(text);
}

hot Event event_of(const Heads heads, PyObject *name, const uint8_t *tail, size_t size)
{
    const uint8_t *head = heads[size != 0];
    return (Event){
        .head = {head[0], head[1]},
        .name = name,
        .hash = hash_of(name),
        .tail = tail,
        .tail_size = size,
    };
}

/* Each of the following comes with a twin that prepares first, which may run Python code. `sure`
   says that there is a ring: no Python code has run since that was seen. All give 0, or -1 with
   an exception. */

cold int record_prepared(Writer *self, const Event *event)
{
    uint64_t now = 0;
    if (prepare(self, &now) < 0) {
        return -1;
    }
    if (bound(self)) {
        add(&self->batch, event, now);
    }
    return 0;
}

/* Record an event that is no part of a span. */
hot int record(Writer *self, const Event *event, bool sure)
{
    if (unlikely(must_prepare(self))) {
        Event given = *event;
        return record_prepared(self, &given);
    }
    if (sure || likely(bound(self))) {
        add(&self->batch, event, 0);
    }
    return 0;
}

/* What the open span keeps: false if there is no memory for it. */
hot bool keep_open(Batch *batch, const uint8_t *args, size_t size, uint8_t **kept)
{
    if (unlikely(batch->spans.used == batch->spans.room && !grow_open(&batch->spans))) {
        return false;
    }
    *kept = NULL;
    if (size) {
        *kept = PyMem_RawMalloc(size);
        if (unlikely(!*kept)) {
            return false;
        }
        memcpy(*kept, args, size);
    }
    return true;
}

/* The number is given here, so that open spans are in the order of their numbers. */
hot void begin_now(Writer *self, PyObject *name, const uint8_t *args, size_t size, uint64_t *id,
                   uint64_t now)
{
    Batch *batch = &self->batch;
    uint64_t span = *id = ++self->next_span;
    uint8_t *kept;

    if (unlikely(!keep_open(batch, args, size, &kept))) {
        count_lost(batch, SHMREC_LOST_NO_MEMORY, 1);
        return;
    }
    Event event = event_of(BEGIN, name, args, size);
    event.begins = true;
    event.span = span;
    if (unlikely(!add(batch, &event, now))) {
        PyMem_RawFree(kept);
        return;
    }
    Open *open = &batch->spans.open[batch->spans.used++];
    open->id = span;
    open->start = batch->last;
    open->name = Py_NewRef(name);
    open->speaker = batch->speaker;
    open->speaker->references++;
    open->args = kept;
    open->args_size = size;
    batch->spans.live++;
}

cold int begin_prepared(Writer *self, PyObject *name, const uint8_t *args, size_t size,
                        uint64_t *id)
{
    uint64_t now = 0;
    if (prepare(self, &now) < 0) {
        return -1;
    }
    if (bound(self)) {
        begin_now(self, name, args, size, id, now);
    }
    return 0;
}

/* Begin a span; its number is 0 where nothing records. */
hot int begin_span(Writer *self, PyObject *name, const uint8_t *args, size_t size, uint64_t *id,
                   bool sure)
{
    *id = 0;
    if (unlikely(must_prepare(self))) {
        return begin_prepared(self, name, args, size, id);
    }
    if (sure || likely(bound(self))) {
        begin_now(self, name, args, size, id, 0);
    }
    return 0;
}

hot void end_now(Writer *self, uint64_t span, const uint8_t *args, size_t size, uint64_t now)
{
    Batch *batch = &self->batch;
    Open *open = find_open(&batch->spans, span);
    if (unlikely(!open)) {
        count_lost(batch, SHMREC_LOST_UNMATCHED, 1);
        return;
    }
    Event event = event_of(END, open->name, args, size);
    event.lasts = true;
    event.since = open->start;
    event.span = span;
    if (likely(add(batch, &event, now))) {
        close_open(&batch->spans, open);
    }
}

cold int end_prepared(Writer *self, uint64_t span, const uint8_t *args, size_t size)
{
    uint64_t now = 0;
    /* What is not open takes no time, nor a test's. */
    if (bound(self) && find_open(&self->batch.spans, span) && prepare(self, &now) < 0) {
        return -1;
    }
    if (bound(self)) {
        end_now(self, span, args, size, now);
    }
    return 0;
}

/* End a span. */
hot int end_span(Writer *self, uint64_t span, const uint8_t *args, size_t size, bool sure)
{
    if (unlikely(must_prepare(self))) {
        return end_prepared(self, span, args, size);
    }
    if (sure || likely(bound(self))) {
        end_now(self, span, args, size, 0);
    }
    return 0;
}

#endif /* SHMREC_NATIVE_RECORD_H */
