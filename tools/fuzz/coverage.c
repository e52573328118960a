/* Coverage of the native engine, as libFuzzer counts it, from code that gcc has compiled.
 *
 * Linked into the extension that tools/fuzz/run builds for itself, never into one that is
 * installed. gcc's -fsanitize-coverage=trace-pc calls the function below in every basic block;
 * libFuzzer takes a table of counters and one of as many addresses, and looks at nothing else.
 * Every byte of code has a counter of its own, so that no two blocks share one.
 */
#include <stdint.h>

#define CODE_BYTES (1u << 17)

struct place {
    uintptr_t address;
    uintptr_t flags;
};

extern void __sanitizer_cov_8bit_counters_init(uint8_t *begin, uint8_t *end);
extern void __sanitizer_cov_pcs_init(const struct place *begin, const struct place *end);
extern const char __ehdr_start __attribute__((visibility("hidden")));

static uint8_t counters[CODE_BYTES];
static struct place places[CODE_BYTES];

__attribute__((visibility("hidden"))) void __sanitizer_cov_trace_pc(void)
{
    uintptr_t at = (uintptr_t)__builtin_return_address(0) - (uintptr_t)&__ehdr_start;
    counters[at % CODE_BYTES]++;
}

__attribute__((constructor)) static void begin(void)
{
    for (unsigned at = 0; at < CODE_BYTES; at++)
        places[at].address = (uintptr_t)&__ehdr_start + at + 1;
    __sanitizer_cov_8bit_counters_init(counters, counters + CODE_BYTES);
    __sanitizer_cov_pcs_init(places, places + CODE_BYTES);
}
