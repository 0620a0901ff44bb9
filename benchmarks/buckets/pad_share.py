"""Measures the share of padding in step time under each bucket strategy, on traces.

  python -m benchmarks.buckets.pad_share --output=benchmarks/buckets

Only prefill blocks are padded (Q = 32, up to 8,192 prefill tokens a step); rows are
not. The machine is the cost model `a100-llama3-8b`. Every trace is served in virtual
time at the same load: 0.7 of the rate at which its first 500 requests are completed
when all are due at once. Prompts are not shortened. `fitted` is fitted to the steps
that start before half of the requests have arrived; all strategies are judged on the
steps after that.

Under `fcfs` steps run in a table of every count, so that no chunk is filled up to an
edge. A step of b blocks is then charged the time T(edge) of its bucket instead of T(b);
the share of padding is the sum of T(edge) - T(b) over the sum of T(edge), of steps with
prefill. The targets: `fitted` with 16 edges has at most half of `pow2`'s share, and
with 10, the number that `pow2` has, at most two thirds. Edge 0 counts too. A trace is
not compared with the targets if fewer than 30 of the judged steps have between 0 and
the most blocks. `fitted` is the fit of `jserve-fit-buckets`, with a tenth of the weight
on sizes not seen; the fit without this prior is shown too.

Under `sliding`, which fills steps up to edges, each table is used while the first 400
requests are served; `fitted` is fitted to the first half of them under `sliding` with
every count.

The last line of stdout is one JSON document.
"""

import bisect
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from benchmarks.buckets.pad_share_tables import NO_PRIOR, picture, tables
from jserve.program import ProgramError, run_program
from jserve_sched.buckets.strategies import STRATEGIES
from jserve_sched.buckets.table import BucketTable
from jserve_sched.fitting.costs import BucketCosts
from jserve_sched.fitting.demand import StepDemand, demand_from_steps, with_prior
from jserve_sched.fitting.fit import best_block_edges
from jserve_sched.outcomes import SCHEMA_VERSION
from jserve_sched.policies.registry import make_policy
from jserve_sched.simulation.cost_model import CLOSED_FORMS, OraclePredictor
from jserve_sched.simulation.mixes import DIALOGUE
from jserve_sched.simulation.simulator import SimulationResult, make_scheduler, simulate
from jserve_sched.simulation.workload import (
    Arrival,
    isolated_times,
    request_arrival,
)
from jserve_sched.steps import features
from jserve_sched.steps.record import StepRecord
from jserve_tools.load.workload_trace import DEFAULT_TRACE, TraceRow, read_trace
from jserve_tools.reporting.documents import commit, plain, write_whole

_TRACES_DIR = flags.DEFINE_string(
    "traces_dir",
    str(DEFAULT_TRACE.parent),
    "Folder of traces (*.csv); by default the traces that come with jserve.",
)
_FULL_TRACES_DIR = flags.DEFINE_string(
    "full_traces_dir", "", "Folder of longer traces, to judge under fcfs as well."
)
_OUTPUT = flags.DEFINE_string(
    "output", "", "Folder for pad_share.json, .md and .png; empty writes none."
)
_POLICIES = flags.DEFINE_list("policies", ["fcfs", "sliding"], "Policies to judge.")

BLOCK_TOKENS = 32
MAX_BLOCKS = 256
LOAD = 0.7
NUM_OFFERED_AT_ONCE = 500
NUM_IN_LOOP = 400
MAX_MODEL_LEN = 131_072
TARGETS = {"fitted 16": 1 / 2, "fitted 10": 2 / 3}  # of pow2's share
LEAST_OPEN_STEPS = 30

_A100 = CLOSED_FORMS["a100-llama3-8b"]
# Room for 8,192 prefill tokens beside a decode in every row.
MACHINE = dataclasses.replace(
    _A100,
    max_num_batched_tokens=MAX_BLOCKS * BLOCK_TOKENS + _A100.max_num_seqs,
)
_YARDSTICK = isolated_times(MACHINE, max_prompt_tokens=MAX_MODEL_LEN)
ALL_COUNTS = tuple(range(MAX_BLOCKS + 1))


def unpadded_rows(block_edges: Sequence[int]) -> BucketTable:
    """Returns the table of these block edges and every number of rows."""
    rows = tuple(range(MACHINE.max_num_seqs + 1))
    return BucketTable(rows, tuple(block_edges), BLOCK_TOKENS)


def step_s(matrix: np.ndarray) -> np.ndarray:
    """Returns the machine's step times `[N]`, seconds, for features `[N, F]`."""
    return MACHINE.step_s(matrix, BLOCK_TOKENS)


def arrivals_of(rows: Sequence[TraceRow], qps: float | None) -> list[Arrival]:
    """Returns a trace's requests at a mean rate; None makes all due at once."""
    factor = 0.0
    if qps is not None:
        factor = (len(rows) - 1) / rows[-1].arrival_s / qps
    return [
        request_arrival(
            index,
            row.arrival_s * factor,
            row.prompt_tokens,
            row.output_tokens,
            DIALOGUE,
            _YARDSTICK,
        )
        for index, row in enumerate(rows)
    ]


def serve(
    arrivals: Sequence[Arrival], policy: str, block_edges: Sequence[int]
) -> SimulationResult:
    """Serves requests with these block edges, and rows that are not padded."""
    scheduler = make_scheduler(
        policy=make_policy(policy),
        cost_model=MACHINE,
        buckets=unpadded_rows(block_edges),
        predictor=OraclePredictor(MACHINE, BLOCK_TOKENS),
        max_model_len=MAX_MODEL_LEN,
    )
    return simulate(
        scheduler, MACHINE, arrivals, records_steps=True, max_spans=float("inf")
    )


def load_qps(rows: Sequence[TraceRow]) -> float:
    """Returns the rate at which a trace is served, requests per second."""
    first = rows[:NUM_OFFERED_AT_ONCE]
    result = serve(arrivals_of(first, None), "fcfs", ALL_COUNTS)
    return LOAD * len(first) / result.end_s


def num_earlier(steps: Sequence[StepRecord], arrivals: Sequence[Arrival]) -> int:
    """Returns the number of steps that started before half of the requests arrived."""
    middle_s = arrivals[len(arrivals) // 2].arrival_s
    return bisect.bisect_left(steps, middle_s, key=lambda step: step.start_s)


def demand_of(steps: Sequence[StepRecord]) -> StepDemand:
    """Returns the demand of steps that ran in a table of every count."""
    return demand_from_steps(
        steps,
        unpadded_rows(ALL_COUNTS),
        tbt_budgets=(),
        step_s=step_s,
        page_size=MACHINE.page_size,
    )


def fitted_edges(demand: StepDemand, num_edges: int) -> tuple[int, ...]:
    """Returns the best block edges for a demand."""
    table = unpadded_rows(ALL_COUNTS)
    costs = BucketCosts(demand, step_s, table, page_size=MACHINE.page_size)
    return best_block_edges(costs, table, num_edges)[-1]


def strategies(demand: StepDemand) -> dict[str, tuple[int, ...]]:
    """Returns the block edges of every strategy, by its label."""
    smoothed = with_prior(demand, unpadded_rows(ALL_COUNTS))
    found = {
        name: make()
        .table(
            max_num_seqs=MACHINE.max_num_seqs,
            max_num_batched_tokens=MACHINE.max_num_batched_tokens,
            block_tokens=BLOCK_TOKENS,
        )
        .block_edges
        for name, make in STRATEGIES.items()
    }
    for weighted, end in ((smoothed, ""), (demand, NO_PRIOR)):
        for num_edges in (10, 16):
            found[f"fitted {num_edges}{end}"] = fitted_edges(weighted, num_edges)
    return found


def judge(
    steps: Sequence[StepRecord],
    matrix: np.ndarray,
    block_edges: Sequence[int] | None,
) -> dict[str, Any]:
    """Returns the shares of padding in the steps' time.

    Args:
      steps: Steps that ran.
      matrix: Their features, `[N, F]`.
      block_edges: Edges that steps are charged; None takes the buckets in which they
        ran.
    """
    matrix = matrix.copy()
    used = np.array([step.used_blocks for step in steps])
    matrix[:, features.NUM_ROWS] = matrix[:, features.NUM_DECODES]

    def time_s(num_blocks: np.ndarray) -> np.ndarray:
        changed = matrix.copy()
        changed[:, features.NUM_BLOCKS] = num_blocks
        return step_s(changed)

    if block_edges is None:
        charged = matrix[:, features.NUM_BLOCKS]
    else:
        edges = np.array(block_edges)
        charged = edges[np.searchsorted(edges, used)]
    bucket_s, used_s = time_s(charged), time_s(used)
    real_s = time_s(matrix[:, features.PREFILL_TOKENS] / BLOCK_TOKENS)
    has_prefill = used > 0
    padding_s = float(np.sum(bucket_s - used_s))
    prefill_s = float(np.sum(bucket_s[has_prefill]))
    return {
        "pad_share_time": padding_s / prefill_s,
        "pad_share_time_all_steps": padding_s / float(np.sum(bucket_s)),
        "block_pad_share_time": float(np.sum(used_s - real_s)) / prefill_s,
        "num_steps": len(steps),
        "num_prefill_steps": int(np.sum(has_prefill)),
        "num_open_steps": int(np.sum(has_prefill & (used < MAX_BLOCKS))),
        "busy_s": float(np.sum(bucket_s)),
    }


def judge_trace(path: pathlib.Path, policy: str) -> list[dict[str, Any]]:
    """Returns an entry for every strategy on one trace."""
    # Serve with every count.
    rows = read_trace(path)
    if policy != "fcfs":
        rows = rows[:NUM_IN_LOOP]
    qps = load_qps(rows)
    arrivals = arrivals_of(rows, qps)
    ran = serve(arrivals, policy, ALL_COUNTS)
    assert ran.steps is not None

    # Fit the first half, and judge the second.
    middle = num_earlier(ran.steps, arrivals)
    found = []
    for name, edges in strategies(demand_of(ran.steps[:middle])).items():
        if policy == "fcfs":
            figures = judge(ran.steps[middle:], ran.step_features[middle:], edges)
        elif name.endswith(NO_PRIOR):
            continue
        else:
            in_loop = serve(arrivals, policy, edges)
            assert in_loop.steps is not None
            first = num_earlier(in_loop.steps, arrivals)
            figures = judge(in_loop.steps[first:], in_loop.step_features[first:], None)
        found.append(
            {
                "trace": path.stem,
                "num_requests": len(rows),
                "qps": qps,
                "policy": policy,
                "bucket_strategy": name,
                "num_edges": len(edges),
                "block_edges": list(edges),
                **figures,
            }
        )

    # Compare with pow2 and the targets.
    pow2 = next(one for one in found if one["bucket_strategy"] == "pow2")
    for one in found:
        share = one["pad_share_time"] / pow2["pad_share_time"]
        one["share_of_pow2"] = share
        target = TARGETS.get(one["bucket_strategy"])
        if (
            policy == "fcfs"
            and target is not None
            and one["num_open_steps"] >= LEAST_OPEN_STEPS
        ):
            one["target"] = target
            one["is_target_met"] = share <= target
    return found


def main(argv: Sequence[str]) -> int:
    """Prints tables and one JSON document; returns 1 if a target is missed."""
    del argv
    # Find the traces.
    todo = []
    for kind, folder in (
        ("committed", _TRACES_DIR.value),
        ("full", _FULL_TRACES_DIR.value),
    ):
        paths = sorted(pathlib.Path(folder).glob("*.csv")) if folder else []
        if folder and not paths:
            raise ProgramError(f"no trace (*.csv) in {folder}")
        todo += [
            (kind, path, policy)
            for policy in _POLICIES.value
            for path in paths
            if kind == "committed" or policy == "fcfs"
        ]

    # Judge every trace under every policy.
    try:
        runs = [
            {"traces": kind, **run}
            for kind, path, policy in tqdm(todo, unit="trace", disable=None)
            for run in judge_trace(path, policy)
        ]
    except (OSError, ValueError) as error:
        raise ProgramError(str(error)) from error

    # Print and write.
    text = tables(runs)
    print(text)
    missed = [run for run in runs if run.get("is_target_met") is False]
    for run in missed:
        print(
            f"missed: {run['traces']} {run['trace']}, {run['bucket_strategy']}: "
            f"{run['share_of_pow2']:.2f} of pow2's share, target {run['target']:.2f}"
        )
    document = plain(
        {
            "schema_version": SCHEMA_VERSION,
            "commit": commit(),
            "cost_model": MACHINE.name,
            "max_num_batched_tokens": MACHINE.max_num_batched_tokens,
            "block_tokens": BLOCK_TOKENS,
            "max_blocks": MAX_BLOCKS,
            "load": LOAD,
            "num_offered_at_once": NUM_OFFERED_AT_ONCE,
            "runs": runs,
        }
    )
    if _OUTPUT.value:
        output = pathlib.Path(_OUTPUT.value)
        content = (json.dumps(document, indent=1) + "\n").encode()
        write_whole(output / "pad_share.json", content)
        write_whole(output / "pad_share.md", text.encode())
        write_whole(output / "pad_share.png", picture(runs))
    print(json.dumps(document, separators=(",", ":")))
    return 1 if missed else 0


if __name__ == "__main__":
    run_program(sys.modules[__name__])
