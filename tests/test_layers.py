"""The architecture of shmrec: imports go down this list, never up and never sideways.

A new module needs one word here, on the lowest level that is above everything it imports.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

LEVELS = (
    (
        "_version",
        "errors",
        "events",
        "checksum",
        "durable",
        "interpreters",
        "phrases",
        "redaction",
        "log",
    ),
    ("layout", "values", "cgroup", "syscalls", "stack_text", "own_memory", "folder"),
    ("process", "naming", "threads", "frames", "exceptions", "kills", "triggers"),
    ("_native", "unhandled", "access", "header", "hidden"),
    ("extension",),
    ("fence", "guarded", "ignored", "cuts"),
    ("segment", "entry"),
    ("wakeup", "ledger", "control_block", "batch", "decoder", "stacks"),
    ("manifest", "bulk", "merging"),
    (
        "writer",
        "ring",
        "ending",
        "requests",
        "store",
        "facts",
        "counters",
        "stillness",
        "frame_values",
    ),
    ("_engine", "words", "file_writer"),
    (
        "claim",
        "keeping",
        "snapshot_file",
        "live",
        "generation",
        "stack_area",
        "tracing",
        "lookout",
        "heading",
        "owners",
        "doubting",
    ),
    ("copying",),
    (
        "recorder",
        "deaths",
        "capture",
        "launch",
        "survey",
        "comparison",
        "scrubbing",
        "told",
        "follow",
        "observer",
    ),
    ("takeover", "flight", "findings", "roster", "incidents"),
    ("alarms", "verdict"),
    ("taking", "culprits"),
    ("collector",),
    ("forensics", "lineage"),
    ("nesting", "slices"),
    ("placement",),
    ("tracks",),
    ("plain",),
    ("exporting",),
    ("exports.*",),
    ("commands.*", "integrations.*"),
)

# The package itself, which is above every level: what it imports, every producer loads.
TOP = "shmrec"
TOP_IMPORTS = {
    "_version",
    "decoder",
    "errors",
    "flight",
    "interpreters",
    "recorder",
    "snapshot_file",
}

# (importer, imported) on one level.
SIDEWAYS = (("commands.*", "commands.*"), ("integrations.*", "integrations.*"))

# Who may import what is neither shmrec nor the standard library. Unnamed: commands, exports,
# integrations.
THIRD_PARTIES = {
    "posix_ipc": ("*",),
    "msgpack": ("*",),
    "isal": ("checksum",),
    "click": ("commands.*",),
    "rich": ("commands.*",),
    "_xxsubinterpreters": ("interpreters",),  # Python's own up to 3.12, which names it nowhere
    "jinja2": ("commands.page.*",),
    "markupsafe": ("commands.page.*",),
    "_typeshed": ("*",),  # every type checker brings it; it does not exist at run time
}
OTHER_THIRD_PARTIES = ("commands.*", "exports.*", "integrations.*")

# The writer maps its private fork guard, and the doctor looks whether it can; only the segment
# maps what others share, and `guarded`, by an address that no Python object knows, a stack area.
MMAP = {"segment", "guarded", "writer", "commands.verbs.doctor"}
SHARED_MEMORY = {"access"}

TOO_HEAVY_FOR_A_PRODUCER = {
    "asyncio",
    "click",
    "ctypes",
    "dataclasses",
    "gunicorn",
    "http",
    "hypothesis",
    "logging",
    "multiprocessing",
    "rich",
    "subprocess",
}

ROOT = Path(__file__).resolve().parent.parent


class Import(NamedTuple):
    module: str  # the importer, below shmrec
    target: str  # what it imports: below shmrec, or the full name of anything else
    line: int

    def __str__(self) -> str:
        return f"{self.module}, line {self.line}: {self.target}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / TOP).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or TOP


# An extension is a module as well, though its imports cannot be seen.
FILES = sorted(path for suffix in ("py", "pyi", "c") for path in (ROOT / TOP).rglob(f"*.{suffix}"))
MODULES = {module_name(path) for path in FILES}
TREES = [(path, ast.parse(path.read_text("utf-8"))) for path in FILES if path.suffix != ".c"]


def absolute(name: str, package: tuple[str, ...]) -> str:
    bare = name.lstrip(".")
    level = len(name) - len(bare)
    base = package[: len(package) - level + 1] if level else ()
    return ".".join((*base, bare))


def names_imported(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield alias.name, node.lineno
            case ast.ImportFrom():
                origin = "." * node.level + (f"{node.module}." if node.module else "")
                for alias in node.names:
                    yield absolute(origin + alias.name, package), node.lineno
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield absolute(name, package), node.lineno


def resolve(name: str) -> str:
    """The module that `name` is, or is in; a name of the package itself is in TOP."""
    parts = name.split(".")
    if parts[0] != TOP:
        return name
    prefixes = (".".join(parts[1:end]) for end in range(len(parts), 1, -1))
    return next((prefix for prefix in prefixes if prefix in MODULES), TOP)


def imports() -> Iterator[Import]:
    for path, tree in TREES:
        package = path.relative_to(ROOT).parent.parts
        for name, line in names_imported(tree, package):
            yield Import(module_name(path), resolve(name), line)


IMPORTS = list(imports())
INSIDE = [each for each in IMPORTS if each.target in MODULES]
OUTSIDE = [each for each in IMPORTS if each.target not in MODULES]


def covers(pattern: str, module: str) -> bool:
    """`commands.*` covers the package and all in it; `*` covers everything."""
    return pattern in ("*", module) or (
        pattern.endswith(".*") and f"{module}.".startswith(pattern[:-1])
    )


def levels_of(module: str) -> list[int]:
    if module == TOP:
        return [len(LEVELS)]
    return [
        number
        for number, patterns in enumerate(LEVELS)
        for pattern in patterns
        if covers(pattern, module)
    ]


def goes_down(each: Import) -> bool:
    if any(covers(a, each.module) and covers(b, each.target) for a, b in SIDEWAYS):
        return True
    return min(levels_of(each.module), default=-1) > max(levels_of(each.target), default=-1)


def reachable(module: str) -> set[str]:
    # Without the package itself, which Python runs before any module of it.
    found: set[str] = set()
    waiting = [module]
    while waiting:
        importer = waiting.pop()
        targets = {each.target for each in INSIDE if each.module == importer} - found - {TOP}
        found |= targets
        waiting.extend(targets)
    return found


def lines(violations: Iterable[object]) -> str:
    return "\n".join(map(str, violations))


def test_every_module_is_on_one_level() -> None:
    assert TOP in MODULES
    assert not [module for module in sorted(MODULES) if len(levels_of(module)) != 1]


def test_every_name_on_the_list_is_a_module() -> None:
    patterns = [pattern for level in LEVELS for pattern in level]
    assert not [
        pattern for pattern in patterns if not any(covers(pattern, module) for module in MODULES)
    ]


def test_imports_go_down() -> None:
    wrong = [each for each in INSIDE if each.module != each.target and not goes_down(each)]
    assert not wrong, lines(wrong)


def test_the_package_imports_only_what_it_offers() -> None:
    wrong = [each for each in INSIDE if each.module == TOP and each.target not in TOP_IMPORTS]
    assert not wrong, lines(wrong)


def test_recorder_and_collector_never_meet() -> None:
    assert "collector" not in reachable("recorder")
    assert "recorder" not in reachable("collector")


def test_third_parties_stay_where_they_belong() -> None:
    wrong = []
    for each in OUTSIDE:
        distribution = each.target.partition(".")[0]
        allowed = THIRD_PARTIES.get(distribution, OTHER_THIRD_PARTIES)
        if distribution not in sys.stdlib_module_names and not any(
            covers(pattern, each.module) for pattern in allowed
        ):
            wrong.append(each)
    assert not wrong, lines(wrong)


def test_only_the_segment_opens_shared_memory() -> None:
    openers = ("posix_ipc.SharedMemory", "multiprocessing.shared_memory", "_posixshmem")
    wrong: list[object] = [
        each
        for each in OUTSIDE
        if each.module not in SHARED_MEMORY
        and any(covers(f"{opener}.*", each.target) for opener in openers)
    ]
    wrong += [
        f"{module_name(path)}, line {node.lineno}: .{node.attr}"
        for path, tree in TREES
        if module_name(path) not in SHARED_MEMORY
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("SharedMemory", "shared_memory")
    ]
    assert not wrong, lines(wrong)


def test_only_listed_modules_map_memory() -> None:
    wrong = [each for each in OUTSIDE if covers("mmap.*", each.target) and each.module not in MMAP]
    assert not wrong, lines(wrong)


def modules_after(statement: str) -> set[str]:
    # A process of its own: pytest has imported most of them here.
    code = f"import sys; {statement}; print(*sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(shown.stdout.split())


def test_importing_shmrec_is_light() -> None:
    added = modules_after("import shmrec") - modules_after("import msgpack, posix_ipc")
    assert not added & TOO_HEAVY_FOR_A_PRODUCER


def test_rings_are_written_and_read_without_shared_memory() -> None:
    # A second interpreter cannot load posix_ipc. Without the package itself, which can attach.
    bare = "import types; sys.modules['shmrec'] = top = types.ModuleType('shmrec')"
    loaded = modules_after(
        f"{bare}; top.__path__ = ['shmrec']; "
        "import shmrec._engine, shmrec.decoder, shmrec.ring, shmrec.writer"
    )
    assert "posix_ipc" not in loaded
