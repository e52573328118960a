/* Names: the numbers that a batch has given to texts.

   Runs in producers. Looking up, learning and forgetting happen inside the critical section and
   neither allocate nor fail; dropping the last reference to a name frees an exact str, which runs
   no code. The table is made for the slot's size when a ring is bound, and never full. */
#ifndef SHMREC_NATIVE_NAMES_H
#define SHMREC_NATIVE_NAMES_H

#include "_native_msgpack.h"

/* An event and a new name take more of a slot than this. */
#define BYTES_PER_NAME 8

/* A name that the batch knows, in a table with open addressing. */
typedef struct {
    PyObject *name;     /* NULL in a free row */
    Py_hash_t hash;
    uint8_t packed[SHMREC_WORD - 1]; /* its number, packed: a word is copied, `size` bytes count */
    uint8_t size;
} Known;

typedef struct {
    Known *rows;
    size_t mask;        /* of the rows, whose count is a power of two */
    uint32_t *used;     /* which rows are the batch's, in the order of their numbers */
    size_t count;
    size_t most;
} Names;

/* A table for the names of a slot of that size: false if there is no memory. */
static bool make_names(Names *names, size_t slot_size)
{
    size_t most = slot_size / BYTES_PER_NAME, count = 8;
    while (count < 2 * most) {
        count *= 2;
    }
    if (names->rows && most == names->most) {
        return true;
    }
    Known *rows = PyMem_RawCalloc(count, sizeof *rows);
    uint32_t *used = PyMem_RawCalloc(most, sizeof *used);
    if (!rows || !used) {
        PyMem_RawFree(rows);
        PyMem_RawFree(used);
        return false;
    }
    PyMem_RawFree(names->rows);
    PyMem_RawFree(names->used);
    names->rows = rows;
    names->used = used;
    names->mask = count - 1;
    names->most = most;
    return true;
}

static void free_names(Names *names)
{
    PyMem_RawFree(names->rows);
    PyMem_RawFree(names->used);
}

static void forget_names(Names *names)
{
    for (size_t n = 0; n < names->count; n++) {
        Py_CLEAR(names->rows[names->used[n]].name);
    }
    names->count = 0;
}

/* The row of a name that the batch knows, or the free one where it belongs. */
static Known *find_row(Names *names, PyObject *name, Py_hash_t hash)
{
    for (size_t at = (size_t)hash;; at++) {
        Known *row = &names->rows[at & names->mask];
        bool same = row->name == name || (row->hash == hash && row->name &&
                                          PyUnicode_Compare(row->name, name) == 0);
        if (!row->name || same) {
            return row;
        }
    }
}

static Known *find_known(Names *names, PyObject *name, Py_hash_t hash)
{
    Known *row = find_row(names, name, hash);
    return row->name ? row : NULL;
}

static Known *learn(Names *names, PyObject *name, Py_hash_t hash)
{
    Known *row = find_row(names, name, hash);
    uint8_t number[NUMBER_MOST] = {0};
    row->size = (uint8_t)(put_uint(number, names->count) - number);
    memcpy(row->packed, number, sizeof row->packed);
    row->name = Py_NewRef(name);
    row->hash = hash;
    names->used[names->count++] = (uint32_t)(row - names->rows);
    return row;
}

hot uint8_t *put_known(uint8_t *at, const Known *row)
{
    memcpy(at, (const uint8_t *)row + offsetof(Known, packed), SHMREC_WORD);
    return at + row->size;
}

#endif /* SHMREC_NATIVE_NAMES_H */
