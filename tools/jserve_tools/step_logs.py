"""Step logs as files: reads what a server recorded, writes what a simulation ran.

A log is read as stretches of steps that share a header, since which plans were made
depends on the shapes there were, and a server that warms up, or is started again with
others, has several such tables in one log.

The format is that of `jserve.step_recorder`.
"""

import collections
import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jserve.step_recorder import FORMAT, VERSION, header_line, step_line
from jserve_sched.buckets import BucketTable, table_from_json
from jserve_sched.cost_model import CostModel
from jserve_sched.simulation_log import SimulatedStep
from jserve_sched.step_demand import (
    StepDemand,
    StepTimes,
    TbtBudgets,
    demand_from_steps,
    merge,
)
from jserve_sched.table_predictor import TablePredictor
from jserve_sched.workload import Arrival
from jserve_tools.documents import write_whole

_LOG = logging.getLogger("jserve")
_LIMITS = ("block_tokens", "page_size", "max_num_seqs", "max_num_batched_tokens")


class RecordedStep(NamedTuple):
    """One step, by the fields of a line; see `jserve.step_recorder`."""

    end_s: float
    num_rows: int
    num_blocks: int
    used_rows: int
    used_blocks: int
    decode_pages: int
    block_pages: int
    leaves_work: bool
    bucket_s: float
    used_s: float
    duration_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stretch:
    """Steps that ran one after another under one header.

    Attributes:
      header: All that the header says.
      table: Shapes that were compiled.
      steps: The steps, in order.
    """

    header: Mapping[str, Any]
    table: BucketTable
    steps: list[RecordedStep]

    @property
    def limits(self) -> dict[str, int]:
        """The server's limits; buckets are fitted for a server with the same."""
        return {name: self.header[name] for name in _LIMITS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedSteps:
    """What one or more step logs hold.

    Attributes:
      stretches: In order; each has a step, and all have the same limits.
    """

    stretches: Sequence[Stretch]

    @property
    def limits(self) -> dict[str, int]:
        """The server's limits."""
        return self.stretches[0].limits

    @property
    def steps(self) -> list[RecordedStep]:
        """All steps, in order."""
        return [step for one in self.stretches for step in one.steps]

    @property
    def tbt_budgets(self) -> TbtBudgets:
        """Times between tokens that are objectives of the newest header's classes.

        A class without a share counts as much as the others without one.
        """
        classes = self.stretches[-1].header.get("service_classes") or ()
        found = [
            (float(row["tbt_s"]), float(row.get("share") or 0.0))
            for row in classes
            if row.get("tbt_s") is not None
        ]
        if not any(share for _, share in found):
            return [(tbt_s, 1.0 / len(found)) for tbt_s, _ in found]
        return found

    def measured(self) -> StepTimes:
        """Returns the newest step times that a server measured when it was warm.

        Raises:
          ValueError: If no header holds any, or they are invalid.
        """
        headers = [one.header for one in self.stretches if one.header.get("step_times")]
        if not headers:
            raise ValueError(
                "the step log holds no step times, which a server adds once it is warm:"
                " give cost_model"
            )
        pages = max(max(step.decode_pages, step.block_pages) for step in self.steps)
        times = headers[-1]["step_times"]
        try:
            table = table_from_json(json.dumps(times["buckets"]))
            predictor = TablePredictor(table, max_pages_per_row=pages)
            if not predictor.load_json(dict(times)):
                raise ValueError("they do not agree with their own buckets")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the step times in the step log: {error}") from None
        return predictor.predict

    def demand(
        self, step_s: StepTimes, start: int = 0, stop: int | None = None
    ) -> StepDemand:
        """Returns what the steps from `start` up to `stop` want; at least one."""
        stop = len(self.steps) if stop is None else stop
        parts = []
        for one in self.stretches:
            steps = one.steps[max(start, 0) : max(stop, 0)]
            start, stop = start - len(one.steps), stop - len(one.steps)
            if steps:
                parts.append(
                    demand_from_steps(
                        steps,
                        one.table,
                        tbt_budgets=self.tbt_budgets,
                        step_s=step_s,
                        page_size=self.limits["page_size"],
                    )
                )
        return merge(parts)


def read_step_logs(paths: Sequence[pathlib.Path]) -> RecordedSteps:
    """Reads logs, each with the older part `FILE.1` beside it if there is one.

    A last line that was cut short is left out, with a warning.

    Args:
      paths: The files, from the earliest to the latest.

    Raises:
      ValueError: For a line that is invalid, naming file and line; for two headers
        whose limits differ; or for a log without a step.
      OSError: If a file cannot be read.
    """
    stretches: list[Stretch] = []
    for path in paths:
        older = path.with_name(path.name + ".1")
        begun: Stretch | None = None
        for file in (older, path) if older.exists() else (path,):
            for where, row in _lines(file):
                if isinstance(row, dict) and "format" in row:
                    if begun is None or row != begun.header:
                        begun = _begin(where, row)
                        stretches.append(begun)
                elif begun is None:
                    raise ValueError(f"{where}: a step log begins with a header")
                else:
                    begun.steps.append(_step(where, row, begun.table))
    stretches = [one for one in stretches if one.steps]
    if not stretches:
        raise ValueError(f"{', '.join(map(str, paths))}: there is no step in it")
    for one in stretches:
        if one.limits != stretches[0].limits:
            raise ValueError(
                f"steps of servers with {stretches[0].limits} and with {one.limits} "
                "cannot be mixed"
            )
    return RecordedSteps(stretches=stretches)


def _lines(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    """Yields where each line of a file is, and what it holds."""
    lines = path.read_bytes().split(b"\n")
    if lines.pop():  # what follows the last line feed
        _LOG.warning("%s: line %d was cut short; it is left out", path, len(lines) + 1)
    for number, line in enumerate(lines, 1):
        where = f"{path}: line {number}"
        try:
            yield where, json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is not JSON: {error}") from None


def _begin(where: str, header: Mapping[str, Any]) -> Stretch:
    """Returns the stretch that a header begins, still without steps."""
    known = [FORMAT, VERSION, list(RecordedStep._fields)]
    if [header.get(name) for name in ("format", "version", "fields")] != known:
        raise ValueError(f"{where} is not a header of {FORMAT} version {VERSION}")
    for name in _LIMITS:
        value = header.get(name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{where}: {name}={value!r} is not a whole number above 0")
    try:
        table = table_from_json(json.dumps(header.get("buckets")))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    for name, of_table in (
        ("block_tokens", table.block_tokens),
        ("max_num_seqs", table.max_rows),
    ):
        if of_table != header[name]:
            raise ValueError(f"{where}: {name}={header[name]}, {of_table} in buckets")
    return Stretch(header=header, table=table, steps=[])


def _step(where: str, row: Any, table: BucketTable) -> RecordedStep:
    try:
        step = RecordedStep._make(row)
        is_valid = (
            all(math.isfinite(value) and value >= 0 for value in step)
            and all(value == int(value) for value in step[1:8])
            and step.num_rows in table.row_edges
            and step.num_blocks in table.block_edges
            and step.used_rows <= step.num_rows
            and step.used_blocks <= step.num_blocks
        )
    except (TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise ValueError(f"{where} is not a step in the buckets: {str(row)[:200]}")
    return step._replace(leaves_work=bool(step.leaves_work))


def write_simulated_log(
    path: pathlib.Path,
    steps: Sequence[SimulatedStep],
    *,
    cost_model: CostModel,
    buckets: BucketTable,
    policy: str,
    arrivals: Sequence[Arrival],
) -> None:
    """Writes simulated steps as a server with the same limits would have logged them.

    There are no step times in it: a fit to it asks the cost model.

    Args:
      path: The log; replaced if it is there.
      steps: In order, times in virtual seconds.
      cost_model: The machine, for the limits.
      buckets: The shapes the steps ran in.
      policy: What planned them.
      arrivals: The requests, whose objectives are noted by class.
    """
    header = {
        "block_tokens": buckets.block_tokens,
        "page_size": cost_model.page_size,
        "max_num_seqs": cost_model.max_num_seqs,
        "max_num_batched_tokens": cost_model.max_num_batched_tokens,
        "policy": policy,
        "buckets": buckets.to_json(),
        "service_classes": [
            {"tbt_s": tbt_s, "share": share} for tbt_s, share in tbt_budgets(arrivals)
        ],
    }
    lines = [header_line(header)]
    for one in steps:
        end_s = one.start_s + one.duration_s
        facts = {name: getattr(one, name) for name in RecordedStep._fields[1:]}
        lines.append(step_line(RecordedStep(end_s=end_s, **facts)))
    write_whole(path, b"".join(lines))


def tbt_budgets(arrivals: Sequence[Arrival]) -> TbtBudgets:
    """Returns the objectives for times between tokens, s, and the share of each.

    Requests without such an objective are in no share.
    """
    counts = collections.Counter(
        one.slo.tbt_s for one in arrivals if one.slo.tbt_s is not None
    )
    return [(tbt_s, count / len(arrivals)) for tbt_s, count in sorted(counts.items())]
