"""Taking a snapshot: flush, choose generations, copy every ring, write one file.

`take` runs in the collector; `take_cold` in `recover`, on memory that nobody flushes any more.

Invariants: both stream, so that at any time one ring's kept batches are in private memory, and
the headers of one ring; whose a ring is was settled when the snapshot began (`owners`).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shmrec import fence, folder, hidden, ledger, process, store
from shmrec.checksum import crc32
from shmrec.copying import Room, copy_ring
from shmrec.entry import Entry
from shmrec.errors import RecordingNameError, ShmrecError, SnapshotWriteError
from shmrec.file_writer import FileWriter
from shmrec.generation import Evidence, Flush, Flushes, Sight
from shmrec.keeping import oldest_kept, reached_by
from shmrec.layout import EntryState
from shmrec.manifest import ENDED, Cause, Header, Producer, Stack
from shmrec.naming import check_name
from shmrec.owners import Owner, Owners
from shmrec.ring import Head, RingReader, readers
from shmrec.segment import Segment
from shmrec.stack_area import fatal_stack

__all__ = ["CaptureStopped", "Order", "take", "take_cold"]

_POLL_FIRST_SECONDS: Final = 0.00005
_POLL_LAST_SECONDS: Final = 0.002
_NOTES_LIMIT: Final = 50
_NO_CUT: Final = 1 << 62
CUT_SHORT: Final = "the memory was cut short by a process that has it open"
_SLOW_NS: Final = 1_000_000_000


class CaptureStopped(ShmrecError):
    """The collector was told to stop while it was taking a snapshot; nothing was written."""


@dataclass
class Order:
    """What snapshot is wanted. `size` in bytes per producer, times in nanoseconds."""

    directory: Path
    reason: str = ""
    trigger: str = "request"
    size: int = 0
    period_ns: int = 0
    flushes: int = 2
    deadline_ns: int = 1_000_000_000
    requests: list[dict[str, Any]] = field(default_factory=list)
    causes: Mapping[tuple[int, int], Cause] = field(default_factory=dict)
    """By ring index and incarnation."""
    stacks: Mapping[tuple[int, int], Sequence[Stack]] = field(default_factory=dict)
    """Those that were asked for, by the same."""
    details: Callable[[Entry], Mapping[str, Any]] = lambda entry: {}
    """What else is known of a producer: fields of `manifest.Producer`."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of the snapshot: fields of `manifest.Header`."""
    names: Callable[[], Iterator[str]] | None = None
    """Other names for the file than the usual ones."""
    stop: Callable[[], bool] = bool
    warn: Callable[[str], None] = lambda message: None
    """Told what somebody should know of a snapshot that was taken all the same."""


def take(segment: Segment, order: Order) -> Path:
    """Flush the recording and write a snapshot; only the collector may.

    Raises `SnapshotWriteError`, or `CaptureStopped` when ``order.stop()`` became true.
    """
    owners = Owners(readers(segment))
    flushes = Flushes(order.flushes, deadline_ns=order.deadline_ns)
    started_wall_ns = time.time_ns()
    fenced = True
    while not flushes.done:
        old = ledger.advance(segment)
        fenced = fence.barrier() and fenced  # step: fence
        # Enumerated after the advance: whoever attaches later starts in the new generation.
        # step: enumerate
        producers = owners.look()
        flush = flushes.begin(old, producers, now_ns=time.monotonic_ns())
        _wait(flush, producers, order)
        reached = fenced and all(entry.fenced for _, entry in producers.values())
        flushes.finish(time.monotonic_ns(), fenced=reached)
    header = _header(segment, order)
    header.started_wall_ns = started_wall_ns
    header.generation = flushes.wanted
    header.flushes = order.flushes
    evidence = {index: str(found) for index, found in flushes.evidence.items()}
    present = owners.look()
    header.fenced = fenced and all(
        entry.fenced for _, entry in present.values() if entry.state == EntryState.LIVE
    )
    for index in present:
        # Attached after the last enumeration, and so in a newer generation from its start.
        evidence.setdefault(index, str(Evidence.CLOSED))
    return _write(segment, order, header, evidence, owners)


def take_cold(segment: Segment, order: Order) -> Path:
    """Write a snapshot of memory as it is; changes nothing in it."""
    header = _header(segment, order)
    header.started_wall_ns = header.taken_wall_ns
    owners = Owners(readers(segment))
    owners.look()
    seen: set[int] = set()
    latest = ledger.latest_ns(segment)
    signs = [segment.word("heartbeat_ns")]
    for heads in _heads(owners, seen):
        signs.append(max((head.start_ns for head in heads if head.start_ns <= latest), default=0))
    # What is in the future is nobody's sign of life.
    last = max((sign for sign in signs if sign <= latest), default=0)
    header.generation = max(seen, default=0)
    # The clock stopped with the last sign of life: however late this is read, ages are those
    # of that moment. The segment's own pair of clocks holds after a reboot too.
    if 0 < last < _NO_CUT:
        header.taken_mono_ns = last
        began = segment.word("created_mono_ns")
        wall = segment.word("created_wall_ns") + last - began
        if 0 <= wall < _NO_CUT:
            header.taken_wall_ns = wall
    return _write(segment, order, header, {}, owners)


def _obey(order: Order) -> None:
    if order.stop():
        raise CaptureStopped("the collector was told to stop")


def _wait(flush: Flush, producers: Mapping[int, tuple[RingReader, Entry]], order: Order) -> None:
    pause = _POLL_FIRST_SECONDS
    polls = 0
    while True:
        for index in flush.waiting:
            reader, entry = producers[index]
            writing, closed, newest = reader.progress()
            ended = entry.state == EntryState.DETACHED or (index, entry.incarnation) in order.causes
            # Reading /proc costs more than all the rest: only for who seems stuck.
            if not ended and polls and writing % 2:
                ended = not process.alive(entry.pid, entry.start_ticks)  # step: look-ended
            flush.see(index, Sight(writing, closed, newest, ended))
        if flush.done or flush.expire(time.monotonic_ns()):
            return
        _obey(order)
        polls += 1
        time.sleep(pause)
        pause = min(2 * pause, _POLL_LAST_SECONDS)


def _header(segment: Segment, order: Order) -> Header:
    return Header(
        recording=_recording(segment),
        reason=order.reason,
        trigger=order.trigger,
        run_id=segment.field("run_id").hex(),
        host=socket.gethostname(),
        taken_mono_ns=time.monotonic_ns(),
        taken_wall_ns=time.time_ns(),
        keep_size=order.size,
        keep_period_ns=order.period_ns,
        requests=order.requests,
        **order.extra,
    )


def _recording(segment: Segment) -> str:
    """Its name as a part of a file's name: with a path it may come from the memory itself."""
    try:
        return check_name(segment.name)
    except RecordingNameError:
        return "recording"


def _write(
    segment: Segment,
    order: Order,
    header: Header,
    evidence: Mapping[int, str],
    owners: Owners,
) -> Path:
    began = time.monotonic_ns()
    seen: set[int] = set()
    oldest = oldest_kept(
        _heads(owners, seen),
        header.generation,
        ledger.ends(segment),
        size=order.size,
        period_ns=order.period_ns,
        now_ns=header.taken_mono_ns,
    )
    header.generations = sorted(each for each in seen if oldest <= each <= header.generation)
    names = order.names or (
        lambda: store.file_names(
            header.recording, header.reason, header.taken_wall_ns, first=header.first
        )
    )
    folder.prepare(order.directory)
    with hidden.Unfinished(order.directory) as unfinished:
        try:
            writer = FileWriter(unfinished.file, crc32)
            writer.header(header)
            room = Room()
            for owner in owners:
                _obey(order)
                _write_producer(
                    segment, writer, room, owner, order, evidence, oldest, header.generation
                )
            writer.trailer()
        except OSError as error:
            raise SnapshotWriteError(
                f"cannot write a snapshot in {order.directory}: {error.strerror}; the older ones "
                "are untouched"
            ) from error
        _obey(order)
        path = unfinished.publish(names())
    if unfinished.doubt:
        order.warn(unfinished.doubt)
    took = time.monotonic_ns() - began
    if took > _SLOW_NS:
        order.warn(
            f"writing {path} took {took / 1e9:.1f} s: that disk is slow or has much to do; what "
            "was asked and who died meanwhile had to wait, who records did not"
        )
    return path


def _heads(owners: Owners, seen: set[int]) -> Iterator[list[Head]]:
    """The headers of one ring after the other; the generations met are added to `seen`."""
    for owner in owners:
        heads = owner.reader.scan().heads
        seen.update(head.generation for head in heads)
        yield heads


def _write_producer(
    segment: Segment,
    writer: FileWriter,
    room: Room,
    owner: Owner,
    order: Order,
    evidence: Mapping[int, str],
    oldest: int,
    wanted: int,
) -> None:
    entry = owner.entry
    producer = _producer(entry, order, evidence)
    scan = owner.reader.scan()
    # Of a producer that goes on, what came after the wanted generation is not part of the cut:
    # it would stand behind a gap. One that has ended or stalled is taken to its last byte.
    cut = wanted if producer.state == "running" else max(wanted, _NO_CUT)
    reached = reached_by(scan.heads, segment.own.generation or _NO_CUT)
    heads = [head for head in scan.heads if reached[head.number] <= cut] or scan.heads
    since = heads[-1].start_ns - order.period_ns if heads else 0
    untold = producer.state == "dead" and not producer.reported
    # Of a death nobody has told yet, the last seconds are those before it, however long ago.
    wished = [
        head
        for head in heads
        if oldest <= reached[head.number] or (untold and head.start_ns >= since)
    ]
    if heads and (not wished or wished[-1] is not heads[-1]):
        wished.append(heads[-1])
    copied = copy_ring(owner, room, heads, wished, segment.geometry.slots)
    producer.recorded, producer.trimmed = copied.recorded, copied.trimmed
    producer.losses = {"overwritten": copied.overwritten} | producer.losses
    producer.damage = scan.damage[:_NOTES_LIMIT]
    gone = segment.geometry.ring(entry.index) + segment.geometry.ring_size - segment.left
    if gone > 0:
        gone = min(gone, segment.geometry.ring_size)
        producer.damage.insert(0, f"{gone:,} bytes of its ring are gone: {CUT_SHORT}")
    if copied.taken_over and producer.state not in ENDED:
        # Seen to be there, and not seen to leave: nobody else's ring can be claimed.
        producer.state, producer.reported = "detached", True
        producer.detached_ns = time.monotonic_ns()
        if producer.evidence == Evidence.STALLED:
            producer.evidence = str(Evidence.ENDED)
    writer.producer(producer)
    for copy in copied.copies:
        # Here too: a ring may have a gigabyte, and the disk may be slow.
        _obey(order)
        writer.batch(entry.index, copy)
    for stack in _stacks(segment, owner, order):
        writer.stack(entry.index, stack)
    writer.flush()


def _stacks(segment: Segment, owner: Owner, order: Order) -> Sequence[Stack]:
    """What the producer left at a fatal signal, and what was asked for."""
    fatal = fatal_stack(segment, owner.entry)
    asked = order.stacks.get((owner.entry.index, owner.entry.incarnation), ())
    # The area goes with the ring.
    left = fatal is not None and owner.reader.owned_by(owner.entry)
    return [fatal, *asked] if fatal is not None and left else asked


def _producer(entry: Entry, order: Order, evidence: Mapping[int, str]) -> Producer:
    cause = order.causes.get((entry.index, entry.incarnation))
    details = order.details(entry)
    shown = evidence.get(entry.index, str(Evidence.COLD))
    if entry.state == EntryState.DETACHED:
        state = "detached"
    elif cause is not None and cause.exit_code == 0 and not details.get("host"):
        state = "exited"
    elif cause is not None or not process.alive(entry.pid, entry.start_ticks):
        state = "dead"
    else:
        state = "stalled" if shown == Evidence.STALLED else "running"
    if state in ENDED and shown == Evidence.STALLED:
        shown = str(Evidence.ENDED)
    return Producer(
        index=entry.index,
        incarnation=entry.incarnation,
        pid=entry.pid,
        start_ticks=entry.start_ticks,
        identity=entry.identity,
        label=entry.label,
        engine=entry.engine,
        state=state,
        evidence=shown,
        fenced=entry.fenced,
        attached_ns=entry.attached_ns,
        detached_ns=entry.detached_ns,
        ended_ns=entry.ended_ns if state in ("dead", "exited") else 0,
        reported=state == "detached" or entry.settled == entry.incarnation,
        losses=entry.losses,
        cause=cause,
        stack_flags=entry.stacks,
        **details,
    )
