"""Takes values out of a snapshot file, so that it can be shown to others.

Runs in ``shmrec-dump scrub``. The file is written anew, from what could be read of it: nothing is
copied that has not been looked at. What cannot be understood (a damaged batch, a frame that a
later version may have written) is left out, with a note in the file, rather than kept as it is.

Invariants:

- Afterwards every batch decodes to the events it decoded to before, but for the values, and the
  names, that were asked to be removed.
- The new file has been read and verified as a whole before it gets its name; until then, and if
  anything fails, the old one stands untouched. Nobody ever sees half a file.
- Whatever is in the file is hostile: bounds are those of `snapshot_file`, and beside them one
  producer's batches are held in memory, of no more bytes than a ring can have.

Not removed: names unless asked, process labels likewise, times, counts, pids, the host's name,
what the kernel said of processes, the keys of maps, and what a file is called.
"""

from __future__ import annotations

import os
import stat as stat_module
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import msgpack

from shmrec import hidden, layout, store
from shmrec.checksum import crc32
from shmrec.decoder import MALFORMED, decode
from shmrec.errors import DamagedFileError, SnapshotWriteError, WrongOwnerError
from shmrec.events import COUNTER, KINDS, NAME
from shmrec.file_writer import FileWriter
from shmrec.manifest import Header, Producer
from shmrec.redaction import MARK, Patterns, Rules, Values, argument_name
from shmrec.ring import Batch
from shmrec.snapshot_file import Snapshot, Watch, read

__all__ = ["Scrubbed", "scrub"]

_REASON: Final = "reason"
_VALUE: Final = "value"
"""What a counter's value is called."""
_NOTES: Final = 20
_NOTE_LENGTH: Final = 200
_PAYLOAD: Final = layout.SLOT_SIZE - layout.SLOT.size
_UNDECODABLE: Final = ": undecodable"
"""Of the reader's own notes of damaged batches, which may quote what is in them."""
_SAID_AFTER: Final = {"exception": ": ", "log": ": ", "request": ""}
"""Triggers whose reasons are a program's or a person's words: behind what these begin."""


@dataclass
class Scrubbed:
    """What was done: values and names removed, by pattern; batches, and notes of what is gone."""

    path: Path
    removed: Counter[str] = field(default_factory=Counter)
    renamed: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    left_out: int = 0
    stacks: int = 0
    stacks_kept: int = 0
    reason: bool = False
    """Whether the snapshot's reason was changed, a part of which may be in the file's name."""
    links: int = 0
    """Other names under which the file as it was can still be read."""
    notes: list[str] = field(default_factory=list)


def scrub(
    source: Path, rules: Rules, output: Path | None = None, watch: Watch | None = None
) -> Scrubbed:
    """Write the snapshot anew without what the rules remove: in its place, or as `output`.

    `watch` is told of bytes as they are read, of the old file and of the new one.
    Raises `WrongOwnerError` for a link or, in its place, another's file; `SnapshotWriteError` if
    the new file cannot be written, `output` exists, or the file was changed meanwhile; what
    `snapshot_file.read` raises.
    """
    before = _looked_at(source, output is None)
    if output is not None:
        store.check_free(output)
    target = source if output is None else output
    scrubber = _Scrubber(read(source, watch), rules, target)
    with hidden.Unfinished(target.parent.resolve()) as unfinished:
        try:
            scrubber.write(FileWriter(unfinished.file, crc32))
            os.fchmod(unfinished.file.fileno(), 0o600)
            _check(unfinished.readable, source, watch)
            if output is not None:
                unfinished.publish(store.only_name(output))
                scrubber.done.notes += filter(None, [unfinished.doubt])
                return scrubber.done
            if _identity(before) != _identity(os.stat(source, follow_symlinks=False)):
                raise SnapshotWriteError(f"{source} was changed meanwhile: nothing was scrubbed")
            scrubber.done.links = before.st_nlink - 1
            unfinished.replace(source.name, before)
            scrubber.done.notes += filter(None, [unfinished.doubt])
        except OSError as error:
            raise SnapshotWriteError(
                f"cannot write {target}: {error.strerror}; {source} is untouched"
            ) from error
    return scrubber.done


def _looked_at(source: Path, in_place: bool) -> os.stat_result:
    try:
        found = os.stat(source, follow_symlinks=False)
    except OSError as error:
        raise SnapshotWriteError(f"cannot scrub {source}: {error.strerror}") from error
    if stat_module.S_ISLNK(found.st_mode):
        raise WrongOwnerError(f"{source} is a symbolic link: name the file itself")
    if not stat_module.S_ISREG(found.st_mode):
        raise DamagedFileError(f"{source} is not a regular file")
    if in_place and os.geteuid() not in (0, found.st_uid):
        raise WrongOwnerError(
            f"{source} belongs to user {found.st_uid}, not {os.geteuid()}: write a scrubbed copy "
            "with -o"
        )
    return found


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check(written: Path, source: Path, watch: Watch | None) -> None:
    """What was written is a whole snapshot, or it gets no name."""
    damage = read(written, watch).verify()
    if damage:
        raise DamagedFileError(
            f"{source} cannot be scrubbed, it would not be whole afterwards: {damage[0]}"
        )


class _Scrubber:
    """One file, on its way."""

    def __init__(self, snapshot: Snapshot, rules: Rules, target: Path) -> None:
        self._snapshot = snapshot
        self._rules = rules
        self._args = Patterns(rules.args)
        self._names = Patterns(rules.names)
        self.done = Scrubbed(target)
        self._notes = 0

    def write(self, writer: FileWriter) -> None:
        """Everything, frame by frame."""
        try:
            writer.header(self._header())
            written: set[int] = set()
            for producer in self._snapshot.producers:
                if producer.index not in written:
                    written.add(producer.index)
                    self._producer(writer, producer)
            writer.trailer()
        except MALFORMED as error:
            raise DamagedFileError(
                f"{self._snapshot.path} cannot be scrubbed: {type(error).__name__} in what is "
                "said of it or its processes"
            ) from error

    def _header(self) -> Header:
        old = self._snapshot.header
        notes = [_cut(note) for note in old.notes if type(note) is str][:_NOTES]
        for damage in self._snapshot.damage[:_NOTES]:
            notes.append(_cut(f"before it was scrubbed: {damage}"))
        notes.append(self._rules.described())
        reason, requests = old.reason, _requests(old)
        if self._names.any or self._args.match(_REASON):
            # One that the collector made of names and numbers says what no name rule forbids.
            reason = MARK if self._names.any else _without_words(old)
            requests = [{**each, _REASON: MARK} for each in requests]
        if reason != old.reason:
            self.done.reason = True
        for was, now in ((old.reason, reason), *zip(_requests(old), requests, strict=True)):
            if was != now and not self._names.any:
                self._args.found(_REASON, self.done.removed)
        return replace(old, reason=reason, requests=requests, notes=notes)

    def _producer(self, writer: FileWriter, producer: Producer) -> None:
        batches, faults = self._batches(producer)
        # The reader's own notes are of batches that are left out now.
        damage = [_cut(note) for note in producer.damage if _UNDECODABLE not in note]
        stacks = [] if self._rules.stacks else producer.stacks
        label = producer.label
        if self._names.match(label):
            label = self._names.replaced(label, self.done.renamed)
        writer.producer(replace(producer, label=label, damage=damage + faults))
        for batch in batches:
            writer.batch(producer.index, batch)
        for stack in stacks:
            writer.stack(producer.index, stack)
        # They are kept by reference until then.
        writer.flush()
        self.done.stacks += len(producer.stacks) - len(stacks)
        self.done.stacks_kept += len(stacks)

    def _batches(self, producer: Producer) -> tuple[Sequence[Batch], list[str]]:
        """The producer's batches, oldest first, and notes of those that are left out."""
        kept: list[Batch] = []
        faults: list[str] = []
        held = gone = 0
        for batch in self._snapshot.raw_batches(producer):
            payload, fault = self._scrubbed(batch)
            held += len(payload)
            if held > layout.MAXIMUM_RING_SIZE:
                raise DamagedFileError(
                    f"{self._snapshot.path} cannot be scrubbed: pid {producer.pid} has more than "
                    "any ring holds"
                )
            if fault:
                gone += 1
                note = _cut(f"batch {batch.head.number} was left out when scrubbed: {fault}")
                if len(faults) < _NOTES:
                    faults.append(note)
                self._note(f"pid {producer.pid}: {note}")
                continue
            kept.append(Batch(batch.head, payload))
        if gone > len(faults):
            faults.append(f"so were {gone - len(faults)} more batches")
        self.done.batches += len(kept)
        self.done.left_out += gone
        return kept, faults

    def _note(self, text: str) -> None:
        if len(self.done.notes) < _NOTES:
            self.done.notes.append(text)

    def _scrubbed(self, batch: Batch) -> tuple[bytes, str]:
        """The payload without what is to be removed; or why there is none."""
        head = batch.head
        decoded = decode(
            batch.payload, start_ns=head.start_ns, generation=head.generation, flags=head.flags
        )
        count = sum(1 for _ in decoded)
        if decoded.damage or count != head.count:
            return b"", "it is damaged"
        for short in (False, True):
            removed: Counter[str] = Counter()
            renamed: Counter[str] = Counter()
            try:
                payload = self._rewritten(batch.payload, short, removed, renamed)
            except MALFORMED:
                return b"", "it cannot be written anew"
            if len(payload) <= _PAYLOAD:
                self.done.removed.update(removed)
                self.done.renamed.update(renamed)
                return payload, ""
        return b"", "it would be larger than a batch may be"

    def _rewritten(
        self, payload: bytes, short: bool, removed: Counter[str], renamed: Counter[str]
    ) -> bytes:
        """The events again, made of nothing but the fields that the table of kinds has.

        The bytes have been decoded. With `short` what is removed leaves the least there is.
        """
        # Undecodable bytes of a text come back as they were.
        unpacker = msgpack.Unpacker(
            use_list=True,
            strict_map_key=False,
            unicode_errors="surrogateescape",
            max_buffer_size=max(len(payload), 1),
        )
        unpacker.feed(payload)
        pack = msgpack.Packer(use_bin_type=True, unicode_errors="surrogateescape").pack
        values = Values(self._args, short, removed)
        parts = []
        for number, delta, *fields in unpacker:
            kind = KINDS[number]
            fields = fields[: len(kind.fields)]
            if kind is NAME:
                fields[1] = self._names.replaced(fields[1], renamed, short)
            elif kind is COUNTER:
                fields[1] = values.of(_VALUE, fields[1], 0)
            elif len(fields) == len(kind.fields) and kind.fields[-1] == "[args]":
                args = fields[-1].items()
                fields[-1] = {argument_name(key): values.of(key, value, 0) for key, value in args}
            parts.append(pack([number, delta, *fields]))
        return b"".join(parts)


def _cut(note: str) -> str:
    return note if len(note) <= _NOTE_LENGTH else f"{note[: _NOTE_LENGTH - 1]}…"


def _requests(header: Header) -> list[dict[str, Any]]:
    """Who asked; only what is known of it."""
    return [
        {"pid": each.get("pid", 0), _REASON: str(each.get(_REASON, ""))}
        for each in header.requests
        if type(each) is dict
    ]


def _without_words(header: Header) -> str:
    """The reason, without words that a program or a person gave.

    The collector's own come first; after a semicolon there may be any others.
    """
    first, more, _ = header.reason.partition("; ")
    behind = _SAID_AFTER.get(header.trigger)
    if behind is None:
        return f"{first}{more}{MARK}" if more else first
    start, colon, _ = header.reason.partition(behind) if behind else ("", "", "")
    return f"{start}{colon}{MARK}" if colon or not behind else start
