/* A writer: the ring it has been given, and a call's name and arguments made ready.

   Runs in producers. Everything here may allocate, fail or run Python code, and none of it is
   inside the critical section. Python code may take the ring away, which the guard tells. */
#ifndef SHMREC_NATIVE_WRITER_H
#define SHMREC_NATIVE_WRITER_H

#include "_native_arguments.h"
#include "_native_batch.h"

#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

#define SPARE_SPANS 16
#define NO_SEAT UINTPTR_MAX

typedef struct {
    PyTypeObject *writer_type;
    PyTypeObject *span_type;
    PyTypeObject *nowhere_type;
    PyTypeObject *method_type;
    PyObject *nowhere;
    PyObject *no_span;          /* 0 */
    PyObject *thread_key;       /* under which a thread state's dict has the thread's Speaker */
    PyObject *speaker;          /* threads.Speaker */
    PyObject *bounded_arguments;
    PyObject *name_text;
    PyObject *packed_value;
    PyObject *error_name;
    PyObject *losses[SHMREC_LOSS_COUNT];
    Roll *roll;
} State;

typedef struct Span Span;

typedef struct Writer Writer;

/* What a span knows its writer by, for as long as either is there: no reference, so that no cycle
   goes through a span, and garbage collection need not know any. */
typedef struct {
    Py_ssize_t references;
    Writer *writer;             /* NULL once it is gone */
} Link;

struct Writer {
    PyObject_HEAD
    Batch batch;
    uintptr_t seat;             /* `here` of the thread that `batch.speaker` is, or NO_SEAT */
    Link *link;
    Roll *roll;
    Writer *next;               /* on the roll */
    Writer *previous;
    uint64_t next_span;
    uint64_t inherited;         /* spans up to this one are a parent's, from before a fork */
    State *state;
    PyObject *revive;
    PyObject *clock;            /* NULL for the clock; tests have their own */
    Py_buffer memory;           /* memory.obj is NULL while there is none */
    Span *spare[SPARE_SPANS];
    int spares;
};

struct Span {
    PyObject_HEAD
    vectorcallfunc call;
    Link *link;
    PyObject *name;
    uint64_t id;
    uint8_t *args;              /* packed; NULL for none */
    size_t args_size;
};

hot void release_link(Link *link)
{
    if (--link->references == 0) {
        PyMem_RawFree(link);
    }
}

static Link *make_link(Writer *writer)
{
    Link *link = PyMem_RawMalloc(sizeof *link);
    if (link) {
        link->references = 1;
        link->writer = writer;
    }
    return link;
}

hot bool bound(const Writer *self)
{
    return *self->batch.guard != 0;
}

static void lose(Writer *self, int cause)
{
    if (bound(self)) {
        count_lost(&self->batch, cause, 1);
    }
}

/* Whether an error is one that the application must not see; then it is gone. */
static bool swallowed(Writer *self)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception)) {
        return false;
    }
    PyErr_Clear();
    lose(self, SHMREC_LOST_UNENCODABLE);
    return true;
}

/* Ask for a ring: 1 if there is one now, 0 if not, -1 with an exception. */
cold int revived(Writer *self)
{
    if (!self->revive || self->revive == Py_None) {
        return 0;
    }
    PyObject *revive = Py_NewRef(self->revive);
    PyObject *answer = PyObject_CallNoArgs(revive);
    Py_DECREF(revive);
    if (!answer) {
        return -1;
    }
    int truth = PyObject_IsTrue(answer);
    Py_DECREF(answer);
    return truth;
}

/* The same, asking only where there is none yet. */
hot int find_ring(Writer *self)
{
    return bound(self) ? 1 : revived(self);
}

/* Names and arguments. */

/* A new reference to the name as an exact str. */
cold PyObject *text_of(Writer *self, PyObject *name)
{
#if PY_VERSION_HEX < 0x030C0000
    if (PyUnicode_CheckExact(name)) {
        return PyUnicode_READY(name) < 0 ? NULL : Py_NewRef(name);
    }
#endif
    PyObject *text = PyObject_CallOneArg(self->state->name_text, name);
    if (text && !PyUnicode_CheckExact(text)) {
        Py_SETREF(text, NULL);
        PyErr_SetString(PyExc_TypeError, "a name's text is no str");
    }
    if (!text && swallowed(self)) {
        text = PyUnicode_FromString("<a name whose repr raised>");
    }
    return text;
}

/* Take over what Python packed: the bytes copied, 0 with an exception. Steals `packed`. */
static size_t take_packed(Writer *self, uint8_t *room, PyObject *packed, uint8_t otherwise)
{
    size_t size = 0;
    if (packed && PyBytes_CheckExact(packed)) {
        size = (size_t)PyBytes_GET_SIZE(packed);
    }
    if (size && size <= SHMREC_ARGUMENTS_LIMIT) {
        memcpy(room, PyBytes_AS_STRING(packed), size);
    }
    else {
        if (packed) {
            PyErr_SetString(PyExc_ValueError, "packed arguments are no bytes, or too many");
        }
        size = swallowed(self);
        room[0] = otherwise;
    }
    Py_XDECREF(packed);
    return size;
}

#define NO_ARGUMENTS 0x80
#define NO_VALUE 0xc0

cold size_t bounded_arguments(Writer *self, uint8_t *room, PyObject *arguments)
{
    PyObject *packed = NULL;
    if (arguments) {
        packed = PyObject_CallOneArg(self->state->bounded_arguments, arguments);
    }
    return take_packed(self, room, packed, NO_ARGUMENTS);
}

cold size_t bounded_keywords(Writer *self, uint8_t *room, PyObject *const *values, PyObject *names)
{
    PyObject *arguments = PyDict_New();
    for (Py_ssize_t n = 0; arguments && n < PyTuple_GET_SIZE(names); n++) {
        if (PyDict_SetItem(arguments, PyTuple_GET_ITEM(names, n), values[n]) < 0) {
            Py_CLEAR(arguments);
        }
    }
    size_t size = bounded_arguments(self, room, arguments);
    Py_XDECREF(arguments);
    return size;
}

/* Pack a call's keyword arguments, at least one: the bytes; 0 with an exception. */
hot size_t pack_keywords(Writer *self, uint8_t *room, PyObject *const *values, PyObject *names)
{
    Py_ssize_t count = PyTuple_GET_SIZE(names);
    Packing packing = start_packing(room, count);
    bool whole = true;
    for (Py_ssize_t n = 0; whole && n < count; n++) {
        whole = pack_argument(&packing, PyTuple_GET_ITEM(names, n), values[n]);
    }
    size_t size = end_packing(&packing, room, whole);
    return likely(size) ? size : bounded_keywords(self, room, values, names);
}

/* The same of a dict with at least one item. */
static size_t pack_dict(Writer *self, uint8_t *room, PyObject *arguments)
{
    Packing packing = start_packing(room, PyDict_GET_SIZE(arguments));
    Py_ssize_t position = 0;
    PyObject *key, *value;
    bool whole = true;
    while (whole && PyDict_Next(arguments, &position, &key, &value)) {
        whole = PyUnicode_CheckExact(key) && pack_argument(&packing, key, value);
    }
    size_t size = end_packing(&packing, room, whole);
    return size ? size : bounded_arguments(self, room, arguments);
}

/* Pack a counter's value: the bytes; 0 with an exception. */
hot size_t pack_number(Writer *self, uint8_t *room, PyObject *value)
{
    uint8_t *end = NULL;
    if (likely(PyLong_CheckExact(value))) {
        end = put_long(room, value);
    }
    else if (PyFloat_CheckExact(value)) {
        end = put_float(room, PyFloat_AS_DOUBLE(value));
    }
    if (likely(end)) {
        return (size_t)(end - room);
    }
    PyObject *packed = PyObject_CallOneArg(self->state->packed_value, value);
    return take_packed(self, room, packed, NO_VALUE);
}

/* The ring. */

/* Forget the batch: the next event opens one, with nothing known and nothing open. */
static void close_batch(Writer *self)
{
    Batch *batch = &self->batch;
    self->seat = NO_SEAT;
    forget_open(&batch->spans);
    forget_names(&batch->names);
    release_speaker(batch->speaker);
    batch->speaker = NULL;
    batch->speaker_thread = 0;
    batch->thread = 0;
    batch->generation = UINT64_MAX;
    batch->slot = NULL;
    batch->position = batch->limit = NULL;
    batch->events = batch->committed = batch->last = 0;
    batch->rotation = 0;
    batch->stack_fd = -1;
}

/* Take the ring away; gives the memory, which is to be let go of when all else is done: that may
   run Python code. */
static Py_buffer take_ring(Writer *self)
{
    Py_buffer memory = self->memory;
    *self->batch.guard = 0;
    self->batch.generation = UINT64_MAX;
    self->batch.limit = self->batch.position;
    self->batch.slot = NULL;
    self->batch.entry = NULL;
    self->batch.control = NULL;
    self->memory.obj = NULL;
    return memory;
}

static void let_go(Py_buffer *memory)
{
    if (memory->obj) {
        PyBuffer_Release(memory);
    }
}

static int wrong_place(void)
{
    PyErr_SetString(PyExc_ValueError, "entry or ring is not within the memory, or not aligned");
    return -1;
}

/* Check the places against the buffer, then be there: 0, or -1 with an exception. */
static int settle(Writer *self, Py_buffer *memory, Py_ssize_t entry, Py_ssize_t ring,
                  Py_ssize_t slot_size, Py_ssize_t slots)
{
    Batch *batch = &self->batch;
    uint8_t *base = memory->buf;
    const Py_ssize_t word = SHMREC_WORD, head = sizeof(struct shmrec_slot);

    if ((uintptr_t)base % SHMREC_WORD || entry % word || ring % word || slot_size % word ||
        slot_size <= head || slots < 1 || entry < 0 || ring < 0 ||
        memory->len < (Py_ssize_t)sizeof *batch->control ||
        entry > memory->len - (Py_ssize_t)sizeof *batch->entry || ring > memory->len ||
        slots > (memory->len - ring) / slot_size) {
        return wrong_place();
    }
    if (!make_names(&batch->names, (size_t)slot_size)) {
        PyErr_NoMemory();
        return -1;
    }
    batch->control = (struct shmrec_control *)base;
    batch->entry = (struct shmrec_entry *)(base + entry);
    batch->ring = base + ring;
    batch->slot_size = (size_t)slot_size;
    batch->slots = (size_t)slots;
    batch->generation_word = &batch->control->generation;
    batch->writing_word = &batch->entry->writing;
    start_clock(&batch->clock);
    batch->number = load(&batch->entry->opening);
    batch->writing = load(batch->writing_word) & ~UINT64_C(1);
    return 0;
}

/* A word that the kernel clears in a forked child, whoever called fork. */
static volatile uint64_t *make_guard(void)
{
    size_t size = (size_t)sysconf(_SC_PAGESIZE);
    void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        return NULL;
    }
    /* Where the kernel cannot, os.register_at_fork serves forks that are made through Python. */
    (void)madvise(page, size, MADV_WIPEONFORK);  /* step: guard */
    return page;
}

#endif /* SHMREC_NATIVE_WRITER_H */
