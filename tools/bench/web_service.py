"""What recording adds to a web service: gunicorn serving httpbin, hooks on against hooks off.

All variants of the service run at the same time, each with one worker, and are asked in turns,
a few dozen requests each, in another order every round. What counts is the worker's own
processor time per request. Two services of the very same kind differ too, by where their
memory happens to lie: two with hooks off are compared, which says what can be told apart, and
everything is started anew many times. Another service, then, has hooks that are switched on and
off between rounds, so that its worker is compared with itself; there they are also on with
recording calls that do nothing, which is what remains however fast an engine is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.bench import switched_hooks as switch
from tools.bench import timing
from tools.bench.hooks_alone import measure_hooks
from tools.bench.report import Options, Result

TARGET = 1.01
_ROOT = Path(__file__).resolve().parents[2]
_HTTPBIN = "httpbin:app"
_OFF = "hooks off"
_OFF_AGAIN = "hooks off, once more"
_ON = "hooks on"
_TEN = "hooks on, ten spans"
_TEN_PLAIN = "hooks off, ten empty blocks"
_SWITCHED_OFF = "one worker, switched off"
_SWITCHED_OFF_AGAIN = "one worker, switched off, once more"
_SWITCHED_ON = "one worker, switched on"
_SWITCHED_UNRECORDED = "one worker, switched on, recording nothing"
_PATH = "/get?page=3"
_PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.01
_QUIET_SECONDS = 0.001
_BUFFER = 1 << 16
_CPUCLOCK_SCHED = 2
_REQUESTS = 25
_AFTER_SWITCH = 3
_RESAMPLES = 2_000

_HOOKS = "python:shmrec.integrations.gunicorn"
_SWITCHED_HOOKS = "python:tools.bench.switched_hooks"
_SYNC = "sync"


@dataclass(frozen=True)
class Group:
    """Services that run beside each other: by title, their configuration and application."""

    kind: str
    launches: int
    rounds: int
    variants: dict[str, tuple[str, str]]


_GROUPS = (
    Group(
        _SYNC,
        8,
        15,
        {
            _OFF: ("", _HTTPBIN),
            _OFF_AGAIN: ("", _HTTPBIN),
            _ON: (_HOOKS, _HTTPBIN),
            _TEN: (_HOOKS, "tools.bench.ten_spans:recorded"),
            _TEN_PLAIN: ("", "tools.bench.ten_spans:plain"),
        },
    ),
    # Where memory lies matters by a percent: many launches tell more than many rounds.
    Group(_SYNC, 24, 10, {_SWITCHED_OFF: (_SWITCHED_HOOKS, _HTTPBIN)}),
    Group("gthread", 5, 15, {_OFF: ("", _HTTPBIN), _ON: (_HOOKS, _HTTPBIN)}),
)
_SWITCHES = {
    _SWITCHED_OFF: switch.OFF,
    _SWITCHED_OFF_AGAIN: switch.OFF,
    _SWITCHED_ON: switch.ON,
    _SWITCHED_UNRECORDED: switch.UNRECORDED,
}
_FLOORS = {
    _OFF_AGAIN: (_OFF,),
    _ON: (_OFF,),
    _TEN: (_OFF, _TEN_PLAIN),
    _TEN_PLAIN: (_OFF,),
    _SWITCHED_OFF_AGAIN: (_SWITCHED_OFF,),
    _SWITCHED_ON: (_SWITCHED_OFF,),
    _SWITCHED_UNRECORDED: (_SWITCHED_OFF,),
}
_PROMISED = ((_SYNC, _ON), (_SYNC, _SWITCHED_ON))


def measure(options: Options) -> list[Result]:
    """Every worker class, then the hooks alone."""
    lacking = [name for name in ("gunicorn", "httpbin") if importlib.util.find_spec(name) is None]
    if lacking:
        needed = f"not measured: {' and '.join(lacking)} missing, install shmrec[demo]"
        return [
            Result(
                "web",
                f"{kind}, {title}",
                None,
                "us/request",
                target=TARGET,
                target_text=_promise(title),
                notes=needed,
            )
            for kind, title in _PROMISED
        ]
    results = []
    whole = 0.0
    for group in _GROUPS:
        if options.quick and group.kind != _SYNC:
            continue
        launches, rounds, requests = group.launches, group.rounds, _REQUESTS
        if options.quick:
            launches, rounds, requests = 1, 3, 10
        runs = []
        for number in range(launches):
            with contextlib.ExitStack() as stack:
                services = {
                    title: stack.enter_context(
                        _service(group.kind, configuration, application, number)
                    )
                    for title, (configuration, application) in group.variants.items()
                }
                runs.append(_run(services, rounds, requests))
        results += [_result(group.kind, title, runs) for title in runs[0]]
        whole = whole or _microseconds(runs, _OFF)
    return results + measure_hooks(options, whole)


# The services.


class Service:
    """A running gunicorn with one worker."""

    def __init__(self, address: str, worker: int) -> None:
        self._address = address
        # What clock_getcpuclockid gives: every thread of that process, to the nanosecond.
        self._clock = (~worker << 3) | _CPUCLOCK_SCHED

    def ask(self, path: str = _PATH) -> None:
        """One request; raises if the answer is not the one that was wanted."""
        request = (
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\nAccept: */*\r\n"
            "Accept-Encoding: gzip, deflate\r\nConnection: close\r\n\r\n"
        )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_PATIENCE_SECONDS)
            connection.connect(self._address)
            connection.sendall(request.encode())
            answer = b""
            # Until the worker closes: then its hooks are over as well.
            while part := connection.recv(_BUFFER):
                answer += part
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"the service has answered {answer[:80]!r}")

    def cost(self, requests: int) -> float:
        """The worker's nanoseconds for a request: the mean of so many, without the extremes.

        Other programs take the processor away from some requests, and its caches with it.
        """
        used = [self._quiet()]
        for _ in range(requests):
            self.ask()
            # What the worker still does until it waits counts for the next request.
            used.append(time.clock_gettime_ns(self._clock))
        each = sorted(after - before for before, after in itertools.pairwise(used))
        cut = requests // 4
        return statistics.mean(each[cut : requests - cut])

    def _quiet(self) -> int:
        """The worker's processor time, once it has nothing more to do."""
        used = -1
        while used != (now := time.clock_gettime_ns(self._clock)):
            used = now
            time.sleep(_QUIET_SECONDS)
        return used


@contextlib.contextmanager
def _service(kind: str, configuration: str, application: str, launch: int) -> Iterator[Service]:
    """A service in a folder of its own, ended in order."""
    with tempfile.TemporaryDirectory(prefix="shmrec-web-") as made:
        folder = Path(made)
        address = str(folder / "s")
        command = [sys.executable, "-m", "gunicorn", "--workers", "1", "--worker-class", kind]
        if configuration:
            command += ["-c", configuration]
        environment = {name: text for name, text in os.environ.items() if "SHMREC" not in name}
        if "SHMREC_ENGINE" in os.environ:
            environment["SHMREC_ENGINE"] = os.environ["SHMREC_ENGINE"]
        environment |= {
            "PYTHONPATH": str(_ROOT),
            # The same for all services of one launch: it decides how dictionaries lie.
            "PYTHONHASHSEED": str(launch),
            "SHMREC_RECORDING": f"bench-web-{os.getpid()}-{folder.name[-8:]}",
            "SHMREC_DIR": made,
        }
        with open(folder / "log", "wb") as log:
            master = subprocess.Popen(
                [*command, "--bind", f"unix:{address}", application],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            service = Service(address, _worker(master, folder / "log"))
            _wait_until_it_answers(service, master, folder / "log")
            yield service
        finally:
            master.send_signal(signal.SIGTERM)
            try:
                master.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                master.kill()
                master.wait()


def _worker(master: subprocess.Popen[bytes], log: Path) -> int:
    """The pid of the only worker, once there is one."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    children = Path(f"/proc/{master.pid}/task/{master.pid}/children")
    while time.monotonic() < deadline and master.poll() is None:
        # The collector's launcher is a child too, but not for long and not after this line.
        if "Booting worker" in log.read_text(errors="replace"):
            pids = children.read_text().split()
            if len(pids) == 1:
                return int(pids[0])
        time.sleep(_POLL_SECONDS)
    raise RuntimeError(f"gunicorn has not started:\n{log.read_text(errors='replace')}")


def _wait_until_it_answers(service: Service, master: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            service.ask()
            return
        except OSError:
            if time.monotonic() > deadline or master.poll() is not None:
                words = log.read_text(errors="replace")
                raise RuntimeError(f"gunicorn does not answer:\n{words}") from None
        time.sleep(_POLL_SECONDS)


def _run(services: dict[str, Service], rounds: int, requests: int) -> timing.Samples:
    def plain(service: Service) -> timing.Sample:
        return lambda: service.cost(requests)

    def switched(service: Service, wanted: str) -> timing.Sample:
        def sample() -> float:
            service.ask(switch.PREFIX + wanted)
            for _ in range(_AFTER_SWITCH):
                service.ask()
            return service.cost(requests)

        return sample

    samples: dict[str, timing.Sample] = {}
    for title, service in services.items():
        # What only the first requests need is loaded, and specialised, by then.
        service.cost(4 * requests)
        if title == _SWITCHED_OFF:
            samples |= {each: switched(service, wanted) for each, wanted in _SWITCHES.items()}
        else:
            samples[title] = plain(service)
    return timing.interleaved(samples, rounds)


# The figures.


def _result(kind: str, title: str, runs: list[timing.Samples]) -> Result:
    value = _microseconds(runs, title)
    floors = _FLOORS.get(title, ())
    if not floors:
        return Result("web", f"{kind}, {title}", value, "us/request", notes=f"GET {_PATH}")
    ratios = {floor: statistics.median(_ratios(runs, title, floor)) for floor in floors}
    promised = (kind, title) in _PROMISED
    return Result(
        "web",
        f"{kind}, {title}",
        value,
        "us/request",
        {floor: round(ratio, 4) for floor, ratio in ratios.items()},
        judged=ratios[floors[0]] if promised else None,
        target=TARGET if promised else None,
        target_text=_promise(title) if promised else "",
        notes=_spread(runs, title, floors[0]),
    )


def _microseconds(runs: list[timing.Samples], title: str) -> float:
    return statistics.median(sample for run in runs for sample in run[title]) / 1e3


def _promise(title: str) -> str:
    return f"{TARGET:g}x {_FLOORS[title][0]}"


def _ratios(runs: list[timing.Samples], title: str, floor: str) -> list[float]:
    return [
        sample / below for run in runs for sample, below in zip(run[title], run[floor], strict=True)
    ]


def _spread(runs: list[timing.Samples], title: str, floor: str) -> str:
    """How sure the ratio is, launches being what differs: its exact value, and an interval."""
    launches = [_ratios([run], title, floor) for run in runs]
    draw = random.Random(1).choices
    medians = sorted(
        statistics.median(itertools.chain.from_iterable(draw(launches, k=len(launches))))
        for _ in range(_RESAMPLES)
    )
    low, high = medians[_RESAMPLES // 40], medians[-_RESAMPLES // 40]
    each = sorted(statistics.median(ratios) for ratios in launches)
    exact = statistics.median(_ratios(runs, title, floor))
    return f"{exact:.4f}, 95 % {low:.3f} to {high:.3f}; launches {each[0]:.3f} to {each[-1]:.3f}"
