"""The numbers of a cell by which settings are judged, and how sure each one is.

Shares and goodputs have intervals of their own, whose differences join them;
percentiles of requests are resampled (bootstrap); means over several turns or seeds
are held against each other by Welch's interval; counts are exact.
"""

import dataclasses
import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from jserve_tools.report_cells import Cell, Estimate, difference
from jserve_tools.tables import duration

_NUM_DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number of a cell.

    Attributes:
      name: What people call it.
      path: Where a run has it in report.json.
      unit: "s", "ms", "%" (of a share), "/s", "MiB" (of bytes) or "" for a count.
      better: Which direction is.
      kind: How its interval is found; see the top of this file.
      is_of_rate: Whether it depends on the rate, so that it says nothing where a
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
            return cell.attainment(*self.path[1:])
        if self.kind == "goodput":
            return cell.goodput_qps()
        if self.kind == "percentile":
            value = cell.percentile_s(self.path[0], int(self.path[1][1:]))
        else:
            value = cell.mean(*self.path)
        return None if value is None else Estimate(value, math.nan, math.nan)

    def text(self, value: float, sign: str = "") -> str:
        """Returns a value with its unit."""
        if self.unit == "s":
            return ("+" if sign and value >= 0 else "") + duration(value)
        scale, form = {
            "%": (100.0, f"{sign}.1f"),
            "ms": (1.0, f"{sign}.2f"),
            "/s": (1.0, f"{sign}.4g"),
            "MiB": (2.0**-20, f"{sign}.1f"),
            "": (1.0, f"{sign},.6g"),
        }[self.unit]
        gap = " " if self.unit[:1].isalpha() else ""
        return f"{format(value * scale, form)}{gap}{self.unit}"


METRICS = (
    Metric("goodput", ("goodput_qps",), "/s", "more", "goodput", is_of_rate=False),
    Metric("attained", ("attainment",), "%", "more", "share"),
    *(
        Metric(f"{name} p{percent}", (key, f"p{percent}"), "s", "less", "percentile")
        for name, key in (
            *(("TTFT", "ttft_s"), ("TBT", "tbt_s")),
            *(("request's TBT p99", "tbt_p99_s"), ("E2E", "e2e_s")),
        )
        for percent in (50, 90, 99)
    ),
    Metric("attained/s", ("met_per_s",), "/s", "more"),
    Metric("tokens/s", ("output_tokens_per_s",), "/s", "more"),
    Metric("padding of time", ("pad_share_time",), "%", "less"),
    Metric("padding of tokens", ("pad_share_tokens",), "%", "less"),
    Metric("steps/s", ("steps_per_s",), "/s", "more"),
    Metric("plan p50", ("plan_ms", "p50"), "ms", "less"),
    Metric("programs", ("num_programs",), "", "less", "count", is_of_rate=False),
    Metric(
        "compiled after warm-up",
        *(("num_compiles_after_warmup",), "", "less", "count"),
        is_of_rate=False,
    ),
    *(
        Metric(f"{start}, {name}", (key, part), unit, "less", is_of_rate=False)
        for start, key in (
            ("start, empty cache", "start_up_cold"),
            ("start, full cache", "start_up_warm"),
            ("start", "start_up"),
        )
        for name, part, unit in (
            ("ready", "ready_s", "s"),
            ("all programs", "warm_s", "s"),
            ("compiling", "compile_s", "s"),
            ("executables", "executable_bytes", "MiB"),
        )
    ),
)


def metrics(known: Sequence[Cell]) -> list[Metric]:
    """Returns the metrics that a cell has, with each class's share among them."""
    classes = sorted({name for cell in known for name in cell.service_classes})
    found: list[Metric] = []
    for metric in METRICS:
        found.append(metric)
        if metric.kind == "share" and len(classes) > 1:
            found += [
                dataclasses.replace(
                    metric, name=f"attained, {name}", path=(*metric.path, name)
                )
                for name in classes
            ]
    return [one for one in found if any(map(one.estimate, known))]


def difference_of(metric: Metric, old: Cell, new: Cell) -> Estimate:
    """Returns new - old of a metric that both cells have, with its interval."""
    import scipy.stats  # slow to import, and needed here alone

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
        interval = scipy.stats.bootstrap(
            samples,
            _percentile_difference(float(metric.path[1][1:])),
            n_resamples=_NUM_DRAWS,
            batch=100,
            method="percentile",
            random_state=np.random.default_rng(0),
        ).confidence_interval
        return Estimate(value, float(interval.low), float(interval.high))
    values = [cell.values(*metric.path) for cell in (new, old)]
    if min(map(len, values)) < 2 or max(map(statistics.pvariance, values)) == 0:
        return Estimate(value, math.nan, math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of turns that are nearly the same
        welch = scipy.stats.ttest_ind(*values, equal_var=False).confidence_interval()
    return Estimate(value, float(welch.low), float(welch.high))


def _percentile_difference(percent: float) -> Callable[..., Any]:
    def statistic(new: np.ndarray, old: np.ndarray, axis: int) -> Any:
        return np.percentile(new, percent, axis) - np.percentile(old, percent, axis)

    return statistic


def mark(metric: Metric, found: Estimate) -> str:
    """Returns "+" better, "-" worse, "=" within the noise, or "?" without interval."""
    if found.value == 0 or found.low <= 0 <= found.high:
        return "="
    if math.isnan(found.low):
        return "?"
    return "+" if (found.low > 0) == (metric.better == "more") else "-"
