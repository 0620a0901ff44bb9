"""What studies share: calls of jserve-simulate and of its runs tables and a picture.

A study is a list of settings, and each is one call of `jserve-simulate`. Its report is
kept in a folder named by the settings, so an interrupted study goes on where it
stopped; a report of another commit is made again.
"""

import concurrent.futures
import functools
import hashlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scipy import stats

from jserve_tools.reporting.documents import commit, write_whole

Settings = Mapping[str, Any]
Run = dict[str, Any]


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    return f"--{name}={value}"


def _simulate(folder: pathlib.Path, settings: Settings) -> list[Run]:
    """Returns the runs of one call, of an earlier one of this commit if there is."""
    flags = [_flag(name, value) for name, value in settings.items()]
    name = hashlib.blake2b(" ".join(flags).encode(), digest_size=8).hexdigest()
    path = folder / name / "report.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    if report.get("commit") != commit():
        command = [sys.executable, "-m", "jserve_tools.simulate", *flags]
        command += ["--nohtml", f"--output={path.parent}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
        report = json.loads(path.read_text())
    runs: list[Run] = report["runs"]
    return runs


def simulate(
    folder: pathlib.Path, calls: Sequence[Settings], *, num_processes: int = 0
) -> list[list[Run]]:
    """Makes calls of jserve-simulate, several at a time.

    Args:
      folder: Folder of the reports.
      calls: Flags of each call and their values.
      num_processes: Number of calls at a time; 0 takes one for each CPU.

    Returns:
      The `runs` of each call's report, in order.
    """
    found = []
    with concurrent.futures.ThreadPoolExecutor(num_processes or os.cpu_count()) as pool:
        for runs in pool.map(functools.partial(_simulate, folder), calls):
            found.append(runs)
            print(f"{len(found)} of {len(calls)}", file=sys.stderr, flush=True)
    return found


def mean(runs: Iterable[Run], *keys: str) -> float:
    """Returns the mean over runs of a number, which is found by keys."""
    found: list[Any] = list(runs)
    for key in keys:
        found = [one[key] for one in found]
    return statistics.fmean(found)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean of some seeds' values, and Student's 95 % interval."""
    middle = statistics.fmean(values)
    if len(values) < 2 or max(values) == min(values):
        return middle, middle, middle
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return middle, float(low), float(high)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; the first column is text, the others are numbers."""
    rule = ["---", *("--:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def grid(corner: str, cells: Mapping[tuple[str, str], str]) -> str:
    """Returns a table of cells by row and column, in the order of the cells."""
    columns = dict.fromkeys(column for _, column in cells)
    return markdown(
        [corner, *columns],
        [
            [row, *(cells.get((row, column), "-") for column in columns)]
            for row in dict.fromkeys(row for row, _ in cells)
        ],
    )


def print_tables(tables: Mapping[str, str]) -> None:
    """Prints tables with their names."""
    for name, table in tables.items():
        print(f"\n{name}\n\n{table}", flush=True)


def draw(
    path: pathlib.Path,
    values: Sequence[Settings],
    *,
    x: str,
    y: str,
    colour: str,
    column: str,
    row: str,
    dash: str = "",
) -> None:
    """Draws lines over `x`, with a panel for each column and row, as PNG.

    `low` and `high` of a value, where it has them, are drawn as its interval.
    """
    import altair as alt
    import vl_convert

    base = alt.Chart(alt.Data(values=list(values))).encode(
        x=alt.X(f"{x}:Q", scale=alt.Scale(zero=False)), color=f"{colour}:N"
    )
    lines = base.mark_line(point=True).encode(
        y=alt.Y(f"{y}:Q", title=y), detail=f"{dash or colour}:N"
    )
    if dash:
        lines = lines.encode(strokeDash=alt.StrokeDash(f"{dash}:N", title=None))
    chart = (
        alt.layer(
            lines, base.mark_rule().encode(y=alt.Y("low:Q", title=y), y2="high:Q")
        )
        .properties(width=160, height=180)
        .facet(column=f"{column}:N", row=f"{row}:N")
        .resolve_scale(x="independent")
    )
    write_whole(path, vl_convert.vegalite_to_png(chart.to_dict(), ppi=110))
