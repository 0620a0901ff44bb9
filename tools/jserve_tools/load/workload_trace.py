"""Reads request traces: the arrival time and the lengths of each request.

A trace is a CSV file with the columns `arrival_s,prompt_tokens,output_tokens` and,
optionally, `service_class`, sorted by arrival. It holds no text; `workload` draws token
ids at random.
"""

import csv
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence

from jserve_sched.requests.service_class import ServiceClass

_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
DEFAULT_TRACE = pathlib.Path(__file__).parents[1] / "traces" / "azure_conv.csv"


@dataclasses.dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace; if it names no service class, one is drawn by shares."""

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
      num_requests: Number of rows to read; 0 takes all.
      classes: Classes that the trace may name. If there are none, its column
        `service_class` is not read.

    Raises:
      ValueError: If a value is invalid, naming it and its line, or if the file has
        fewer rows than `num_requests`.
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
      ValueError: If a class must be drawn and the shares do not add up to 1.
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
