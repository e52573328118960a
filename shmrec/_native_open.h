/* Threads that speak and spans that are open: what preambles tell of.

   Runs in producers. An array by number: ended spans stay in it until it is full, but never at its
   end. Growing it happens before the critical section, and up to a limit: then the older half, which
   nobody seems to end, is forgotten. */
#ifndef SHMREC_NATIVE_OPEN_H
#define SHMREC_NATIVE_OPEN_H

#include "_native_msgpack.h"

#include <sys/types.h>

/* The writers of an interpreter; lives as long as the module or a thread's Speaker. */
typedef struct {
    Py_ssize_t references;
    struct Writer *first;
} Roll;

/* A thread as the writer knows it; lives as long as the thread or an open span needs it. */
typedef struct {
    Py_ssize_t references;
    Roll *roll;
    uint64_t thread;    /* its thread state's id, which no other thread of the interpreter gets */
    uint64_t id;        /* the kernel's */
    pid_t process;
    PyObject *name;     /* an exact str of at most NAME_LIMIT characters */
    Py_hash_t hash;
} Speaker;

static void release_roll(Roll *roll)
{
    if (roll && --roll->references == 0) {
        PyMem_RawFree(roll);
    }
}

hot void release_speaker(Speaker *speaker)
{
    if (speaker && --speaker->references == 0) {
        Py_DECREF(speaker->name);
        release_roll(speaker->roll);
        PyMem_RawFree(speaker);
    }
}

/* A span that has begun and not ended; an ended one has no name, until its place is needed. */
typedef struct {
    uint64_t id;
    uint64_t start;
    PyObject *name;
    Speaker *speaker;
    uint8_t *args;      /* packed, for preambles; NULL for none */
    size_t args_size;
} Open;

typedef struct {
    Open *open;
    size_t used;
    size_t room;
    size_t live;
    bool forgotten;     /* some that nobody ended are not known any more */
} Spans;

hot void drop_open(Open *span)
{
    Py_CLEAR(span->name);
    release_speaker(span->speaker);
    if (span->args) {
        PyMem_RawFree(span->args);
    }
}

static void forget_open(Spans *spans)
{
    for (size_t n = 0; n < spans->used; n++) {
        if (spans->open[n].name) {
            drop_open(&spans->open[n]);
        }
    }
    spans->used = spans->live = 0;
    spans->forgotten = false;
}

/* Know the older half no more. Where there is no place left for any, all are live. */
cold void forget_older(Spans *spans)
{
    size_t kept = spans->used / 2, from = spans->used - kept;
    for (size_t n = 0; n < from; n++) {
        drop_open(&spans->open[n]);
    }
    memmove(spans->open, spans->open + from, kept * sizeof *spans->open);
    spans->used = spans->live = kept;
    spans->forgotten = true;
}

/* Have room for one more: false if there is no memory. */
cold bool grow_open(Spans *spans)
{
    if (spans->live == SHMREC_OPEN_LIMIT) {
        forget_older(spans);
        return true;
    }
    if (spans->live < spans->used / 2 || spans->room == SHMREC_OPEN_LIMIT) {
        size_t kept = 0;
        for (size_t n = 0; n < spans->used; n++) {
            if (spans->open[n].name) {
                spans->open[kept++] = spans->open[n];
            }
        }
        spans->used = kept;
        return true;
    }
    size_t room = spans->room ? 2 * spans->room : 64;
    Open *open = PyMem_RawRealloc(spans->open, room * sizeof *open);
    if (!open) {
        return false;
    }
    spans->open = open;
    spans->room = room;
    return true;
}

static Open *search_open(Spans *spans, uint64_t id)
{
    size_t low = 0, high = spans->used;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        Open *span = &spans->open[middle];
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
hot Open *find_open(Spans *spans, uint64_t id)
{
    size_t used = spans->used;
    if (likely(used && spans->open[used - 1].id == id)) {
        return &spans->open[used - 1];
    }
    return search_open(spans, id);
}

hot void close_open(Spans *spans, Open *span)
{
    drop_open(span);
    spans->live--;
    if (likely(span == &spans->open[spans->used - 1])) {
        while (--spans->used && !spans->open[spans->used - 1].name) {
        }
    }
}

#endif /* SHMREC_NATIVE_OPEN_H */
