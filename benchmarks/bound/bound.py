"""How far policies are from what any schedule could attain.

  python -m benchmarks.bound.bound --num_requests=1500

Six kinds of traffic on the simulated A100 at 1.3 times its capacity, which is the rate
at which `fcfs` completes requests that are all there at once. Steps are not padded, and
predictors know their times.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from benchmarks.study import markdown, simulate
from jserve.program import run_program

_KINDS = ("chat", "documents", "heavy_tail", "bursts", "reasoning_code", "tight")
_POLICIES = ("fcfs", "qoserve:max_chunk_tokens=512", "sliding", "ontime")
_LOAD = 1.3
_FOLDER = pathlib.Path("out/bound")


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    del argv
    count = flags.FLAGS.num_requests
    kinds = [
        {"workload": kind, "bucket_strategies": "none", "max_model_len": 65536}
        | {"seed": 7}
        for kind in _KINDS
    ]
    # Enough at once that the last answers' ends hardly count.
    at_once = [one | {"num_requests": 4 * count, "one_shot": True} for one in kinds]
    rates = [_LOAD * runs[0]["finished_per_s"] for runs in simulate(_FOLDER, at_once)]
    found = simulate(
        _FOLDER,
        [
            one
            | {"num_requests": count, "policies": _POLICIES, "qps": f"{qps:.4g}"}
            | {"bound": True, "warmup_share": 0}
            for one, qps in zip(kinds, rates, strict=True)
        ],
    )
    rows = []
    for kind, qps, runs in zip(_KINDS, rates, found, strict=True):
        shares = [run["attainment"] for run in runs]
        bound = runs[0]["attainment_bound"]
        shares += [bound, max(shares) / bound]
        rows.append([f"{kind}, {qps:.3g}/s", *(f"{100 * one:.1f} %" for one in shares)])
    header = [f"kind, rate at {_LOAD}", *_POLICIES, "any, at most", "of it"]
    print(markdown(header, rows))


if __name__ == "__main__":
    flags.DEFINE_integer("num_requests", 1500, "Requests of a run.")
    run_program(sys.modules[__name__])
