/* The tracepoint that is measured beside an event of shmrec: an integer and a short text. */

#undef TRACEPOINT_PROVIDER
#define TRACEPOINT_PROVIDER shmrec_bench

#undef TRACEPOINT_INCLUDE
#define TRACEPOINT_INCLUDE "lttng_tracepoint.h"

#if !defined(LTTNG_TRACEPOINT_H) || defined(TRACEPOINT_HEADER_MULTI_READ)
#define LTTNG_TRACEPOINT_H

#include <lttng/tracepoint.h>

TRACEPOINT_EVENT(
    shmrec_bench, request,
    TP_ARGS(int, n, const char *, path),
    TP_FIELDS(
        ctf_integer(int, n, n)
        ctf_string(path, path)))

#endif

#include <lttng/tracepoint-event.h>
