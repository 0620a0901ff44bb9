"""Markdown tables, and pages that quote them.

A page is written by hand, except for marked places that a program fills with tables.
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jserve_tools.reporting.documents import plain, write_whole

_PLACE = re.compile(
    r"(?P<begin><!-- table: (?P<name>[a-z-]+) -->\n).*?(?P<end><!-- end of table -->)",
    re.DOTALL,
)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; the first column is text, the others are numbers."""
    rule = ["---", *("--:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def fill_page(page: str, tables: Mapping[str, str]) -> str:
    """Returns a page with its marked places filled.

    A place that `tables` does not name stays as it is.
    """

    def fill(match: re.Match[str]) -> str:
        table = tables.get(match["name"])
        if table is None:
            return match[0]
        return f"{match['begin']}\n{table}\n\n{match['end']}"

    return _PLACE.sub(fill, page)


def entry_a_line(report: Mapping[str, Any]) -> bytes:
    """Returns results as JSON with one entry a line, so that diffs are readable."""
    parts = []
    for name, value in plain(report).items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines = ",\n  ".join(json.dumps(one) for one in value)
            parts.append(f"{json.dumps(name)}: [\n  {lines}\n]")
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(value)}")
    return ("{\n" + ",\n".join(parts) + "\n}\n").encode()


def write_study(
    folder: pathlib.Path,
    report: Mapping[str, Any],
    *,
    tables: Mapping[str, str],
    pictures: Mapping[str, bytes],
) -> None:
    """Writes results.json, tables.md and the pictures, and fills the page beside them.

    Args:
      folder: Folder to write to; the marked places of its README.md are filled.
      tables: Markdown tables, by the names of the marked places.
      pictures: Contents of the picture files, by name.
    """
    write_whole(folder / "results.json", entry_a_line(report))
    text = "\n\n".join(f"## {name}\n\n{table}" for name, table in tables.items())
    write_whole(folder / "tables.md", f"{text}\n".encode())
    for name, picture in pictures.items():
        write_whole(folder / name, picture)
    page = folder / "README.md"
    if page.exists():
        write_whole(page, fill_page(page.read_text(), tables).encode())
