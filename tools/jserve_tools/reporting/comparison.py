"""Two reports side by side: what is better, what is worse, and what is only noise.

A difference is marked better or worse only if its 95 % interval excludes zero. A number
without an interval is shown without a verdict, and so is one that depends on a rate or
an SLO that differs between the reports.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jserve_tools.reporting.cells import Cell, Estimate, cells, mean_slos_s
from jserve_tools.reporting.metrics import difference_of, mark, metrics
from jserve_tools.reporting.tables import look_up, render

_NEAR = 0.02  # relative; multiples of two measurements are never exactly equal
# Keys that must be equal in two reports that are compared, and keys whose change is
# noted.
_SAME = (
    *("device", "workload trace", "workload name", "workload num_rows"),
    *("workload num_requests", "workload length_scale", "workload service_classes"),
)
_NOTED = ("commit", "version", "jax", "machine", "predictor", "lag", "noise")


def _are_near(before: Any, after: Any) -> bool:
    """Returns whether values are equal, or nested numbers nearly so."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = before.keys() | after.keys()
        return all(_are_near(before.get(key), after.get(key)) for key in keys)
    if isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)):
        return len(before) == len(after) and all(map(_are_near, before, after))
    if isinstance(before, (int, float)) and isinstance(after, (int, float)):
        return math.isclose(before, after, rel_tol=_NEAR)
    return bool(before == after)


def _changes(old: Any, new: Any, names: Sequence[str]) -> str:
    found = []
    for name in names:
        before, after = look_up(old, name.split()), look_up(new, name.split())
        if before != after:
            found.append(f"{name} {json.dumps(before)} -> {json.dumps(after)}")
    return "; ".join(found)


def comparison(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Returns what differs between two reports, for a terminal.

    Only cells of the same policy, buckets, load and seeds are compared.

    Raises:
      ValueError: If one of them cannot be read.
    """
    before, after = (
        {f"{cell.name}, seeds {_seeds(cell)}": cell for cell in cells(report)}
        for report in (old, new)
    )
    if unequal := _changes(old, new, _SAME):
        return f"cannot be compared: {unequal}"
    changes = _changes(old, new, _NOTED)
    lines = [f"what differs: {changes}"] if changes else []
    has_same_objectives = _are_near(
        (mean_slos_s(old), old.get("yardstick")),
        (mean_slos_s(new), new.get("yardstick")),
    )
    rows = [["cell", "metric", "old", "new", "difference", "95 % interval", "mark"]]
    for key in [key for key in after if key in before]:
        is_same_load = after[key].is_goodput or _are_near(
            before[key].mean("qps"), after[key].mean("qps")
        )
        is_judged = has_same_objectives and is_same_load
        if not is_judged:
            lines.append(
                f"no verdict on {after[key].name}: its rate or SLOs, multiples of "
                "measurements, differ by more than 2 %"
            )
        rows += _compared(before[key], after[key], is_judged=is_judged)
    if len(rows) == 1:
        lines.append("the reports have no cell in common")
    else:
        lines += [render(rows), "+ better, - worse, = within the noise, ? no interval"]
    for which, here, there in (("old", before, after), ("new", after, before)):
        lines += [
            f"only in the {which} report: {key}" for key in here if key not in there
        ]
    return "\n".join(lines)


def _seeds(cell: Cell) -> str:
    return ", ".join(map(str, sorted(set(cell.values("seed")))))


def _compared(old: Cell, new: Cell, *, is_judged: bool) -> list[list[str]]:
    """Returns a row for each metric that both cells have."""
    rows = []
    for metric in metrics([old, new]):
        before, after = metric.estimate(old), metric.estimate(new)
        if before is None or after is None or (new.is_goodput and metric.is_of_rate):
            continue
        found = difference_of(metric, old, new)
        if not is_judged and (metric.is_of_rate or metric.kind == "goodput"):
            found = Estimate(found.value)
        texts = [metric.text(before.value), metric.text(after.value)]
        texts += [metric.text(found.value, "+"), metric.interval(found, "+") or "-"]
        rows.append([new.name, metric.name, *texts, mark(metric, found)])
    return rows
