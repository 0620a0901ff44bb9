"""Rows of request traces as their publishers write them, in jserve's columns.

jserve      CSV with arrival_s, prompt_tokens, output_tokens, perhaps service_class
Azure       CSV with TIMESTAMP (a date), ContextTokens, GeneratedTokens
BurstGPT    CSV with Timestamp (seconds), Request tokens, Response tokens
Mooncake    JSON lines with timestamp (milliseconds), input_length, output_length and
            hash_ids, one for each 512 tokens of the prompt: equal ids, equal tokens
ShareGPT    a JSON list of conversations, without times or counts: each answer is a
            request, its prompt all that came before, four characters are taken to be
            a token, and one comes each second; --poisson draws times

A format is known by the first line. Other columns are not read.
"""

import csv
import datetime
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple, TextIO

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
_CSV_COLUMNS = (
    COLUMNS,
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    ("Timestamp", "Request tokens", "Response tokens"),
)
_MOONCAKE_KEYS = ("timestamp", "input_length", "output_length")
_CHARACTERS = 4  # of a token
_BLOCK_TOKENS = 512
_MAX_BLOCKS = 4096  # of a ShareGPT conversation


class RawRow(NamedTuple):
    """One row, unchecked.

    Attributes:
      place: Where it stands in the file, for messages.
      cells: Values of `COLUMNS`, as text or numbers; None if absent.
      service_class: Its class, in jserve's own traces that have such a column.
      block_ids: Content of each 512 tokens of the prompt, as in `Arrival`.
      may_be_empty: Whether rows without tokens belong to the format: requests that
        failed.
    """

    place: str
    cells: tuple[Any, Any, Any]
    service_class: str | None = None
    block_ids: tuple[int, ...] = ()
    may_be_empty: bool = True


def read_rows(path: pathlib.Path) -> Iterator[RawRow]:
    """Yields the rows of a trace, in the order of the file.

    Raises:
      ValueError: If the format is unknown or broken, naming file and line.
      OSError: If the file cannot be read.
    """
    with path.open(newline="") as file:
        first = file.read(1)
        file.seek(0)
        try:
            if first == "{":
                yield from _mooncake(file)
            elif first == "[":
                yield from _sharegpt(json.load(file))
            else:
                yield from _csv(file)
        except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: {error}") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: a row lacks {error}") from None


def _csv(file: TextIO) -> Iterator[RawRow]:
    reader = csv.DictReader(file)
    names = reader.fieldnames or ()
    known = [one for one in _CSV_COLUMNS if set(one) <= set(names)]
    if not known:
        missing = [name for name in COLUMNS if name not in names]
        raise ValueError(
            f"{file.name}: the first line lacks {missing}; it must name "
            f"{list(COLUMNS)}, or be Azure's, BurstGPT's, Mooncake's or ShareGPT's"
        )
    columns, is_own = known[0], known[0] == COLUMNS
    for cells in reader:
        time, prompt, output = (cells[name] for name in columns)
        if columns[0] == "TIMESTAMP":
            time = _seconds(time)
        yield RawRow(
            f"line {reader.line_num}",
            (time, prompt, output),
            cells.get("service_class") or "" if "service_class" in names else None,
            may_be_empty=not is_own,
        )


def _seconds(text: str | None) -> Any:
    """Returns a date in seconds; what is no date is returned as it is."""
    try:
        date = datetime.datetime.fromisoformat(text or "")
    except ValueError:
        return text
    return date.replace(tzinfo=date.tzinfo or datetime.UTC).timestamp()


def _mooncake(file: TextIO) -> Iterator[RawRow]:
    for number, line in enumerate(file, 1):
        row = json.loads(line)
        time_ms, prompt, output = (row[name] for name in _MOONCAKE_KEYS)
        cells = time_ms / 1000, prompt, output
        yield RawRow(f"line {number}", cells, block_ids=tuple(row.get("hash_ids", ())))


def _sharegpt(conversations: list[Any]) -> Iterator[RawRow]:
    number = 0
    for index, one in enumerate(conversations):
        before = 0
        for turn in one["conversations"]:
            tokens = -(-len(turn["value"]) // _CHARACTERS)
            if turn["from"] == "gpt":
                first = index * _MAX_BLOCKS
                ids = tuple(range(first, first + before // _BLOCK_TOKENS + 1))
                cells, place = (number, before, tokens), f"conversation {index}"
                yield RawRow(place, cells, block_ids=ids)
                number += 1
            before += tokens
