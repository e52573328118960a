/* A batch being filled: opening its slot, its preamble, its names, sealing it, adding an event.

   The twin of `shmrec/batch.py` and of the critical section of `shmrec/writer.py`; the other
   half of the protocol is `shmrec/ring.py`. Runs in producers, under the GIL from `writing`
   odd to `writing` even, so that no other thread and no signal handler comes in between.

   Invariants:

   - Nothing in here allocates, runs Python code or can fail. Dropping the last reference to a
     name frees an exact str, which runs none either.
   - `writing` is odd from before `generation` is loaded until after `committed` is stored.
     Between that store and that load there is no fence: the collector brings it, through
     membarrier(2); where it cannot reach this process, `fenced` is false and the fence is here.
   - `opening` names a batch before its slot is touched; the slot's `number` is 0 while its
     other words are being set.
   - `committed` grows only when all bytes below it are in place: a release store publishes the
     bytes and the count of events together.
   - `closed_generation` is set before the first event of a newer generation is committed.
   - What is read from shared memory is `generation`, `state`, `flags` and the losses; no place
     in memory depends on it. */
#ifndef SHMREC_NATIVE_BATCH_H
#define SHMREC_NATIVE_BATCH_H

#include "_native_clock.h"
#include "_native_names.h"
#include "_native_open.h"

#include <unistd.h>

#define ONE_EVENT (UINT64_C(1) << SHMREC_COUNT_SHIFT)

typedef _Atomic uint64_t Word;

hot void store(Word *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_relaxed);
}

hot void publish(Word *word, uint64_t value)
{
    atomic_store_explicit(word, value, memory_order_release);
}

hot uint64_t load(Word *word)
{
    return atomic_load_explicit(word, memory_order_relaxed);
}

typedef struct {
    /* Read or written by every event. */
    Word *writing_word;
    Word *generation_word;
    Word *committed_word;
    uint64_t writing;
    uint64_t generation;    /* of the batch */
    uint64_t thread;        /* whose the batch's events are: a thread state's id; 0 for nobody's */
    uint64_t committed;
    uint64_t last;          /* time of the last event, ns */
    uint8_t *position;
    uint8_t *limit;         /* the slot's end; `position` if the next event needs another batch */
    Names names;
    Clock clock;
    bool unfenced;
    volatile uint64_t *guard;   /* 0: no ring, or a forked child's; the kernel wipes it there */
    Speaker *speaker;           /* the thread that records, or did last */
    uint64_t speaker_thread;    /* its thread state's id; 0 for nobody's */
    Spans spans;

    /* Read or written by every batch. */
    struct shmrec_slot *slot;   /* NULL before the first */
    struct shmrec_entry *entry;
    struct shmrec_control *control;
    uint8_t *ring;
    size_t slot_size;
    size_t slots;
    uint64_t number;
    uint64_t events;
    size_t rotation;        /* which open span the next preamble begins with */
    int stack_fd;           /* where stacks are written when asked for, or -1 */
    off_t stack_start;
    uint64_t stack_turn;
} Batch;

/* The event to add. Tail: what follows the name and, of an end, its duration and span. */
typedef struct {
    uint8_t head[2];
    bool lasts;         /* an end: `since` and `span` come before the tail */
    bool begins;        /* `span` comes before the tail, which is kept as the span's arguments */
    uint64_t since;
    uint64_t span;
    PyObject *name;
    Py_hash_t hash;
    const uint8_t *tail;
    size_t tail_size;
} Event;

/* Array header and kind, time, name, duration, span; room for whole words at the name. */
#define EVENT_MOST (2 + 4 * NUMBER_MOST + SHMREC_WORD)

static void count_lost(Batch *batch, int cause, int64_t count)
{
    const int64_t most = SHMREC_LOST_AT_MOST;
    uint64_t known = load(&batch->entry->losses[cause]);
    count = count > most ? most : count < -most ? -most : count;
    if (known < SHMREC_LOST_AT_MOST) {
        int64_t sum = (int64_t)known + count;
        store(&batch->entry->losses[cause], sum > 0 ? (uint64_t)sum : 0);
    }
}

/* Put bytes that count as no event behind the last ones, to be published later. */
static void place(Batch *batch, const uint8_t *data, size_t size)
{
    if (size) {
        memcpy(batch->position, data, size);
    }
    batch->position += size;
    batch->committed += size;
}

static bool has_room(const Batch *batch, size_t size)
{
    return (size_t)(batch->limit - batch->position) >= size;
}

/* Have the batch know the name, and that the speaker speaks; the name's row.

   In a batch that is too full for that nothing changes, the batch is marked full, and the
   answer is NULL. */
cold Known *introduce(Batch *batch, PyObject *name, Py_hash_t hash, const Speaker *speaker)
{
    uint8_t needed[2 * (3 + NUMBER_MOST + NAME_MOST) + 3 + 2 * NUMBER_MOST];
    static const uint8_t new_name[] = {SHMREC_PREFIX_NAME, 0};
    static const uint8_t new_thread[] = {SHMREC_PREFIX_THREAD, 0};
    bool speaks = speaker->thread != batch->thread;
    uint8_t *end = needed;
    uint64_t next = batch->names.count, speaker_number = 0;
    bool learn_speaker = false, learn_name = false;

    if (speaks) {
        const Known *row = find_known(&batch->names, speaker->name, speaker->hash);
        learn_speaker = !row;
        if (learn_speaker) {
            speaker_number = next++;
            memcpy(end, new_name, sizeof new_name);
            end = put_name(put_uint(end + sizeof new_name, speaker_number), speaker->name);
        }
        bool same = speaker->hash == hash && PyUnicode_Compare(speaker->name, name) == 0;
        learn_name = !(same && learn_speaker) && !find_known(&batch->names, name, hash);
    }
    else {
        learn_name = !find_known(&batch->names, name, hash);
    }
    if (learn_name) {
        memcpy(end, new_name, sizeof new_name);
        end = put_name(put_uint(end + sizeof new_name, next++), name);
    }
    if (speaks) {
        memcpy(end, new_thread, sizeof new_thread);
        end = put_uint(end + sizeof new_thread, speaker->id);
        if (learn_speaker) {
            end = put_uint(end, speaker_number);
        }
        else {
            /* A row's packed number has room for a whole word behind it here. */
            end = put_known(end, find_known(&batch->names, speaker->name, speaker->hash));
        }
    }
    size_t size = (size_t)(end - needed);
    if (!has_room(batch, size) || next > batch->names.most) {
        batch->limit = batch->position;
        return NULL;
    }
    place(batch, needed, size);
    if (learn_speaker) {
        learn(&batch->names, speaker->name, speaker->hash);
    }
    if (learn_name) {
        learn(&batch->names, name, hash);
    }
    batch->thread = speaker->thread;
    return find_known(&batch->names, name, hash);
}

/* Batches. */

static void seal(Batch *batch, uint64_t more)
{
    if (batch->slot) {
        store(&batch->slot->flags, load(&batch->slot->flags) | SHMREC_SEALED | more);
    }
}

/* Name the open spans; if they are too many, others in every batch. */
cold void write_preamble(Batch *batch, uint64_t now)
{
    static const uint8_t plain[] = {SHMREC_PREFIX_OPEN, 0};
    static const uint8_t with_args[] = {SHMREC_PREFIX_OPEN_ARGS, 0};
    uint8_t *limit = batch->limit;
    uint8_t *budget = batch->position + (limit - batch->position) / SHMREC_PREAMBLE_SHARE;
    size_t at = 0;

    if (batch->rotation >= batch->spans.live) {
        batch->rotation = 0;
    }
    for (size_t live = 0; !batch->spans.open[at].name || live++ < batch->rotation; at++) {
    }
    size_t written = 0;
    for (; written < batch->spans.live; at++) {
        const Open *span = &batch->spans.open[at == batch->spans.used ? (at = 0) : at];
        if (!span->name) {
            continue;
        }
        uint8_t event[EVENT_MOST];
        const Known *row = NULL;
        if (batch->position <= budget) {
            row = introduce(batch, span->name, PyObject_Hash(span->name), span->speaker);
        }
        batch->limit = limit;
        size_t size = 0;
        if (row) {
            memcpy(event, span->args ? with_args : plain, sizeof plain);
            uint8_t *end = put_known(event + sizeof plain, row);
            end = put_uint(put_uint(end, span->id), now - span->start);
            size = (size_t)(end - event);
        }
        if (!row || !has_room(batch, size + span->args_size)) {
            /* One that is too large for any preamble must not keep the others out of all. */
            batch->rotation += written ? written : 1;
            store(&batch->slot->flags, load(&batch->slot->flags) | SHMREC_PARTIAL_PREAMBLE);
            break;
        }
        place(batch, event, size);
        place(batch, span->args, span->args_size);
        written++;
    }
    if (written == batch->spans.live) {
        batch->rotation = 0;
    }
    publish(batch->committed_word, batch->committed);  /* step: preamble */
}

/* Have the next stack written from the beginning, if the collector has taken the last one. */
static void rewind_stack(Batch *batch)
{
    uint64_t turn = load(&batch->entry->stack_turn);
    if (turn != batch->stack_turn) {
        batch->stack_turn = turn;
        (void)lseek(batch->stack_fd, batch->stack_start, SEEK_SET);
    }
}

/* Seal the batch and open the next one; false if the recording has been closed. */
cold bool turn(Batch *batch, uint64_t generation, uint64_t now)
{
    bool newer = generation != batch->generation;
    seal(batch, newer ? SHMREC_END_OF_GENERATION : 0);  /* step: seal */
    if (newer) {
        /* step: closed */
        publish(&batch->entry->closed_generation, generation ? generation - 1 : 0);
        if (load(&batch->control->state) == SHMREC_SEGMENT_CLOSED) {
            batch->slot = NULL;
            *batch->guard = 0;
            count_lost(batch, SHMREC_LOST_CLOSED, 1);
            return false;
        }
    }
    batch->events += batch->committed >> SHMREC_COUNT_SHIFT;
    batch->committed = 0;
    batch->number++;
    struct shmrec_slot *slot =
        (struct shmrec_slot *)(batch->ring + (batch->number - 1) % batch->slots * batch->slot_size);
    publish(&batch->entry->opening, batch->number);  /* step: opening */
    atomic_thread_fence(memory_order_release);
    store(&slot->number, 0);  /* step: zero */
    atomic_thread_fence(memory_order_release);
    store(&slot->generation, generation);  /* step: fields */
    store(&slot->start_ns, now);  /* step: fields */
    store(&slot->committed, 0);  /* step: fields */
    store(&slot->first, batch->events);  /* step: fields */
    store(&slot->flags, 0);  /* step: fields */
    publish(&slot->number, batch->number);  /* step: number */
    /* The payload's plain stores may not overtake the number that they belong to. */
    atomic_thread_fence(memory_order_release);
    batch->slot = slot;
    batch->committed_word = &slot->committed;
    batch->position = (uint8_t *)(slot + 1);
    batch->limit = (uint8_t *)slot + batch->slot_size;
    forget_names(&batch->names);
    batch->thread = 0;
    batch->last = now;
    batch->generation = generation;
    if (batch->spans.live) {
        write_preamble(batch, now);
    }
    if (unlikely(batch->spans.forgotten)) {
        store(&slot->flags, load(&slot->flags) | SHMREC_PARTIAL_PREAMBLE);
    }
    if (batch->stack_fd >= 0) {
        rewind_stack(batch);
    }
    return true;
}

/* The event's bytes up to its tail, `row` being its name's. */
hot uint8_t *put_event(uint8_t *at, const Batch *batch, const Event *event, const Known *row,
                       uint64_t now)
{
    memcpy(at, event->head, sizeof event->head);
    at = put_uint(at + sizeof event->head, now - batch->last);
    at = put_known(at, row);
    if (event->lasts) {
        at = put_uint(at, now - event->since);
    }
    if (event->lasts || event->begins) {
        at = put_uint(at, event->span);
    }
    return at;
}

hot void commit(Batch *batch, uint8_t *end, uint64_t now)
{
    batch->committed += (uint64_t)(end - batch->position) + ONE_EVENT;
    publish(batch->committed_word, batch->committed);  /* step: committed */
    batch->position = end;
    batch->last = now;
}

/* An event that the batch at hand does not simply take: of a newer generation, of another
   thread, with a new name, or near the slot's end. */
cold bool add_with_care(Batch *batch, const Event *event, uint64_t generation, uint64_t now)
{
    uint8_t begun[EVENT_MOST];

    if (generation != batch->generation && !turn(batch, generation, now)) {
        return false;
    }
    for (int attempt = 0; attempt < 2; attempt++) {
        if (attempt && !turn(batch, generation, now)) {
            return false;
        }
        const Known *row = introduce(batch, event->name, event->hash, batch->speaker);
        if (!row) {
            continue;
        }
        size_t size = (size_t)(put_event(begun, batch, event, row, now) - begun);
        if (has_room(batch, size + event->tail_size)) {
            memcpy(batch->position, begun, size);  /* step: payload */
            commit(batch, put_raw(batch->position + size, event->tail, event->tail_size), now);
            return true;
        }
    }
    count_lost(batch, SHMREC_LOST_OVERSIZED, 1);
    return false;
}

/* The critical section: whether the event was recorded. `now` is 0 for the clock's time. */
hot bool add(Batch *batch, const Event *event, uint64_t now)
{
    bool recorded = false;

    store(batch->writing_word, batch->writing + 1);  /* step: writing-odd */
    if (unlikely(batch->unfenced)) {
        atomic_thread_fence(memory_order_seq_cst);
    }
    else {
        /* For the compiler; the processor's fence is the collector's. */
        atomic_signal_fence(memory_order_seq_cst);
    }
    uint64_t generation = load(batch->generation_word);  /* step: generation */
    if (likely(!now)) {
        now = clock_ns(&batch->clock, batch->last);
    }
    const Known *row = &batch->names.rows[(size_t)event->hash & batch->names.mask];
    if (likely(generation == batch->generation && batch->speaker_thread == batch->thread &&
               row->name == event->name &&
               has_room(batch, EVENT_MOST + event->tail_size))) {
        uint8_t *end = put_event(batch->position, batch, event, row, now);  /* step: payload */
        commit(batch, put_raw(end, event->tail, event->tail_size), now);
        recorded = true;
    }
    else {
        /* A copy, so that the event itself need not be in memory. */
        Event given = *event;
        recorded = add_with_care(batch, &given, generation, now);
    }
    batch->writing += 2;
    publish(batch->writing_word, batch->writing);  /* step: writing-even */
    return recorded;
}

#endif /* SHMREC_NATIVE_BATCH_H */
