/* What Python code asks of the extension besides recording: fences, memory with a guard, and
   ignoring a signal.

   Runs in producers, collectors and tools. Nothing in here knows of writers. The module's table of
   functions is here too. */
#ifndef SHMREC_NATIVE_PROCESS_H
#define SHMREC_NATIVE_PROCESS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "_native_cut.h"
#include "_native_fork.h"

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
    /* Where the call fails, a fence of our own is what the producers' fences pair with. */
    atomic_thread_fence(memory_order_seq_cst);
    return PyBool_FromLong(syscall(SYS_membarrier, (int)number, 0, 0) == 0);
#else
    Py_RETURN_FALSE;
#endif
}

/* A mapping that ends at a page which nobody can write, not even through /proc/self/mem, whose
   writes get past the protection of private pages but not of shared ones. */

PyDoc_STRVAR(map_guarded_doc, "map_guarded(fd, offset, size, /)\n--\n\n"
                              "Map a part of a file, shared, before a guard page; its address.");

static PyObject *map_guarded(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd;
    Py_ssize_t offset, size;
    if (!PyArg_ParseTuple(args, "inn:map_guarded", &fd, &offset, &size)) {
        return NULL;
    }
    Py_ssize_t page = (Py_ssize_t)sysconf(_SC_PAGESIZE);
    if (offset < 0 || size <= 0 || offset % page || size % page || size > PY_SSIZE_T_MAX - page) {
        PyErr_SetString(PyExc_ValueError, "a part of a file is whole pages");
        return NULL;
    }
    char *base = mmap(NULL, (size_t)(size + page), PROT_NONE, MAP_SHARED, fd, (off_t)offset);
    if (base == MAP_FAILED) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    if (mprotect(base, (size_t)size, PROT_READ | PROT_WRITE) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        munmap(base, (size_t)(size + page));
        return NULL;
    }
    return PyLong_FromVoidPtr(base);
}

PyDoc_STRVAR(unmap_guarded_doc, "unmap_guarded(address, size, /)\n--\n\n"
                                "Undo `map_guarded`, the guard page included.");

static PyObject *unmap_guarded(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *address;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "On:unmap_guarded", &address, &size)) {
        return NULL;
    }
    void *base = PyLong_AsVoidPtr(address);
    if (!base && PyErr_Occurred()) {
        return NULL;
    }
    if (munmap(base, (size_t)(size + (Py_ssize_t)sysconf(_SC_PAGESIZE))) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(ignore_signal_doc, "ignore_signal(number, /)\n--\n\n"
                                "Ignore the signal; unlike signal.signal from any thread.");

static PyObject *ignore_signal(PyObject *Py_UNUSED(module), PyObject *args)
{
    int number;
    if (!PyArg_ParseTuple(args, "i:ignore_signal", &number)) {
        return NULL;
    }
    if (signal(number, SIG_IGN) == SIG_ERR) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyMethodDef module_functions[] = {
    {"acquire", fence_acquire, METH_NOARGS, acquire_doc},
    {"release", fence_release, METH_NOARGS, release_doc},
    {"membarrier", call_membarrier, METH_O, membarrier_doc},
    {"map_guarded", map_guarded, METH_VARARGS, map_guarded_doc},
    {"unmap_guarded", unmap_guarded, METH_VARARGS, unmap_guarded_doc},
    {"left_by_forks", left_by_forks, METH_O, left_by_forks_doc},
    {"ignore_signal", ignore_signal, METH_VARARGS, ignore_signal_doc},
    {"take_sigbus", take_sigbus, METH_NOARGS, take_sigbus_doc},
    {"watch_memory", watch_memory, METH_VARARGS, watch_memory_doc},
    {"watch_page", watch_page, METH_O, watch_page_doc},
    {"was_cut", was_cut, METH_O, was_cut_doc},
    {"unwatch_memory", unwatch_memory, METH_O, unwatch_memory_doc},
    {NULL, NULL, 0, NULL},
};

#endif /* SHMREC_NATIVE_PROCESS_H */
