/* The context manager that `span` returns.

   Runs in producers. It holds packed arguments, never the program's objects, and an exact str is
   all that it refers to: nothing that garbage collection, at a tenth of a span's cost, would have
   to know. It does not keep its writer; the span of a writer that is gone does nothing.

   A with statement looks `__enter__` and `__exit__` up and would have a bound method made of each,
   which costs more than recording both events. So the span itself is what it finds: `Method` is a
   descriptor whose bound form is the object that it was looked up on, and that, called without
   arguments, enters, and called with arguments, exits. */
#ifndef SHMREC_NATIVE_SPAN_H
#define SHMREC_NATIVE_SPAN_H

#include "_native_record.h"

#include <structmember.h>


static PyObject *span_call(PyObject *op, PyObject *const *args, size_t count, PyObject *names);

hot PyObject *make_span(Writer *self, PyObject *name, const uint8_t *args, size_t size)
{
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
#if defined(Py_DEBUG) || defined(Py_TRACE_REFS)
        _Py_NewReference((PyObject *)span);
#else
        Py_SET_REFCNT((PyObject *)span, 1);
#endif
    }
    else {
        span = PyObject_New(Span, self->state->span_type);
        if (!span) {
            PyMem_RawFree(kept);
            return NULL;
        }
        span->call = span_call;
    }
    span->link = self->link;
    span->link->references++;
    span->name = Py_NewRef(name);
    span->id = 0;
    span->args = kept;
    span->args_size = size;
    return (PyObject *)span;
}

/* Free a span's memory, and its type's reference, which a spare one keeps. */
static void free_span(Span *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static void span_dealloc(PyObject *op)
{
    Span *self = (Span *)op;
    Link *link = self->link;
    Writer *writer = link->writer;

    Py_DECREF(self->name);
    if (self->args) {
        PyMem_RawFree(self->args);
    }
    if (likely(writer && writer->spares < SPARE_SPANS)) {
        writer->spare[writer->spares++] = self;
    }
    else {
        free_span(self);
    }
    release_link(link);
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
    return size ? end_span(self, span, room, size, false) : -1;
}

/* Enter or exit where Python code may run, which may drop the writer's last reference. */

cold PyObject *enter_with_care(Span *self)
{
    Writer *writer = self->link->writer;
    self->id = 0;
    if (!writer) {
        return Py_NewRef((PyObject *)self);
    }
    Py_INCREF(writer);
    uint64_t id = 0;
    int ready = find_ring(writer);
    if (ready > 0 && begin_span(writer, self->name, self->args, self->args_size, &id, false) < 0) {
        ready = -1;
    }
    self->id = id;
    Py_DECREF(writer);
    return ready < 0 ? NULL : Py_NewRef((PyObject *)self);
}

hot PyObject *span_enter(Span *self)
{
    Writer *writer = self->link->writer;
    if (unlikely(!writer || !bound(writer) || must_prepare(writer))) {
        return enter_with_care(self);
    }
    if (likely(!self->args)) {
        begin_now(writer, self->name, NULL, 0, &self->id, 0);
    }
    else {
        begin_now(writer, self->name, self->args, self->args_size, &self->id, 0);
    }
    return Py_NewRef((PyObject *)self);
}

cold PyObject *exit_with_care(Span *self, PyObject *kind)
{
    Writer *writer = self->link->writer;
    uint64_t span = self->id;
    if (!writer || span <= writer->inherited) {
        Py_RETURN_NONE;
    }
    Py_INCREF(writer);
    int ready = find_ring(writer);
    if (ready > 0) {
        ready = kind == Py_None ? end_span(writer, span, NULL, 0, false)
                                : end_with_error(writer, span, kind);
    }
    Py_DECREF(writer);
    return ready < 0 ? NULL : Py_NewRef(Py_None);
}

hot PyObject *span_exit(Span *self, PyObject *kind)
{
    Writer *writer = self->link->writer;
    if (unlikely(!writer || !bound(writer) || kind != Py_None || self->id <= writer->inherited ||
                 must_prepare(writer))) {
        return exit_with_care(self, kind);
    }
    end_now(writer, self->id, NULL, 0, 0);
    Py_RETURN_NONE;
}

/* Whether it is what `__exit__` is given: a span is no decorator. */
hot bool tells_of_exit(PyObject *kind)
{
    return kind == Py_None || PyExceptionClass_Check(kind);
}

cold PyObject *no_exit(void)
{
    PyErr_SetString(PyExc_TypeError, "a span is left with an exception's class, or None");
    return NULL;
}

cold PyObject *no_keywords(void)
{
    PyErr_SetString(PyExc_TypeError, "entering and leaving a span takes no keyword arguments");
    return NULL;
}

static PyObject *span_call(PyObject *op, PyObject *const *args, size_t count, PyObject *names)
{
    if (unlikely(names && PyTuple_GET_SIZE(names))) {
        return no_keywords();
    }
    if (PyVectorcall_NARGS(count) == 0) {
        return span_enter((Span *)op);
    }
    return likely(tells_of_exit(args[0])) ? span_exit((Span *)op, args[0]) : no_exit();
}

static PyObject *span_id(PyObject *op, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(((Span *)op)->id);
}

static PyGetSetDef span_getters[] = {
    {"id", span_id, NULL, "The span's number; 0 before it is entered.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef span_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Span, call), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot span_slots[] = {
    {Py_tp_doc, "A span around a block: begins at entry, ends at exit."},
    {Py_tp_dealloc, span_dealloc},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_getset, span_getters},
    {Py_tp_members, span_members},
    {0, NULL},
};

static PyType_Spec span_spec = {
    .name = "shmrec._native.Span",
    .basicsize = sizeof(Span),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = span_slots,
};

/* Of a type that has no other references than to it, but must be garbage with it. */
static int traverse_type(PyObject *op, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(op));
    return 0;
}

static void free_with_type(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    type->tp_free(op);
    Py_DECREF(type);
}

/* The span of a writer that has no ring: nothing, for everybody the same. */

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
} Nowhere;

static PyObject *nowhere_call(PyObject *op, PyObject *const *args, size_t count, PyObject *names)
{
    if (unlikely(names && PyTuple_GET_SIZE(names))) {
        return no_keywords();
    }
    if (PyVectorcall_NARGS(count) == 0) {
        return Py_NewRef(op);
    }
    return likely(tells_of_exit(args[0])) ? Py_NewRef(Py_None) : no_exit();
}

static PyObject *nowhere_id(PyObject *Py_UNUSED(op), void *Py_UNUSED(closure))
{
    return PyLong_FromLong(0);
}

static PyGetSetDef nowhere_getters[] = {
    {"id", nowhere_id, NULL, "0.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef nowhere_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Nowhere, call), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot nowhere_slots[] = {
    {Py_tp_doc, "The span of a writer that records nothing."},
    {Py_tp_traverse, traverse_type},
    {Py_tp_dealloc, free_with_type},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_getset, nowhere_getters},
    {Py_tp_members, nowhere_members},
    {0, NULL},
};

static PyType_Spec nowhere_spec = {
    .name = "shmrec._native.Nowhere",
    .basicsize = sizeof(Nowhere),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = nowhere_slots,
};

/* `__enter__` and `__exit__` of both. Looked up on the class, called with the span first. */

static PyObject *method_get(PyObject *self, PyObject *object, PyObject *Py_UNUSED(type))
{
    return Py_NewRef(object && object != Py_None ? object : self);
}

static PyObject *method_call(PyObject *self, PyObject *args, PyObject *names)
{
    State *state = PyType_GetModuleState(Py_TYPE(self));
    PyObject *span = PyTuple_GET_SIZE(args) ? PyTuple_GET_ITEM(args, 0) : NULL;
    if (!span || (!Py_IS_TYPE(span, state->span_type) && !Py_IS_TYPE(span, state->nowhere_type))) {
        PyErr_SetString(PyExc_TypeError, "the first argument must be a span");
        return NULL;
    }
    PyObject *rest = PyTuple_GetSlice(args, 1, PyTuple_GET_SIZE(args));
    PyObject *result = rest ? PyObject_Call(span, rest, names) : NULL;
    Py_XDECREF(rest);
    return result;
}

static PyType_Slot method_slots[] = {
    {Py_tp_doc, "What enters a span, without arguments, and leaves it, with the exception's."},
    {Py_tp_traverse, traverse_type},
    {Py_tp_dealloc, free_with_type},
    {Py_tp_descr_get, method_get},
    {Py_tp_call, method_call},
    {0, NULL},
};

static PyType_Spec method_spec = {
    .name = "shmrec._native.Method",
    .basicsize = sizeof(PyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = method_slots,
};

/* Give a type its two methods. */
static int add_methods(PyTypeObject *type, PyTypeObject *method_type)
{
    PyObject *method = method_type->tp_alloc(method_type, 0);
    int failed = !method || PyObject_SetAttrString((PyObject *)type, "__enter__", method) < 0 ||
                 PyObject_SetAttrString((PyObject *)type, "__exit__", method) < 0;
    Py_XDECREF(method);
    return failed ? -1 : 0;
}

#endif /* SHMREC_NATIVE_SPAN_H */
