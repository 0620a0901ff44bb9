"""Reads request traces: the arrival time and the lengths of each request.

A trace is a CSV file with the columns `arrival_s,prompt_tokens,output_tokens` and,
optionally, `service_class`, sorted by arrival, or one of the public formats of
`trace_formats`. Its text is not used; `workload` draws token ids at random.
"""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from jserve_sched.requests.service_class import ServiceClass
from jserve_tools.load.trace_formats import COLUMNS, RawRow, read_rows

_MAX_TOKENS = 2**24  # of a prompt or an answer
_MAX_BLOCK_ID = 2**31 - 1
_BLOCK_TOKENS = 512
DEFAULT_TRACE = pathlib.Path(__file__).parents[1] / "traces" / "azure_conv.csv"


@dataclasses.dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace; if it names no service class, one is drawn by shares.

    `block_ids` is the content of the prompt, if it is known; see `Arrival`.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    service_class: str = ""
    block_ids: tuple[int, ...] = ()


def _number(name: str, cell: Any, least: int) -> float:
    """Returns a cell's number: a time from 0, or a whole number of tokens."""
    try:
        value = float("" if cell is None else cell)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={cell!r} is not a number") from None
    if not math.isfinite(value) or value < least:
        raise ValueError(f"{name}={cell} is below {least}")
    if name != "arrival_s" and value != int(value):
        raise ValueError(f"{name}={cell} is not a whole number")
    if name != "arrival_s" and value > _MAX_TOKENS:
        raise ValueError(f"{name}={cell} is above {_MAX_TOKENS}")
    return value


def _row(raw: RawRow, class_names: Sequence[str], last_s: float) -> TraceRow | None:
    """Returns the request of a row; None if it may be left out, without tokens."""
    least = 0 if raw.may_be_empty else 1
    time_s, prompt, output = (
        _number(name, cell, least if place else 0)
        for place, (name, cell) in enumerate(zip(COLUMNS, raw.cells, strict=True))
    )
    if time_s < last_s:
        raise ValueError(
            f"arrival_s={time_s} is before the line above ({last_s}); sort by arrival_s"
        )
    service_class = ""
    if class_names and raw.service_class is not None:
        service_class = raw.service_class
        if service_class not in class_names:
            raise ValueError(
                f"service_class={service_class!r} is not one of {class_names}"
            )
    ids = raw.block_ids
    if ids and (
        len(ids) * _BLOCK_TOKENS < prompt
        or not all(type(one) is int and 0 <= one <= _MAX_BLOCK_ID for one in ids)
    ):
        raise ValueError(
            f"hash_ids must be one id of 0 to {_MAX_BLOCK_ID} for each "
            f"{_BLOCK_TOKENS} of the {prompt:.0f} tokens"
        )
    if not (prompt and output):
        return None
    return TraceRow(time_s, int(prompt), int(output), service_class, ids)


def read_trace(
    path: pathlib.Path,
    *,
    num_requests: int = 0,
    classes: Sequence[ServiceClass] = (),
) -> list[TraceRow]:
    """Reads the first rows of a trace, with times from the first arrival.

    A warning counts the rows that were left out, since they have no tokens.

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
    num_empty = 0
    for raw in read_rows(path):
        try:
            row = _row(raw, names, rows[-1].arrival_s if rows else 0.0)
        except ValueError as error:
            raise ValueError(f"{path}, {raw.place}: {error}") from None
        if row is None:
            num_empty += 1
            continue
        rows.append(row)
        if len(rows) == num_requests:
            break
    if num_empty:
        logging.warning("%s: %d rows without tokens are left out", path, num_empty)
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
