"""Reads request traces: when each request came, and how long it was.

A trace is a CSV with the columns `arrival_s,prompt_tokens,output_tokens`, sorted
by arrival, and maybe `service_class`. It holds lengths and times, and what kind of
request each was, if it says so; the text is made up by `workload`.
"""

import csv
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence

from jserve_sched.requests.slo import ServiceClass

_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
DEFAULT_TRACE = pathlib.Path(__file__).parents[1] / "traces" / "azure_conv.csv"


@dataclasses.dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace; without a service class, it gets one by shares."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    service_class: str = ""


def _number(name: str, text: str | None) -> float:
    """Returns a cell's number: a time from 0, or a whole number of tokens from 1."""
    try:
        value = float(text or "")
    except ValueError:
        raise ValueError(f"{name}={text!r} is not a number") from None
    least = 0 if name == "arrival_s" else 1
    if not math.isfinite(value) or value < least:
        raise ValueError(f"{name}={text} is below {least}")
    if name != "arrival_s" and value != int(value):
        raise ValueError(f"{name}={text} is not a whole number")
    return value


def _row(
    cells: Mapping[str, str], class_names: Sequence[str], last_s: float
) -> TraceRow:
    time_s, prompt, output = (_number(name, cells[name]) for name in _COLUMNS)
    if time_s < last_s:
        raise ValueError(
            f"arrival_s={time_s} is before the line above ({last_s}); sort by arrival_s"
        )
    service_class = ""
    if class_names and "service_class" in cells:
        service_class = cells["service_class"] or ""
        if service_class not in class_names:
            raise ValueError(
                f"service_class={service_class!r} is not one of {class_names}"
            )
    return TraceRow(time_s, int(prompt), int(output), service_class)


def read_trace(
    path: pathlib.Path,
    *,
    num_requests: int = 0,
    classes: Sequence[ServiceClass] = (),
) -> list[TraceRow]:
    """Reads the first rows of a trace, with times from the first arrival.

    Args:
      path: The CSV file.
      num_requests: Rows wanted; 0 takes all.
      classes: What the trace's own classes must be among. Without any, its column of
        classes is not read.

    Raises:
      ValueError: Naming the line and the value that is wrong, or that the file
        has fewer rows than wanted.
      OSError: If the file cannot be read.
    """
    rows: list[TraceRow] = []
    names = [one.name for one in classes]
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path}: the first line lacks {missing}; it must name {list(_COLUMNS)}"
            )
        for cells in itertools.islice(reader, num_requests or None):
            try:
                rows.append(_row(cells, names, rows[-1].arrival_s if rows else 0.0))
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    if not rows:
        raise ValueError(f"{path}: no requests")
    if len(rows) < num_requests:
        raise ValueError(f"num_requests={num_requests}, but {path} has {len(rows)}")
    start_s = rows[0].arrival_s
    return [dataclasses.replace(row, arrival_s=row.arrival_s - start_s) for row in rows]


def row_classes(
    rows: Sequence[TraceRow], classes: Sequence[ServiceClass], seed: int
) -> list[ServiceClass]:
    """Returns the class of each row: its own, or one drawn by share.

    Raises:
      ValueError: If one is to be drawn and their shares do not add up to 1.
    """
    from jserve_sched.simulation.workload import (  # imports NumPy
        check_shares,
        draw_class,
    )

    if not all(row.service_class for row in rows):
        check_shares(classes)
    by_name = {one.name: one for one in classes}
    return [
        by_name[row.service_class]
        if row.service_class
        else draw_class(classes, seed, index)
        for index, row in enumerate(rows)
    ]


def mean_rate(rows: Sequence[TraceRow]) -> float:
    """Returns the trace's mean arrival rate, requests per second.

    Raises:
      ValueError: If the rows do not span any time.
    """
    span_s = rows[-1].arrival_s - rows[0].arrival_s
    if span_s <= 0:
        raise ValueError(f"{len(rows)} requests within {span_s} s have no rate")
    return (len(rows) - 1) / span_s
