"""``shmrec-collect``: the collector as a program.

Runs as the collector's process, or, with a command, as the parent of that command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

import click

from shmrec import cuts, layout, store, triggers
from shmrec._version import __version__
from shmrec.collector import Collector, spare_signals
from shmrec.commands.options import defaulted
from shmrec.commands.terminal import run
from shmrec.deaths import PARENT
from shmrec.errors import CollectorRunningError, CutShortError, ShmrecError, TriggerError
from shmrec.launch import READY, RUNNING
from shmrec.log import log_to_stderr
from shmrec.naming import check_name
from shmrec.recorder import ENVIRONMENT, ENVIRONMENT_PATH
from shmrec.segment import Segment
from shmrec.takeover import Settings, establish

_PASSED_ON: Final = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH")
_TYPED: Final = (signal.SIGINT, signal.SIGQUIT)

_EPILOG: Final = """\b
Examples:
  shmrec-collect web                     serve recording "web" until SIGTERM
  shmrec-collect web --dir /var/tmp/fr   keep the snapshots there
  shmrec-collect job -- python job.py    record one command and its children
  shmrec-collect web --trigger 'slow_span request* 5s window=2s'

\b
Triggers, besides deaths and requests:
  slow_span [PATTERN] TIME               a span open for longer, also of a hung process
  stall [PATTERN] TIME                   no event for so long inside of a span
  stall TIME heartbeat=NAME              no such instant or counter any more
  counter PATTERN > NUMBER               or >=, <, <=
  exception, log, timeout, death         as they come; name them to set their limits
  signal USR1                            without a COMMAND; USR1 is there if none is named
Each takes window=TIME, to go on recording before the snapshot, and the limits interval=TIME
(30s) and daily=NUMBER (50) in 24 hours. What they suppress, `shmrec-dump list` shows.

\b
Processes join with shmrec.attach("web"), or shmrec.attach() where SHMREC_RECORDING
names the recording, as it does for COMMAND. Exit status: that of COMMAND (128 + n for
signal n); without one 0, 1 if the recording could not be served, 2 for wrong usage.
"""


def _to_bytes(value: str) -> int:
    """Click's conversion of a size with an optional K, M or G (powers of 1024)."""
    text = value.strip().upper().removesuffix("B").removesuffix("I")
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
    try:
        return int(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a size: write for example 512K or 2M") from None


@click.command(
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="Where snapshots go.")
@defaulted(
    "--size",
    _to_bytes,
    str(layout.DEFAULT_RING_SIZE),
    "Memory of each producer's ring, and what a snapshot keeps of it.",
    shown="2M",
    unit="BYTES",
)
@defaulted("--period", click.FloatRange(0, 1e9), 10.0, "Seconds that a snapshot keeps.")
@defaulted(
    "--producers",
    click.IntRange(1, layout.MAXIMUM_PRODUCERS),
    layout.DEFAULT_PRODUCERS,
    "Rings: how many processes can be recorded at once.",
)
@click.option("--path", type=click.Path(), help="Keep the memory in this file, not in /dev/shm.")
@defaulted(
    "--flushes",
    click.IntRange(1, 2),
    2,
    "Flushes of a snapshot; 1 trusts the in-band signal alone.",
)
@defaulted(
    "--deadline",
    click.FloatRange(0.001, 60),
    1.0,
    "Seconds after which a snapshot goes on without a stalled producer.",
)
@defaulted(
    "--quota-count",
    click.IntRange(1),
    store.DEFAULT_COUNT,
    "Snapshots to keep, the oldest go first.",
)
@defaulted(
    "--quota-bytes",
    _to_bytes,
    str(store.DEFAULT_BYTES),
    "Bytes of snapshots to keep.",
    shown="1G",
    unit="BYTES",
)
@click.option(
    "--trigger",
    "texts",
    multiple=True,
    metavar="TEXT",
    help="What else causes a snapshot, see below; may be given several times.",
)
@defaulted(
    "--stacks",
    click.Choice(triggers.STACKS),
    triggers.STACKS[0],
    "Whose stacks are taken for a snapshot that nobody asked for.",
)
@click.option(
    "--linger",
    type=click.FloatRange(0),
    help="End that many seconds after the last producer has gone.",
)
@click.option("--detach", is_flag=True, hidden=True)
@click.option("--ready-fd", type=int, hidden=True)
@click.version_option(__version__, message="shmrec-collect %(version)s")
def collect(
    name: str,
    command: tuple[str, ...],
    directory: Path | None,
    size: int,
    period: float,
    producers: int,
    path: str | None,
    flushes: int,
    deadline: float,
    quota_count: int,
    quota_bytes: int,
    texts: tuple[str, ...],
    stacks: str,
    linger: float | None,
    detach: bool,
    ready_fd: int | None,
) -> None:
    """Record the processes that join recording NAME, and snapshot them all when one dies.

    Creates the recording, or adopts it if its collector was killed, and serves it until
    SIGTERM or SIGINT. With a COMMAND, runs it under the recording until it ends.
    """
    try:
        wanted = triggers.parse_all(texts)
    except TriggerError as error:
        raise click.UsageError(str(error)) from None
    if command and any(trigger.kind == "signal" for trigger in wanted):
        raise click.UsageError("with a COMMAND signals are passed on to it: none is a trigger")
    settings = Settings(
        name=name,
        directory=(directory or store.default_directory()).absolute(),
        size=size,
        period=period,
        producers=producers,
        path=os.path.abspath(path) if path else None,
        flushes=flushes,
        deadline=deadline,
        linger=linger,
        quota_count=quota_count,
        quota_bytes=quota_bytes,
        triggers=wanted,
        stacks=stacks,
        log=log_to_stderr,
    )
    if size > layout.MAXIMUM_RING_SIZE:
        raise click.UsageError(f"--size may be {layout.MAXIMUM_RING_SIZE} bytes at most")
    if detach:
        _detach()
    try:
        check_name(name)
        segment = establish(settings)
        collector = Collector(segment, settings)
    except (ShmrecError, OSError, MemoryError) as error:
        word = RUNNING if isinstance(error, CollectorRunningError) else "failed"
        said = "out of memory" if isinstance(error, MemoryError) else str(error)
        _tell(ready_fd, f"{word} {' '.join(said.split())}")
        if ready_fd is not None:
            sys.exit(1)  # Whoever launched us will say it.
        raise
    if not command:
        # Whoever hears "ready" may stop us at once.
        collector.handle_signals()
    _tell(ready_fd, f"{READY} {os.getpid()}")
    if command:
        sys.exit(_run_command(collector, segment, settings, command))
    collector.run()


def _detach() -> None:
    """Become nobody's child, in a session of its own; the launcher reaps what we were."""
    if os.fork():
        os._exit(0)
    os.setsid()


def _tell(ready_fd: int | None, line: str) -> None:
    if ready_fd is not None:
        try:
            os.write(ready_fd, f"{line}\n".encode())
            os.close(ready_fd)
        except OSError:
            pass  # The launcher lost patience; the recording may be of use all the same.


def _run_command(
    collector: Collector, segment: Segment, settings: Settings, command: tuple[str, ...]
) -> int:
    """Run the command and serve until it ends; its exit status as a shell would give it."""
    environment = {**os.environ, ENVIRONMENT: settings.name}
    environment.pop(ENVIRONMENT_PATH, None)
    if settings.path is not None:
        environment[ENVIRONMENT_PATH] = settings.path
    try:
        child = subprocess.Popen(command, env=environment)
    except OSError as error:
        collector.stopping = True
        collector.run()
        click.echo(f"shmrec-collect: cannot run {command[0]!r}: {error.strerror}", err=True)
        return 127 if isinstance(error, FileNotFoundError) else 126
    _pass_signals_on(child)
    # Waiting in a thread: the loop is woken when the command ends, and never polls for it.
    ended = threading.Event()

    def wait() -> None:
        code = child.wait()
        status = -code if code < 0 else code << 8
        collector.roster.watcher.told(child.pid, status, PARENT)
        ended.set()
        collector.wake()

    over = ended.is_set
    try:
        threading.Thread(target=wait, daemon=True).start()
    except (RuntimeError, MemoryError):
        # There is none to be had: seen a second later.
        over = _polled(child, wait)
    try:
        collector.run(until=over)
    except CutShortError as error:
        # The command's own status is what counts.
        log_to_stderr(str(error))
    while not over():
        # Told to stop through the recording: the command goes on unrecorded.
        ended.wait(1.0)
    status = child.returncode
    return status if status >= 0 else 128 - status


def _polled(child: subprocess.Popen[bytes], wait: Callable[[], None]) -> Callable[[], bool]:
    """Whether the command has ended, asked now and then; then `wait` has been called."""

    def ended() -> bool:
        if child.poll() is None:
            return False
        wait()
        return True

    return ended


def _pass_signals_on(child: subprocess.Popen[bytes]) -> None:
    def pass_on(number: int, frame: FrameType | None) -> None:
        if number in _TYPED and _foreground():
            return  # The terminal sent it to the command too.
        child.send_signal(number)

    for name in _PASSED_ON:
        signal.signal(getattr(signal, name), pass_on)


def _foreground() -> bool:
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def main() -> None:
    """The entry point of ``shmrec-collect``."""
    # Those who record have the memory open, and may cut it short.
    cuts.bear_cuts()
    # Before it serves they would end it; what they ask for comes too early.
    spare_signals()
    run(collect, "shmrec-collect")


if __name__ == "__main__":
    main()
