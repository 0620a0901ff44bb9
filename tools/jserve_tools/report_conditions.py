"""The conditions of two reports: what served, what was sent, and what was promised.

The one idea: what differs is named, and numbers are judged only where the same was
asked for. A rate or a promise that is a multiple of a measurement is another one after
every measurement, so both may be 2 % apart.
"""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jserve_tools.report_cells import Cell

TOLERANCE = 0.02  # relative

# What must be equal for times to be comparable, and what merely deserves a line; a
# mapping is gone through key by key.
_MACHINE = (("device",), ("machine", "processor"), ("machine", "num_cpus"))
_FACTS = (
    ("commit",),
    ("jax",),
    ("server", "model"),
    ("server", "engine"),
    ("cost_model",),
    ("predictor",),
    ("lag",),
    ("noise",),
    ("workload", "trace"),
    ("workload", "name"),
    ("workload", "num_rows"),
    ("workload", "num_requests"),
    ("workload", "length_scale"),
    ("workload", "service_classes"),
)
# Measured, so never twice the same.
_MEASURED = (("workload", "promises"), ("yardstick",), ("capacity", "requests_per_s"))
_PROMISES = (("workload", "service_classes"), ("workload", "promises"), ("yardstick",))
# Settings of the first server of several, or of no matter to what it does.
_NOT_NAMED = frozenset(
    ("server", "engine", name)
    for name in (
        *("policy", "bucket_strategy", "buckets"),
        *("step_log", "step_log_max_bytes", "compile_cache_dir"),
    )
)


def _look_up(report: Any, path: Sequence[str]) -> Any:
    for key in path:
        report = report.get(key) if isinstance(report, Mapping) else None
    return report


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields what is at the ends of nested mappings, with the keys that lead there."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    else:
        yield path, value


def _is_near(before: Any, after: Any) -> bool:
    """Returns whether two values are equal, or numbers that are nearly so."""
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(_is_near, before, after))
    numbers = [
        one
        for one in (before, after)
        if isinstance(one, (int, float)) and not isinstance(one, bool)
    ]
    if len(numbers) == 2:
        return math.isclose(*numbers, rel_tol=TOLERANCE)
    return bool(before == after)


def _differences(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    paths: Sequence[tuple[str, ...]],
    *,
    is_measured: bool = False,
) -> Iterator[str]:
    """Yields a line for each value in which two reports differ.

    Args:
      old: the old report.
      new: the new one.
      paths: where to look.
      is_measured: whether values near each other are taken for equal, and what one of
        the two does not tell for unknown.
    """
    for path in paths:
        found = _look_up(old, path), _look_up(new, path)
        if is_measured and None in found:
            continue
        before, after = (dict(_leaves(one, path)) for one in found)
        for leaf in dict.fromkeys((*before, *after)):
            pair = before.get(leaf), after.get(leaf)
            is_equal = _is_near(*pair) if is_measured else pair[0] == pair[1]
            if not is_equal and leaf not in _NOT_NAMED:
                yield f"{' '.join(leaf)}: {_text(pair[0])} -> {_text(pair[1])}"


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


def different_facts(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns a line for each condition in which reports differ, the machine first."""
    machine = _differences(old, new, _MACHINE)
    return [
        *(f"not the same machine: {line}" for line in machine),
        *_differences(old, new, _FACTS),
        *_differences(old, new, _MEASURED, is_measured=True),
    ]


def are_promises_alike(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Returns whether two reports promise the same, as far as they say it."""
    return not any(_differences(old, new, _PROMISES, is_measured=True))


def not_asked_alike(old: Cell, new: Cell, *, has_like_promises: bool) -> str:
    """Returns in what two cells of one name were asked for something else; "" if not.

    Args:
      old: a cell of the old report.
      new: the cell of that name in the new one.
      has_like_promises: whether the reports promise the same; what the cells' own
        requests were promised counts for more.
    """
    before, after = old.mean("qps"), new.mean("qps")
    if not old.is_goodput and not _is_near(before, after):
        return f"qps {before} -> {after}"
    promised, promises = _bounds(old), _bounds(new)
    if promised and promises:
        names = dict.fromkeys((*promised, *promises))
        for name in names:
            if not _is_near(promised.get(name), promises.get(name)):
                pair = promised.get(name), promises.get(name)
                return f"{' '.join(name)} {pair[0]} -> {pair[1]}"
        return ""
    return "" if has_like_promises else "what was promised"


def _bounds(cell: Cell) -> dict[tuple[str, str], float]:
    """Returns the mean of each bound that a cell's requests were promised, by class."""
    bounds_s: dict[tuple[str, str], list[float]] = {}
    for rows in cell.values("requests"):
        for row in rows:
            for name, bound_s in row.get("slo", {}).items():
                key = (str(row.get("service_class")), name)
                bounds_s.setdefault(key, []).append(bound_s)
    # To a microsecond, as reports are written.
    return {key: round(statistics.fmean(some), 6) for key, some in bounds_s.items()}
