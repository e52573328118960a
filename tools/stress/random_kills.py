"""Random kills: producers flat out, and everything happens to them and to the collector.

Producers of both engines, in threads and forks, record into rings too small for them, and too few.
By chance they are killed, stopped across a flush's deadline, and end in all ways; the collector is
killed, stopped, started again and told to end. Snapshots are asked for all the time, and read cold
where there is no collector. Every snapshot, those of deaths too, is held against its format by the
validator, against what the producers say they have recorded, and against shmrec's own reader.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Final

from click.testing import CliRunner

from shmrec import requests, takeover
from shmrec.commands.verbs.verify import command as verify
from shmrec.errors import ShmrecError
from shmrec.layout import Verb
from shmrec.segment import open_segment
from shmrec.wakeup import open_wakeup
from tools.stress import validator
from tools.stress.accounts import audit
from tools.stress.agreement import disagreements
from tools.stress.books import Key, Shelf
from tools.stress.mayhem import Mayhem, owners
from tools.stress.tally import Tally

HELP = "kill, stop, fork and restart producers and collectors at random, and check every snapshot"
ENGINES: Final = ("python", "native")
MISSING: Final = "acknowledged events missing"
_ANSWER_SECONDS: Final = 20.0
_VERIFIED: Final = 10
"""One snapshot in so many is shown to `shmrec-dump verify`."""
_TURN_SECONDS: Final = 0.03


def options(parser: argparse.ArgumentParser) -> None:
    """How long, with which engine, and where what is suspicious is kept."""
    parser.add_argument("--seconds", type=float, default=600.0, help="default: 600")
    parser.add_argument("--engine", choices=ENGINES, help="only this one (default: both mixed)")
    parser.add_argument(
        "--keep", metavar="DIR", type=Path, default=Path(tempfile.gettempdir()),
        help="where snapshots with failures are kept (default: %(default)s)",
    )  # fmt: skip


class Checker:
    """Asks for snapshots and checks all that appear, in a thread of its own."""

    def __init__(self, mayhem: Mayhem, seed: int, keep: Path) -> None:
        self._mayhem = mayhem
        self._tally = mayhem.tally
        self._chance = random.Random(f"{seed} snapshots")
        self._keep = keep
        self._gone: set[Key] = set()
        self._checked = 0
        self._over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def finish(self) -> None:
        """Check what is left, and end."""
        self._over = True
        self._thread.join()
        self._check_all()
        left = list(self._mayhem.snapshots.iterdir())
        if left:
            self._tally.fail(f"left in the directory of snapshots: {[each.name for each in left]}")

    def _run(self) -> None:
        while not self._over:
            try:
                self._ask()
                self._check_all()
            except Exception:
                self._tally.fail(traceback.format_exc())
            time.sleep(self._chance.random() / 20)

    def _ask(self) -> None:
        """Ask for a snapshot of what has been recorded by now; cold where nobody serves."""
        mayhem = self._mayhem
        try:
            with open_segment(mayhem.name) as segment:
                mayhem.shelf.sample(segment.field("run_id").hex(), owners(segment))
                if segment.collector() is None:
                    takeover.recover(segment, mayhem.snapshots)
                    self._tally.count("recovered cold")
                else:
                    requests.ask(
                        segment,
                        open_wakeup(segment),
                        Verb.SNAPSHOT,
                        reason="asked",
                        timeout=_ANSWER_SECONDS,
                    )
        except ShmrecError:
            # Of a collector that has just been killed, or somebody stopped while he had the lock.
            self._tally.count("requests refused")

    def _check_all(self) -> None:
        """Check every snapshot in the directory, oldest first, and remove it."""
        found = [path for path in self._mayhem.snapshots.iterdir() if not path.name.startswith(".")]
        for path in sorted(found, key=lambda path: path.stat().st_mtime_ns):
            wrong = self._check(path)
            if wrong:
                kept = self._keep / f"shmrec-random-{self._tally.seed}-{self._checked}.shmrec"
                shutil.copy(path, kept)
                for text in wrong[:5]:
                    self._tally.fail(f"{kept} ({path.name}): {text}")
            path.unlink()

    def _check(self, path: Path) -> list[str]:
        checked = validator.check(path)
        self._checked += 1
        self._tally.count("snapshots checked")
        for told in checked.producers:
            if told.fields["state"] in validator.GONE:
                self._gone.add(Key(told.fields["pid"], told.fields["start_ticks"]))
        if checked.wrong:
            return checked.wrong
        floor = self._mayhem.shelf.before(checked.header["started_wall_ns"])
        account = audit(checked, floor, self._mayhem.shelf.read, self._lost_ring)
        self._tally.count("events checked", checked.events)
        self._tally.count("overwritten events counted exactly", account.exact)
        self._tally.count("between bounds", account.bounded)
        wrong = [*account.wrong, *disagreements(checked)]
        if not self._checked % _VERIFIED:
            shown = CliRunner().invoke(verify, [str(path)])
            if shown.exit_code:
                wrong.append(f"shmrec-dump verify: {shown.output}")
            self._tally.count("shown to shmrec-dump verify")
        return wrong

    def _lost_ring(self, run: str, key: Key) -> bool:
        """Whether another has its ring, and it had left, or a snapshot had told of its end."""
        segment, book = self._mayhem.segments.get(run), self._mayhem.shelf.read(key)
        if segment is None or book is None:
            return True
        return key not in owners(segment) and (key in self._gone or book.leaves)


def run(given: argparse.Namespace, tally: Tally) -> None:
    """Start everything, let chance reign for so long, end everything, and count."""
    engines = [given.engine] if given.engine else list(ENGINES)
    chance = random.Random(given.seed)
    scratch = Path(tempfile.mkdtemp(prefix="shmrec-random-"))
    name = f"random-{os.getpid()}"
    shelf = Shelf(scratch / "books")
    mayhem = Mayhem(name, scratch, engines, chance, tally, shelf)
    for what in ("kills", "stops", "collector kills", "snapshots checked", MISSING):
        tally.count(what, 0)
    try:
        mayhem.start_collector()
        checker = Checker(mayhem, given.seed, given.keep)
        try:
            ends = time.monotonic() + given.seconds
            while time.monotonic() < ends:
                mayhem.turn()
                time.sleep(chance.random() * _TURN_SECONDS)
            mayhem.end_producers()
            if mayhem.collector is None:
                mayhem.start_collector()
            mayhem.end_collector(signal.SIGTERM)
        finally:
            checker.finish()
    finally:
        mayhem.close()
        _tell(mayhem, tally)
        if not tally.failures:
            shutil.rmtree(scratch)


def _tell(mayhem: Mayhem, tally: Tally) -> None:
    """What the books say at last, and what is left behind."""
    books = mayhem.shelf.all()
    tally.count("forks", sum(book.depth > 0 for book in books))
    tally.count("events recorded", sum(sum(book.returned) for book in books))
    log = mayhem.log.read_text(errors="replace")
    if "Traceback" in log:
        tally.fail(f"somebody raised: see {mayhem.log}")
    with contextlib.suppress(FileNotFoundError):
        left = [each for each in os.listdir("/dev/shm") if mayhem.name in each]
        if left:
            tally.fail(f"left in /dev/shm: {left}")
