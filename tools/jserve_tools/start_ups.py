"""What starting an engine took, as its counters state it, for the report.

A start is a fact about a bucket strategy, not about a policy, so a cold and a warm
start are measured once a strategy and stand in each of its runs.
"""

import re
from collections.abc import Mapping
from typing import Any

_PROGRAM = re.compile(r"B(\d+)xNB(\d+)")


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def start_up_of(stats: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns seconds, bytes and programs of a start; None where none is stated.

    Args:
      stats: The fields of EngineStats, of an engine that is warm; None from a
        foreign server.
    """
    start = (stats or {}).get("start_up")
    if not start or not start["programs"]:
        return None
    assert stats is not None
    found = _known({name: start[name] for name in ("ready_s", "warm_s", "covering_s")})
    found["compile_s"] = stats["compile_s"]
    sizes = [one["executable_bytes"] for one in start["programs"]]
    if None not in sizes:
        found["executable_bytes"] = sum(sizes)
    found["programs"] = [_known(one) for one in start["programs"]]
    return found


def compiled_edges(stats: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns the edges of the programs an engine compiled; None if it states none."""
    start = start_up_of(stats)
    if start is None or stats is None:
        return None
    matches = [_PROGRAM.fullmatch(one["program"]) for one in start["programs"]]
    buckets = [(int(one[1]), int(one[2])) for one in matches if one is not None]
    return {
        "row_edges": sorted({num_rows for num_rows, _ in buckets}),
        "block_edges": sorted({num_blocks for _, num_blocks in buckets}),
        "block_tokens": stats["block_tokens"],
    }
