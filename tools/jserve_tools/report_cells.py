"""The cells of a report: what one policy did under one bucket strategy and one load.

The one idea: turns and seeds of the same setting are one cell. Requests are pooled, so
that shares get narrower intervals; any other number is the mean over the cell's runs,
but for counts of what should not be, which add up. Starts of different kinds are never
put together.
"""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jserve_sched.report import wilson_interval

READABLE_SCHEMAS = (1, 2)
START_KINDS = ("cold", "cached", "other")
"""With an empty compile cache, with a full one, and with whatever there was."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """Requests that kept every promise.

    Attributes:
      num_met: how many did.
      num_requests: of how many.
    """

    num_met: int
    num_requests: int

    @property
    def value(self) -> float:
        """The share itself."""
        return self.num_met / self.num_requests

    @property
    def ci95(self) -> tuple[float, float]:
        """Its 95 % Wilson interval."""
        return wilson_interval(self.num_met, self.num_requests)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """All runs of one setting.

    Attributes:
      policy: its name, with the token limit where a report has several.
      bucket_strategy: its name.
      load: what was sent, in a word; "goodput" where the rate was searched.
      runs: entries of the report's `runs`, at least one.
    """

    policy: str
    bucket_strategy: str
    load: str
    runs: tuple[Mapping[str, Any], ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """What drew the requests of its runs, ascending."""
        return tuple(sorted(run["seed"] for run in self.runs if "seed" in run))

    @property
    def is_goodput(self) -> bool:
        """Whether its runs stand at the rate that a search found."""
        return any("goodput_qps" in run for run in self.runs)

    @property
    def name(self) -> str:
        """The whole setting, for a line of a table."""
        return f"{self.policy} / {self.bucket_strategy} @ {self.load}"

    def values(self, *path: str) -> list[Any]:
        """Returns what the runs that know it have under a path of keys."""
        found = [_look_up(run, path) for run in self.runs]
        return [value for value in found if value is not None]

    def mean(self, *path: str) -> float | None:
        """Returns the mean over the runs of a number; None if it is nowhere."""
        known = self.values(*path)
        return statistics.fmean(known) if known else None

    def total(self, *path: str) -> float | None:
        """Returns the sum over the runs of a number; None if it is nowhere."""
        known = self.values(*path)
        return sum(known) if known else None

    def starts(self, kind: str) -> list[Mapping[str, Any]]:
        """Returns what the runs have of one of the `START_KINDS`.

        A start was cold if a warm one was measured after it, or if every program was
        compiled.
        """
        if kind == "cached":
            return self.values("start_up_warm")
        return [
            run["start_up"]
            for run in self.runs
            if run.get("start_up") and _is_cold(run) == (kind == "cold")
        ]

    def start_mean(self, kind: str, key: str) -> float | None:
        """Returns the mean of a number over the starts of a kind; None without any."""
        known = [one[key] for one in self.starts(kind) if one.get(key) is not None]
        return statistics.fmean(known) if known else None

    def first(self, *path: str) -> Any:
        """Returns what the first run that knows it has; None if it is nowhere."""
        return next(iter(self.values(*path)), None)

    def share(self, service_class: str | None = None) -> Share | None:
        """Returns the share met, of all or of a class; None without requests."""
        entries: list[Mapping[str, Any]] = (
            list(self.runs)
            if service_class is None
            else self.values("by_class", service_class)
        )
        known = [one for one in entries if one.get("num_requests")]
        if not known:
            return None
        num_requests = sum(one["num_requests"] for one in known)
        num_violations = sum(one["num_violations"] for one in known)
        return Share(num_met=num_requests - num_violations, num_requests=num_requests)


def _is_cold(run: Mapping[str, Any]) -> bool:
    programs = run["start_up"].get("programs") or ()
    sources = {one.get("source") for one in programs}
    return "start_up_warm" in run or sources == {"compiled"}


def _look_up(entry: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(entry, Mapping):
            return None
        entry = entry.get(key)
    return entry


def _load(run: Mapping[str, Any]) -> str:
    """Returns what was sent in a run, by what the user asked for."""
    if "goodput_qps" in run:
        return "goodput"
    if "load" in run:
        return f"{run['load']:g}x"
    if "levels_qps" in run:
        return "/".join(f"{qps:g}" for qps in run["levels_qps"]) + "/s"
    if "qps" in run:
        return f"{run['qps']:.3g}/s"
    if "num_clients" in run:
        return f"{run['num_clients']} clients"
    if run.get("is_one_shot"):
        return "all at once"
    return "one load"


def require_readable(report: Mapping[str, Any]) -> None:
    """Refuses what is not a report, or one of an unknown schema.

    Raises:
      ValueError: naming what was found and what can be read.
    """
    known = " and ".join(str(version) for version in READABLE_SCHEMAS)
    version = report.get("schema_version")
    if version not in READABLE_SCHEMAS or isinstance(version, bool):
        raise ValueError(
            f"schema_version is {version!r}; reports of schema {known} can be read"
        )
    runs = report.get("runs")
    if not isinstance(runs, list) or not runs:
        raise ValueError("the report has no runs")


def cells(report: Mapping[str, Any]) -> list[Cell]:
    """Returns the cells of a report, in the order in which they were first run.

    Raises:
      ValueError: as `require_readable`.
    """
    require_readable(report)
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for policy, run in _with_policy(report["runs"]):
        key = (policy, str(run.get("bucket_strategy", "pow2")), _load(run))
        groups.setdefault(key, []).append(run)
    return [
        Cell(policy=policy, bucket_strategy=strategy, load=load, runs=tuple(runs))
        for (policy, strategy, load), runs in groups.items()
    ]


def _with_policy(
    runs: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields each run with its policy's name; limits are named where they differ."""
    limits: dict[str, set[int]] = {}
    for run in runs:
        if "max_num_batched_tokens" in run:
            limit = run["max_num_batched_tokens"]
            limits.setdefault(str(run.get("policy")), set()).add(limit)
    for run in runs:
        policy = str(run.get("policy", "server"))
        if len(limits.get(policy, ())) > 1 and "max_num_batched_tokens" in run:
            policy += f"@{run['max_num_batched_tokens']}"
        yield policy, run


def distinct(values: Sequence[str]) -> list[str]:
    """Returns values without repeats, in their order."""
    return list(dict.fromkeys(values))
