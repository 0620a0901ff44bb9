"""Pools the turns of an interleaved replay, and prints who kept which promises.

  make compare-policies      # replays, then calls this

`jserve-bench` is given every policy twice (A B C D A B C D), so that a slow minute of
the machine does not fall on one of them. Runs of one policy at one load are pooled
here: attainment over all requests with Wilson's 95 % interval, by class, and each
turn's own attainment beside it. Reads `report.json`, writes `pooled.json` and
`pooled.md` beside it.
"""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from jserve.program import ProgramError, run_program
from jserve_sched.report import wilson_interval
from jserve_tools.documents import plain, write_whole

_REPORT = flags.DEFINE_string("report", None, "A report.json.", required=True)

Run = Mapping[str, Any]


def pool(runs: Sequence[Run]) -> dict[str, Any]:
    """Returns the turns of one policy at one load as one entry."""
    num_requests = sum(run["num_requests"] for run in runs)
    num_met = num_requests - sum(run["num_violations"] for run in runs)
    by_class = {}
    for name in runs[0]["by_class"]:
        count = sum(run["by_class"][name]["num_requests"] for run in runs)
        broken = sum(run["by_class"][name]["num_violations"] for run in runs)
        by_class[name] = {"num_requests": count, "attainment": 1 - broken / count}
    return {
        "policy": runs[0]["policy"],
        "load": runs[0]["load"],
        "qps": runs[0]["qps"],
        "num_requests": num_requests,
        "attainment": num_met / num_requests,
        "attainment_ci95": list(wilson_interval(num_met, num_requests)),
        "turns": [run["attainment"] for run in runs],
        "by_class": by_class,
        "ttft_p50_s": [run["ttft_s"]["p50"] for run in runs],
        "ttft_p99_s": [run["ttft_s"]["p99"] for run in runs],
        "tbt_p99_s": [run["tbt_s"]["p99"] for run in runs],
        "plan_p50_ms": [run["plan_ms"]["p50"] for run in runs],
        "pad_share_time": [run["pad_share_time"] for run in runs],
        "num_compiles_after_warmup": sum(
            run["num_compiles_after_warmup"] for run in runs
        ),
    }


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Returns the entries as a Markdown table."""
    classes = list(entries[0]["by_class"])
    lines = [
        "| load | policy | met % (95 %) | turns | "
        + " | ".join(f"{name} %" for name in classes)
        + " | TTFT p50 / p99 s | TBT p99 ms | plan ms | compiles |",
        "| --- " * (8 + len(classes)) + "|",
    ]
    for one in entries:
        low, high = one["attainment_ci95"]
        cells = [
            f"{one['load']:g}x",
            f"`{one['policy']}`",
            f"{100 * one['attainment']:.1f} ({100 * low:.1f} to {100 * high:.1f})",
            ", ".join(f"{100 * turn:.1f}" for turn in one["turns"]),
            *(f"{100 * one['by_class'][name]['attainment']:.1f}" for name in classes),
            f"{max(one['ttft_p50_s']):.2f} / {max(one['ttft_p99_s']):.2f}",
            f"{1e3 * max(one['tbt_p99_s']):.0f}",
            f"{max(one['plan_p50_ms']):.2f}",
            str(one["num_compiles_after_warmup"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    """Pools one report."""
    del argv
    path = pathlib.Path(_REPORT.value)
    try:
        report: Any = json.loads(path.read_text())
        runs = report["runs"]
    except (OSError, ValueError, KeyError) as error:
        raise ProgramError(f"{path} is no report: {error!r}") from error
    groups: dict[tuple[float, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run["load"], run["policy"]), []).append(run)
    entries = [pool(group) for _, group in sorted(groups.items(), key=_by_load)]
    facts = {
        name: report[name]
        for name in ("commit", "device", "jax", "machine", "command", "workload")
    }
    pooled = facts | {"capacity": report["capacity"], "pooled": entries}
    text = json.dumps(plain(pooled), indent=1) + "\n"
    write_whole(path.parent / "pooled.json", text.encode())
    write_whole(path.parent / "pooled.md", table(entries).encode())
    print(table(entries))


def _by_load(item: tuple[tuple[float, str], Sequence[Run]]) -> float:
    return item[0][0]  # policies stay in the order of their turns


if __name__ == "__main__":
    run_program(sys.modules[__name__])
