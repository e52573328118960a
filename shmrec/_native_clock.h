/* CLOCK_MONOTONIC for the price of reading a counter.

   Runs in producers, inside the critical section; one clock a writer, under the GIL. Where the
   kernel itself keeps time by the processor's time stamp counter, and the counter is invariant,
   a time is the last one that the kernel told plus the ticks since, for at most WINDOW_NS; then
   the kernel is asked again. So a time is wrong by the rate's error over one window, and the
   kernel's own slewing: parts in ten thousand of a millisecond, some tens of nanoseconds as a
   rule. Anywhere else, and until the rate is known, every time is the kernel's.

   Invariants:

   - Times of one clock never go back: what is behind the last one is the last one.
   - A rate that is implausible, or differs too much from the one before (a virtual machine that
     moved, a counter that jumped), is not used; another is measured from then on.

   The idea is that of Go's tracer, and of the kernel's own vDSO. */
#ifndef SHMREC_NATIVE_CLOCK_H
#define SHMREC_NATIVE_CLOCK_H

#include "_native_msgpack.h"

#include <time.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#endif

#define NS_PER_SECOND UINT64_C(1000000000)
#define WINDOW_NS UINT64_C(1000000)
#define BASE_NS (2 * WINDOW_NS)
#define BASE_NS_MOST NS_PER_SECOND
/* Asking takes so many times the least that it ever took only if something came in between. */
#define ASKING_SLACK 4
#define ASKING_TRIES 3
#define RATE_SHIFT 32
#define RATE_MOST (UINT64_C(16) << RATE_SHIFT)
#define RATE_LEAST ((UINT64_C(1) << RATE_SHIFT) / 16)
/* Parts of a rate by which the next one may differ. */
#define RATE_TOLERANCE 1000
#define CLOCK_SOURCE "/sys/devices/system/clocksource/clocksource0/current_clocksource"

typedef struct {
    uint64_t base_ticks;    /* the kernel's last word: at that count ... */
    uint64_t base_ns;       /* ... it was that time */
    uint64_t window;        /* ticks that may be added to it; 0: ask the kernel */
    uint64_t rate;          /* nanoseconds a tick, times 1 << RATE_SHIFT; 0: unknown */
    uint64_t anchor_ticks;  /* where the rate is measured from */
    uint64_t anchor_ns;
    uint64_t middle_ticks;  /* the next anchor */
    uint64_t middle_ns;
    uint64_t least_ns;      /* that asking the kernel twice ever took; 0 before the first time */
    bool counts;            /* there is a counter to rely on */
} Clock;

hot uint64_t kernel_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

#if defined(__x86_64__)

hot uint64_t ticks_now(void)
{
    return __rdtsc();
}

/* CPUID 80000007H, EDX bit 8: the counter runs at one rate, whatever the processor does. */
static bool invariant_counter(void)
{
    unsigned int a, b, c, d;
    return __get_cpuid(0x80000007, &a, &b, &c, &d) && d & 1u << 8;
}

#else

/* Elsewhere reading the clock is cheap, or nobody has measured that it is not. */
hot uint64_t ticks_now(void)
{
    return 0;
}

static bool invariant_counter(void)
{
    return false;
}

#endif

/* Whether the kernel keeps time by the counter. */
static bool kernel_counts(void)
{
    char source[8] = "";
    FILE *file = fopen(CLOCK_SOURCE, "re");
    if (!file) {
        return false;
    }
    bool told = fgets(source, sizeof source, file) != NULL;
    fclose(file);
    return told && strcmp(source, "tsc\n") == 0;
}

static void start_clock(Clock *clock)
{
    memset(clock, 0, sizeof *clock);
    clock->counts = invariant_counter() && kernel_counts();
}

/* The rate between two readings; 0 if it is implausible. */
static uint64_t rate_between(uint64_t ticks, uint64_t ns)
{
    if (!ticks || ticks > UINT64_MAX / 2 || ns > UINT64_MAX / 2) {
        return 0;
    }
    unsigned __int128 rate = ((unsigned __int128)ns << RATE_SHIFT) / ticks;
    return RATE_LEAST <= rate && rate <= RATE_MOST ? (uint64_t)rate : 0;
}

/* Measure the rate from this reading on. */
static void set_anchor(Clock *clock, uint64_t ticks, uint64_t ns)
{
    clock->anchor_ticks = clock->middle_ticks = ticks;
    clock->anchor_ns = clock->middle_ns = ns;
}

/* Take the reading into account: the rate, how far it carries, where it is measured from. */
static void measure(Clock *clock, uint64_t ticks, uint64_t ns)
{
    uint64_t since = ns - clock->anchor_ns;
    clock->base_ticks = ticks;
    clock->base_ns = ns;
    clock->window = 0;
    if (!clock->anchor_ns || since > 4 * BASE_NS_MOST) {
        /* The first reading, or the first after a pause in which anything may have happened. */
        clock->rate = 0;
        set_anchor(clock, ticks, ns);
        return;
    }
    if (since >= BASE_NS) {
        uint64_t before = clock->rate, rate = rate_between(ticks - clock->anchor_ticks, since);
        uint64_t change = rate > before ? rate - before : before - rate;
        clock->rate = rate;
        if (!rate || (before && change > before / RATE_TOLERANCE)) {
            clock->rate = 0;
            set_anchor(clock, ticks, ns);
            return;
        }
    }
    if (since >= BASE_NS_MOST && clock->middle_ns != clock->anchor_ns) {
        /* Half of the base stays, so that a rate is never measured over little. */
        clock->anchor_ticks = clock->middle_ticks;
        clock->anchor_ns = clock->middle_ns;
        clock->middle_ticks = ticks;
        clock->middle_ns = ns;
    }
    else if (since >= BASE_NS_MOST / 2 && clock->middle_ns == clock->anchor_ns) {
        clock->middle_ticks = ticks;
        clock->middle_ns = ns;
    }
    if (clock->rate) {
        clock->window = (WINDOW_NS << RATE_SHIFT) / clock->rate;
    }
}

/* Ask the kernel, and look at the counter meanwhile. */
cold uint64_t ask_kernel(Clock *clock)
{
    uint64_t ns = kernel_ns();
    if (!clock->counts) {
        return ns;
    }
    for (int tries = 0; tries < ASKING_TRIES; tries++) {
        uint64_t before = ns, ticks = ticks_now();
        ns = kernel_ns();
        uint64_t took = ns - before;
        if (!clock->least_ns || took < clock->least_ns) {
            if (took * ASKING_SLACK < clock->least_ns) {
                /* What was measured until now was measured badly. */
                clock->anchor_ns = 0;
            }
            clock->least_ns = took ? took : 1;
        }
        if (took <= clock->least_ns * ASKING_SLACK) {
            measure(clock, ticks, before + took / 2);
            return ns;
        }
    }
    /* Always so slow now, perhaps: then this is what it takes. */
    clock->least_ns *= 2;
    clock->window = 0;
    return ns;
}

/* The time in nanoseconds; not before `last`. */
hot uint64_t clock_ns(Clock *clock, uint64_t last)
{
    uint64_t window = clock->window, ticks, ns;
    /* Without a window the counter may not be one that can be read. */
    if (likely(window && (ticks = ticks_now() - clock->base_ticks) < window)) {
        ns = clock->base_ns + (ticks * clock->rate >> RATE_SHIFT);
    }
    else {
        ns = ask_kernel(clock);
    }
    return likely(ns > last) ? ns : last;
}

#endif /* SHMREC_NATIVE_CLOCK_H */
