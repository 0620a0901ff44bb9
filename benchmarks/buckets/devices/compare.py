"""The table and the picture of bucket strategies on devices that are not at hand.

  sh benchmarks/buckets/devices/run.sh

It reads the reports that run.sh left and compares the strategies with `pow2`, seed by
seed: device time per request, requests that attained every objective, end-to-end time.
Intervals are Student's, 95 %, over three seeds. What compiling a table takes is its
number of programs times the mean seconds that tracing and compiling a step of this
model took on two cores (`benchmarks/aot`).
"""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks.marked_pages import markdown
from jserve.program import run_program
from jserve_tools.reporting.documents import plain, write_whole

_T_95 = 4.302653  # two-sided 95 % quantile of Student's t with two degrees of freedom
_SIDES = ("device", "trace", "policy", "bucket_strategy")
_FACTS = ("num_programs", "num_requests", "attainment", "pad_share_time", "num_steps")
_COLUMNS = {  # of the differences from pow2
    "device_s": ("device time a request, %", 100.0),
    "e2e_s": ("end to end, %", 100.0),
    "attainment": ("attained, points", 100.0),
}
_AOT = pathlib.Path(__file__).parents[2] / "aot"


def read_runs(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the runs of all reports in a folder, with what is compared."""
    found = []
    for path in sorted(folder.glob("*_*/report.json")):
        device, trace = path.parent.name.split("_")
        report = json.loads(path.read_text())
        for run in report["runs"]:
            programs = run["steps_by_program"]
            busy_s = sum(one["total_s"] for one in programs)
            served = run["num_requests"] + run["num_warmup"]
            found.append(
                {
                    "device": device,
                    "trace": trace,
                    "commit": report["commit"],
                    **{key: run[key] for key in ("policy", "bucket_strategy", "seed")},
                    **{key: run[key] for key in ("qps", *_FACTS)},
                    "device_s": busy_s / served,
                    "e2e_s": run["e2e_s"]["mean"],
                    "ttft_p99_s": run["ttft_s"]["p99"],
                    "tbt_p99_s": run["tbt_s"]["p99"],
                }
            )
    return found


def compile_minutes(device: str) -> float:
    """Returns the minutes to trace and compile one step of the model, on two cores."""
    compiled = json.loads((_AOT / f"{device}.json").read_text())["compiled"]
    steps = [one for name, one in compiled.items() if name.startswith("B")]
    return float(np.mean([one["trace_s"] + one["compile_s"] for one in steps]) / 60)


def compare(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns an entry for each device, trace, policy and strategy.

    `differences` has name -> mean, low and high of the difference from pow2 with the
    same seed, as a share of pow2's; of `attainment` the difference itself.
    """
    cells: dict[tuple[str, ...], dict[int, dict[str, Any]]] = {}
    for run in runs:
        key = tuple(run[side] for side in _SIDES)
        cells.setdefault(key, {})[run["seed"]] = run
    found = []
    for key, by_seed in cells.items():
        base = cells[*key[:3], "pow2"]
        differences = {}
        for name in _COLUMNS:
            values = np.array([by_seed[seed][name] for seed in sorted(by_seed)])
            pow2 = np.array([base[seed][name] for seed in sorted(by_seed)])
            change = values - pow2 if name == "attainment" else values / pow2 - 1
            half = _T_95 * change.std(ddof=1) / np.sqrt(len(change))
            mean = change.mean()
            differences[name] = {"mean": mean, "low": mean - half, "high": mean + half}
        rows = list(by_seed.values())
        num_programs = rows[0]["num_programs"]
        found.append(
            {
                **dict(zip(_SIDES, key, strict=True)),
                "num_programs": num_programs,
                "compile_hours": num_programs * compile_minutes(key[0]) / 60,
                **{
                    name: float(np.mean([row[name] for row in rows]))
                    for name in ("attainment", "pad_share_time", "device_s", "e2e_s")
                },
                "differences": differences,
            }
        )
    return found


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Returns the comparison in Markdown."""
    rows = []
    for cell in cells:
        row = [str(cell[side]) for side in _SIDES]
        row += [str(cell["num_programs"]), f"{cell['compile_hours']:.1f}"]
        row += [
            f"{100 * cell['pad_share_time']:.1f}",
            f"{100 * cell['attainment']:.1f}",
        ]
        for name, (_, scale) in _COLUMNS.items():
            one = {
                key: scale * value for key, value in cell["differences"][name].items()
            }
            is_pow2 = cell["bucket_strategy"] == "pow2"
            interval = f"{one['mean']:+.1f} ({one['low']:+.1f} to {one['high']:+.1f})"
            row.append("" if is_pow2 else interval)
        rows.append(row)
    header = ["device", "trace", "policy", "buckets", "programs", "compiling, h"]
    header += ["padding of time, %", "attained, %"]
    header += [f"{label}, against `pow2`" for label, _ in _COLUMNS.values()]
    return markdown(header, rows)


def main(argv: Sequence[str]) -> None:
    """Prints the table, and writes it and report.json."""
    del argv
    runs = plain(read_runs(pathlib.Path(flags.FLAGS.runs)))
    cells = compare(runs)
    text = table(cells)
    print(text)
    folder = pathlib.Path(flags.FLAGS.output)
    document = json.dumps({"cells": plain(cells), "runs": runs}, indent=1) + "\n"
    write_whole(folder / "report.json", document.encode())
    write_whole(folder / "table.md", f"{text}\n".encode())


if __name__ == "__main__":
    here = str(pathlib.Path(__file__).parent)
    flags.DEFINE_string("runs", "out/buckets/devices", "Folder of the reports.")
    flags.DEFINE_string("output", here, "Folder of the results.")
    run_program(sys.modules[__name__])
