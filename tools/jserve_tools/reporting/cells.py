"""The cells of a report: what one policy did under one bucket strategy and one load.

Turns and seeds of the same setting are one cell. Their requests are pooled, so that
shares and percentiles get narrower intervals; any other number is the mean over the
cell's runs. Starts with an empty compile cache are separate from other starts.
"""

import collections
import dataclasses
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jserve_sched.outcomes import wilson_interval
from jserve_tools.reporting.tables import load_name, look_up

Row = dict[str, Any]
READABLE_SCHEMAS = (1, 2)
_MODULE = re.compile(r"^[\w.]+\.")  # before the class in a policy's name


class Estimate(NamedTuple):
    """A number and its 95 % interval; the ends are NaN where it is unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan


def difference(old: Estimate, new: Estimate) -> Estimate:
    """Returns new - old with its interval, of two independent estimates.

    The intervals are joined by Newcombe's square-and-add rule (Statistics in Medicine
    17, 1998, pages 873 to 890): with Wilson's intervals it is his method 10.
    """
    value = new.value - old.value
    below = math.hypot(new.value - new.low, old.high - old.value)
    above = math.hypot(new.high - new.value, old.value - old.low)
    return Estimate(value, value - below, value + above)


@dataclasses.dataclass(frozen=True)
class Cell:
    """All runs of one setting.

    Attributes:
      labels: Labels of every row about it: `policy`, without the module of a class
        unless two have its name, and with the token limit if the report has several;
        `strategy` of buckets; `load`; and `setting`, which is the policy, with the
        strategy if the report has several.
      runs: Entries of the report's `runs`, at least one. Their `start_up` is moved to
        `start_up_cold` if the compile cache was empty.
    """

    labels: Row
    runs: list[Row]

    @property
    def name(self) -> str:
        """Policy, strategy and load in one line."""
        return "{policy} / {strategy} @ {load}".format(**self.labels)

    @property
    def is_goodput(self) -> bool:
        """Whether its rate was found by a goodput search."""
        return bool(self.labels["load"] == "goodput")

    @property
    def service_classes(self) -> list[str]:
        """Names of its requests' service classes, sorted."""
        return sorted({name for run in self.runs for name in run.get("by_class", ())})

    def values(self, *path: str) -> list[Any]:
        """Returns the values that runs have under a path of keys."""
        found = [look_up(run, path) for run in self.runs]
        return [value for value in found if value is not None]

    def mean(self, *path: str) -> float | None:
        """Returns the mean of a number over the runs that have it; None without any."""
        known = self.values(*path)
        return statistics.fmean(known) if known else None

    def entries(self, service_class: str | None) -> list[Row]:
        """Returns the runs' entries for a class, or for all requests if it is None."""
        return self.values(
            *(() if service_class is None else ("by_class", service_class))
        )

    def attainment(self, service_class: str | None = None) -> Estimate | None:
        """Returns the share of requests that attained their SLO; None without any.

        Its interval is Wilson's.
        """
        known = [one for one in self.entries(service_class) if one.get("num_requests")]
        if not known:
            return None
        num_requests = sum(one["num_requests"] for one in known)
        num_attained = num_requests - sum(one["num_violations"] for one in known)
        interval = wilson_interval(num_attained, num_requests)
        return Estimate(num_attained / num_requests, *interval)

    def request_times_s(
        self, key: str, service_class: str | None = None
    ) -> np.ndarray | None:
        """Returns one time for each request, `[N]`; None if a run does not list them.

        Args:
          key: `ttft_s`, `tbt_p99_s` or `e2e_s`.
          service_class: None for all.
        """
        if any("requests" not in run for run in self.runs):
            return None
        found = [
            row[key]
            for run in self.runs
            for row in run["requests"]
            if key in row and service_class in (None, row.get("service_class"))
        ]
        return np.array(found, np.float64) if found else None

    def percentile_s(
        self, key: str, percent: int, service_class: str | None = None
    ) -> float | None:
        """Returns a percentile of the pooled requests, in seconds.

        If a run does not list its requests, it is the mean of the runs' percentiles.
        """
        times_s = self.request_times_s(key, service_class)
        if times_s is not None:
            return float(np.percentile(times_s, percent))
        path = () if service_class is None else ("by_class", service_class)
        return self.mean(*path, key, f"p{percent}")


def cells(report: Mapping[str, Any]) -> list[Cell]:
    """Returns the cells of a report, in the order in which they were first run.

    Raises:
      ValueError: If it is not a report, or one of an unknown schema.
    """
    version = report.get("schema_version")
    if version not in READABLE_SCHEMAS or isinstance(version, bool):
        known = " and ".join(map(str, READABLE_SCHEMAS))
        raise ValueError(
            f"schema_version is {version!r}; reports of schema {known} can be read"
        )
    if not isinstance(report.get("runs"), list) or not report["runs"]:
        raise ValueError("the report has no runs")
    runs = report["runs"]
    limits = {(run.get("policy"), run.get("max_num_batched_tokens")) for run in runs}
    policies = [policy for policy, _ in limits]
    classes = collections.Counter(_MODULE.sub("", str(one)) for one in set(policies))
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for run in runs:
        policy = str(run.get("policy", "server"))
        if classes[short := _MODULE.sub("", policy)] == 1:
            policy = short
        if policies.count(run.get("policy")) > 1 and "max_num_batched_tokens" in run:
            policy += f"@{run['max_num_batched_tokens']}"
        key = (policy, str(run.get("bucket_strategy", "pow2")), load_name(run))
        groups.setdefault(key, []).append(_with_cold_start(run))
    has_strategies = len({strategy for _, strategy, _ in groups}) > 1
    found = []
    for (policy, strategy, load), group in groups.items():
        setting = f"{policy} / {strategy}" if has_strategies else policy
        labels = {"policy": policy, "strategy": strategy, "load": load}
        found.append(Cell(labels | {"setting": setting}, group))
    return found


def mean_slos_s(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Returns each class's mean objectives, in seconds, that a simulation reports."""
    found = look_up(report, ("workload", "slos"))
    return found or look_up(report, ("workload", "promises")) or {}  # the older name


def _with_cold_start(run: Mapping[str, Any]) -> Row:
    """Moves `start_up` to `start_up_cold` if the compile cache was empty.

    It was empty if every program was compiled.
    """
    start = run.get("start_up") or {}
    sources = {one.get("source") for one in start.get("programs") or ()}
    if sources != {"compiled"}:
        return dict(run)
    rest = {name: value for name, value in run.items() if name != "start_up"}
    return {**rest, "start_up_cold": start}


def distinct(values: Sequence[str]) -> list[str]:
    """Returns values without repeats, in their order."""
    return list(dict.fromkeys(values))
