"""``shmrec-dump clean``: remove stale recordings and old snapshots."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Final

import click

from shmrec import live, naming, segment, store, takeover, wakeup
from shmrec.commands.parameters import complete_recording, directory_option
from shmrec.commands.screen import Screen
from shmrec.commands.wording import age, counted, safe, size
from shmrec.errors import NoSuchRecordingError, ShmrecError, UnfinishedSegmentError

_DAYS: Final = 30.0
_REMOVABLE: Final = (live.STALE, live.CLOSED, live.UNFINISHED)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}

_EPILOG: Final = f"""\b
Without --older-than and --keep, snapshots older than {_DAYS:.0f} days are old. With both, one must
be both older and not among those kept. The newest death snapshot and the
first one of the newest incident always stay.

\b
Examples:
  shmrec-dump clean
  shmrec-dump clean web
  shmrec-dump clean --dry-run --older-than 7d
  shmrec-dump clean --yes --keep 20
"""


def _to_seconds(value: str) -> float:
    """Click's conversion of an age such as 7d, 12h, 30m or 90s."""
    matched = re.match(r"(\d+(?:\.\d*)?)\s*([smhd])\Z", value.strip().lower())
    if matched is None:
        raise click.BadParameter(f"{value!r} is no age: write for example 7d, 12h or 30m")
    return float(matched[1]) * _UNITS[matched[2]]


@click.command("clean", epilog=_EPILOG)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_recording)
@directory_option
@click.option(
    "--older-than", type=_to_seconds, metavar="AGE", help="Snapshots older than this are old."
)
@click.option("--keep", type=click.IntRange(0), help="Keep that many of the newest snapshots.")
@click.option("--dry-run", "-n", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def command(
    names: tuple[str, ...],
    directory: Path,
    older_than: float | None,
    keep: int | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Remove stale recordings and old snapshots, after asking.

    With NAMEs, only those recordings and their snapshots. A recording with a live collector or
    process is never touched. What a stale one still holds is written to a snapshot before it
    goes.
    """
    screen = Screen()
    stale = [
        each
        for each in live.recordings()
        if each.state in _REMOVABLE and (not names or each.name in names)
    ]
    stored = store.listing(directory, raw=True)
    old = _old([each for each in stored if not names or each.recording in names], older_than, keep)
    if not stale and not old:
        screen.line("Nothing to remove.")
        return
    for each in stale:
        kept = ", saved to a snapshot first" if each.used else ""
        screen.line(f"{each.state} recording {safe(each.name)}{kept}")
    for file in old:
        ago = age(max(0, int((time.time() - file.taken) * 1e9)))
        screen.line(f"snapshot {safe(file.path)}, {ago} old, {size(file.size)}")
    if dry_run:
        return
    if not yes:
        _confirm()
    failed = [each.name for each in stale if not _remove_recording(screen, each, directory)]
    removed = _remove_snapshots(screen, old)
    gone = counted(len(stale) - len(failed), "recording")
    screen.line(f"Removed {gone} and {counted(removed, 'snapshot')}.")
    if failed:
        raise ShmrecError(f"not removed: {', '.join(failed)}")


def _old(
    stored: list[store.Stored], older_than: float | None, keep: int | None
) -> list[store.Stored]:
    """Which snapshots may go; `stored` has the newest first."""
    if older_than is None and keep is None:
        older_than = _DAYS * _UNITS["d"]
    evidence = [
        next((each for each in stored if each.death), None),
        next((each for each in stored if each.first), None),
    ]
    now = time.time()
    return [
        each
        for place, each in enumerate(stored)
        if each not in evidence
        and (keep is None or place >= keep)
        and (older_than is None or now - each.taken > older_than)
    ]


def _confirm() -> None:
    try:
        agreed = click.confirm("Remove these?", err=True)
    except click.Abort:
        click.echo(err=True)
        agreed = False
    if not agreed:
        raise ShmrecError("nothing was removed")


def _remove_recording(screen: Screen, recording: live.Recording, directory: Path) -> bool:
    """Save and remove it, unless it has come alive since it was looked at."""
    name = recording.name
    try:
        with segment.open_segment(name) as opened, opened.locked():
            now = live.look(opened)
            if now.state not in _REMOVABLE or not opened.linked():
                screen.line((f"{safe(name)} has come alive: left alone", "warn"))
                return False
            if now.used:
                path = takeover.recover(
                    opened,
                    directory,
                    reason="recovered before it was removed",
                    warn=lambda doubt: screen.line((safe(doubt), "warn")),
                )
                screen.line(f"saved {safe(name)} as {safe(path)}")
            wakeup.remove_wakeup(opened)
            naming.remove(name)
    except NoSuchRecordingError:
        return True
    except UnfinishedSegmentError:
        naming.remove(name)
    except ShmrecError as error:
        screen.line((f"{safe(name)}: {safe(error)}", "bad"))
        return False
    screen.line(f"removed recording {safe(name)}")
    return True


def _remove_snapshots(screen: Screen, old: list[store.Stored]) -> int:
    removed = 0
    for stored in old:
        try:
            stored.path.unlink(missing_ok=True)
        except OSError as error:
            screen.line((f"{safe(stored.path)}: {error.strerror}", "bad"))
            continue
        removed += 1
        screen.line(f"removed {safe(stored.path)}")
    return removed
