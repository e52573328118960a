/* Which thread records: its Speaker, kept with the thread.

   Runs in producers, before the critical section. A thread that records for the first time runs
   Python code here; its Speaker is in the dict of its thread state and goes with it. */
#ifndef SHMREC_NATIVE_THREADS_H
#define SHMREC_NATIVE_THREADS_H

#include "_native_writer.h"

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
    return self->batch.speaker_thread == thread ? 0 : find_speaker(self);
}

hot bool must_prepare(const Writer *self, uint64_t thread)
{
    return self->batch.speaker_thread != thread || self->clock;
}

#endif /* SHMREC_NATIVE_THREADS_H */
