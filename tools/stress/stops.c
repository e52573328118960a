/* Where an instrumented shmrec may be stopped: `stepping.py` puts a stop before and after every
   step that the code names.

   A stop is a subscription in Python, and a test of one word in C: neither is a place where the
   interpreter runs signal handlers, so that a signal which is raised here arrives in the code
   exactly as one from outside would. Loaded for everybody (RTLD_GLOBAL) before shmrec is. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <signal.h>

#define LOG_MOST 65536

__attribute__((visibility("default"))) int shmrec_stops_armed;

static int logging;
static int wanted = -1;
static int countdown;
static int number_sent;
static int reached;
static unsigned short passed[LOG_MOST];
static size_t passed_count;

__attribute__((visibility("default"))) void shmrec_stop(int number)
{
    if (logging && passed_count < LOG_MOST) {
        passed[passed_count++] = (unsigned short)number;
    }
    if (number == wanted && --countdown == 0) {
        shmrec_stops_armed = logging;
        reached++;
        raise(number_sent);
    }
}

static PyObject *stop_at(PyObject *Py_UNUSED(self), PyObject *key)
{
    if (shmrec_stops_armed) {
        shmrec_stop((int)PyLong_AsLong(key));
    }
    Py_RETURN_NONE;
}

static PyMappingMethods stops_mapping = {.mp_subscript = stop_at};
static PyTypeObject stops_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "stops.Stops",
    .tp_basicsize = sizeof(PyObject),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_as_mapping = &stops_mapping,
};

PyDoc_STRVAR(arm_doc, "arm(stop, occurrence, signal, /)\n--\n\n"
                      "At the so-manieth time that the stop is passed, send ourselves the signal.");

static PyObject *arm(PyObject *Py_UNUSED(module), PyObject *args)
{
    if (!PyArg_ParseTuple(args, "iii:arm", &wanted, &countdown, &number_sent)) {
        return NULL;
    }
    logging = 0;
    reached = 0;
    shmrec_stops_armed = 1;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(disarm_doc, "disarm()\n--\n\nStop nowhere; how often we stopped since `arm`.");

static PyObject *disarm(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    shmrec_stops_armed = logging = 0;
    wanted = -1;
    return PyLong_FromLong(reached);
}

PyDoc_STRVAR(watch_doc, "watch()\n--\n\nNote every stop that is passed.");

static PyObject *watch(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    passed_count = 0;
    wanted = -1;
    shmrec_stops_armed = logging = 1;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(noted_doc, "noted()\n--\n\nThe stops that were passed since `watch`, in order.");

static PyObject *noted(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    shmrec_stops_armed = logging = 0;
    PyObject *list = PyList_New((Py_ssize_t)passed_count);
    for (size_t n = 0; list && n < passed_count; n++) {
        PyObject *number = PyLong_FromLong(passed[n]);
        if (!number) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)n, number);
    }
    return list;
}

static PyMethodDef functions[] = {
    {"arm", arm, METH_VARARGS, arm_doc},
    {"disarm", disarm, METH_NOARGS, disarm_doc},
    {"watch", watch, METH_NOARGS, watch_doc},
    {"noted", noted, METH_NOARGS, noted_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "shmrec_stops", .m_size = -1, .m_methods = functions,
};

PyMODINIT_FUNC PyInit_shmrec_stops(void)
{
    if (PyType_Ready(&stops_type) < 0) {
        return NULL;
    }
    PyObject *made = PyModule_Create(&module);
    PyObject *stop = PyObject_New(PyObject, &stops_type);
    if (!made || !stop || PyModule_AddObjectRef(made, "stop", stop) < 0) {
        Py_CLEAR(made);
    }
    Py_XDECREF(stop);
    return made;
}
