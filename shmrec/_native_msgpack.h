/* msgpack, as far as events need it: into memory that is the caller's.

   Runs in producers, before the critical section and inside it. Nothing here runs Python code or
   leaves an exception, and nothing allocates but an int too large for it. The bytes are those that `values.pack` gives for the same
   value. Format: the msgpack specification. */
#ifndef SHMREC_NATIVE_MSGPACK_H
#define SHMREC_NATIVE_MSGPACK_H

/* clock_gettime, madvise and syscall are not in C11; Python.h says so too, to most compilers. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <string.h>

#include "_native_layout.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the native engine packs numbers on little-endian machines only"
#endif

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define hot static inline __attribute__((always_inline))
#define apart static __attribute__((noinline))
#define cold static __attribute__((noinline, cold))

/* The most bytes that a number takes, and the header of a text or container. */
#define NUMBER_MOST 9
#define HEADER_MOST 5

hot void put_big16(uint8_t *at, uint16_t value)
{
    value = __builtin_bswap16(value);
    memcpy(at, &value, sizeof value);
}

hot void put_big32(uint8_t *at, uint32_t value)
{
    value = __builtin_bswap32(value);
    memcpy(at, &value, sizeof value);
}

hot void put_big64(uint8_t *at, uint64_t value)
{
    value = __builtin_bswap64(value);
    memcpy(at, &value, sizeof value);
}

hot uint8_t *put_uint(uint8_t *at, uint64_t value)
{
    if (value < 0x80) {
        at[0] = (uint8_t)value;
        return at + 1;
    }
    if (value <= UINT8_MAX) {
        at[0] = 0xcc;
        at[1] = (uint8_t)value;
        return at + 2;
    }
    if (value <= UINT16_MAX) {
        at[0] = 0xcd;
        put_big16(at + 1, (uint16_t)value);
        return at + 3;
    }
    if (value <= UINT32_MAX) {
        at[0] = 0xce;
        put_big32(at + 1, (uint32_t)value);
        return at + 5;
    }
    at[0] = 0xcf;
    put_big64(at + 1, value);
    return at + 9;
}

hot uint8_t *put_int(uint8_t *at, int64_t value)
{
    if (value >= 0) {
        return put_uint(at, (uint64_t)value);
    }
    if (value >= -32) {
        at[0] = (uint8_t)value;
        return at + 1;
    }
    if (value >= INT8_MIN) {
        at[0] = 0xd0;
        at[1] = (uint8_t)value;
        return at + 2;
    }
    if (value >= INT16_MIN) {
        at[0] = 0xd1;
        put_big16(at + 1, (uint16_t)value);
        return at + 3;
    }
    if (value >= INT32_MIN) {
        at[0] = 0xd2;
        put_big32(at + 1, (uint32_t)value);
        return at + 5;
    }
    at[0] = 0xd3;
    put_big64(at + 1, (uint64_t)value);
    return at + 9;
}

hot uint8_t *put_float(uint8_t *at, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    at[0] = 0xcb;
    put_big64(at + 1, bits);
    return at + 9;
}

/* Headers: a kind's short form below `few`, then with 8, 16 and 32 bits of length. */

hot uint8_t *put_wide_header(uint8_t *at, size_t count, uint8_t with16)
{
    if (count <= UINT16_MAX) {
        at[0] = with16;
        put_big16(at + 1, (uint16_t)count);
        return at + 3;
    }
    at[0] = with16 + 1;
    put_big32(at + 1, (uint32_t)count);
    return at + 5;
}

hot uint8_t *put_text_header(uint8_t *at, size_t bytes)
{
    if (bytes < 32) {
        at[0] = 0xa0 | (uint8_t)bytes;
        return at + 1;
    }
    if (bytes <= UINT8_MAX) {
        at[0] = 0xd9;
        at[1] = (uint8_t)bytes;
        return at + 2;
    }
    return put_wide_header(at, bytes, 0xda);
}

hot uint8_t *put_bytes_header(uint8_t *at, size_t bytes)
{
    if (bytes <= UINT8_MAX) {
        at[0] = 0xc4;
        at[1] = (uint8_t)bytes;
        return at + 2;
    }
    return put_wide_header(at, bytes, 0xc5);
}

hot uint8_t *put_list_header(uint8_t *at, size_t count)
{
    if (count < 16) {
        at[0] = 0x90 | (uint8_t)count;
        return at + 1;
    }
    return put_wide_header(at, count, 0xdc);
}

hot uint8_t *put_map_header(uint8_t *at, size_t count)
{
    if (count < 16) {
        at[0] = 0x80 | (uint8_t)count;
        return at + 1;
    }
    return put_wide_header(at, count, 0xde);
}

/* A few bytes, which a call to memcpy would cost as much as all the rest. */
hot uint8_t *put_raw(uint8_t *at, const uint8_t *from, size_t bytes)
{
    if (bytes > 16) {
        memcpy(at, from, bytes);
    }
    else if (bytes >= 8) {
        uint64_t first, last;
        memcpy(&first, from, 8);
        memcpy(&last, from + bytes - 8, 8);
        memcpy(at, &first, 8);
        memcpy(at + bytes - 8, &last, 8);
    }
    else if (bytes >= 4) {
        uint32_t first, last;
        memcpy(&first, from, 4);
        memcpy(&last, from + bytes - 4, 4);
        memcpy(at, &first, 4);
        memcpy(at + bytes - 4, &last, 4);
    }
    else if (bytes) {
        at[0] = from[0];
        at[bytes - 1] = from[bytes - 1];
        at[bytes >> 1] = from[bytes >> 1];
    }
    return at + bytes;
}

hot bool text_ready(PyObject *text)
{
#if PY_VERSION_HEX < 0x030C0000
    return PyUnicode_IS_READY(text);
#else
    (void)text;
    return true;
#endif
}

hot bool is_surrogate(Py_UCS4 c)
{
    return c >= 0xd800 && c <= 0xdfff;
}

/* UTF-8 of one character; a lone surrogate as Python's backslashreplace has it. */
hot uint8_t *put_character(uint8_t *at, Py_UCS4 c)
{
    if (c < 0x80) {
        *at++ = (uint8_t)c;
    }
    else if (c < 0x800) {
        *at++ = 0xc0 | (uint8_t)(c >> 6);
        *at++ = 0x80 | (uint8_t)(c & 0x3f);
    }
    else if (is_surrogate(c)) {
        static const char digits[] = "0123456789abcdef";
        *at++ = '\\';
        *at++ = 'u';
        for (int shift = 12; shift >= 0; shift -= 4) {
            *at++ = (uint8_t)digits[c >> shift & 0xf];
        }
    }
    else if (c < 0x10000) {
        *at++ = 0xe0 | (uint8_t)(c >> 12);
        *at++ = 0x80 | (uint8_t)(c >> 6 & 0x3f);
        *at++ = 0x80 | (uint8_t)(c & 0x3f);
    }
    else {
        *at++ = 0xf0 | (uint8_t)(c >> 18);
        *at++ = 0x80 | (uint8_t)(c >> 12 & 0x3f);
        *at++ = 0x80 | (uint8_t)(c >> 6 & 0x3f);
        *at++ = 0x80 | (uint8_t)(c & 0x3f);
    }
    return at;
}
#define CHARACTER_MOST 6

/* The first `count` characters, as UTF-8. */
static uint8_t *put_characters(uint8_t *at, PyObject *text, Py_ssize_t count)
{
    int kind = (int)PyUnicode_KIND(text);
    const void *data = PyUnicode_DATA(text);
    for (Py_ssize_t n = 0; n < count; n++) {
        at = put_character(at, PyUnicode_READ(kind, data, n));
    }
    return at;
}

/* Bytes of the text in UTF-8; -1 if it has a surrogate. */
static Py_ssize_t utf8_size(PyObject *text)
{
    int kind = (int)PyUnicode_KIND(text);
    const void *data = PyUnicode_DATA(text);
    Py_ssize_t length = PyUnicode_GET_LENGTH(text), bytes = length;
    for (Py_ssize_t n = 0; n < length; n++) {
        Py_UCS4 c = PyUnicode_READ(kind, data, n);
        if (is_surrogate(c)) {
            return -1;
        }
        bytes += (c >= 0x80) + (c >= 0x800) + (c >= 0x10000);
    }
    return bytes;
}

/* An exact str of at most `most` characters; NULL if it is longer, has no UTF-8, or no room. */
hot uint8_t *put_text(uint8_t *at, const uint8_t *end, PyObject *text, Py_ssize_t most)
{
    Py_ssize_t length = PyUnicode_GET_LENGTH(text);
    if (unlikely(length > most || !text_ready(text))) {
        return NULL;
    }
    if (likely(PyUnicode_IS_COMPACT_ASCII(text))) {
        if (unlikely(end - at < HEADER_MOST + length)) {
            return NULL;
        }
        at = put_text_header(at, (size_t)length);
        return put_raw(at, PyUnicode_1BYTE_DATA(text), (size_t)length);
    }
    Py_ssize_t bytes = utf8_size(text);
    if (bytes < 0 || end - at < HEADER_MOST + bytes) {
        return NULL;
    }
    return put_characters(put_text_header(at, (size_t)bytes), text, length);
}

/* `values.bounded_text(text, NAME_LIMIT)`, packed; the caller has room for NAME_MOST bytes. */
#define NAME_MOST (HEADER_MOST + SHMREC_NAME_LIMIT * CHARACTER_MOST)
cold uint8_t *put_name(uint8_t *at, PyObject *text)
{
    uint8_t encoded[SHMREC_NAME_LIMIT * CHARACTER_MOST];
    uint8_t *end;
    Py_ssize_t length = PyUnicode_GET_LENGTH(text);
    if (length > SHMREC_NAME_LIMIT) {
        end = put_characters(encoded, text, SHMREC_NAME_LIMIT - 1);
        end = put_character(end, 0x2026); /* an ellipsis */
    }
    else {
        end = put_characters(encoded, text, length);
    }
    size_t bytes = (size_t)(end - encoded);
    at = put_text_header(at, bytes);
    memcpy(at, encoded, bytes);
    return at + bytes;
}

/* An exact int; NULL if 64 bits do not hold it, which an exception, cleared, has told. The caller
   has room for NUMBER_MOST bytes. */
hot uint8_t *put_long(uint8_t *at, PyObject *value)
{
#if PY_VERSION_HEX >= 0x030C0000
    if (likely(PyUnstable_Long_IsCompact((PyLongObject *)value))) {
        return put_int(at, PyUnstable_Long_CompactValue((PyLongObject *)value));
    }
#else
    Py_ssize_t size = Py_SIZE(value);
    if (likely(-1 <= size && size <= 1)) {
        return put_int(at, size * (int64_t)((PyLongObject *)value)->ob_digit[0]);
    }
#endif
    int overflow;
    long long whole = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (!overflow) {
        return put_int(at, whole);
    }
    if (overflow < 0) {
        return NULL;
    }
    unsigned long long large = PyLong_AsUnsignedLongLong(value);
    if (large == (unsigned long long)-1 && PyErr_Occurred()) {
        PyErr_Clear();
        return NULL;
    }
    return put_uint(at, large);
}

#endif /* SHMREC_NATIVE_MSGPACK_H */
