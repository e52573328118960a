/* An event's arguments, packed: one map of names and values.

   Runs in producers, before the critical section. As in `writer.Writer._arguments`, a map of
   texts, numbers, booleans and None is taken as it is, and one with anything else takes its
   bounded form. Here only maps are packed whose bounded form is themselves; what has another is
   refused, and the caller then asks Python. Nothing here runs Python code while it looks at a
   container: where an int is too large packing has stopped. */
#ifndef SHMREC_NATIVE_ARGUMENTS_H
#define SHMREC_NATIVE_ARGUMENTS_H

#include "_native_msgpack.h"

typedef struct {
    uint8_t *at;
    uint8_t *end;
    int nodes;          /* values that may still come in bounded form */
    bool bounded;       /* there is more than texts, numbers, booleans and None */
    bool beyond;        /* what is there has another bounded form */
} Packing;

static bool pack_value(Packing *packing, PyObject *value, int depth);

static bool pack_key(Packing *packing, PyObject *key, Py_ssize_t most)
{
    if (unlikely(!PyUnicode_CheckExact(key))) {
        return false;
    }
    uint8_t *at = put_text(packing->at, packing->end, key, most);
    if (unlikely(!at)) {
        return false;
    }
    packing->at = at;
    return true;
}

/* What is in a container: always in bounded form. */
static bool pack_items(Packing *packing, PyObject *value, int depth)
{
    if (PyDict_CheckExact(value)) {
        Py_ssize_t count = PyDict_GET_SIZE(value), position = 0;
        PyObject *key, *item;
        if (count > SHMREC_ITEMS_LIMIT) {
            return false;
        }
        packing->at = put_map_header(packing->at, (size_t)count);
        while (PyDict_Next(value, &position, &key, &item)) {
            if (packing->nodes <= 0 || !pack_key(packing, key, SHMREC_KEY_LIMIT) ||
                !pack_value(packing, item, depth)) {
                return false;
            }
        }
        return true;
    }
    bool list = PyList_CheckExact(value);
    Py_ssize_t count = list ? PyList_GET_SIZE(value) : PyTuple_GET_SIZE(value);
    if (count > SHMREC_ITEMS_LIMIT) {
        return false;
    }
    packing->at = put_list_header(packing->at, (size_t)count);
    for (Py_ssize_t n = 0; n < count; n++) {
        PyObject *item = list ? PyList_GET_ITEM(value, n) : PyTuple_GET_ITEM(value, n);
        if (packing->nodes <= 0 || !pack_value(packing, item, depth)) {
            return false;
        }
    }
    return true;
}

cold bool pack_compound(Packing *packing, PyObject *value, int depth)
{
    packing->bounded = true;
    if (PyBytes_CheckExact(value)) {
        Py_ssize_t size = PyBytes_GET_SIZE(value);
        if (size > SHMREC_TEXT_LIMIT || packing->end - packing->at < HEADER_MOST + size) {
            return false;
        }
        packing->at = put_bytes_header(packing->at, (size_t)size);
        memcpy(packing->at, PyBytes_AS_STRING(value), (size_t)size);
        packing->at += size;
        return true;
    }
    if (!PyList_CheckExact(value) && !PyTuple_CheckExact(value) && !PyDict_CheckExact(value)) {
        return false;
    }
    return depth < SHMREC_DEPTH_LIMIT && packing->nodes > 0 &&
           pack_items(packing, value, depth + 1);
}

static bool pack_value(Packing *packing, PyObject *value, int depth)
{
    PyTypeObject *type = Py_TYPE(value);
    uint8_t *at = packing->at;
    packing->nodes--;
    if (type == &PyUnicode_Type) {
        at = put_text(at, packing->end, value, SHMREC_TEXT_LIMIT);
    }
    else if (unlikely(packing->end - at < NUMBER_MOST)) {
        return false;
    }
    else if (type == &PyLong_Type) {
        at = put_long(at, value);
    }
    else if (type == &PyFloat_Type) {
        at = put_float(at, PyFloat_AS_DOUBLE(value));
    }
    else if (value == Py_None) {
        *at++ = 0xc0;
    }
    else if (type == &PyBool_Type) {
        *at++ = value == Py_True ? 0xc3 : 0xc2;
    }
    else {
        return pack_compound(packing, value, depth);
    }
    if (unlikely(!at)) {
        return false;
    }
    packing->at = at;
    return true;
}

hot bool pack_argument(Packing *packing, PyObject *key, PyObject *value)
{
    if (unlikely(packing->nodes <= 0)) {
        packing->beyond = true;
    }
    if (unlikely(PyUnicode_GET_LENGTH(key) > SHMREC_KEY_LIMIT)) {
        packing->beyond = true;
    }
    return pack_key(packing, key, SHMREC_ARGUMENTS_LIMIT) && pack_value(packing, value, 0);
}

/* What does not fit in here takes more than ARGUMENTS_LIMIT, however its header comes out. */
#define ARGUMENTS_ROOM (SHMREC_ARGUMENTS_LIMIT + HEADER_MOST + NUMBER_MOST)

hot Packing start_packing(uint8_t *room, Py_ssize_t count)
{
    Packing packing = {
        .at = put_map_header(room, (size_t)count),
        .end = room + ARGUMENTS_ROOM,
        .nodes = SHMREC_NODES_LIMIT,
        .beyond = count > SHMREC_ITEMS_LIMIT,
    };
    return packing;
}

/* Bytes packed; 0 if the bounded form is another one, for Python to make. */
hot size_t end_packing(const Packing *packing, const uint8_t *room, bool whole)
{
    size_t size = (size_t)(packing->at - room);
    bool another = packing->bounded && packing->beyond;
    return likely(whole && !another && size <= SHMREC_ARGUMENTS_LIMIT) ? size : 0;
}

#endif /* SHMREC_NATIVE_ARGUMENTS_H */
