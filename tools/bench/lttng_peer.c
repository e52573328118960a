/*
 * An LTTng-UST tracepoint in a loop. Says "ready" once a session records it; then for every
 * line of standard input, which is a number of events, answers the nanoseconds of one.
 *
 * Built and run by lttng_peer.py.
 */

#define TRACEPOINT_CREATE_PROBES
#define TRACEPOINT_DEFINE
#include "lttng_tracepoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define READY_SECONDS 10

static double
now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

int
main(void)
{
    const struct timespec pause = {0, 5 * 1000 * 1000};
    double deadline = now_ns() + READY_SECONDS * 1e9;
    while (!tracepoint_enabled(shmrec_bench, request)) {
        if (now_ns() > deadline) {
            puts("no session has enabled the tracepoint");
            return 1;
        }
        nanosleep(&pause, NULL);
    }
    puts("ready");
    fflush(stdout);

    char line[32];
    while (fgets(line, sizeof line, stdin) != NULL) {
        int count = atoi(line);
        double began = now_ns();
        for (int n = 0; n < count; n++)
            tracepoint(shmrec_bench, request, n, "/x");
        printf("%.3f\n", (now_ns() - began) / (count > 0 ? count : 1));
        fflush(stdout);
    }
    return 0;
}
