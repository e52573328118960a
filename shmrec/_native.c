/* The native engine: `shmrec.writer.Writer` in C, to the byte.

   Runs in producers; its fences serve collectors too. The python engine is the specification:
   what a call does, in which order, and every byte that it leaves in the ring are defined there,
   and one test suite runs over both.

       _native.c              the writer's life, and the module
       _native_calls.h        the writer's calls
       _native_span.h         the context manager
       _native_record.h       an event, and the two ends of a span
       _native_threads.h      which thread records
       _native_writer.h       the writer, its ring, a call's name and arguments made ready
       _native_batch.h        the batch and the critical section
       _native_names.h  _native_open.h  _native_clock.h      what a batch needs
       _native_arguments.h  _native_msgpack.h                bytes
       _native_layout.h       generated: places and constants
       _native_process.h      fences, and memory with a guard
       _native_cut.h          memory that others may cut short; not for producers
       _native_fork.h         what children that C code forks must not write to

   Invariants:

   - Whatever may run Python code (a name that is no str, arguments in bounded form, a thread
     that speaks for the first time, the revival after a fork) happens before the critical
     section. Python code may have taken the ring away: the guard is looked at once more.
   - The critical section is `add` in `_native_batch.h`. The GIL makes it whole: no lock, and no
     record inside a record, so that nothing is ever counted "reentrant" or "interrupted" here.
   - Nothing that interpreters could get in each other's way by is global: types and the thread's key
     are in the module's state; threads are numbered for all of them. */
#include "_native_calls.h"
#include "_native_process.h"

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
    Py_buffer before = take_ring(self);
    close_batch(self);
    int failed = settle(self, &memory, entry, ring, slot_size, slots);
    if (failed) {
        PyBuffer_Release(&memory);
    }
    else {
        self->memory = memory;
        self->batch.unfenced = !fenced;
        *self->batch.guard = 1;
    }
    let_go(&before);
    return failed ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(unbind_doc, "unbind($self)\n--\n\n"
                         "Seal the batch and let go of the ring; whether the memory is free.");

static PyObject *writer_unbind(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    Writer *self = (Writer *)op;
    if (bound(self)) {
        seal(&self->batch, 0);
    }
    Py_buffer memory = take_ring(self);
    let_go(&memory);
    Py_RETURN_TRUE;
}

PyDoc_STRVAR(rewinds_doc, "rewinds($self, fd, start)\n--\n\n"
                          "Have `fd` rewound to `start` when the collector asks for it.");

static PyObject *writer_rewinds(PyObject *op, PyObject *args)
{
    Batch *batch = &((Writer *)op)->batch;
    int fd;
    long long start;
    if (!PyArg_ParseTuple(args, "iL:rewinds", &fd, &start)) {
        return NULL;
    }
    if (batch->entry) {
        batch->stack_turn = load(&batch->entry->stack_turn);
        batch->stack_start = (off_t)start;
        batch->stack_fd = fd;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(forget_doc, "forget($self)\n--\n\n"
                         "In a forked child: the ring is the parent's, and so are open spans.");

static PyObject *writer_forget(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    Writer *self = (Writer *)op;
    *self->batch.guard = 0;
    self->inherited = self->next_span;
    close_batch(self);
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
    self->link = make_link(self);
    join_roll(self, state->roll);
    if (!self->batch.guard || !self->link) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    close_batch(self);
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
    for (int n = 0; n < self->spares; n++) {
        Py_VISIT(Py_TYPE(self->spare[n]));
    }
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
    /* First: what follows may run Python code, which still has spans of this writer. */
    if (self->link) {
        self->link->writer = NULL;
        release_link(self->link);
    }
    leave_roll(self);
    writer_clear(op);
    if (self->batch.guard) {
        Py_buffer memory = take_ring(self);
        let_go(&memory);
        close_batch(self);
        munmap((void *)self->batch.guard, (size_t)sysconf(_SC_PAGESIZE));
    }
    PyMem_RawFree(self->batch.spans.open);
    free_names(&self->batch.names);
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
    {"rewinds", writer_rewinds, METH_VARARGS, rewinds_doc},
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
    state->roll = PyMem_RawCalloc(1, sizeof *state->roll);
    if (!state->roll) {
        PyErr_NoMemory();
        return -1;
    }
    state->roll->references = 1;
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
    State *state = PyModule_GetState(module);
    module_clear(module);
    release_roll(state->roll);
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
