"""The table of bucket strategies on devices that are not at hand.

  sh benchmarks/buckets/devices/run.sh

It reads the reports that run.sh left, or without them report.json, and compares the
strategies with `pow2`, seed by seed: device time per request, end-to-end time, and
requests that attained every objective. Intervals are Student's, 95 %. What compiling a
table takes is its number of programs times the mean seconds that tracing and compiling
a step of this model took on two cores (`benchmarks/aot`).
"""

import json
import pathlib
from collections.abc import Sequence

import numpy as np

from benchmarks.study import Run, interval, markdown, mean
from jserve_tools.reporting.documents import plain, write_whole

_HERE = pathlib.Path(__file__).parent
_RUNS = pathlib.Path("out/buckets/devices")
_SIDES = ("device", "trace", "policy", "bucket_strategy")
_FACTS = ("num_programs", "num_requests", "attainment", "pad_share_time", "num_steps")


def read_runs(folder: pathlib.Path) -> list[Run]:
    """Returns the runs of all reports in a folder, with what is compared."""
    found = []
    for path in sorted(folder.glob("*_*/report.json")):
        device, trace = path.parent.name.split("_")
        report = json.loads(path.read_text())
        for run in report["runs"]:
            served = run["num_requests"] + run["num_warmup"]
            labels = {"device": device, "trace": trace, "commit": report["commit"]}
            names = ("policy", "bucket_strategy", "seed", "qps", *_FACTS)
            busy_s = sum(one["total_s"] for one in run["steps_by_program"])
            times_s = {"device_s": busy_s / served, "e2e_s": run["e2e_s"]["mean"]}
            found.append(labels | {name: run[name] for name in names} | times_s)
    return found


def compile_hours(device: str, num_programs: int) -> float:
    """Returns the hours to trace and compile steps of the model, on two cores."""
    path = _HERE.parents[1] / f"aot/{device}.json"
    compiled = json.loads(path.read_text())["compiled"]
    steps = [one for name, one in compiled.items() if name.startswith("B")]
    step_s = float(np.mean([one["trace_s"] + one["compile_s"] for one in steps]))
    return num_programs * step_s / 3600


def table(runs: Sequence[Run]) -> str:
    """Returns the comparison in Markdown."""
    cells: dict[tuple[str, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda one: int(one["seed"])):
        cells.setdefault(tuple(run[side] for side in _SIDES), []).append(run)
    rows = []
    for key in dict.fromkeys(tuple(run[side] for side in _SIDES) for run in runs):
        own, base = cells[key], cells[*key[:3], "pow2"]
        num_programs = own[0]["num_programs"]
        row = [*key, str(num_programs), f"{compile_hours(key[0], num_programs):.1f}"]
        row += [
            f"{100 * mean(own, one):.1f}" for one in ("pad_share_time", "attainment")
        ]
        for name in ("device_s", "e2e_s", "attainment"):
            pairs = [(one[name], two[name]) for one, two in zip(own, base, strict=True)]
            changes = [
                100 * (one - two if name == "attainment" else one / two - 1)
                for one, two in pairs
            ]
            text = "{:+.1f} ({:+.1f} to {:+.1f})".format(*interval(changes))
            row.append("" if own is base else text)
        rows.append(row)
    header = ["device", "trace", "policy", "buckets", "programs", "compiling, h"]
    header += ["padding of time, %", "attained, %"]
    header += [
        f"{label}, against `pow2`"
        for label in ("device time a request, %", "end to end, %", "attained, points")
    ]
    return markdown(header, rows)


def main() -> None:
    """Prints the table, and writes it; and report.json, of new runs."""
    runs = read_runs(_RUNS)
    if runs:
        document = json.dumps({"runs": plain(runs)}, indent=1) + "\n"
        write_whole(_HERE / "report.json", document.encode())
    text = table(runs or json.loads((_HERE / "report.json").read_text())["runs"])
    print(text)
    write_whole(_HERE / "table.md", f"{text}\n".encode())


if __name__ == "__main__":
    main()
