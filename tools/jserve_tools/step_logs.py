"""Step logs as files: reads what a server recorded, writes what a simulation ran.

The one idea: a log is read as stretches of steps that share a header, since which
plans were made depends on the shapes there were, and a server that warms up, or is
started again with others, has several such tables in one log.

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

from jserve.step_recorder import (
    FIELDS,
    FORMAT,
    VERSION,
    header_line,
    rotated,
    step_line,
)
from jserve_sched.buckets import BucketTable, table_from_json
from jserve_sched.cost_model import CostModel
from jserve_sched.simulation_log import SimulatedStep
from jserve_sched.workload import Arrival
from jserve_tools.documents import write_whole

_LOG = logging.getLogger("jserve")

TbtBudgets = Sequence[tuple[float, float]]  # (tbt_s, share of the requests)


class RecordedStep(NamedTuple):
    """One step, by the fields of a line; see `jserve.step_recorder.LoggedStep`."""

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
class StepLimits:
    """The limits a server ran with; buckets are fitted for a server of the same.

    Attributes:
      block_tokens: tokens in one prefill block.
      page_size: tokens in one KV page.
      max_num_seqs: most requests in a step.
      max_num_batched_tokens: most token positions in a step.
    """

    block_tokens: int
    page_size: int
    max_num_seqs: int
    max_num_batched_tokens: int

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} is not a whole number from 1 on")

    def __str__(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in dataclasses.asdict(self).items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stretch:
    """Steps that ran one after another under one header.

    Attributes:
      limits: the server's.
      table: the shapes there were.
      header: all that the header says.
      steps: in order.
    """

    limits: StepLimits
    table: BucketTable
    header: Mapping[str, Any]
    steps: Sequence[RecordedStep]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepLogFile:
    """What one or more step logs hold.

    Attributes:
      limits: the same in all of them.
      stretches: in order; each has a step.
    """

    limits: StepLimits
    stretches: Sequence[Stretch]

    @property
    def num_steps(self) -> int:
        """Steps in all."""
        return sum(len(one.steps) for one in self.stretches)

    @property
    def step_times(self) -> Mapping[str, Any] | None:
        """The newest step times (`TablePredictor.to_json`); None if there are none."""
        for one in reversed(self.stretches):
            if one.header.get("step_times") is not None:
                times: Mapping[str, Any] = one.header["step_times"]
                return times
        return None

    @property
    def tbt_budgets(self) -> TbtBudgets:
        """Times between tokens that the newest header's classes promise.

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
        return [(tbt_s, share) for tbt_s, share in found if share > 0]

    def halves(self) -> tuple[Sequence[Stretch], Sequence[Stretch]]:
        """Returns the earlier and the later half of the steps."""
        left = self.num_steps // 2
        first: list[Stretch] = []
        second: list[Stretch] = []
        for one in self.stretches:
            num_first = min(left, len(one.steps))
            left -= num_first
            for half, steps in (
                (first, one.steps[:num_first]),
                (second, one.steps[num_first:]),
            ):
                if steps:
                    half.append(dataclasses.replace(one, steps=steps))
        return first, second


def read_step_logs(paths: Sequence[pathlib.Path]) -> StepLogFile:
    """Reads logs, each with the older half beside it if there is one.

    A last line that was cut short is left out, with a warning.

    Args:
      paths: the files, from the earliest to the latest.

    Raises:
      ValueError: naming file and line of what is wrong, or two headers whose limits
        differ, or that there is no step.
      OSError: if a file cannot be read.
    """
    stretches: list[Stretch] = []
    for path in paths:
        older = rotated(path)
        for file in (older, path) if older.exists() else (path,):
            for stretch in _read(file):
                _append(stretches, stretch, file)
    if not stretches:
        raise ValueError(f"{', '.join(map(str, paths))}: there is no step in it")
    return StepLogFile(limits=stretches[0].limits, stretches=stretches)


def _append(stretches: list[Stretch], new: Stretch, file: pathlib.Path) -> None:
    """Adds a stretch, or joins it to the one before if the headers agree."""
    if not new.steps:
        return
    if not stretches:
        stretches.append(new)
        return
    last = stretches[-1]
    if new.limits != last.limits:
        raise ValueError(
            f"{file}: steps of a server with {new.limits} cannot be mixed with steps "
            f"of one with {last.limits}"
        )
    if new.header == last.header:
        steps = [*last.steps, *new.steps]
        stretches[-1] = dataclasses.replace(last, steps=steps)
    else:
        stretches.append(new)


def _read(path: pathlib.Path) -> Iterator[Stretch]:
    """Yields the stretches of one file."""
    lines = path.read_bytes().split(b"\n")
    if lines.pop():  # what follows the last line feed
        _LOG.warning("%s: line %d was cut short; it is left out", path, len(lines) + 1)
    if not lines:
        raise ValueError(f"{path} is empty, or its first line was cut short")
    begun: Stretch | None = None
    steps: list[RecordedStep] = []
    for number, line in enumerate(lines, 1):
        where = f"{path}: line {number}"
        try:
            content = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        if begun is not None and not isinstance(content, dict):
            steps.append(_step(where, content, begun.table))
            continue
        if begun is not None:
            yield dataclasses.replace(begun, steps=steps)
        begun, steps = _begin(where, content), []
    assert begun is not None
    yield dataclasses.replace(begun, steps=steps)


def _begin(where: str, header: Any) -> Stretch:
    """Returns the stretch that a header begins, still without steps."""
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{where} is no header of a step log: {str(header)[:80]}")
    if header.get("version") != VERSION or header.get("fields") != list(FIELDS):
        raise ValueError(
            f"{where}: the log is of version {header.get('version')}, this program "
            f"reads {VERSION}; record it again"
        )
    names = [field.name for field in dataclasses.fields(StepLimits)]
    missing = [name for name in (*names, "buckets") if name not in header]
    if missing:
        raise ValueError(f"{where}: the header lacks {missing}")
    try:
        limits = StepLimits(**{name: header[name] for name in names})
        table = table_from_json(json.dumps(header["buckets"]))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    for name, of_table, limit in (
        ("block_tokens", table.block_tokens, limits.block_tokens),
        ("the largest row edge", table.max_rows, limits.max_num_seqs),
    ):
        if of_table != limit:
            raise ValueError(
                f"{where}: {name} is {of_table} in the buckets, {limit} in the limits"
            )
    return Stretch(limits=limits, table=table, header=header, steps=())


def _step(where: str, row: Any, table: BucketTable) -> RecordedStep:
    if not isinstance(row, list) or len(row) != len(FIELDS):
        raise ValueError(f"{where} is not a list of {len(FIELDS)} numbers")
    for name, value in zip(FIELDS, row, strict=True):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < 0:
            raise ValueError(f"{where}: {name}={value!r} is not a number from 0 on")
        if FIELDS[name] is int and value != int(value):
            raise ValueError(f"{where}: {name}={value} is not a whole number")
    step = RecordedStep._make(row)
    for name, value, limit in (
        ("num_rows", step.num_rows, table.max_rows),
        ("num_blocks", step.num_blocks, table.max_blocks),
        ("used_rows", step.used_rows, step.num_rows),
        ("used_blocks", step.used_blocks, step.num_blocks),
        ("leaves_work", step.leaves_work, 1),
    ):
        if value > limit:
            raise ValueError(f"{where}: {name}={value} is over {limit}")
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
      path: the log; replaced if it is there.
      steps: in order, times in virtual seconds.
      cost_model: the machine, for the limits.
      buckets: the shapes the steps ran in.
      policy: what planned them.
      arrivals: whose promises are noted, by class.
    """
    limits = StepLimits(
        block_tokens=buckets.block_tokens,
        page_size=cost_model.page_size,
        max_num_seqs=cost_model.max_num_seqs,
        max_num_batched_tokens=cost_model.max_num_batched_tokens,
    )
    header = {
        **dataclasses.asdict(limits),
        "policy": policy,
        "buckets": buckets.to_json(),
        "service_classes": [
            {"tbt_s": tbt_s, "share": share} for tbt_s, share in tbt_budgets(arrivals)
        ],
    }
    lines = [header_line(header)]
    for one in steps:
        record = RecordedStep(
            end_s=one.start_s + one.duration_s,
            num_rows=one.num_rows,
            num_blocks=one.num_blocks,
            used_rows=one.used_rows,
            used_blocks=one.used_blocks,
            decode_pages=one.decode_pages,
            block_pages=one.block_pages,
            leaves_work=one.leaves_work,
            bucket_s=one.bucket_s,
            used_s=one.used_s,
            duration_s=one.duration_s,
        )
        lines.append(step_line(record))
    write_whole(path, b"".join(lines))


def tbt_budgets(arrivals: Sequence[Arrival]) -> TbtBudgets:
    """Returns the times between tokens that are promised, s, and to what share.

    Requests without such a promise are in no share.
    """
    counts = collections.Counter(one.slo.tbt_s for one in arrivals)
    return [
        (tbt_s, count / len(arrivals))
        for tbt_s, count in sorted(
            (tbt_s, count) for tbt_s, count in counts.items() if tbt_s is not None
        )
    ]
