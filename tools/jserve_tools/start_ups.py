"""What starting an engine took, as its counters tell it, for the report.

The one idea: a start is a fact about a bucket strategy, not about a policy, so a cold
and a warm start are measured once a strategy and said of each of its runs.
"""

import re
from collections.abc import Mapping
from typing import Any

_PROGRAM = re.compile(r"B(\d+)xNB(\d+)")


def start_up_of(stats: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns seconds, bytes and programs of a start; None where nothing is told.

    Args:
      stats: the fields of EngineStats, of an engine that is warm; None from a
        foreign server.
    """
    told = (stats or {}).get("start_up")
    if not told or not told["programs"]:
        return None
    programs = [dict(one) for one in told["programs"]]
    found: dict[str, Any] = {
        name: told[name]
        for name in ("ready_s", "warm_s", "covering_s")
        if told[name] is not None
    }
    assert stats is not None
    found["compile_s"] = stats["compile_s"]
    sizes = [one["executable_bytes"] for one in programs]
    if None not in sizes:
        found["executable_bytes"] = sum(sizes)
    found["programs"] = [
        {name: value for name, value in one.items() if value is not None}
        for one in programs
    ]
    return found


def compiled_edges(stats: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns the edges of the programs an engine compiled; None if it tells none."""
    told = start_up_of(stats)
    if told is None or stats is None:
        return None
    shapes = []
    for one in told["programs"]:
        match = _PROGRAM.fullmatch(one["program"])
        if match is None:
            raise ValueError(f"program {one['program']!r} is not such as B32xNB16")
        shapes.append((int(match[1]), int(match[2])))
    return {
        "row_edges": sorted({rows for rows, _ in shapes}),
        "block_edges": sorted({blocks for _, blocks in shapes}),
        "block_tokens": stats["block_tokens"],
    }
