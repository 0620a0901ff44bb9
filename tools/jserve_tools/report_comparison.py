"""Two reports side by side: what is better, what is worse, and what is only noise.

The one idea: a difference gets a mark only if its own interval excludes zero. Shares
and goodputs come with intervals, which are joined by Newcombe's square-and-add rule
(Statistics in Medicine 17, 1998, pages 873 to 890, method 10); latencies are drawn
anew from the requests of both reports; counts are exact. Whatever has none of these is
shown without a verdict, and so is what depends on a rate or a promise that differs.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jserve_tools.report_cells import START_KINDS, Cell, cells, distinct
from jserve_tools.report_conditions import (
    are_promises_alike,
    different_facts,
    not_asked_alike,
)
from jserve_tools.tables import render

BETTER, WORSE, EQUAL, UNKNOWN = "+", "-", "=", "?"
_NUM_DRAWS = 1000
_SEED = 0
_QUANTILES = {"p50": 50.0, "p99": 99.0}
_DRAWN_AT_ONCE = 250  # draws; 10,000 requests then take 20 MB

# Numbers without an interval: path and unit.
_PLAIN = (
    (("tbt_s", "p50"), "s"),
    (("tbt_s", "p99"), "s"),
    (("pad_share_tokens",), "%"),
    (("pad_share_time",), "%"),
    (("steps_per_s",), "/s"),
    (("output_tokens_per_s",), "/s"),
)
# Times to judge requests by: drawn anew, one of each request.
_REQUEST_TIMES = ("ttft_s", "tbt_p99_s", "e2e_s")
_STARTS = {"cold": "start_up_cold", "cached": "start_up_warm", "other": "start_up"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedValue:
    """One metric of one cell in both reports.

    Attributes:
      cell: policy, bucket strategy and load.
      metric: its name, keys of the report joined by dots.
      unit: "s", "%", "/s", "bytes" or "" for a count; "%" values are shares.
      old: in the old report.
      new: in the new one.
      difference_ci95: interval of new - old, where it is known.
      mark: "+" better, "-" worse, "=" within the noise, "?" no way to tell.
    """

    cell: str
    metric: str
    unit: str
    old: float
    new: float
    difference_ci95: tuple[float, float] | None
    mark: str

    @property
    def difference(self) -> float:
        """New minus old."""
        return self.new - self.old


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two reports have in common, and what not.

    Attributes:
      facts: one line for each fact in which they differ, the machine first, and for
        each cell of both that was asked for something else.
      values: metrics of the cells that both have.
      only_old: cells, with seeds, that only the old report has.
      only_new: the same of the new one.
    """

    facts: tuple[str, ...]
    values: tuple[ComparedValue, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]


def difference_interval(
    old: float,
    old_ci95: tuple[float, float],
    new: float,
    new_ci95: tuple[float, float],
) -> tuple[float, float]:
    """Returns the 95 % interval of new - old from the interval of each.

    Newcombe's square-and-add rule: with Wilson's intervals it is his method 10 for
    two proportions; it holds for any two independent estimates.
    """
    difference = new - old
    below = math.hypot(new - new_ci95[0], old_ci95[1] - old)
    above = math.hypot(new_ci95[1] - new, old - old_ci95[0])
    return difference - below, difference + above


def _verdict(interval: tuple[float, float], *, more_is_better: bool) -> str:
    low, high = interval
    if low <= 0 <= high:
        return EQUAL
    return BETTER if (low > 0) == more_is_better else WORSE


def _draw_percentiles(
    values: np.ndarray, percentiles: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Returns percentiles of draws with replacement, [P, draws]."""
    parts = []
    for _ in range(0, _NUM_DRAWS, _DRAWN_AT_ONCE):
        chosen = rng.integers(values.size, size=(_DRAWN_AT_ONCE, values.size))
        parts.append(np.percentile(values[chosen], percentiles, axis=1))
    return np.concatenate(parts, axis=1)


def _request_times(cell: Cell, key: str) -> np.ndarray | None:
    """Returns one time for each request; None if a run does not list them."""
    if any("requests" not in run for run in cell.runs):
        return None
    found = [row[key] for run in cell.runs for row in run["requests"] if key in row]
    return np.array(found, np.float64) if found else None


def _shares(old: Cell, new: Cell) -> list[ComparedValue]:
    names = [run.get("by_class", {}) for one in (old, new) for run in one.runs]
    classes = sorted({name for entry in names for name in entry})
    found = []
    for service_class in (None, *(classes if len(classes) > 1 else ())):
        before, after = old.share(service_class), new.share(service_class)
        if before is None or after is None:
            continue
        interval = difference_interval(
            before.value, before.ci95, after.value, after.ci95
        )
        found.append(
            ComparedValue(
                cell=new.name,
                metric="attainment" + (f".{service_class}" if service_class else ""),
                unit="%",
                old=before.value,
                new=after.value,
                difference_ci95=interval,
                mark=_verdict(interval, more_is_better=True),
            )
        )
    return found


def _latencies(old: Cell, new: Cell) -> list[ComparedValue]:
    found = []
    for key in _REQUEST_TIMES:
        rng = np.random.default_rng(_SEED)
        before, after = _request_times(old, key), _request_times(new, key)
        if before is None or after is None:
            plain = [_plain_value(old, new, (key, name), "s") for name in _QUANTILES]
            found += [value for value in plain if value is not None]
            continue
        levels = list(_QUANTILES.values())
        draws = _draw_percentiles(after, levels, rng)
        draws -= _draw_percentiles(before, levels, rng)
        ends = np.percentile(draws, (2.5, 97.5), axis=1).T.tolist()
        for (name, level), (low, high) in zip(_QUANTILES.items(), ends, strict=True):
            found.append(
                ComparedValue(
                    cell=new.name,
                    metric=f"{key}.{name}",
                    unit="s",
                    old=float(np.percentile(before, level)),
                    new=float(np.percentile(after, level)),
                    difference_ci95=(low, high),
                    mark=_verdict((low, high), more_is_better=False),
                )
            )
    return found


def _goodput(old: Cell, new: Cell) -> list[ComparedValue]:
    before, after = old.mean("goodput_qps"), new.mean("goodput_qps")
    if before is None or after is None:
        return []
    intervals = old.first("goodput_ci95_qps"), new.first("goodput_ci95_qps")
    interval = None
    if intervals[0] is not None and intervals[1] is not None:
        interval = difference_interval(
            before, tuple(intervals[0]), after, tuple(intervals[1])
        )
    return [
        ComparedValue(
            cell=new.name,
            metric="goodput_qps",
            unit="/s",
            old=before,
            new=after,
            difference_ci95=interval,
            mark=UNKNOWN
            if interval is None
            else _verdict(interval, more_is_better=True),
        )
    ]


def _plain_value(
    old: Cell, new: Cell, path: Sequence[str], unit: str
) -> ComparedValue | None:
    return _plain(new.name, ".".join(path), unit, old.mean(*path), new.mean(*path))


def _plain(
    cell: str, metric: str, unit: str, before: float | None, after: float | None
) -> ComparedValue | None:
    """Returns two numbers side by side; None if one of them is not known."""
    if before is None or after is None:
        return None
    return ComparedValue(
        cell=cell,
        metric=metric,
        unit=unit,
        old=before,
        new=after,
        difference_ci95=None,
        mark=EQUAL if before == after else UNKNOWN,
    )


def _counts(old: Cell, new: Cell) -> list[ComparedValue | None]:
    compiles, size = "num_compiles_after_warmup", ("start_up", "executable_bytes")
    found = [
        _plain_value(old, new, ("num_programs",), ""),
        # The sum: one turn of several that compiled is no fraction of a bug.
        _plain(new.name, compiles, "", old.total(compiles), new.total(compiles)),
        _plain_value(old, new, size, "bytes"),
    ]
    return [
        value
        if value is None or value.mark == EQUAL
        else dataclasses.replace(value, mark=BETTER if value.difference < 0 else WORSE)
        for value in found
    ]


def _starts(old: Cell, new: Cell) -> list[ComparedValue | None]:
    """Returns times of starts, each kind against its like."""
    return [
        _plain(
            new.name,
            f"{_STARTS[kind]}.{key}",
            "s",
            old.start_mean(kind, key),
            new.start_mean(kind, key),
        )
        for kind in START_KINDS
        for key in ("warm_s", "compile_s")
    ]


def _compare_cells(old: Cell, new: Cell, *, is_alike: bool) -> list[ComparedValue]:
    """Returns the metrics of two cells of one setting.

    Runs that stand where a search found the goodput differ in their rates, so their
    shares and latencies say nothing; only the goodput itself and what does not
    depend on the rate is compared.

    Args:
      old: a cell of the old report.
      new: the cell of that name in the new one.
      is_alike: whether the same was asked for and promised; if not, what follows from
        that gets no verdict.
    """
    if new.is_goodput:
        judged = _goodput(old, new)
        plain = []
    else:
        judged = [*_shares(old, new), *_latencies(old, new)]
        plain = [_plain_value(old, new, path, unit) for path, unit in _PLAIN]
    if not is_alike:
        judged = [dataclasses.replace(value, mark=UNKNOWN) for value in judged]
    found = [*judged, *plain, *_starts(old, new), *_counts(old, new)]
    return [value for value in found if value is not None]


def compare_reports(old: Mapping[str, Any], new: Mapping[str, Any]) -> Comparison:
    """Compares the cells that two reports share: same setting, load and seeds.

    Raises:
      ValueError: if one of them is of a schema that cannot be read.
    """
    before, after = _by_setting(old, "old"), _by_setting(new, "new")
    facts = different_facts(old, new)
    has_like_promises = are_promises_alike(old, new)
    values = []
    for key, cell in after.items():
        if key not in before:
            continue
        reason = not_asked_alike(before[key], cell, has_like_promises=has_like_promises)
        if reason:
            facts.append(f"no verdict on {cell.name}, which differs: {reason}")
        values += _compare_cells(before[key], cell, is_alike=not reason)
    return Comparison(
        facts=tuple(facts),
        values=tuple(values),
        only_old=tuple(_full_name(before[key]) for key in before if key not in after),
        only_new=tuple(_full_name(after[key]) for key in after if key not in before),
    )


def _by_setting(report: Mapping[str, Any], which: str) -> dict[Any, Cell]:
    try:
        found = cells(report)
    except ValueError as error:
        raise ValueError(f"the {which} report: {error}") from error
    return {(cell.name, tuple(sorted(set(cell.seeds)))): cell for cell in found}


def _full_name(cell: Cell) -> str:
    seeds = ", ".join(distinct([str(seed) for seed in cell.seeds]))
    return f"{cell.name}, seed {seeds}" if seeds else cell.name


def _text(value: float, unit: str, *, sign: str = "") -> str:
    if unit == "%":
        return f"{value * 100:{sign}.1f}%"
    if unit == "s":
        if abs(value) < 1:
            return f"{value * 1e3:{sign}.1f}ms"
        return f"{value:{sign}.2f}s"
    if unit == "/s":
        return f"{value:{sign}.4g}/s"
    return f"{value:{sign},.0f}"


def comparison_table(comparison: Comparison) -> str:
    """Returns a comparison for the terminal: facts, one row a metric, the rest."""
    lines = list(comparison.facts)
    rows = [["cell", "metric", "old", "new", "difference", "95 % interval", "mark"]]
    for one in comparison.values:
        interval = one.difference_ci95
        rows.append(
            [
                one.cell,
                one.metric,
                _text(one.old, one.unit),
                _text(one.new, one.unit),
                _text(one.difference, one.unit, sign="+"),
                "-"
                if interval is None
                else " to ".join(_text(end, one.unit, sign="+") for end in interval),
                one.mark,
            ]
        )
    if comparison.values:
        lines += [render(rows), "+ better, - worse, = within the noise, ? cannot tell"]
    else:
        lines.append("the reports have no cell in common")
    for which, names in (("old", comparison.only_old), ("new", comparison.only_new)):
        lines += [f"only in the {which} report: {name}" for name in names]
    return "\n".join(lines)
