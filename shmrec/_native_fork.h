/* In a child that C code forks, descriptors that lead into the parent's memory lead nowhere.

   Runs in producers. A descriptor of /proc/self/mem writes to the memory of whoever opened it, in
   its children too. Python's own forks are seen to in Python as well; of fork(2) called by C only
   the C library's handlers know. They may only do what a signal handler may. */
#ifndef SHMREC_NATIVE_FORK_H
#define SHMREC_NATIVE_FORK_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LED = 4 };

/* By device and inode it is told whether the number is still ours. */
typedef struct {
    int number;
    dev_t device;
    ino_t inode;
    bool left;
} Led;

static Led led_descriptors[LED];
static atomic_int led_count;

static void lead_nowhere(void)
{
    for (int n = 0; n < led_count; n++) {
        Led *each = &led_descriptors[n];
        struct stat found;
        if (fstat(each->number, &found) < 0 || found.st_dev != each->device ||
            found.st_ino != each->inode) {
            continue;
        }
        /* First, so that there is a number left to open another by. */
        close(each->number);
        int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
        if (nowhere >= 0 && nowhere != each->number) {
            dup3(nowhere, each->number, O_CLOEXEC);
            close(nowhere);
        }
        each->left = true;
    }
}

PyDoc_STRVAR(left_by_forks_doc,
             "left_by_forks(numbers, /)\n--\n\n"
             "Have these descriptors lead nowhere in children that are forked from now on, and no\n"
             "others. Gives those that were led there since the last call, in this process.");

static PyObject *left_by_forks(PyObject *Py_UNUSED(module), PyObject *numbers)
{
    static bool registered;
    PyObject *wanted = PySequence_Tuple(numbers);
    PyObject *left = PyList_New(0);
    if (!wanted || !left) {
        goto failed;
    }
    for (int n = 0; n < led_count; n++) {
        if (led_descriptors[n].left) {
            PyObject *number = PyLong_FromLong(led_descriptors[n].number);
            if (!number || PyList_Append(left, number) < 0) {
                Py_XDECREF(number);
                goto failed;
            }
            Py_DECREF(number);
        }
    }
    if (PyTuple_GET_SIZE(wanted) > LED) {
        PyErr_Format(PyExc_ValueError, "%d descriptors are the most", LED);
        goto failed;
    }
    Led noted[LED] = {{0}};
    int count = 0;
    for (Py_ssize_t n = 0; n < PyTuple_GET_SIZE(wanted); n++) {
        struct stat found;
        long number = PyLong_AsLong(PyTuple_GET_ITEM(wanted, n));
        if (number == -1 && PyErr_Occurred()) {
            goto failed;
        }
        if (number < 0 || number > INT_MAX || fstat((int)number, &found) < 0) {
            PyErr_Format(PyExc_OSError, "no descriptor %ld", number);
            goto failed;
        }
        noted[count++] = (Led){(int)number, found.st_dev, found.st_ino, false};
    }
    if (!registered) {
        int error = pthread_atfork(NULL, NULL, lead_nowhere);
        if (error) {
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
            goto failed;
        }
        registered = true;
    }
    /* Another thread may fork in C at any moment. */
    led_count = 0;
    memcpy(led_descriptors, noted, sizeof noted);
    led_count = count;
    Py_DECREF(wanted);
    return left;

failed:
    Py_XDECREF(wanted);
    Py_XDECREF(left);
    return NULL;
}

#endif /* SHMREC_NATIVE_FORK_H */
