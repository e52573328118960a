/* A writer: the ring it has been given, and what its calls need before they may record.

   Runs in producers. Everything here may allocate, fail or run Python code, and none of it is
   inside the critical section. Python code may take the ring away, which the guard tells. */
#ifndef SHMREC_NATIVE_WRITER_H
#define SHMREC_NATIVE_WRITER_H

#include "_native_batch.h"

#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

#define SPARE_SPANS 16
/* Names that fit into so many bytes of a slot: an event and its name take more than this each. */
#define BYTES_PER_NAME 8

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
} State;

typedef struct Span Span;

typedef struct {
    PyObject_HEAD
    Batch batch;
    uint64_t next_span;
    uint64_t inherited;         /* spans up to this one are a parent's, from before a fork */
    State *state;
    PyObject *revive;
    PyObject *clock;            /* NULL for the clock; tests have their own */
    Py_buffer memory;           /* memory.obj is NULL while there is none */
    Span *spare[SPARE_SPANS];
    int spares;
} Writer;

struct Span {
    PyObject_HEAD
    vectorcallfunc call;
    Writer *writer;
    PyObject *name;
    uint64_t id;
    uint8_t *args;              /* packed; NULL for none */
    size_t args_size;
};

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

/* Threads. */

#define SPEAKER_CAPSULE "shmrec._native.Speaker"

static void destroy_speaker(PyObject *capsule)
{
    release_speaker(PyCapsule_GetPointer(capsule, SPEAKER_CAPSULE));
}

hot PyThreadState *current_thread(void)
{
#if PY_VERSION_HEX >= 0x030D0000
    return PyThreadState_GetUnchecked();
#else
    return _PyThreadState_UncheckedGet();
#endif
}

/* A capsule of a new Speaker for the current thread. */
static PyObject *make_speaker(State *state)
{
    PyObject *name = NULL, *id = NULL, *capsule = NULL;
    Speaker *speaker = NULL;
    PyObject *known = PyObject_CallNoArgs(state->speaker);
    if (!known || !(name = PyObject_GetAttrString(known, "name")) ||
        !(id = PyObject_GetAttrString(known, "id"))) {
        goto done;
    }
    if (!PyUnicode_CheckExact(name)) {
        PyErr_SetString(PyExc_TypeError, "a thread's name is no str");
        goto done;
    }
    speaker = PyMem_RawMalloc(sizeof *speaker);
    if (!speaker) {
        PyErr_NoMemory();
        goto done;
    }
    speaker->references = 1;
    speaker->thread = current_thread()->id;
    speaker->id = PyLong_AsUnsignedLongLong(id);
    speaker->hash = PyObject_Hash(name);
    speaker->name = Py_NewRef(name);
    if (!PyErr_Occurred()) {
        capsule = PyCapsule_New(speaker, SPEAKER_CAPSULE, destroy_speaker);
    }
    if (!capsule) {
        release_speaker(speaker);
    }
done:
    Py_XDECREF(known);
    Py_XDECREF(name);
    Py_XDECREF(id);
    return capsule;
}

/* Have `batch.speaker` be the current thread: 0, or -1 with an exception. */
static int find_speaker(Writer *self)
{
    PyObject *key = self->state->thread_key;
    PyObject *dict = PyThreadState_GetDict();
    if (!dict) {
        PyErr_NoMemory();
        return -1;
    }
    PyObject *capsule = Py_XNewRef(PyDict_GetItemWithError(dict, key));
    if (!capsule) {
        if (PyErr_Occurred() || !(capsule = make_speaker(self->state))) {
            return -1;
        }
        if (PyDict_SetItem(dict, key, capsule) < 0) {
            Py_DECREF(capsule);
            return -1;
        }
    }
    Speaker *speaker = PyCapsule_GetPointer(capsule, SPEAKER_CAPSULE);
    if (speaker) {
        speaker->references++;
        release_speaker(self->batch.speaker);
        self->batch.speaker = speaker;
    }
    Py_DECREF(capsule);
    return speaker ? 0 : -1;
}

/* What an event needs beside its own fields: the speaker, and a test's time. */
cold int prepare(Writer *self, uint64_t thread, uint64_t *now)
{
    if (self->clock) {
        PyObject *time = PyObject_CallNoArgs(self->clock);
        *now = time ? PyLong_AsUnsignedLongLong(time) : 0;
        Py_XDECREF(time);
        if (PyErr_Occurred()) {
            return -1;
        }
    }
    Speaker *speaker = self->batch.speaker;
    return speaker && speaker->thread == thread ? 0 : find_speaker(self);
}

hot bool must_prepare(const Writer *self, uint64_t thread)
{
    return self->batch.thread != thread || self->clock;
}

/* Open spans: an array by id; ended ones stay in it until it is full, but never at its end. */

hot void drop_open(Open *span)
{
    Py_CLEAR(span->name);
    release_speaker(span->speaker);
    if (span->args) {
        PyMem_RawFree(span->args);
    }
}

static void forget_open(Batch *batch)
{
    for (size_t n = 0; n < batch->open_used; n++) {
        if (batch->open[n].name) {
            drop_open(&batch->open[n]);
        }
    }
    batch->open_used = batch->open_live = 0;
}

/* Have room for one more: false if there is no memory. */
cold bool grow_open(Batch *batch)
{
    if (batch->open_live < batch->open_used / 2) {
        size_t kept = 0;
        for (size_t n = 0; n < batch->open_used; n++) {
            if (batch->open[n].name) {
                batch->open[kept++] = batch->open[n];
            }
        }
        batch->open_used = kept;
        return true;
    }
    size_t room = batch->open_room ? 2 * batch->open_room : 64;
    Open *open = PyMem_RawRealloc(batch->open, room * sizeof *open);
    if (!open) {
        return false;
    }
    batch->open = open;
    batch->open_room = room;
    return true;
}

static Open *search_open(Batch *batch, uint64_t id)
{
    size_t low = 0, high = batch->open_used;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        Open *span = &batch->open[middle];
        if (span->id == id) {
            return span->name ? span : NULL;
        }
        if (span->id < id) {
            low = middle + 1;
        }
        else {
            high = middle;
        }
    }
    return NULL;
}

/* The open span of that number, or NULL. Most often it is the youngest. */
hot Open *find_open(Batch *batch, uint64_t id)
{
    size_t used = batch->open_used;
    if (likely(used && batch->open[used - 1].id == id)) {
        return &batch->open[used - 1];
    }
    return search_open(batch, id);
}

hot void close_open(Batch *batch, Open *span)
{
    drop_open(span);
    batch->open_live--;
    if (likely(span == &batch->open[batch->open_used - 1])) {
        while (--batch->open_used && !batch->open[batch->open_used - 1].name) {
        }
    }
}

/* The ring. */

/* Forget the batch: the next event opens one, with nothing known and nothing open. */
static void close_batch(Batch *batch)
{
    forget_open(batch);
    forget_names(batch);
    release_speaker(batch->speaker);
    batch->speaker = NULL;
    batch->thread = 0;
    batch->generation = UINT64_MAX;
    batch->slot = NULL;
    batch->position = batch->limit = NULL;
    batch->events = batch->committed = batch->last = 0;
    batch->rotation = 0;
}

/* A table for the names of a slot of that size: false if there is no memory. */
static bool make_names(Batch *batch, size_t slot_size)
{
    size_t names = slot_size / BYTES_PER_NAME, rows = 8;
    while (rows < 2 * names) {
        rows *= 2;
    }
    if (batch->known && rows == batch->known_mask + 1) {
        return true;
    }
    Known *known = PyMem_RawCalloc(rows, sizeof *known);
    uint32_t *used = PyMem_RawCalloc(names, sizeof *used);
    if (!known || !used) {
        PyMem_RawFree(known);
        PyMem_RawFree(used);
        return false;
    }
    PyMem_RawFree(batch->known);
    PyMem_RawFree(batch->used);
    batch->known = known;
    batch->used = used;
    batch->known_mask = rows - 1;
    batch->used_room = names;
    return true;
}

static void let_go(Writer *self)
{
    *self->batch.guard = 0;
    self->batch.generation = UINT64_MAX;
    self->batch.limit = self->batch.position;
    self->batch.slot = NULL;
    self->batch.entry = NULL;
    self->batch.control = NULL;
    if (self->memory.obj) {
        PyBuffer_Release(&self->memory);
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
    if (!make_names(batch, (size_t)slot_size)) {
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
    (void)madvise(page, size, MADV_WIPEONFORK);
    return page;
}

#endif /* SHMREC_NATIVE_WRITER_H */
