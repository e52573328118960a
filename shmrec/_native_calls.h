/* A writer's calls, as people make them: what stands between the interpreter and recording.

   Runs in producers. A call that takes a name comes in three: what is called, short, with nothing
   to undo where nothing records; the plain case, an exact str and no arguments; and all else, which
   needs room on the stack for packed arguments. */
#ifndef SHMREC_NATIVE_CALLS_H
#define SHMREC_NATIVE_CALLS_H

#include "_native_span.h"

static PyObject *wrong_count(const char *call, Py_ssize_t count)
{
    PyErr_Format(PyExc_TypeError, "%s takes no other number of positional arguments: got %zd",
                 call, count);
    return NULL;
}

/* Whether a name must be made a text first. */
hot bool odd_name(PyObject *name)
{
    return !PyUnicode_CheckExact(name) || !text_ready(name);
}

/* A new reference to the name as an exact str. */
hot PyObject *exact_name(Writer *self, PyObject *name)
{
    return unlikely(odd_name(name)) ? text_of(self, name) : Py_NewRef(name);
}

hot bool has_keywords(PyObject *names)
{
    return names && PyTuple_GET_SIZE(names) > 0;
}

typedef PyObject *Plain(Writer *self, PyObject *name);
typedef PyObject *Packed(Writer *self, PyObject *name, const uint8_t *args, size_t size);

cold PyObject *call_packed(Packed *packed, Writer *self, PyObject *const *args, PyObject *names)
{
    uint8_t room[ARGUMENTS_ROOM];
    size_t size = 0;
    PyObject *name = exact_name(self, args[0]);
    PyObject *result = NULL;
    if (name && has_keywords(names)) {
        size = pack_keywords(self, room, args + 1, names);
    }
    if (name && (size || !has_keywords(names))) {
        result = packed(self, name, room, size);
    }
    Py_XDECREF(name);
    return result;
}

/* The call of a writer without a ring that may get one now. */
cold PyObject *call_revived(Packed *packed, Writer *self, PyObject *nothing,
                            PyObject *const *args, PyObject *names)
{
    int ready = revived(self);
    if (ready > 0) {
        return call_packed(packed, self, args, names);
    }
    return ready < 0 ? NULL : Py_NewRef(nothing);
}

hot PyObject *call(Plain *plain, Packed *packed, Writer *self, PyObject *nothing,
                   PyObject *const *args, PyObject *names)
{
    if (unlikely(!bound(self))) {
        return likely(self->revive == Py_None) ? Py_NewRef(nothing)
                                               : call_revived(packed, self, nothing, args, names);
    }
    if (likely(!names && !odd_name(args[0]))) {
        return plain(self, args[0]);
    }
    return call_packed(packed, self, args, names);
}

static PyObject *packed_instant(Writer *self, PyObject *name, const uint8_t *args, size_t size)
{
    const Event event = event_of(INSTANT, name, args, size);
    return likely(record(self, &event, false) == 0) ? Py_NewRef(Py_None) : NULL;
}

apart PyObject *plain_instant(Writer *self, PyObject *name)
{
    const Event event = event_of(INSTANT, name, NULL, 0);
    return likely(record(self, &event, true) == 0) ? Py_NewRef(Py_None) : NULL;
}

PyDoc_STRVAR(instant_doc, "instant($self, name, /, **args)\n--\n\n"
                          "Record that something happened, with arguments of any kind.");

static PyObject *writer_instant(PyObject *op, PyObject *const *args, Py_ssize_t count,
                                PyObject *names)
{
    if (unlikely(count != 1)) {
        return wrong_count("instant(name, **args)", count);
    }
    return call(plain_instant, packed_instant, (Writer *)op, Py_None, args, names);
}

static PyObject *packed_begin(Writer *self, PyObject *name, const uint8_t *args, size_t size)
{
    uint64_t id;
    int failed = begin_span(self, name, args, size, &id, false);
    return unlikely(failed) ? NULL : PyLong_FromLong((long)id);
}

apart PyObject *plain_begin(Writer *self, PyObject *name)
{
    uint64_t id;
    int failed = begin_span(self, name, NULL, 0, &id, true);
    return unlikely(failed) ? NULL : PyLong_FromLong((long)id);
}

PyDoc_STRVAR(begin_doc, "begin($self, name, /, **args)\n--\n\n"
                        "Begin a span; the id returned ends it, from any thread.");

static PyObject *writer_begin(PyObject *op, PyObject *const *args, Py_ssize_t count,
                              PyObject *names)
{
    Writer *self = (Writer *)op;
    if (unlikely(count != 1)) {
        return wrong_count("begin(name, **args)", count);
    }
    return call(plain_begin, packed_begin, self, self->state->no_span, args, names);
}

static PyObject *packed_span(Writer *self, PyObject *name, const uint8_t *args, size_t size)
{
    return make_span(self, name, args, size);
}

apart PyObject *plain_span(Writer *self, PyObject *name)
{
    return make_span(self, name, NULL, 0);
}

PyDoc_STRVAR(span_doc, "span($self, name, /, **args)\n--\n\n"
                       "A context manager that begins a span at entry and ends it at exit.");

static PyObject *writer_span(PyObject *op, PyObject *const *args, Py_ssize_t count,
                             PyObject *names)
{
    Writer *self = (Writer *)op;
    if (unlikely(count != 1)) {
        return wrong_count("span(name, **args)", count);
    }
    return call(plain_span, packed_span, self, self->state->nowhere, args, names);
}

/* A span's number from what `end` was given: 0 is of nobody, UINT64_MAX never was. */
hot uint64_t span_number(PyObject *given)
{
#if PY_VERSION_HEX >= 0x030C0000
    if (likely(PyUnstable_Long_IsCompact((PyLongObject *)given))) {
        Py_ssize_t value = PyUnstable_Long_CompactValue((PyLongObject *)given);
        return value < 0 ? 0 : (uint64_t)value;
    }
#else
    if (likely(Py_SIZE(given) == 1)) {
        return ((PyLongObject *)given)->ob_digit[0];
    }
#endif
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(given, &overflow);
    if (overflow > 0) {
        return UINT64_MAX;
    }
    return overflow < 0 || value < 0 ? 0 : (uint64_t)value;
}

cold PyObject *packed_end(Writer *self, uint64_t span, PyObject *const *values, PyObject *names)
{
    uint8_t room[ARGUMENTS_ROOM];
    size_t size = pack_keywords(self, room, values, names);
    return size && end_span(self, span, room, size, false) == 0 ? Py_NewRef(Py_None) : NULL;
}

apart PyObject *plain_end(Writer *self, uint64_t span)
{
    return likely(end_span(self, span, NULL, 0, true) == 0) ? Py_NewRef(Py_None) : NULL;
}

/* `end` of what is no span of this process, or where nothing records. */
cold PyObject *odd_end(Writer *self, PyObject *const *args, PyObject *names)
{
    if (!PyLong_CheckExact(args[0])) {
        lose(self, SHMREC_LOST_UNMATCHED);
        Py_RETURN_NONE;
    }
    uint64_t span = span_number(args[0]);
    int ready = span <= self->inherited ? 0 : find_ring(self);
    if (ready <= 0) {
        return ready < 0 ? NULL : Py_NewRef(Py_None);
    }
    if (has_keywords(names)) {
        return packed_end(self, span, args + 1, names);
    }
    /* Python code may have run since there was a ring. */
    return end_span(self, span, NULL, 0, false) == 0 ? Py_NewRef(Py_None) : NULL;
}

PyDoc_STRVAR(end_doc, "end($self, span, /, **args)\n--\n\n"
                      "End the span that `begin` gave; one that is not open is counted.");

static PyObject *writer_end(PyObject *op, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    Writer *self = (Writer *)op;
    if (unlikely(count != 1)) {
        return wrong_count("end(span, **args)", count);
    }
    if (unlikely(!bound(self) && self->revive == Py_None)) {
        Py_RETURN_NONE;
    }
    uint64_t span = likely(PyLong_CheckExact(args[0])) ? span_number(args[0]) : 0;
    if (likely(span > self->inherited && !names && bound(self))) {
        return plain_end(self, span);
    }
    return odd_end(self, args, names);
}

cold PyObject *packed_counter(Writer *self, PyObject *given, PyObject *value)
{
    uint8_t room[ARGUMENTS_ROOM];
    size_t size = pack_number(self, room, value);
    PyObject *name = size ? exact_name(self, given) : NULL;
    PyObject *result = NULL;
    if (name) {
        const Event event = event_of(COUNTER, name, room, size);
        result = record(self, &event, false) == 0 ? Py_NewRef(Py_None) : NULL;
        Py_DECREF(name);
    }
    return result;
}

apart PyObject *plain_counter(Writer *self, PyObject *name, PyObject *value)
{
    uint8_t room[NUMBER_MOST];
    uint8_t *end = PyLong_CheckExact(value) ? put_long(room, value)
                                            : put_float(room, PyFloat_AS_DOUBLE(value));
    if (unlikely(!end)) {
        return packed_counter(self, name, value);
    }
    const Event event = event_of(COUNTER, name, room, (size_t)(end - room));
    return likely(record(self, &event, true) == 0) ? Py_NewRef(Py_None) : NULL;
}

cold PyObject *revived_counter(Writer *self, PyObject *const *args)
{
    int ready = revived(self);
    if (ready > 0) {
        return packed_counter(self, args[0], args[1]);
    }
    return ready < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(counter_doc, "counter($self, name, value, /)\n--\n\nRecord a value at this time.");

static PyObject *writer_counter(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    Writer *self = (Writer *)op;
    if (unlikely(count != 2)) {
        return wrong_count("counter(name, value)", count);
    }
    if (unlikely(!bound(self))) {
        return likely(self->revive == Py_None) ? Py_NewRef(Py_None) : revived_counter(self, args);
    }
    bool number = PyLong_CheckExact(args[1]) || PyFloat_CheckExact(args[1]);
    return likely(number && !odd_name(args[0])) ? plain_counter(self, args[0], args[1])
                                                : packed_counter(self, args[0], args[1]);
}

PyDoc_STRVAR(record_doc, "record($self, kind, name, args, /)\n--\n\n"
                         "Record an event of any kind whose fields are a name and arguments.");

static PyObject *writer_record(PyObject *op, PyObject *const *args, Py_ssize_t count)
{
    Writer *self = (Writer *)op;
    uint8_t room[ARGUMENTS_ROOM];
    size_t size = 0;
    if (count != 3 || !PyDict_CheckExact(args[2])) {
        PyErr_SetString(PyExc_TypeError, "record takes a kind, a name and a dict");
        return NULL;
    }
    int ready = find_ring(self);
    if (ready <= 0) {
        return ready < 0 ? NULL : Py_NewRef(Py_None);
    }
    bool plain = PyDict_GET_SIZE(args[2]) == 0;
    PyObject *result = NULL, *name = NULL;
    PyObject *prefix = PyObject_CallMethod(args[0], "prefix", "O", plain ? Py_False : Py_True);
    if (!prefix) {
        return NULL;
    }
    if (!PyBytes_CheckExact(prefix) || PyBytes_GET_SIZE(prefix) != 2) {
        PyErr_SetString(PyExc_TypeError, "a kind's prefix is two bytes");
        goto done;
    }
    name = exact_name(self, args[1]);
    if (!name || (!plain && !(size = pack_dict(self, room, args[2])))) {
        goto done;
    }
    Event event = event_of(INSTANT, name, room, size);
    memcpy(event.head, PyBytes_AS_STRING(prefix), sizeof event.head);
    if (record(self, &event, false) == 0) {
        result = Py_NewRef(Py_None);
    }
done:
    Py_DECREF(prefix);
    Py_XDECREF(name);
    return result;
}

PyDoc_STRVAR(lose_doc, "lose($self, cause, count=1)\n--\n\n"
                       "Count events that could not be recorded, by a cause of `layout.LOSSES`.");

static PyObject *writer_lose(PyObject *op, PyObject *args, PyObject *keywords)
{
    static char *words[] = {"cause", "count", NULL};
    Writer *self = (Writer *)op;
    PyObject *cause;
    long long count = 1;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "U|L:lose", words, &cause, &count)) {
        return NULL;
    }
    if (!bound(self)) {
        Py_RETURN_NONE;
    }
    for (int n = 0; n < SHMREC_LOSS_COUNT; n++) {
        if (PyUnicode_Compare(cause, self->state->losses[n]) == 0) {
            count_lost(&self->batch, n, count);
            Py_RETURN_NONE;
        }
    }
    PyErr_SetObject(PyExc_KeyError, cause);
    return NULL;
}

#endif /* SHMREC_NATIVE_CALLS_H */
