"""Reads request traces: when each request came, and how long it was.

A trace is a CSV with the columns `arrival_s,prompt_tokens,output_tokens`, sorted
by arrival, and maybe `service_class`. It holds lengths and times, and what kind of
request each was, if it says so; the text is made up by `workload`.
"""

import csv
import dataclasses
import math
import pathlib
from collections.abc import Sequence

from jserve_sched.slo import ServiceClass
from jserve_sched.workload import check_shares, draw_class

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
CLASS_COLUMN = "service_class"
TRACE_FORM = (
    "CSV of arrival_s (seconds), prompt_tokens, output_tokens, and maybe "
    "service_class, the name of one of service_classes"
)
DEFAULT_TRACE = pathlib.Path(__file__).parent / "traces" / "azure_conv.csv"


@dataclasses.dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace; without a service class, it gets one by shares."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    service_class: str = ""


def _number(where: str, name: str, text: str | None, least: float) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise ValueError(f"{where}: {name}={text!r} is not a number") from None
    if not math.isfinite(value) or value < least:
        raise ValueError(f"{where}: {name}={text} is below {least:g}")
    return value


def _count(where: str, name: str, text: str | None) -> int:
    value = _number(where, name, text, 1)
    if value != int(value):
        raise ValueError(f"{where}: {name}={text} is not a whole number")
    return int(value)


def _class_name(where: str, name: str, classes: Sequence[ServiceClass]) -> str:
    known = [one.name for one in classes]
    if name not in known:
        raise ValueError(f"{where}: {CLASS_COLUMN}={name!r} is not one of {known}")
    return name


def read_trace(
    path: pathlib.Path,
    *,
    num_requests: int = 0,
    classes: Sequence[ServiceClass] = (),
) -> list[TraceRow]:
    """Reads the first rows of a trace, with times from the first arrival.

    Args:
      path: the CSV file.
      num_requests: rows wanted; 0 takes all.
      classes: what the trace's own classes must be among. Without any, its column of
        classes is not read.

    Raises:
      ValueError: naming the line and the value that is wrong, or that the file
        has fewer rows than wanted.
      OSError: if the file cannot be read.
    """
    rows: list[TraceRow] = []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path}: the first line lacks {missing}; it must name {list(COLUMNS)}"
            )
        has_classes = bool(classes) and CLASS_COLUMN in (reader.fieldnames or ())
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            row = TraceRow(
                _number(where, "arrival_s", cells["arrival_s"], 0),
                _count(where, "prompt_tokens", cells["prompt_tokens"]),
                _count(where, "output_tokens", cells["output_tokens"]),
            )
            if has_classes:
                name = _class_name(where, cells[CLASS_COLUMN] or "", classes)
                row = dataclasses.replace(row, service_class=name)
            if rows and row.arrival_s < rows[-1].arrival_s:
                raise ValueError(
                    f"{where}: arrival_s={row.arrival_s} is before the line above "
                    f"({rows[-1].arrival_s}); sort by arrival_s"
                )
            rows.append(row)
            if len(rows) == num_requests:
                break
    if not rows:
        raise ValueError(f"{path}: no requests")
    if len(rows) < num_requests:
        raise ValueError(f"num_requests={num_requests}, but {path} has {len(rows)}")
    start_s = rows[0].arrival_s
    return [dataclasses.replace(row, arrival_s=row.arrival_s - start_s) for row in rows]


def scale_lengths(rows: list[TraceRow], factor: float) -> list[TraceRow]:
    """Returns the rows with prompts and outputs `factor` times as long, at least 1."""
    return [
        dataclasses.replace(
            row,
            prompt_tokens=max(1, round(row.prompt_tokens * factor)),
            output_tokens=max(1, round(row.output_tokens * factor)),
        )
        for row in rows
    ]


def row_classes(
    rows: Sequence[TraceRow], classes: Sequence[ServiceClass], seed: int
) -> list[ServiceClass]:
    """Returns the class of each row: its own, or one drawn by share.

    Raises:
      ValueError: if a row's own is not among the classes, or one is to be drawn and
        their shares do not add up to 1.
    """
    if not all(row.service_class for row in rows):
        check_shares(classes)
    by_name = {one.name: one for one in classes}
    found = []
    for index, row in enumerate(rows):
        if not row.service_class:
            found.append(draw_class(classes, seed, index))
            continue
        _class_name(f"request {index}", row.service_class, classes)
        found.append(by_name[row.service_class])
    return found


def mean_rate(rows: list[TraceRow]) -> float:
    """Returns the trace's mean arrival rate, requests per second.

    Raises:
      ValueError: if the rows do not span any time.
    """
    span_s = rows[-1].arrival_s - rows[0].arrival_s
    if span_s <= 0:
        raise ValueError(f"{len(rows)} requests within {span_s} s have no rate")
    return (len(rows) - 1) / span_s


def scale_rate(rows: list[TraceRow], qps: float) -> list[TraceRow]:
    """Returns the rows with arrival times scaled to a mean rate of `qps` a second.

    An infinite rate has all come at once.

    Raises:
      ValueError: if the rows do not span any time and the rate is finite.
    """
    factor = mean_rate(rows) / qps if math.isfinite(qps) else 0.0
    return [dataclasses.replace(row, arrival_s=row.arrival_s * factor) for row in rows]
