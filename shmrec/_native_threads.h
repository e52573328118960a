/* Which thread records: its Speaker, kept with the thread.

   Runs in producers, before the critical section. A thread that records for the first time runs
   Python code here; its Speaker is in the dict of its thread state and goes with it. */
#ifndef SHMREC_NATIVE_THREADS_H
#define SHMREC_NATIVE_THREADS_H

#include "_native_writer.h"

#define SPEAKER_CAPSULE "shmrec._native.Speaker"

/* A number that no other thread of the process has, or ever will: asking the interpreter which
   thread this is costs a tenth of an event. It says nothing of whose it is, so that interpreters
   may share the counting of it. */
#if defined(__GLIBC__)
/* In the thread's own block, where no call is needed to find it. */
#define IN_THE_BLOCK __attribute__((tls_model("initial-exec")))
#else
#define IN_THE_BLOCK
#endif
static _Thread_local uintptr_t own_number IN_THE_BLOCK; /* 0 before the first event */
static atomic_uintptr_t numbers;

hot uintptr_t here(void)
{
    return own_number;
}

/* The thread state has gone, or its capsule has: whoever comes on this thread has another. */
static void destroy_speaker(PyObject *capsule)
{
    Speaker *speaker = PyCapsule_GetPointer(capsule, SPEAKER_CAPSULE);
    if (speaker) {
        for (Writer *writer = speaker->roll->first; writer; writer = writer->next) {
            if (writer->batch.speaker == speaker) {
                writer->seat = NO_SEAT;
            }
        }
        release_speaker(speaker);
    }
}

static void join_roll(Writer *writer, Roll *roll)
{
    writer->roll = roll;
    roll->references++;
    writer->next = roll->first;
    if (roll->first) {
        roll->first->previous = writer;
    }
    roll->first = writer;
}

static void leave_roll(Writer *writer)
{
    if (!writer->roll) {
        return;
    }
    if (writer->previous) {
        writer->previous->next = writer->next;
    }
    else {
        writer->roll->first = writer->next;
    }
    if (writer->next) {
        writer->next->previous = writer->previous;
    }
    release_roll(writer->roll);
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
    speaker->roll = state->roll;
    speaker->roll->references++;
    speaker->thread = PyThreadState_GetID(PyThreadState_Get());
    speaker->process = getpid();
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

/* Whether the thread was of a parent, where its kernel id was another. */
static bool forked_since(PyObject *capsule)
{
    const Speaker *speaker = PyCapsule_GetPointer(capsule, SPEAKER_CAPSULE);
    return !speaker || speaker->process != getpid();
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
    if (capsule && forked_since(capsule)) {
        Py_CLEAR(capsule);
    }
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
        self->batch.speaker_thread = speaker->thread;
    }
    Py_DECREF(capsule);
    return speaker ? 0 : -1;
}

/* What an event needs beside its own fields: the speaker, and a test's time. */
cold int prepare(Writer *self, uint64_t *now)
{
    if (self->clock) {
        PyObject *time = PyObject_CallNoArgs(self->clock);
        *now = time ? PyLong_AsUnsignedLongLong(time) : 0;
        Py_XDECREF(time);
        if (PyErr_Occurred()) {
            return -1;
        }
    }
    if (find_speaker(self) < 0) {
        return -1;
    }
    if (!own_number) {
        own_number = atomic_fetch_add_explicit(&numbers, 1, memory_order_relaxed) + 1;
    }
    /* With a clock of a test's own every event is prepared. */
    self->seat = self->clock ? NO_SEAT : own_number;
    return 0;
}

hot bool must_prepare(const Writer *self)
{
    return self->seat != here();
}

#endif /* SHMREC_NATIVE_THREADS_H */
