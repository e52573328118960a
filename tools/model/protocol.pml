/* shmrec's protocol: producers, their rings, and the collector that flushes and copies.

   Laid beside the code by the names of its steps (`step: NAME`, listed in steps.txt). What a
   run explores is chosen by macros; explore.py has the configurations and the mutants (M_...).

   Memory. A producer's stores go through a buffer of its own and reach memory one at a time:
   first in, first out (x86-TSO), or with WEAK in any order that the fences of the native engine
   and equal addresses permit. The buffer also holds what the producer has yet to execute of the
   event at hand: nobody can tell that from stores that wait, but for two. What was there when
   `generation` was loaded (`owed`) is executed, and a fence brings it to memory; a death drops
   the rest. So every prefix of an event's stores is a death, and a stop.

   An event has returned when its last store is in memory: whoever is told of the return by the
   producer sees its stores too.

   Without a fence nothing bounds how long a store may wait, and no number of looks would prove
   anything. What NO_FENCE asks of the machine is written at its place: a store that was executed
   before the first advance was seen is in memory when the second flush looks.

   Properties:
     KEPT       an event that returned before the request is in the snapshot, or was overwritten
                and is counted, exactly; unless somebody took the ring over in order
     WHOLE      no batch in a snapshot is torn, of a reset slot or of another owner
     COMPLETE   a completed generation gains no event, nor does a sealed batch, but of a producer
                that the snapshot calls stalled
     ENDS       a snapshot ends, and nobody waits for ever: no deadlock

   What protects a copy. There are two ways to notice that a slot was reset under a reader:
     A  `opening` is published before the slot is touched, and read again after the copy
     B  `number` is zeroed before the slot's fields, and read again after the copy
   All sixteen combinations of the four are explored: a copy is whole if and only if A or B is
   complete. That is so when stores are seen in order (sequentially consistent and x86-TSO are
   the same to a reader) and with WEAK, as long as the fences stand. So none of the four is
   needed alone under any of these orders, whoever dies, and no test can catch the loss of one;
   losing one of each pair is caught. Both are kept: two words of two cache lines must be
   scribbled on before a torn batch passes for a whole one. Without fences (the python engine on
   a weakly ordered machine, which `claim` refuses) even both are not enough.

   Not modelled: loads that overtake loads in the reader (`fence.acquire` stands between them),
   the `state` that closes a recording, preambles, names and losses, several threads of a
   producer, an exception raised within a record, what a snapshot leaves out by size and age,
   and hostile memory. */

#ifndef RINGS
#define RINGS 1
#endif
#ifndef PROCESSES       /* producers, forked and late ones included */
#define PROCESSES 1
#endif
#ifndef EVENTS          /* of the first producer */
#define EVENTS 4
#endif
#ifndef MORE            /* of every other one */
#define MORE 1
#endif
#ifndef CAPACITY        /* events in a batch: 1 or 2 */
#define CAPACITY 1
#endif
#ifndef FLUSHES
#define FLUSHES 2
#endif
#ifndef SNAPSHOTS
#define SNAPSHOTS 1
#endif

#define SLOTS 3
#define NONE 9

/* A ring's words: its entry's, then the slots', eight each. */
#define SIZE 32
#define WRITING(r) ((r) * SIZE)
#define OPENING(r) ((r) * SIZE + 1)
#define CLOSED(r) ((r) * SIZE + 2)
#define INCARNATION(r) ((r) * SIZE + 3)
#define STATE(r) ((r) * SIZE + 4)
#define SLOT(r, n) ((r) * SIZE + 8 + 8 * (((n) + SLOTS - 1) % SLOTS))
#define NUMBER 0
#define GENERATION 1
#define FIRST 2         /* stands for `start_ns` too, which is stored and read the same way */
#define COMMITTED 3     /* events; a byte of payload is an event */
#define FLAGS 4
#define PAYLOAD 5
#define WALL 255        /* in a buffer: a fence */

#define FREE 0
#define CLAIMING 1
#define LIVE 2
#define DETACHED 3

/* An event says which it is: of what owner, of what generation, its number from 1. */
#define TAG(owner, generation, event) ((owner) * 64 + (generation) * 8 + (event))

byte mem[RINGS * SIZE];
byte generation = 1;

/* A buffer holds one event that opens a batch, and what the next ones begin with. */
#ifdef WEAK
#define ROOM 24
#define EVENT_MOST 23
#else
#define ROOM 18
#define EVENT_MOST 14
#endif

typedef Buffer {
    byte address[ROOM];
    byte value[ROOM];
    byte used;
    byte owed;          /* the first ones: executed for sure */
    byte due            /* executed before the last advance was seen */
};
Buffer buffer[PROCESSES];

bool gone[PROCESSES];
bool stopped[PROCESSES];
bool finished[PROCESSES];
bool forked;
byte snapshots;
byte crash;             /* of the collector: 1 it is to die here, 2 it has */
byte target = 1;        /* the generation that the collector stored last */
byte holder;            /* of the segment's lock: process + 1 */
byte owner[RINGS];      /* process + 1 */
byte settled[RINGS];    /* incarnation */

/* The property is in the message that spin gives. */
#define KEPT 1001
#define WHOLE 1002
#define COMPLETE 1003
#define ENDS 1004
#ifndef ONLY
#define ONLY 0          /* one of these, or all */
#endif
#define holds(property, claim) assert((claim) || property == 0 || ONLY && ONLY != property)

/* What only the properties know. */
typedef Truth {
    byte returned;      /* events of the ring's owner whose calls have returned */
    byte doomed;        /* events of his in batches that are or are being overwritten */
    byte generation[10]; /* by batch number */
    byte first[10];
    byte lawful         /* the incarnation that was taken over, having left or being on disk */
};
Truth truth[RINGS];
byte completed;         /* generation */
bool straggles[RINGS];  /* this ring's owner is known not to be past it */

#define alive(p) (!gone[p] && !stopped[p])
#define dead(each) (owner[each] && gone[owner[each] - 1])
#define word(r, n, field) mem[SLOT(r, n) + field]

#define NEVER 255       /* later than any generation */

/* The order of stores. */

inline put(p, where, what)
{
    buffer[p].address[buffer[p].used] = where;
    buffer[p].value[buffer[p].used] = what;
    buffer[p].used++
}

#if defined(WEAK) && !defined(M_NO_WALLS)
#define wall(p) put(p, WALL, 0)
#else
#define wall(p) skip
#endif

inline publish(p, where, what)
{
    wall(p);
    put(p, where, what)
}

/* All events of the ring's batches up to number n are on their way out. */
inline doom(r, n)
{
    if
    :: n > 0 && truth[r].first[n + 1] > truth[r].doomed ->
        truth[r].doomed = truth[r].first[n + 1]
    :: else
    fi
}

/* The store at `at` in the buffer reaches memory. */
inline reach(p, at)
{
    a = buffer[p].address[at];
    v = buffer[p].value[at];
    i = at;
    do
    :: i + 1 < buffer[p].used ->
        buffer[p].address[i] = buffer[p].address[i + 1];
        buffer[p].value[i] = buffer[p].value[i + 1];
        i++
    :: else -> break
    od;
    buffer[p].used--;
    buffer[p].address[buffer[p].used] = 0;
    buffer[p].value[buffer[p].used] = 0;
    buffer[p].owed = (at < buffer[p].owed -> buffer[p].owed - 1 : buffer[p].owed);
    buffer[p].due = (at < buffer[p].due -> buffer[p].due - 1 : buffer[p].due);
    if
    :: a == WALL
    :: else ->
        i = a / SIZE;
        if
        :: a == WRITING(i) && v % 2 == 0 -> truth[i].returned = v / 2
        :: a == OPENING(i) && v > SLOTS -> doom(i, v - SLOTS)
        :: a == INCARNATION(i) -> truth[i].doomed = 0
        :: a % SIZE >= 8 && a % 8 == NUMBER && v == 0 -> doom(i, mem[a])
        :: a % SIZE >= 8 && a % 8 == COMMITTED && v == 0 -> doom(i, mem[a - COMMITTED + NUMBER])
        :: a % SIZE >= 8 && a % 8 == COMMITTED && v > 0 ->
            holds(COMPLETE, mem[a - COMMITTED + GENERATION] > completed || straggles[i]);
            holds(COMPLETE, !mem[a - COMMITTED + FLAGS])
        :: else
        fi;
        mem[a] = v
    fi;
    a = 0;
    v = 0;
    i = 0
}

/* What was executed before some load reaches memory: `those` is `owed` or `due`. */
#define drain(p, those) d_step { do :: buffer[p].those -> reach(p, 0) :: else -> break od; skip }

proctype Memory(byte p)
{
    byte a, v, i;
#ifdef WEAK
    byte at, j;
#endif
    do
    :: d_step { buffer[p].used && !stopped[p] -> reach(p, 0) }
#ifdef WEAK
    :: atomic {
        buffer[p].used > 1 && !stopped[p] ->
        at = 1;
        do
        :: at + 1 < buffer[p].used -> at++
        :: break
        od;
        d_step {
            do
            :: j < at && buffer[p].address[j] != WALL &&
               buffer[p].address[j] != buffer[p].address[at] -> j++
            :: else -> break
            od;
            if
            :: j == at && buffer[p].address[at] != WALL -> reach(p, at)
            :: else
            fi;
            j = 0;
            at = 0
        }
      }
#endif
    od
}

/* The producer. */

#define fits(p) (buffer[p].used + EVENT_MOST <= ROOM)

inline turn()
{
    /* step: seal */
    if
    :: own -> put(p, SLOT(r, number) + FLAGS, 1)
    :: else
    fi;
    /* step: closed */
    if
    :: loaded != own -> publish(p, CLOSED(r), loaded - 1)
    :: else
    fi;
    first = first + count;
    count = 0;
    number++;
    own = loaded;
    truth[r].generation[number] = own;
    truth[r].first[number] = first;
    /* step: opening */
#ifndef M_OPENING_LATE
    publish(p, OPENING(r), number);
    wall(p);
#endif
    /* step: zero */
#ifndef M_NO_ZERO
    put(p, SLOT(r, number) + NUMBER, 0);
    wall(p);
#endif
#ifdef M_NUMBER_EARLY
    publish(p, SLOT(r, number) + NUMBER, number);
#endif
    /* step: fields */
    put(p, SLOT(r, number) + GENERATION, own);
    put(p, SLOT(r, number) + COMMITTED, 0);
    put(p, SLOT(r, number) + FIRST, first);
    put(p, SLOT(r, number) + FLAGS, 0);
    /* step: number */
#ifndef M_NUMBER_EARLY
    publish(p, SLOT(r, number) + NUMBER, number);
#endif
    wall(p);
#ifdef M_OPENING_LATE
    put(p, OPENING(r), number);
    wall(p)
#endif
}

/* Joining. The lock is free again when its holder dies. */
#ifdef M_LOCK_STAYS
#define unlocked (holder == 0)
#else
#define unlocked (holder == 0 || gone[holder - 1])
#endif

#define left(each) (mem[STATE(each)] == DETACHED || mem[STATE(each)] == FREE)
#define dealt_with(each) (mem[STATE(each)] == CLAIMING || settled[each] == mem[INCARNATION(each)])
#define lawful_(each) (left(each) || (dead(each) && dealt_with(each)))
#ifdef M_CLAIM_UNSETTLED
#define claimable(each) (left(each) || dead(each))
#else
#define claimable(each) lawful_(each)
#endif

inline claim()
{
    /* step: lock */
    if
    :: atomic { alive(p) && unlocked -> holder = p + 1 }
    :: holder && stopped[holder - 1] -> goto leave      /* not for ever: it is refused */
    fi;
    /* step: claiming */
    atomic {
        alive(p) ->
        r = 0;
        do
        :: r < RINGS && !claimable(r) -> r++
        :: else -> break
        od;
        if
        :: r == RINGS -> r = NONE; holder = 0; goto leave
        :: else ->
            truth[r].lawful = (lawful_(r) -> mem[INCARNATION(r)] : truth[r].lawful);
            straggles[r] = false;
            put(p, STATE(r), CLAIMING);
            owner[r] = p + 1
        fi
    };
    atomic { alive(p) && buffer[p].used == 0 -> holder = 0 };
    atomic {
        alive(p) ->
        /* step: clear */
#ifndef M_NUMBERS_STAY
        put(p, SLOT(r, 1) + NUMBER, 0);
        put(p, SLOT(r, 2) + NUMBER, 0);
        put(p, SLOT(r, 3) + NUMBER, 0);
#endif
        put(p, WRITING(r), 0);
        put(p, CLOSED(r), 0);
        /* step: incarnation */
        incarnation = mem[INCARNATION(r)] + 1;
        publish(p, INCARNATION(r), incarnation);
        number = mem[OPENING(r)];
        own = 0;
        first = 0;
        count = 0;
        writing = 0;
        /* step: live */
        publish(p, STATE(r), LIVE)
    }
}

proctype Producer(byte p, r, todo, number, own, first, count, writing, incarnation)
{
    byte loaded;
    do
    :: todo == 0 -> break
#ifdef FORK
    :: atomic {
        p == 0 && todo == FORK && !forked && alive(p) ->
        forked = true;
        /* step: guard */
#ifdef M_GUARD_STAYS
        run Producer(1, r, MORE, number, own, first, count, writing, incarnation)
#else
        run Producer(1, NONE, MORE, number, own, first, count, writing, incarnation)
#endif
      }
#endif
    :: todo > 0 ->
        if
        :: r == NONE -> claim()
        :: else
        fi;
        atomic {
            alive(p) && fits(p) ->
#ifdef M_GENERATION_EARLY
            loaded = generation;
        };
        atomic {
            alive(p) ->
#endif
            /* step: writing-odd */
            put(p, WRITING(r), writing + 1)
        };
        atomic {
#ifdef OWN_FENCE
            alive(p) && buffer[p].used == 0 ->
#else
            alive(p) ->
#endif
            /* step: generation */
#ifndef M_GENERATION_EARLY
            loaded = generation;
#endif
            buffer[p].owed = buffer[p].used;
            if
            :: loaded != own || count == CAPACITY -> turn()
            :: else
            fi;
#ifdef M_COMMITTED_EARLY
            publish(p, SLOT(r, number) + COMMITTED, count + 1);
#endif
#ifdef M_RETURN_EARLY
            publish(p, WRITING(r), writing + 2);
#endif
            /* step: payload */
            put(p, SLOT(r, number) + PAYLOAD + count, TAG(incarnation, own, first + count + 1));
            count++;
            /* step: committed */
#ifndef M_COMMITTED_EARLY
            publish(p, SLOT(r, number) + COMMITTED, count);
#endif
            writing = writing + 2;
            /* step: writing-even */
#ifndef M_RETURN_EARLY
            publish(p, WRITING(r), writing);
#endif
            loaded = 0;
            todo--
        }
    od;
#ifdef DETACH
    if
    :: p == 0 -> atomic {
        alive(p) && fits(p) ->
        put(p, SLOT(r, number) + FLAGS, 1);
        /* step: detached */
        put(p, STATE(r), DETACHED)
      }
    :: else
    fi;
#endif
leave:
    finished[p] = true
}

/* A death, or a stop for good; a stop that ends is a producer that is slow. */
proctype Fate(byte p)
{
    if
    :: true
#ifdef KILL
    :: d_step {
        /* What it has executed reaches memory before anybody can see that it is gone. */
        buffer[p].owed == 0 ->
        gone[p] = true;
        do
        :: buffer[p].used ->
            buffer[p].used--;
            buffer[p].address[buffer[p].used] = 0;
            buffer[p].value[buffer[p].used] = 0
        :: else -> break
        od;
        buffer[p].due = 0
      }
#endif
#ifdef STOP
    :: d_step { buffer[p].owed == 0 -> stopped[p] = true }
#endif
    fi
}

/* The collector. */

#ifdef M_NO_DEADLINE
#define deadline false
#else
#ifdef PATIENT
#define deadline (stopped[0] || stopped[PROCESSES - 1])
#else
#define deadline true
#endif
#endif

inline seen()
{
    d_step {
        generation = target;
        k = 0;
        do
        :: k < PROCESSES -> buffer[k].due = buffer[k].owed; k++
        :: else -> break
        od;
        k = 0
    }
}

/* Where it has no fence, the collector's own store may wait too. */
proctype Late()
{
    byte k;
    do
    :: atomic { generation != target -> seen() }
    od
}

inline enumerate()
{
    k = 0;
    do
    :: k < RINGS ->
        /* step: enumerate */
        entry[k] = mem[INCARNATION(k)];
        d_step {
            detached[k] = mem[STATE(k)] == DETACHED;
            there[k] = entry[k] && (mem[STATE(k)] == LIVE || mem[STATE(k)] == DETACHED);
            k++
        }
    :: else -> break
    od;
    k = 0
}

/* A later look tells more only of who has been called stalled. */
inline evident(each, late)
{
    waiting[each] = false;
    looked[each] = 0;
#if defined(NO_FENCE) && !defined(M_FIRST_LOOK)
    stalled[each] = late;
#else
    stalled[each] = late && (stalled[each] || !known[each]);
#endif
    known[each] = true
}

/* One load of one evidence; it waits when there is nothing new to see. */
inline look(each)
{
    if
    /* step: look-writing */
    :: d_step { mem[WRITING(each)] % 2 == 0 -> evident(each, false) }
    :: d_step { looked[each] && looked[each] != mem[WRITING(each)] -> evident(each, false) }
    :: d_step { !looked[each] && mem[WRITING(each)] % 2 -> looked[each] = mem[WRITING(each)] }
    /* step: look-closed */
    :: d_step { mem[CLOSED(each)] >= old -> evident(each, false) }
    /* step: look-newest */
    :: d_step {
        mem[OPENING(each)] && word(each, mem[OPENING(each)], NUMBER) == mem[OPENING(each)] &&
        word(each, mem[OPENING(each)], GENERATION) > old -> evident(each, false)
      }
    /* step: look-ended */
#ifndef M_NO_ENDED
    :: d_step { detached[each] || dead(each) -> evident(each, false) }
#endif
    /* step: deadline */
    :: d_step { deadline -> evident(each, true) }
    fi
}

inline flush()
{
#ifdef M_ENUMERATE_EARLY
    enumerate();
#endif
    old = target;
    /* step: advance */
#ifdef NO_FENCE
    target = old + 1;
#else
    atomic { target = old + 1; generation = target };
    /* step: fence */
    k = 0;
    do
    :: k < PROCESSES ->
#ifndef OWN_FENCE
        drain(k, owed);
#endif
        k++
    :: else -> break
    od;
    k = 0;
#endif
#ifndef M_ENUMERATE_EARLY
    enumerate();
#endif
    d_step {
        do
        :: k < RINGS -> waiting[k] = there[k]; k++
        :: else -> break
        od;
        k = 0
    };
    do
    :: waiting[0] -> look(0)
#if RINGS > 1
    :: waiting[1] -> look(1)
#endif
    :: else -> break
    od;
    old = 0
}

/* The slots' headers: each field of all slots in one pass. */
#define pass(field, into) \
    do \
    :: k < SLOTS -> d_step { into[k] = word(r, k + 1, field); k++ } \
    :: else -> break \
    od; \
    k = 0

inline scan()
{
    /* step: scan-opening */
    opening = mem[OPENING(r)];
    /* step: scan-numbers */
    pass(NUMBER, numbers);
    /* step: scan-fields */
    pass(GENERATION, generations);
    pass(COMMITTED, counts);
    pass(FIRST, firsts);
    /* step: scan-again */
#ifndef M_NUMBER_ONCE
    do
    :: k < SLOTS -> d_step {
        numbers[k] = (numbers[k] == word(r, k + 1, NUMBER) -> numbers[k] : 0);
        k++
      }
    :: else -> break
    od;
    k = 0;
#endif
    /* step: scan-lapped */
    d_step {
        do
        :: k < SLOTS ->
            if
            :: numbers[k] > opening || numbers[k] + SLOTS <= opening -> numbers[k] = 0
#ifndef M_OPENING_ONCE
            :: numbers[k] && numbers[k] + SLOTS <= mem[OPENING(r)] -> numbers[k] = 0
#endif
            :: else
            fi;
            if
            :: !numbers[k] -> generations[k] = 0; counts[k] = 0; firsts[k] = 0
            :: else
            fi;
            k++
        :: else -> break
        od;
        k = 0;
        opening = 0
    }
}

/* Which of the scanned batches are wished for: those of the cut, or else all, or the newest. */
inline choose()
{
    d_step {
        wished = once_more;
        do
        :: k < SLOTS ->
            wished = wished || (numbers[k] && generations[k] <= cut);
            k++
        :: else -> break
        od;
        k = 0;
        recorded = 0;
        trimmed = 0;
        do
        :: k < SLOTS ->
            if
            :: wished && generations[k] > cut -> numbers[k] = 0
            :: else ->
                trimmed = trimmed + counts[k];
                recorded = (firsts[k] + counts[k] > recorded -> firsts[k] + counts[k] : recorded)
            fi;
            k++
        :: else -> break
        od;
        k = 0;
        do
        :: k < SLOTS ->
            if
            :: once_more &&
               (numbers[k] < numbers[0] || numbers[k] < numbers[1] || numbers[k] < numbers[2]) ->
                numbers[k] = 0
            :: else
            fi;
            k++
        :: else -> break
        od;
        k = 0;
        wished = false
    }
}

/* Copy the oldest of the wished batches that have not been tried. */
inline copy()
{
    d_step {
        slot = 0;
        do
        :: k < SLOTS ->
            slot = (numbers[k] && (!numbers[slot] || numbers[k] < numbers[slot]) -> k : slot);
            k++
        :: else -> break
        od;
        k = 0
    };
    /* step: copy-committed */
    count = word(r, slot + 1, COMMITTED);
    /* step: copy-payload */
    do
    :: k < count -> d_step {
        torn = torn || word(r, slot + 1, PAYLOAD + k) !=
            TAG(entry[r], generations[slot], firsts[slot] + k + 1);
        k++
      }
    :: else -> break
    od;
    k = 0;
    d_step {
        torn = torn || generations[slot] != truth[r].generation[numbers[slot]] ||
            firsts[slot] != truth[r].first[numbers[slot]] || generations[slot] == 0
    };
    /* step: copy-opening */
#ifndef M_OPENING_ONCE
    d_step {
        if
        :: mem[OPENING(r)] >= numbers[slot] + SLOTS -> missed = true
        :: else
        fi
    };
#endif
    /* step: copy-number */
    d_step {
#ifndef M_NUMBER_ONCE
        missed = missed || word(r, slot + 1, NUMBER) != numbers[slot];
#endif
        if
        :: missed
        :: else ->
            bad = bad || torn;
            trimmed = trimmed - counts[slot];
            some = true;
            do
            :: k < count ->
                kept = kept | (1 << (firsts[slot] + k + 1));
                copied++;
                k++
            :: else -> break
            od;
            k = 0;
            recorded = (firsts[slot] + count > recorded -> firsts[slot] + count : recorded)
        fi;
        numbers[slot] = 0;
        generations[slot] = 0;
        counts[slot] = 0;
        firsts[slot] = 0;
        slot = 0;
        count = 0;
        torn = false;
        missed = false
    }
}

#define owes(r) (request[r] && truth[r].lawful != requested[r])

inline check()
{
    d_step {
        holds(WHOLE, !bad);
        if
        :: owes(r) ->
            /* It is there or was overwritten, and counted exactly. */
            holds(KEPT, entry[r] == requested[r]);
            holds(KEPT, recorded >= request[r]);
            k = truth[r].doomed + 1;
            do
            :: k <= request[r] -> holds(KEPT, kept & (1 << k)); k++
            :: else -> break
            od;
            k = 0;
            holds(KEPT, recorded <= copied + trimmed + truth[r].doomed)
        :: else
        fi
    }
}

inline write()
{
    enumerate();
    r = 0;
    do
    :: r < RINGS && there[r] ->
        d_step {
            cut = (stalled[r] || detached[r] || dead(r) -> NEVER : wanted);
            once_more = false
        };
#ifdef M_CUT_EARLY
        cut = (cut == NEVER -> NEVER : wanted - 1);
#endif
#ifdef COARSE
        atomic {
#endif
        do
        :: scan();
            choose();
            do
            :: numbers[0] || numbers[1] || numbers[2] -> copy()
            :: else -> break
            od;
            if
#ifdef M_LAPPED
            :: !some && !once_more && recorded -> once_more = true; cut = NEVER
#else
            :: !some && !once_more -> once_more = true; cut = NEVER
#endif
            :: else -> break
            fi
        od;
#ifdef COARSE
        };
#endif
        /* step: owner-again */
#ifndef M_OWNER_ONCE
        if
        :: mem[INCARNATION(r)] == entry[r] -> check()
        :: else -> holds(KEPT, !owes(r))
        fi;
#else
        check();
#endif
        d_step {
            kept = 0; copied = 0; trimmed = 0; recorded = 0; cut = 0;
            bad = false; some = false; once_more = false
        };
        r++
    :: r < RINGS && !there[r] ->
        d_step { holds(KEPT, !owes(r)); r++ }
    :: r == RINGS -> break
    od;
    r = 0
}

inline forget()
{
    d_step {
        r = 0; k = 0; a = 0; v = 0; i = 0; old = 0; wanted = 0; opening = 0; cut = 0;
        recorded = 0; kept = 0; copied = 0; trimmed = 0; slot = 0; count = 0;
        torn = false; missed = false; bad = false; some = false; once_more = false;
        do
        :: k < RINGS ->
            entry[k] = 0; there[k] = false; detached[k] = false; waiting[k] = false;
            looked[k] = 0; known[k] = false; stalled[k] = false; noticed[k] = 0;
            request[k] = 0; requested[k] = 0;
            k++
        :: else -> break
        od;
        k = 0;
        do
        :: k < SLOTS -> numbers[k] = 0; generations[k] = 0; counts[k] = 0; firsts[k] = 0; k++
        :: else -> break
        od;
        k = 0
    }
}

proctype Collector()
{
    byte r, k, a, v, i, old, wanted, opening, cut, recorded, kept, copied, trimmed;
    byte slot, count;
    bool torn, missed, bad, some, once_more, wished;
    byte entry[RINGS], looked[RINGS], noticed[RINGS], request[RINGS], requested[RINGS];
    bool there[RINGS], detached[RINGS], waiting[RINGS], known[RINGS], stalled[RINGS];
    byte numbers[SLOTS], generations[SLOTS], counts[SLOTS], firsts[SLOTS];

life:
    {
        forget();
        do
        :: snapshots == SNAPSHOTS -> break
        :: else ->
            d_step {
                do
                :: k < RINGS ->
                    request[k] = truth[k].returned;
                    requested[k] = mem[INCARNATION(k)];
                    noticed[k] = (dead(k) -> mem[INCARNATION(k)] : 0);
                    k++
                :: else -> break
                od;
                k = 0;
                wanted = target
            };
            flush();
#if FLUSHES == 2
#ifdef NO_FENCE
            /* All that is asked of a machine without the fence: a store that was made before
               the first advance was seen is seen before the second. */
            if
            :: atomic { generation != target -> seen() }
            :: else
            fi;
            do
            :: k < PROCESSES -> drain(k, due); k++
            :: else -> break
            od;
            k = 0;
#endif
            flush();
#endif
            d_step {
                completed = wanted;
                do
                :: k < RINGS -> straggles[k] = stalled[k]; k++
                :: else -> break
                od;
                k = 0
            };
            write();
            d_step {
                do
                :: k < RINGS -> settled[k] = (noticed[k] -> noticed[k] : settled[k]); k++
                :: else -> break
                od;
                k = 0;
                snapshots++
            };
            forget()
        od
    } unless { crash == 1 -> crash = 2 };
    if
    :: snapshots < SNAPSHOTS ->
#ifdef M_GENERATION_ANEW
        atomic { target = 1; generation = 1 };
#endif
        goto life
    :: else
    fi
}

#ifdef FORK
#define BORN(k) (k == 0 || forked)
#else
#define BORN(k) true
#endif

/* When nobody can move any more. */
proctype Watch()
{
    byte k;
    timeout ->
    d_step {
        holds(ENDS, snapshots == SNAPSHOTS);
        do
        :: k < PROCESSES -> holds(ENDS, finished[k] || gone[k] || stopped[k] || !BORN(k)); k++
        :: else -> break
        od
    }
}

init {
    byte k;
    atomic {
        do
        :: k < PROCESSES ->
#if defined(FORK) || defined(JOIN)
            if
            :: k == 0 ->
#endif
                mem[INCARNATION(k)] = 1;
                mem[STATE(k)] = LIVE;
                owner[k] = k + 1;
                run Producer(k, k, (k == 0 -> EVENTS : MORE), 0, 0, 0, 0, 0, 1)
#ifdef JOIN
            :: else -> run Producer(k, NONE, MORE, 0, 0, 0, 0, 0, 0)
            fi
#endif
#ifdef FORK
            :: else
            fi
#endif
            ;
            run Memory(k);
#if defined(KILL) || defined(STOP)
            run Fate(k);
#endif
            k++
        :: else -> break
        od;
        k = 0;
        run Collector();
#ifdef NO_FENCE
        run Late();
#endif
#ifdef RESTART
        run Crash();
#endif
        run Watch()
    }
}

#ifdef RESTART
proctype Crash()
{
    if
    :: snapshots < SNAPSHOTS -> crash = 1
    :: true
    fi
}
#endif
