/*
 * What no C engine can be faster than: calls made exactly as an engine's are, which do nothing,
 * read the clock, or read the clock and copy one event into a shared mapping.
 *
 * Built and loaded by floors.py, in the process that measures. Arguments are never looked at:
 * taking them apart is a cost of the engine, getting them across is a cost of the call.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define RING_BYTES (2u << 20)
#define HEAD_BYTES 4096u
#define EVENT_BYTES 32u

/* The first word of the mapping counts the bytes that are whole; the events come a page later. */
static unsigned char *mapping;
static uint64_t written;
static volatile uint64_t seen_ns;

static inline uint64_t
now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static PyObject *
floor_noop(PyObject *Py_UNUSED(module), PyObject *const *Py_UNUSED(args),
           Py_ssize_t Py_UNUSED(count), PyObject *Py_UNUSED(names))
{
    Py_RETURN_NONE;
}

static PyObject *
floor_clock(PyObject *Py_UNUSED(module), PyObject *const *Py_UNUSED(args),
            Py_ssize_t Py_UNUSED(count), PyObject *Py_UNUSED(names))
{
    seen_ns = now_ns();
    Py_RETURN_NONE;
}

static PyObject *
floor_copy(PyObject *Py_UNUSED(module), PyObject *const *Py_UNUSED(args), Py_ssize_t count,
           PyObject *Py_UNUSED(names))
{
    uint64_t event[EVENT_BYTES / sizeof(uint64_t)] = {now_ns(), (uint64_t)count, written, 0};
    memcpy(mapping + HEAD_BYTES + written % RING_BYTES, event, EVENT_BYTES);
    written += EVENT_BYTES;
    atomic_store_explicit((_Atomic uint64_t *)mapping, written, memory_order_release);
    Py_RETURN_NONE;
}

/* A context manager that does nothing: the interpreter's own part of a with statement. */

static PyObject *
scope_enter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return Py_NewRef(self);
}

static PyObject *
scope_exit(PyObject *Py_UNUSED(self), PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(count))
{
    Py_RETURN_NONE;
}

static PyMethodDef scope_methods[] = {
    {"__enter__", scope_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))scope_exit, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject scope_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "floors.Scope",
    .tp_basicsize = sizeof(PyObject),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_methods = scope_methods,
};

static PyObject *scope;

static PyObject *
floor_scope(PyObject *Py_UNUSED(module), PyObject *const *Py_UNUSED(args),
            Py_ssize_t Py_UNUSED(count), PyObject *Py_UNUSED(names))
{
    return Py_NewRef(scope);
}

#define FLOOR(name) \
    {#name, (PyCFunction)(void (*)(void))floor_##name, METH_FASTCALL | METH_KEYWORDS, NULL}

static PyMethodDef functions[] = {
    FLOOR(noop), FLOOR(clock), FLOOR(copy), FLOOR(scope), {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "floors",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC
PyInit_floors(void)
{
    if (PyType_Ready(&scope_type) < 0)
        return NULL;
    scope = PyObject_New(PyObject, &scope_type);
    if (scope == NULL)
        return NULL;
    /* Populated: a ring that has wrapped meets no page fault any more. */
    mapping = mmap(NULL, HEAD_BYTES + RING_BYTES, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (mapping == MAP_FAILED)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyModule_Create(&definition);
}
