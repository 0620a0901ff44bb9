"""The numbers of a cell by which settings are judged, with their intervals.

Shares and goodputs have intervals, from which that of a difference follows; the
difference of two percentiles of requests is resampled (bootstrap); means over several
turns or seeds are compared by Welch's interval; counts are exact.
"""

import dataclasses
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jserve_sched.steps.features import SCENARIOS
from jserve_tools.reporting.cells import Cell, Estimate, cells, difference
from jserve_tools.reporting.tables import duration, render

_NUM_DRAWS = 1000
_ERROR = "mean_abs_error_tokens"
# Factor and form of a value, by its unit.
_FORMS = {
    "%": (100.0, ".1f"),
    " ms": (1.0, ".2f"),
    "/s": (1.0, ".4g"),
    "/min": (1.0, ".0f"),
    " tokens": (1.0, ".1f"),
    "": (1.0, ",.6g"),
}


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number of a cell.

    Attributes:
      name: Name in tables.
      path: Keys of its value in a run of report.json; "*" is a service class.
      unit: "s", or a key of `_FORMS`.
      better: Whether more or less of it is better.
      kind: Kind of its interval; see the top of this file.
      is_of_rate: Whether it depends on the rate, so that it is not compared where a
        search chose the rate.
    """

    name: str
    path: tuple[str, ...]
    unit: str
    better: Literal["more", "less"]
    kind: Literal["mean", "share", "goodput", "percentile", "count"] = "mean"
    is_of_rate: bool = True

    def estimate(self, cell: Cell) -> Estimate | None:
        """Returns the cell's value, with an interval if it is a share or goodput."""
        if self.kind == "share":
            return cell.attainment(*self.path[1:2])
        if self.kind == "percentile":
            value = cell.percentile_s(self.path[0], int(self.path[1][1:]))
        else:
            value = cell.mean(*self.path)
        if value is not None and self.kind == "goodput":
            return Estimate(value, *next(iter(cell.values("goodput_ci95_qps")), ()))
        return None if value is None else Estimate(value)

    def text(self, value: float, sign: str = "") -> str:
        """Returns a value with its unit."""
        if self.unit == "s":
            return ("+" if sign and value >= 0 else "") + duration(value)
        factor, form = _FORMS[self.unit]
        return f"{value * factor:{sign}{form}}{self.unit}"

    def interval(self, found: Estimate, sign: str = "") -> str:
        """Returns the ends of the interval with their unit; "" if they are unknown."""
        ends = [self.text(end, sign) for end in found[1:] if not math.isnan(end)]
        return " to ".join(ends)

    def with_interval(self, found: Estimate) -> str:
        """Returns a value and, in parentheses, its interval if it has one."""
        interval = self.interval(found)
        return self.text(found.value) + (f" ({interval})" if interval else "")


GOODPUT = Metric("goodput", ("goodput_qps",), "/s", "more", "goodput", is_of_rate=False)
ATTAINED = Metric("attained", ("attainment",), "%", "more", "share")
_GOALS = (
    GOODPUT,
    Metric("violations at goodput", ("goodput_violation_share",), "%", "less"),
    ATTAINED,
    Metric("attained by any schedule, at most", ("attainment_bound",), "%", "more"),
    Metric("attained", ("by_class", "*", "attainment"), "%", "more", "share"),
    Metric("rejected", ("num_rejected",), "", "less"),
    Metric("degraded", ("num_degraded",), "", "less"),
    Metric("committed", ("num_committed",), "", "more"),
    Metric("attained of these", ("attainment_committed",), "%", "more"),
    Metric("committed on return", ("returned_committed_share",), "%", "more"),
    Metric("errors", ("num_errors",), "", "less"),
    Metric("requests attained", ("met_per_s",), "/s", "more"),
    Metric("output tokens", ("output_tokens_per_s",), "/s", "more"),
    Metric("output length error", ("length_error", "*", _ERROR), " tokens", "less"),
)
_LATENCIES = tuple(
    Metric(f"{name} p{percent}", (key, f"p{percent}"), "s", "less", "percentile")
    for name, key in (
        *(("TTFT", "ttft_s"), ("TBT", "tbt_s")),
        *(("request's TBT p99,", "tbt_p99_s"), ("E2E", "e2e_s")),
    )
    for percent in (50, 99)
)
_FORECASTS = tuple(
    Metric(name, ("by_class", "*", "ttft_forecast", key), "%", "less")
    for name, key in (
        ("forecast error", "median_error"),
        ("TTFT under P50", "share_under_p50"),
        ("under P90", "share_under_p90"),
    )
)
_STEPS = tuple(
    Metric(f"{kind} steps, {name}", ("predicted_steps", kind, key), "%", "less")
    for kind in SCENARIOS
    for name, key in (
        ("prediction error", "median_error"),
        ("p95 covers", "p95_coverage"),
        ("bias", "bias"),
    )
)
_ENGINE = (
    Metric("padding of time", ("pad_share_time",), "%", "less"),
    Metric("padding of tokens", ("pad_share_tokens",), "%", "less"),
    Metric("steps", ("steps_per_s",), "/s", "more"),
    Metric("planning p50", ("plan_ms", "p50"), " ms", "less"),
    Metric("programs", ("num_programs",), "", "less", "count", is_of_rate=False),
    Metric(
        "compiled after warm-up",
        *(("num_compiles_after_warmup",), "", "less", "count"),
        is_of_rate=False,
    ),
    *(
        Metric(f"{start} start, {name}", (key, part), "s", "less", is_of_rate=False)
        for start, key in (("cold", "start_up_cold"), ("other", "start_up"))
        for name, part in (
            *(("ready", "ready_s"), ("all programs", "warm_s")),
            ("compiling", "compile_s"),
        )
    ),
    Metric("requests simulated", ("simulation", "requests_per_min"), "/min", "more"),
)
_ALL = (*_GOALS, *_LATENCIES, *_FORECASTS, *_STEPS, *_ENGINE)


def metrics(known: Sequence[Cell], among: Sequence[Metric] = _ALL) -> list[Metric]:
    """Returns the metrics that a cell has; those of classes once for each class."""
    classes = sorted({name for cell in known for name in cell.service_classes})
    found: list[Metric] = []
    for metric in among:
        if "*" not in metric.path:
            found.append(metric)
        elif len(classes) > 1 or metric.kind != "share":
            for name in classes:
                path = tuple(name if key == "*" else key for key in metric.path)
                title = f"{metric.name}, {name}"
                found.append(dataclasses.replace(metric, name=title, path=path))
    return [one for one in found if any(map(one.estimate, known))]


def numbers(
    known: Sequence[Cell],
    among: Sequence[Metric] = _ALL,
    *,
    has_all_intervals: bool = True,
) -> list[list[str]]:
    """Returns a table with a row for each cell; the first row names the metrics.

    Unless `has_all_intervals`, only goodput and the share of all requests have one.
    """
    columns = [["setting", *(cell.name for cell in known)]]
    for metric in metrics(known, among):
        columns.append([metric.name])
        is_sure = has_all_intervals or len(metric.path) == 1
        for found in map(metric.estimate, known):
            if found is not None and not is_sure:
                found = Estimate(found.value)
            columns[-1].append("-" if found is None else metric.with_interval(found))
    return [list(row) for row in zip(*columns, strict=True)]


def run_tables(report: Mapping[str, Any]) -> str:
    """Returns the tables of runs for a terminal, with a row for each cell.

    They are of SLOs and throughput, of latencies, of forecasts, and of the engine.
    """
    known = cells(report)
    return "\n\n".join(
        render(numbers(known, among, has_all_intervals=False))
        for among in (_GOALS, _LATENCIES, _FORECASTS, _ENGINE)
        if metrics(known, among)
    )


def difference_of(metric: Metric, old: Cell, new: Cell) -> Estimate:
    """Returns new - old of a metric that both cells have, with its interval."""
    import scipy.stats  # slow to import, and needed only here

    before, after = metric.estimate(old), metric.estimate(new)
    assert before is not None and after is not None
    value = after.value - before.value
    if metric.kind in ("share", "goodput"):
        return difference(before, after)
    if metric.kind == "count":
        return Estimate(value, value, value)
    samples = [cell.request_times_s(metric.path[0]) for cell in (new, old)]
    if metric.kind == "percentile" and all(
        one is not None and one.size > 1 for one in samples
    ):
        percent = int(metric.path[1][1:])
        interval = scipy.stats.bootstrap(
            samples,
            lambda new, old, axis: np.subtract(
                np.percentile(new, percent, axis), np.percentile(old, percent, axis)
            ),
            n_resamples=_NUM_DRAWS,
            batch=100,
            method="percentile",
            random_state=np.random.default_rng(0),
        ).confidence_interval
        return Estimate(value, float(interval.low), float(interval.high))
    values = [cell.values(*metric.path) for cell in (new, old)]
    if min(map(len, values)) < 2 or max(map(statistics.pvariance, values)) == 0:
        return Estimate(value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for values that are nearly equal
        welch = scipy.stats.ttest_ind(*values, equal_var=False).confidence_interval()
    return Estimate(value, float(welch.low), float(welch.high))


def mark(metric: Metric, found: Estimate) -> str:
    """Returns "+" better, "-" worse, "=" within the noise, or "?" without interval."""
    if found.value == 0 or found.low <= 0 <= found.high:
        return "="
    if math.isnan(found.low):
        return "?"
    return "+" if (found.low > 0) == (metric.better == "more") else "-"
