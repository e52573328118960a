/* Recording: an event, the two ends of a span, and the context manager that makes both.

   Runs in producers. A `Span` holds packed arguments, never the program's objects. */
#ifndef SHMREC_NATIVE_SPAN_H
#define SHMREC_NATIVE_SPAN_H

#include "_native_writer.h"

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

/* Record an event that is no part of a span: 0, or -1 with an exception. */
hot int record(Writer *self, const Event *event)
{
    uint64_t thread = current_thread()->id, now = 0;
    if (unlikely(must_prepare(self, thread))) {
        if (prepare(self, thread, &now) < 0) {
            return -1;
        }
    }
    if (likely(bound(self))) {
        add(&self->batch, event, thread, now);
    }
    return 0;
}

/* What the open span keeps: false if there is no memory for it. */
hot bool keep_open(Batch *batch, const uint8_t *args, size_t size, uint8_t **kept)
{
    if (unlikely(batch->open_used == batch->open_room && !grow_open(batch))) {
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

/* Begin a span: 0, or -1 with an exception. */
hot int begin_span(Writer *self, PyObject *name, const uint8_t *args, size_t size, uint64_t *id)
{
    Batch *batch = &self->batch;
    uint64_t thread = current_thread()->id, now = 0;
    uint8_t *kept;

    uint64_t span = *id = ++self->next_span;
    if (unlikely(must_prepare(self, thread)) && prepare(self, thread, &now) < 0) {
        return -1;
    }
    if (unlikely(!bound(self))) {
        return 0;
    }
    if (unlikely(!keep_open(batch, args, size, &kept))) {
        count_lost(batch, SHMREC_LOST_NO_MEMORY, 1);
        return 0;
    }
    Event event = event_of(BEGIN, name, args, size);
    event.begins = true;
    event.span = span;
    if (unlikely(!add(batch, &event, thread, now))) {
        PyMem_RawFree(kept);
        return 0;
    }
    Open *open = &batch->open[batch->open_used++];
    open->id = span;
    open->start = batch->last;
    open->name = Py_NewRef(name);
    open->speaker = batch->speaker;
    open->speaker->references++;
    open->args = kept;
    open->args_size = size;
    batch->open_live++;
    return 0;
}

/* End a span: 0, or -1 with an exception. */
hot int end_span(Writer *self, uint64_t span, const uint8_t *args, size_t size)
{
    Batch *batch = &self->batch;
    uint64_t thread = current_thread()->id, now = 0;
    Open *open = bound(self) ? find_open(batch, span) : NULL;

    if (likely(open) && unlikely(must_prepare(self, thread))) {
        if (prepare(self, thread, &now) < 0) {
            return -1;
        }
        /* Python code may have ended it, or taken the ring away. */
        open = bound(self) ? find_open(batch, span) : NULL;
    }
    if (unlikely(!open)) {
        lose(self, SHMREC_LOST_UNMATCHED);
        return 0;
    }
    Event event = event_of(END, open->name, args, size);
    event.lasts = true;
    event.since = open->start;
    event.span = span;
    if (likely(add(batch, &event, thread, now))) {
        close_open(batch, open);
    }
    return 0;
}

/* The context manager that `span` returns. */

static PyObject *make_span(Writer *self, PyObject *name, const uint8_t *args, size_t size)
{
    PyTypeObject *type = self->state->span_type;
    uint8_t *kept = NULL;
    Span *span;

    if (size) {
        kept = PyMem_RawMalloc(size);
        if (!kept) {
            return PyErr_NoMemory();
        }
        memcpy(kept, args, size);
    }
    if (likely(self->spares)) {
        span = self->spare[--self->spares];
        PyObject_Init((PyObject *)span, type);
    }
    else {
        span = PyObject_GC_New(Span, type);
        if (!span) {
            PyMem_RawFree(kept);
            return NULL;
        }
    }
    span->writer = (Writer *)Py_NewRef((PyObject *)self);
    span->name = Py_NewRef(name);
    span->id = 0;
    span->args = kept;
    span->args_size = size;
    PyObject_GC_Track(span);
    return (PyObject *)span;
}

static int span_traverse(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(((Span *)op)->writer);
    return 0;
}

static void span_dealloc(PyObject *op)
{
    Span *self = (Span *)op;
    Writer *writer = self->writer;
    PyTypeObject *type = Py_TYPE(op);

    PyObject_GC_UnTrack(op);
    Py_DECREF(self->name);
    PyMem_RawFree(self->args);
    if (writer->spares < SPARE_SPANS) {
        writer->spare[writer->spares++] = self;
    }
    else {
        PyObject_GC_Del(op);
    }
    Py_DECREF(type);
    Py_DECREF(writer);
}

static PyObject *span_enter(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    Span *self = (Span *)op;
    Writer *writer = self->writer;
    self->id = 0;
    if (unlikely(!bound(writer))) {
        int ready = revived(writer);
        if (ready <= 0) {
            return ready < 0 ? NULL : Py_NewRef(op);
        }
    }
    int failed = likely(!self->args)
                     ? begin_span(writer, self->name, NULL, 0, &self->id)
                     : begin_span(writer, self->name, self->args, self->args_size, &self->id);
    return unlikely(failed) ? NULL : Py_NewRef(op);
}

/* `{"error": the exception's class}`: the bytes packed, 0 with an exception. */
cold size_t pack_error(Writer *self, uint8_t *room, PyObject *kind)
{
    PyObject *arguments = NULL;
    PyObject *name = PyObject_CallOneArg(self->state->error_name, kind);
    if (name) {
        arguments = Py_BuildValue("{sN}", "error", name);
    }
    size_t size = arguments ? pack_dict(self, room, arguments) : 0;
    Py_XDECREF(arguments);
    return size;
}

cold int end_with_error(Writer *self, uint64_t span, PyObject *kind)
{
    uint8_t room[ARGUMENTS_ROOM];
    size_t size = pack_error(self, room, kind);
    return size ? end_span(self, span, room, size) : -1;
}

static PyObject *span_exit(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    Span *self = (Span *)op;
    Writer *writer = self->writer;
    if (unlikely(count < 1)) {
        PyErr_SetString(PyExc_TypeError, "__exit__() needs the exception's type, or None");
        return NULL;
    }
    if (unlikely(self->id <= writer->inherited)) {
        Py_RETURN_NONE;
    }
    if (unlikely(!bound(writer))) {
        int ready = revived(writer);
        if (ready <= 0) {
            return ready < 0 ? NULL : Py_NewRef(Py_None);
        }
    }
    int failed = likely(args[0] == Py_None) ? end_span(writer, self->id, NULL, 0)
                                            : end_with_error(writer, self->id, args[0]);
    return unlikely(failed) ? NULL : Py_NewRef(Py_None);
}

static PyObject *span_id(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(((Span *)op)->id);
}

static PyMethodDef span_methods[] = {
    {"__enter__", span_enter, METH_NOARGS, "Begin the span."},
    {"__exit__", (PyCFunction)(void (*)(void))span_exit, METH_FASTCALL,
     "End the span; an exception that passes through is noted as `error` and goes on."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef span_getters[] = {
    {"id", span_id, NULL, "The span's number; 0 before it is entered.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot span_slots[] = {
    {Py_tp_doc, "A span around a block: begins at entry, ends at exit."},
    {Py_tp_dealloc, span_dealloc},
    {Py_tp_traverse, span_traverse},
    {Py_tp_methods, span_methods},
    {Py_tp_getset, span_getters},
    {0, NULL},
};

static PyType_Spec span_spec = {
    .name = "shmrec._native.Span",
    .basicsize = sizeof(Span),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = span_slots,
};

/* The span of a writer that has no ring: nothing, for everybody the same. */

static PyObject *nowhere_enter(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return Py_NewRef(op);
}

static PyObject *nowhere_exit(PyObject *Py_UNUSED(op), PyObject *const *Py_UNUSED(args),
                              Py_ssize_t Py_UNUSED(count))
{
    Py_RETURN_NONE;
}

static PyObject *nowhere_id(PyObject *Py_UNUSED(op), void *Py_UNUSED(closure))
{
    return PyLong_FromLong(0);
}

static PyMethodDef nowhere_methods[] = {
    {"__enter__", nowhere_enter, METH_NOARGS, "Nothing."},
    {"__exit__", (PyCFunction)(void (*)(void))nowhere_exit, METH_FASTCALL, "Nothing."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef nowhere_getters[] = {
    {"id", nowhere_id, NULL, "0.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot nowhere_slots[] = {
    {Py_tp_doc, "The span of a writer that records nothing."},
    {Py_tp_methods, nowhere_methods},
    {Py_tp_getset, nowhere_getters},
    {0, NULL},
};

static PyType_Spec nowhere_spec = {
    .name = "shmrec._native.Nowhere",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = nowhere_slots,
};

#endif /* SHMREC_NATIVE_SPAN_H */
