"""How far policies are from what any schedule could attain: `bound.py --output=FOLDER`.

Six kinds of traffic on the simulated A100 at 1.3 times its capacity, which is the rate
at which `fcfs` completes requests that are all there at once. Steps are not padded, and
predictors know their times. Writes table.md beside the reports, from which it goes on
if it is called again.
"""

import json
import pathlib
import subprocess
import sys
from typing import Any

from absl import app, flags

_OUTPUT = flags.DEFINE_string("output", "out/bound", "Folder of reports and table.")
_NUM_REQUESTS = flags.DEFINE_integer("num_requests", 500, "Requests of a run.")
_SEED = flags.DEFINE_integer("seed", 7, "Seed of the requests.")
_POLICIES = flags.DEFINE_list(
    "policies",
    ["fcfs", "qoserve:max_chunk_tokens=512", "sliding", "ontime"],
    "Policies.",
)
_KINDS = ("chat", "documents", "heavy_tail", "bursts", "reasoning_code", "tight")
_LOAD = 1.3


def simulate(name: str, num_requests: int, *flags_: str) -> list[dict[str, Any]]:
    """Returns the runs of a call of jserve-simulate."""
    folder = pathlib.Path(_OUTPUT.value) / name
    subprocess.run(
        [
            *(sys.executable, "-m", "jserve_tools.simulate", "--nohtml"),
            *("--bucket_strategies=none", "--max_model_len=65536"),
            f"--num_requests={num_requests}",
            f"--seed={_SEED.value}",
            f"--output={folder}",
            *flags_,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    runs: list[dict[str, Any]] = json.loads((folder / "report.json").read_text())[
        "runs"
    ]
    return runs


def main(_: list[str]) -> None:
    """Writes the table."""
    policies, count = _POLICIES.value, _NUM_REQUESTS.value
    lines = [
        f"| kind, rate at {_LOAD} | {' | '.join(policies)} | any, at most | of it |",
        f"| --- |{' --: |' * (len(policies) + 2)}",
    ]
    for kind in _KINDS:
        workload = f"--workload={kind}"
        # Enough that the last answers' ends hardly count.
        (at_once,) = simulate(f"{kind}_capacity", 4 * count, workload, "--one_shot")
        qps = _LOAD * at_once["finished_per_s"]
        runs = simulate(
            kind,
            count,
            workload,
            f"--policies={','.join(policies)}",
            f"--qps={qps:.4g}",
            "--bound",
            "--warmup_share=0",
        )
        shares = [run["attainment"] for run in runs]
        bound = runs[0]["attainment_bound"]
        cells = [*shares, bound, max(shares) / bound]
        texts = " | ".join(f"{100 * share:.1f} %" for share in cells)
        lines.append(f"| {kind}, {qps:.3g}/s | {texts} |")
        print(lines[-1], flush=True)
    table = "\n".join(lines) + "\n"
    (pathlib.Path(_OUTPUT.value) / "table.md").write_text(table)


if __name__ == "__main__":
    app.run(main)
