"""Perfetto's native trace: TrackEvents, one sequence, names interned.

Runs in ``shmrec-dump export``. A process track per producer, below it a track per thread, below
that one its families of overlapping spans (their lanes bear one name, by which the viewer merges
them), and counter tracks; the snapshot itself has a track of its own. Times are CLOCK_MONOTONIC,
which a clock snapshot ties to wall time.

Invariants:

- A packet is written as soon as it is made. Tables of interned names start anew when they are full.
- A number fits its field, and a text is UTF-8: anything else would be refused by protobuf.
"""

from __future__ import annotations

import math
from typing import Any, Final

from shmrec.exporting import Out, Source, package, slice_name, stack_texts
from shmrec.plain import dumps, text
from shmrec.slices import Item, Process, Slice, Track
from shmrec.stack_text import ThreadStack

__all__ = ["BINARY", "HELP", "SUFFIXES", "export"]

HELP: Final = "for ui.perfetto.dev and its trace processor"
SUFFIXES: Final = (".pftrace", ".perfetto-trace", ".perfetto")
BINARY: Final = True

_EXTRA: Final = "perfetto"
_SEQUENCE: Final = 1
_NAMES: Final = 1 << 14
"""Names in a table before it starts anew."""
_DEPTH: Final = 8
_INT: Final = 1 << 63
_ROOT: Final = 1
_PLACE: Final = 32
"""A track's number is its process's place and one behind it."""
_COUNTERS: Final = 1 << 31
_UNITS: Final = {"process.rss": "bytes", "process.cpu": "%"}


def export(source: Source, out: Out) -> None:
    """Write the trace."""
    _Writer(source, out).write()


class _Writer:
    def __init__(self, source: Source, out: Out) -> None:
        builder = package("perfetto.trace_builder.proto_builder", _EXTRA)
        self._pb = package("perfetto.protos.perfetto.trace.perfetto_trace_pb2", _EXTRA)
        self._timeline = source.timeline
        self._builder = builder.StreamingTraceProtoBuilder(out)
        self._tables: dict[str, dict[str, int]] = {}
        self._fresh = True
        self._uuids: dict[Track | tuple[int, str], int] = {}
        self._next = 1
        self._links: set[int] = set()

    def write(self) -> None:
        """Everything."""
        self._clocks()
        self._descriptor(_ROOT, name=self._root_name())
        for process in self._timeline.processes:
            self._process(process)
        event = self._pb.TrackEvent
        types = {
            "begin": event.TYPE_SLICE_BEGIN,
            "end": event.TYPE_SLICE_END,
            "counter": event.TYPE_COUNTER,
        }
        for item in self._timeline.items():
            packet = self._packet()
            packet.timestamp = item.time_ns
            shown = packet.track_event
            shown.type = types.get(item.kind, event.TYPE_INSTANT)
            if item.kind == "counter":
                assert item.process is not None
                shown.track_uuid = self._counter(item.process, item.name)
                self._value(shown, item.value)
            else:
                self._event(packet, shown, item)
            self._builder.write_packet(packet)

    def _event(self, packet: Any, shown: Any, item: Item) -> None:
        shown.track_uuid = self._track_of(item)
        if item.kind == "end":
            assert item.slice is not None
            if item.slice.lost:
                self._annotate(packet, shown, {"shmrec.end": "lost"})
        else:
            category = "span" if item.kind == "begin" else item.kind
            shown.category_iids.append(self._interned(packet, "event_categories", category))
            name = item.name
            if item.kind == "begin":
                assert item.slice is not None
                name = slice_name(item.slice)
                self._flows(shown, item.slice)
            shown.name_iid = self._interned(packet, "event_names", name)
        self._annotate(packet, shown, item.args)
        stack = item.stack
        if item.kind == "begin" and item.slice is not None:
            stack = item.slice.stack
        if stack is not None:
            self._annotate(packet, shown, _stack_args(stack))

    def _flows(self, shown: Any, begun: Slice) -> None:
        """Arrows: those that begin here, and the one that ends here if its parent was seen."""
        shown.flow_ids.extend(begun.links)
        self._links.update(begun.links)
        if begun.link in self._links:
            shown.terminating_flow_ids.append(begun.link)

    def _value(self, shown: Any, value: int | float) -> None:
        if type(value) is float or not -_INT <= value < _INT:
            shown.double_counter_value = float(value)
        else:
            shown.counter_value = value

    # Tracks.

    def _track_of(self, item: Item) -> int:
        if item.process is None:
            return _ROOT
        if item.track is None:
            return self._uuid_of(item.process)
        found = self._uuids.get(item.track)
        return found if found is not None else self._track(item.track)

    def _uuid_of(self, process: Process) -> int:
        return (process.place + 1) << _PLACE

    def _new(self, process: Process, key: Track | tuple[int, str]) -> int:
        self._uuids[key] = found = self._uuid_of(process) + self._next
        self._next += 1
        return found

    def _root_name(self) -> str:
        header = self._timeline.snapshot.header
        return f"shmrec: {header.recording} on {header.host}"

    def _process(self, process: Process) -> None:
        uuid = self._uuid_of(process)
        packet, descriptor = self._described(uuid)
        descriptor.process.pid = process.pid
        descriptor.process.process_name = text(process.name)
        descriptor.process.process_labels.append(text(process.state))
        descriptor.description = text(process.state)
        self._builder.write_packet(packet)
        for track in process.threads:
            self._track(track)
        for name in process.counters:
            self._counter(process, name)

    def _track(self, track: Track) -> int:
        process = track.process
        uuid = self._new(process, track)
        packet, descriptor = self._described(uuid)
        if track.family:
            descriptor.name = text(track.name)
            thread = next(each for each in process.threads if each.thread == track.thread)
            descriptor.parent_uuid = self._uuids[thread]
        else:
            descriptor.parent_uuid = self._uuid_of(process)
            descriptor.thread.pid = process.pid
            descriptor.thread.tid = track.number
            descriptor.thread.thread_name = text(track.name)
        self._builder.write_packet(packet)
        return uuid

    def _counter(self, process: Process, name: str) -> int:
        found = self._uuids.get((process.place, name))
        if found is not None:
            return found
        uuid = self._new(process, (process.place, name))
        packet, descriptor = self._described(uuid)
        descriptor.name = text(name)
        descriptor.parent_uuid = self._uuid_of(process)
        unit = _UNITS.get(name, "")
        if unit == "bytes":
            descriptor.counter.unit = self._pb.CounterDescriptor.UNIT_SIZE_BYTES
        else:
            descriptor.counter.unit_name = unit
        self._builder.write_packet(packet)
        return uuid

    def _descriptor(self, uuid: int, name: str) -> None:
        packet, descriptor = self._described(uuid)
        descriptor.name = text(name)
        self._builder.write_packet(packet)

    def _described(self, uuid: int) -> tuple[Any, Any]:
        packet = self._packet()
        packet.track_descriptor.uuid = uuid
        return packet, packet.track_descriptor

    # Packets.

    def _packet(self) -> Any:
        packet = self._builder.create_packet()
        packet.trusted_packet_sequence_id = _SEQUENCE
        if any(len(table) >= _NAMES for table in self._tables.values()):
            self._tables.clear()
            self._fresh = True
        flags = self._pb.TracePacket
        packet.sequence_flags = flags.SEQ_NEEDS_INCREMENTAL_STATE
        if self._fresh:
            self._fresh = False
            packet.sequence_flags |= flags.SEQ_INCREMENTAL_STATE_CLEARED
            clock = self._pb.BUILTIN_CLOCK_MONOTONIC
            packet.trace_packet_defaults.timestamp_clock_id = clock
        return packet

    def _clocks(self) -> None:
        packet = self._packet()
        clocks, timeline = packet.clock_snapshot, self._timeline
        clocks.primary_trace_clock = self._pb.BUILTIN_CLOCK_MONOTONIC
        taken = timeline.taken_ns
        for clock, time_ns in (
            (self._pb.BUILTIN_CLOCK_MONOTONIC, taken),
            (self._pb.BUILTIN_CLOCK_REALTIME, timeline.wall_ns(taken)),
        ):
            added = clocks.clocks.add()
            added.clock_id = clock
            added.timestamp = time_ns
        self._builder.write_packet(packet)

    def _interned(self, packet: Any, table: str, name: str) -> int:
        known = self._tables.setdefault(table, {})
        found = known.get(name)
        if found is None:
            found = known[name] = len(known) + 1
            added = getattr(packet.interned_data, table).add()
            added.iid = found
            added.name = text(name)
        return found

    # Arguments.

    def _annotate(self, packet: Any, shown: Any, args: dict[str, Any]) -> None:
        for name, value in args.items():
            added = shown.debug_annotations.add()
            added.name_iid = self._interned(packet, "debug_annotation_names", name or "?")
            self._set(packet, added, value, 0)

    def _set(self, packet: Any, note: Any, value: Any, depth: int) -> None:
        kind = type(value)
        if kind is str:
            note.string_value = text(value)
        elif kind is bool:
            note.bool_value = value
        elif kind is int and -_INT <= value < _INT:
            note.int_value = value
        elif kind is int and 0 < value < 2 * _INT:
            note.uint_value = value
        elif kind is float and math.isfinite(value):
            note.double_value = value
        elif kind is dict and value and depth < _DEPTH:
            for name, item in value.items():
                added = note.dict_entries.add()
                added.name = text(name) or "?"
                self._set(packet, added, item, depth + 1)
        elif kind is list and value and depth < _DEPTH:
            for item in value:
                self._set(packet, note.array_values.add(), item, depth + 1)
        else:
            # Nothing, no number, bytes, what is empty or too deep: there is no other form.
            note.string_value = dumps(value)


def _stack_args(stack: ThreadStack) -> dict[str, Any]:
    return {"stack": stack_texts(stack)}
