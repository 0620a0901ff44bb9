"""Step logs as files: reads those of servers, writes those of simulations.

The format is that of `jserve.records.step_log`.
"""

import collections
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jserve.records.step_log import fields_of, header_line, read_step, step_line
from jserve_sched.buckets.table import BucketTable, table_from_json
from jserve_sched.fitting.demand import TbtBudgets
from jserve_sched.simulation.cost_model import CostModel
from jserve_sched.simulation.workload import Arrival
from jserve_sched.steps.record import StepRecord
from jserve_tools.reporting.documents import write_whole

_LOG = logging.getLogger("jserve")
LIMITS = ("block_tokens", "page_size", "max_num_seqs", "max_num_batched_tokens")


Logged = tuple[dict[str, Any], StepRecord]
"""The header above a step, with its bucket table as `table`, and the step."""


def read_step_logs(paths: Sequence[pathlib.Path]) -> list[Logged]:
    """Reads logs, earliest first, each with the older part `FILE.1` if there is one.

    An incomplete last line is left out, with a warning.

    Raises:
      ValueError: For an invalid line, naming file, line and content, such as a header
        with other limits than the first one's; or if no file has a step.
      OSError: If a file cannot be read.
    """
    steps: list[Logged] = []
    for path in paths:
        header: dict[str, Any] | None = None
        older = path.with_name(path.name + ".1")
        for file in (older, path) if older.exists() else (path,):
            for where, line in _lines(file):
                try:
                    row = json.loads(line)
                    if isinstance(row, dict):
                        header = _header(row, steps[0][0] if steps else row)
                    elif header is None:
                        raise ValueError("a step log begins with a header")
                    else:
                        steps.append((header, _step(header, row)))
                except (TypeError, ValueError) as error:
                    text = line[:200].decode(errors="replace")
                    raise ValueError(f"{where}: {error}: {text}") from None
    if not steps:
        raise ValueError(f"{', '.join(map(str, paths))}: no step was recorded")
    return steps


def _lines(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """Yields the place of each line of a file, for messages, and its content."""
    lines = path.read_bytes().split(b"\n")
    if lines.pop():  # what follows the last line feed
        _LOG.warning("%s: line %d was cut short; it is left out", path, len(lines) + 1)
    for number, line in enumerate(lines, 1):
        yield f"{path}: line {number}", line


def _header(row: dict[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a header with its `table`; it has the limits of the first one."""
    fields = fields_of(row)
    for name in LIMITS:
        value = row.get(name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}={value!r} is not a whole number above 0")
        if value != first[name]:
            raise ValueError(f"{name}={value} cannot be mixed with {first[name]}")
    table = table_from_json(json.dumps(row.get("buckets")))
    if (table.block_tokens, table.max_rows) != (
        row["block_tokens"],
        row["max_num_seqs"],
    ):
        raise ValueError("the buckets are of another block_tokens or max_num_seqs")
    return row | {"table": table, "fields": fields}


def _step(header: Mapping[str, Any], numbers: Sequence[float]) -> StepRecord:
    step, table = read_step(header["fields"], numbers), header["table"]
    if not (
        step.num_rows in table.row_edges
        and step.num_blocks in table.block_edges
        and step.used_rows <= step.num_rows
        and step.used_blocks <= step.num_blocks
    ):
        raise ValueError("this is not a step in the buckets")
    return step


def write_simulated_log(
    path: pathlib.Path,
    steps: Sequence[StepRecord],
    *,
    cost_model: CostModel,
    buckets: BucketTable,
    policy: str,
    arrivals: Sequence[Arrival],
) -> None:
    """Writes simulated steps as a server with the same limits would have logged them.

    The log holds no step times, so a fit to it needs the cost model.

    Args:
      steps: Steps in order, times in virtual seconds.
      arrivals: Requests; the header gets their TBT objectives and the share of each.
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
    lines = [header_line(header), *map(step_line, steps)]
    write_whole(path, "".join(f"{line}\n" for line in lines).encode())


def tbt_budgets(arrivals: Sequence[Arrival]) -> TbtBudgets:
    """Returns the TBT objectives in seconds, and the share of requests with each.

    Requests without a TBT objective belong to no share.
    """
    counts = collections.Counter(
        one.slo.tbt_s for one in arrivals if one.slo.tbt_s is not None
    )
    return [(tbt_s, count / len(arrivals)) for tbt_s, count in sorted(counts.items())]
