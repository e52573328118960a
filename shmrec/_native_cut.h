/* Bearing it that somebody cuts memory short that we have mapped.

   Runs in collectors and tools, which read memory that other processes have open, and never in a
   producer: it takes SIGBUS, and an application's handling of signals is the application's.

   Whoever has a file open may shorten it, and then a load beyond its new end is a SIGBUS. The
   handler puts zeros of our own there, notes that it did, and the load goes on, as in libwayland's
   wl_shm_buffer_begin_access. A fault elsewhere is for whoever had the signal before, faulthandler
   included.

   Invariants:

   - The handler calls fstat, mmap and sigaction alone, which may be called from one.
   - A place in the table is free while its `start` is 0. It is set last, and taken back before the
     memory is unmapped.
   - Handlers belong to the process, and so does the table: what interpreters have in common, here,
     is the kernel's doing. The GIL, or `claimed`, keeps them apart. */
#ifndef SHMREC_NATIVE_CUT_H
#define SHMREC_NATIVE_CUT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define WATCHED_AT_MOST 16

typedef struct {
    atomic_uintptr_t start;
    uintptr_t end;
    int fd;
    atomic_bool cut;
    atomic_flag claimed;
} Watched;

static Watched watched_memory[WATCHED_AT_MOST];
static struct sigaction sigbus_before;
static atomic_bool sigbus_taken;
static uintptr_t page_size;

static bool fill_with_zeros(Watched *memory, uintptr_t start, uintptr_t fault)
{
    struct stat found;
    uintptr_t from = fault & ~(page_size - 1), to = from + page_size;
    if (fstat(memory->fd, &found) == 0 && found.st_size >= 0) {
        uintptr_t rest = start + (((uintptr_t)found.st_size + page_size - 1) & ~(page_size - 1));
        if (rest <= from) {
            /* All at once: page by page there might be more mappings than the kernel allows. */
            from = rest;
            to = memory->end;
        }
    }
    atomic_store(&memory->cut, true);
    return mmap((void *)from, to - from, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != MAP_FAILED;
}

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    int saved = errno;
    uintptr_t fault = (uintptr_t)info->si_addr;
    for (int i = 0; info->si_code == BUS_ADRERR && i < WATCHED_AT_MOST; i++) {
        Watched *memory = &watched_memory[i];
        uintptr_t start = atomic_load(&memory->start);
        if (start && start <= fault && fault < memory->end &&
            fill_with_zeros(memory, start, fault)) {
            errno = saved;
            return;
        }
    }
    errno = saved;
    if (sigbus_before.sa_flags & SA_SIGINFO) {
        sigbus_before.sa_sigaction(number, info, context);
    }
    else if (sigbus_before.sa_handler != SIG_DFL && sigbus_before.sa_handler != SIG_IGN) {
        sigbus_before.sa_handler(number);
    }
    else if (info->si_code > 0 || sigbus_before.sa_handler == SIG_DFL) {
        /* The load is tried again and ends the process, as it would have without us: a fault
           cannot be ignored. What was sent is sent once more, and comes when we return. */
        struct sigaction plain = {.sa_handler = SIG_DFL};
        sigaction(SIGBUS, &plain, NULL);
        if (info->si_code <= 0) {
            raise(SIGBUS);
        }
    }
}

PyDoc_STRVAR(take_sigbus_doc, "take_sigbus()\n--\n\n"
                              "Have loads from watched memory that is gone find zeros.");

static PyObject *take_sigbus(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    if (!atomic_exchange(&sigbus_taken, true)) {
        page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
        struct sigaction ours = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK};
        sigemptyset(&ours.sa_mask);
        /* Known before it is needed. */
        if (sigaction(SIGBUS, NULL, &sigbus_before) < 0 || sigaction(SIGBUS, &ours, NULL) < 0) {
            atomic_store(&sigbus_taken, false);
            return PyErr_SetFromErrno(PyExc_OSError);
        }
    }
    Py_RETURN_NONE;
}

/* A place in the table, -1 if there is none left, or nothing is borne. */
static PyObject *watch_from(uintptr_t start, uintptr_t size, int fd)
{
    for (int i = 0; atomic_load(&sigbus_taken) && i < WATCHED_AT_MOST; i++) {
        Watched *free = &watched_memory[i];
        if (!atomic_flag_test_and_set(&free->claimed)) {
            free->end = (start + size + page_size - 1) & ~(page_size - 1);
            free->fd = fd;
            atomic_store(&free->cut, false);
            atomic_store(&free->start, start);
            return PyLong_FromLong(i);
        }
    }
    return PyLong_FromLong(-1);
}

PyDoc_STRVAR(watch_memory_doc, "watch_memory(memory, fd, /)\n--\n\n"
                               "Watch a mapping of the file's beginning; a number for `was_cut` "
                               "and `unwatch_memory`, -1 if there is no place left.");

static PyObject *watch_memory(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *memory;
    int fd;
    Py_buffer found;
    if (!PyArg_ParseTuple(args, "Oi:watch_memory", &memory, &fd) ||
        PyObject_GetBuffer(memory, &found, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    PyObject *place = watch_from((uintptr_t)found.buf, (uintptr_t)found.len, fd);
    PyBuffer_Release(&found);
    return place;
}

PyDoc_STRVAR(watch_page_doc, "watch_page(address, /)\n--\n\n"
                             "As `watch_memory`, a page that no Python object knows.");

static PyObject *watch_page(PyObject *Py_UNUSED(module), PyObject *address)
{
    void *start = PyLong_AsVoidPtr(address);
    if (!start && PyErr_Occurred()) {
        return NULL;
    }
    return watch_from((uintptr_t)start, 1, -1);
}

static Watched *watched_at(PyObject *number)
{
    long place = PyLong_AsLong(number);
    if (place == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (place < 0 || place >= WATCHED_AT_MOST || !atomic_load(&watched_memory[place].start)) {
        PyErr_SetString(PyExc_ValueError, "no memory is watched under that number");
        return NULL;
    }
    return &watched_memory[place];
}

PyDoc_STRVAR(was_cut_doc, "was_cut(number, /)\n--\n\n"
                          "Whether a load found nothing there, and zeros instead.");

static PyObject *was_cut(PyObject *Py_UNUSED(module), PyObject *number)
{
    Watched *memory = watched_at(number);
    return memory ? PyBool_FromLong(atomic_load(&memory->cut)) : NULL;
}

PyDoc_STRVAR(unwatch_memory_doc, "unwatch_memory(number, /)\n--\n\n"
                                 "Watch it no more; before it is unmapped.");

static PyObject *unwatch_memory(PyObject *Py_UNUSED(module), PyObject *number)
{
    Watched *memory = watched_at(number);
    if (!memory) {
        return NULL;
    }
    atomic_store(&memory->start, 0);
    atomic_flag_clear(&memory->claimed);
    Py_RETURN_NONE;
}

#endif /* SHMREC_NATIVE_CUT_H */
