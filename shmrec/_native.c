/* The native engine: `shmrec.writer.Writer` in C, to the byte.

   Runs in producers; its fences serve collectors too. The python engine is the specification:
   what a call does, in which order, and every byte that it leaves in the ring are defined there,
   and one test suite runs over both.

       _native.c            the writer's calls, and the module
       _native_span.h       recording an event, beginning and ending spans, the context manager
       _native_writer.h     what a call needs before it may record: arguments, threads, the ring
       _native_batch.h      the batch and the critical section
       _native_pack.h       msgpack
       _native_layout.h     generated: places and constants

   Invariants:

   - Whatever may run Python code (a name that is no str, arguments in bounded form, a thread
     that speaks for the first time, the revival after a fork) happens before the critical
     section. Python code may have taken the ring away: the guard is looked at once more.
   - The critical section is `add` in `_native_batch.h`. The GIL makes it whole: no lock, and no
     record inside a record, so that nothing is ever counted "reentrant" or "interrupted" here.
   - Nothing is global: types and the thread's key are in the module's state. */
#include "_native_span.h"

#include <sys/syscall.h>

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

hot bool has_keywords(PyObject *names)
{
    return names && PyTuple_GET_SIZE(names) > 0;
}

/* A call that takes a name comes in three: what is called, short, with nothing to undo where
   nothing records; the plain case, an exact str and no arguments; and all else, which needs room
   on the stack for packed arguments. */

typedef PyObject *Plain(Writer *self, PyObject *name);
typedef PyObject *Packed(Writer *self, PyObject *name, const uint8_t *args, size_t size);

cold PyObject *call_packed(Packed *packed, Writer *self, PyObject *const *args, PyObject *names)
{
    uint8_t room[ARGUMENTS_ROOM];
    size_t size = 0;
    PyObject *name = odd_name(args[0]) ? text_of(self, args[0]) : Py_NewRef(args[0]);
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
    return call(plain_span, make_span, self, self->state->nowhere, args, names);
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
    int ready = span <= self->inherited ? 0 : bound(self) ? 1 : revived(self);
    if (ready <= 0) {
        return ready < 0 ? NULL : Py_NewRef(Py_None);
    }
    return has_keywords(names) ? packed_end(self, span, args + 1, names) : plain_end(self, span);
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
    PyObject *name = !size ? NULL : odd_name(given) ? text_of(self, given) : Py_NewRef(given);
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
    int ready = bound(self) ? 1 : revived(self);
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
    name = odd_name(args[1]) ? text_of(self, args[1]) : Py_NewRef(args[1]);
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
    for (int n = 0; n < SHMREC_LOSS_COUNT; n++) {
        if (PyUnicode_Compare(cause, self->state->losses[n]) == 0) {
            if (bound(self)) {
                count_lost(&self->batch, n, count);
            }
            Py_RETURN_NONE;
        }
    }
    PyErr_SetObject(PyExc_KeyError, cause);
    return NULL;
}

/* Getting a ring and giving it up. */

PyDoc_STRVAR(bind_doc, "bind($self, view, words, *, entry, ring, slot_size, slots, fenced=True)\n"
                       "--\n\n"
                       "Record into the ring at byte `ring` with its entry at byte `entry`.");

static PyObject *writer_bind(PyObject *op, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"view", "words", "entry", "ring", "slot_size", "slots", "fenced", NULL};
    Writer *self = (Writer *)op;
    PyObject *view, *words;
    /* What is missing fails the check of the places. */
    Py_ssize_t entry = -1, ring = -1, slot_size = 0, slots = 0;
    int fenced = 1;
    Py_buffer memory;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|$nnnnp:bind", names, &view, &words,
                                     &entry, &ring, &slot_size, &slots, &fenced)) {
        return NULL;
    }
    if (PyObject_GetBuffer(view, &memory, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    let_go(self);
    close_batch(&self->batch);
    if (settle(self, &memory, entry, ring, slot_size, slots) < 0) {
        PyBuffer_Release(&memory);
        return NULL;
    }
    self->memory = memory;
    self->batch.unfenced = !fenced;
    *self->batch.guard = 1;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(unbind_doc, "unbind($self)\n--\n\n"
                         "Seal the batch and let go of the ring; whether the memory is free.");

static PyObject *writer_unbind(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    Writer *self = (Writer *)op;
    if (bound(self)) {
        seal(&self->batch, 0);
    }
    let_go(self);
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(forget_doc, "forget($self)\n--\n\n"
                         "In a forked child: the ring is the parent's, and so are open spans.");

static PyObject *writer_forget(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    Writer *self = (Writer *)op;
    *self->batch.guard = 0;
    self->inherited = self->next_span;
    close_batch(&self->batch);
    /* The thread goes on under another kernel id. */
    PyObject *dict = PyThreadState_GetDict();
    if (dict && PyDict_Contains(dict, self->state->thread_key) == 1) {
        PyDict_DelItem(dict, self->state->thread_key);
    }
    PyErr_Clear();
    Py_RETURN_NONE;
}

static PyObject *writer_bound(PyObject *op, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(bound((Writer *)op));
}

/* Life. */

static PyObject *writer_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"revive", "clock", NULL};
    PyObject *revive = Py_None, *clock = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|$OO:Writer", names, &revive, &clock)) {
        return NULL;
    }
    State *state = PyType_GetModuleState(type);
    Writer *self = state ? (Writer *)type->tp_alloc(type, 0) : NULL;
    if (!self) {
        return NULL;
    }
    self->state = state;
    self->revive = Py_NewRef(revive);
    self->clock = clock == Py_None ? NULL : Py_NewRef(clock);
    self->batch.guard = make_guard();
    if (!self->batch.guard) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    close_batch(&self->batch);
    return (PyObject *)self;
}

/* The memory is not visited: no cycle goes through it, and a memoryview that is exported must
   not be cleared before this writer is gone. */
static int writer_traverse(PyObject *op, visitproc visit, void *arg)
{
    Writer *self = (Writer *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->revive);
    Py_VISIT(self->clock);
    return 0;
}

static int writer_clear(PyObject *op)
{
    Writer *self = (Writer *)op;
    Py_CLEAR(self->revive);
    Py_CLEAR(self->clock);
    return 0;
}

static void writer_dealloc(PyObject *op)
{
    Writer *self = (Writer *)op;
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    writer_clear(op);
    if (self->batch.guard) {
        let_go(self);
        close_batch(&self->batch);
        munmap((void *)self->batch.guard, (size_t)sysconf(_SC_PAGESIZE));
    }
    PyMem_RawFree(self->batch.open);
    PyMem_RawFree(self->batch.known);
    PyMem_RawFree(self->batch.used);
    while (self->spares) {
        free_span(self->spare[--self->spares]);
    }
    type->tp_free(op);
    Py_DECREF(type);
}

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef writer_methods[] = {
    {"instant", FAST(writer_instant), METH_FASTCALL | METH_KEYWORDS, instant_doc},
    {"begin", FAST(writer_begin), METH_FASTCALL | METH_KEYWORDS, begin_doc},
    {"end", FAST(writer_end), METH_FASTCALL | METH_KEYWORDS, end_doc},
    {"span", FAST(writer_span), METH_FASTCALL | METH_KEYWORDS, span_doc},
    {"counter", FAST(writer_counter), METH_FASTCALL, counter_doc},
    {"record", FAST(writer_record), METH_FASTCALL, record_doc},
    {"lose", FAST(writer_lose), METH_VARARGS | METH_KEYWORDS, lose_doc},
    {"bind", FAST(writer_bind), METH_VARARGS | METH_KEYWORDS, bind_doc},
    {"unbind", writer_unbind, METH_NOARGS, unbind_doc},
    {"forget", writer_forget, METH_NOARGS, forget_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef writer_getters[] = {
    {"bound", writer_bound, NULL, "Whether calls reach a ring of this very process.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef writer_members[] = {
    {"revive", T_OBJECT, offsetof(Writer, revive), 0, "Asked for a ring while there is none."},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(writer_doc, "Writer(*, revive=None, clock=None)\n--\n\n"
                         "Records events into one ring; see `shmrec.writer.Writer`.");

static PyType_Slot writer_slots[] = {
    {Py_tp_doc, (void *)writer_doc},
    {Py_tp_new, writer_new},
    {Py_tp_dealloc, writer_dealloc},
    {Py_tp_traverse, writer_traverse},
    {Py_tp_clear, writer_clear},
    {Py_tp_methods, writer_methods},
    {Py_tp_getset, writer_getters},
    {Py_tp_members, writer_members},
    {0, NULL},
};

static PyType_Spec writer_spec = {
    .name = "shmrec._native.Writer",
    .basicsize = sizeof(Writer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = writer_slots,
};

/* Fences, for whoever reads or writes the segment from Python. */

PyDoc_STRVAR(acquire_doc, "acquire()\n--\n\n"
                          "Loads after this see what was published before what loads before saw.");

static PyObject *fence_acquire(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    atomic_thread_fence(memory_order_acquire);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(release_doc, "release()\n--\n\nStores before this are seen before stores after it.");

static PyObject *fence_release(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    atomic_thread_fence(memory_order_release);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(membarrier_doc, "membarrier(command, /)\n--\n\n"
                             "Whether membarrier(2) obeyed; False where there is none.");

static PyObject *call_membarrier(PyObject *Py_UNUSED(module), PyObject *command)
{
    long number = PyLong_AsLong(command);
    if (number == -1 && PyErr_Occurred()) {
        return NULL;
    }
#ifdef SYS_membarrier
    return PyBool_FromLong(syscall(SYS_membarrier, (int)number, 0, 0) == 0);
#else
    Py_RETURN_FALSE;
#endif
}

static PyMethodDef module_functions[] = {
    {"acquire", fence_acquire, METH_NOARGS, acquire_doc},
    {"release", fence_release, METH_NOARGS, release_doc},
    {"membarrier", call_membarrier, METH_O, membarrier_doc},
    {NULL, NULL, 0, NULL},
};

/* The module. */

static int import_from(const char *name, const char *const *wanted, PyObject **const *places)
{
    PyObject *module = PyImport_ImportModule(name);
    for (; module && *wanted; wanted++, places++) {
        **places = PyObject_GetAttrString(module, *wanted);
        if (!**places) {
            break;
        }
    }
    bool whole = module && !*wanted;
    Py_XDECREF(module);
    return whole ? 0 : -1;
}

static int module_exec(PyObject *module)
{
#ifdef Py_GIL_DISABLED
    PyErr_SetString(PyExc_ImportError,
                    "it relies on the GIL and does not support free-threaded Python yet");
    return -1;
#else
    static const char *const losses[] = {SHMREC_LOSSES};
    State *state = PyModule_GetState(module);
    PyObject **const of_values[] = {&state->bounded_arguments, &state->name_text,
                                    &state->packed_value, &state->error_name};
    static const char *const values[] = {"bounded_arguments", "name_text", "packed_value",
                                         "error_name", NULL};
    PyObject **const of_threads[] = {&state->speaker};
    static const char *const threads[] = {"Speaker", NULL};

    if (import_from("shmrec.values", values, of_values) < 0 ||
        import_from("shmrec.threads", threads, of_threads) < 0) {
        return -1;
    }
    for (int n = 0; n < SHMREC_LOSS_COUNT; n++) {
        state->losses[n] = PyUnicode_InternFromString(losses[n]);
        if (!state->losses[n]) {
            return -1;
        }
    }
    state->no_span = PyLong_FromLong(0);
    state->thread_key = PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type);
    state->writer_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &writer_spec, NULL);
    state->span_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &span_spec, NULL);
    state->nowhere_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &nowhere_spec, NULL);
    state->method_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &method_spec, NULL);
    if (!state->no_span || !state->thread_key || !state->writer_type || !state->span_type || !state->nowhere_type ||
        !state->method_type || add_methods(state->span_type, state->method_type) < 0 ||
        add_methods(state->nowhere_type, state->method_type) < 0) {
        return -1;
    }
    state->nowhere = state->nowhere_type->tp_alloc(state->nowhere_type, 0);
    PyObject *layout = PyLong_FromUnsignedLongLong(SHMREC_LAYOUT_ID);
    if (!state->nowhere || !layout) {
        Py_XDECREF(layout);
        return -1;
    }
    ((Nowhere *)state->nowhere)->call = nowhere_call;
    int failed = PyModule_AddObjectRef(module, "LAYOUT_ID", layout);
    Py_DECREF(layout);
    return failed ? -1 : PyModule_AddType(module, state->writer_type);
#endif
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->writer_type);
    Py_VISIT(state->span_type);
    Py_VISIT(state->nowhere_type);
    Py_VISIT(state->method_type);
    Py_VISIT(state->nowhere);
    Py_VISIT(state->no_span);
    Py_VISIT(state->thread_key);
    Py_VISIT(state->speaker);
    Py_VISIT(state->bounded_arguments);
    Py_VISIT(state->name_text);
    Py_VISIT(state->packed_value);
    Py_VISIT(state->error_name);
    return 0;
}

static int module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->writer_type);
    Py_CLEAR(state->span_type);
    Py_CLEAR(state->nowhere_type);
    Py_CLEAR(state->method_type);
    Py_CLEAR(state->nowhere);
    Py_CLEAR(state->no_span);
    Py_CLEAR(state->thread_key);
    Py_CLEAR(state->speaker);
    Py_CLEAR(state->bounded_arguments);
    Py_CLEAR(state->name_text);
    Py_CLEAR(state->packed_value);
    Py_CLEAR(state->error_name);
    for (int n = 0; n < SHMREC_LOSS_COUNT; n++) {
        Py_CLEAR(state->losses[n]);
    }
    return 0;
}

static void module_free(void *module)
{
    module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_GIL_DISABLED
    /* So that refusing to load does not turn the GIL on. */
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "shmrec._native",
    .m_doc = "The native engine of shmrec; `shmrec._engine` chooses it.",
    .m_size = sizeof(State),
    .m_methods = module_functions,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&module_def);
}
