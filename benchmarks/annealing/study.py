"""The cells of the study: which runs are made, and what a policy gains.

The runs were chosen before any result was seen, and every cell is reported. The machine
is Llama-3.1-8B on an RTX 4090 whose kernels were measured, without padding (every count
is a bucket). Planning takes no virtual time. Step times are known exactly, so that
policies differ by their order only.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.annealing.task_classes import MIXES, draw_requests
from jserve.compiled_annealing import best_kernel
from jserve_sched.buckets.strategies import Continuous
from jserve_sched.outcomes import Outcome, wilson_interval
from jserve_sched.policies.registry import make_policy
from jserve_sched.simulation.cost_model import CostModel, OraclePredictor
from jserve_sched.simulation.goodput import num_warmup
from jserve_sched.simulation.simulator import make_scheduler, simulate
from jserve_sched.simulation.workload import Arrival
from jserve_tools.gpu_profiles.machines import gpu_cost_model
from jserve_tools.simulating.simulation import declare, make_lengths

Entry = dict[str, Any]
BASE = "fcfs"  # vLLM's default order, with which the paper compares itself
SORTED = "sjf"
SEARCHED = "annealing"
OTHERS = ("edf", "laxity", "qoserve", "sliding")
POLICIES = (BASE, SORTED, *OTHERS, SEARCHED)
STUDIES = ("at once", "arrivals", "lengths")
MACHINE = "rtx4090-llama3.1-8b-table"
ORACLE = "oracle"  # knows lengths, with a given error
LENGTHS = (
    *("oracle:error=0", "oracle:error=0.5", "oracle:factor=10"),
    *("max_tokens", "mean", "quantile"),
)
DECLARED_MAX_TOKENS = 2048  # if lengths are estimated
MAX_MODEL_LEN = 16_384
_MAX_SPANS = 200.0  # enough for all requests to finish, since all latencies count
_NUM_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """Draws of requests served by one policy.

    Attributes:
      study: Part of the study that it belongs to.
      mix: Name of the mix of tasks.
      policy: Name and options of the policy.
      num_requests: Number of requests in a draw, N.
      max_num_seqs: Most requests that run at once, b_max; 0 takes the machine's limit.
      num_draws: Number of draws, with the seeds 0, 1, and so on.
      load: Rate of Poisson arrivals, in capacities of `fcfs`. The first tenth of the
        requests is then served but not counted. 0: all are due at once.
      lengths: Estimator of output lengths.
    """

    study: str
    mix: str
    policy: str
    num_requests: int
    max_num_seqs: int
    num_draws: int
    load: float = 0.0
    lengths: str = ORACLE

    def run(self) -> list[Entry]:
        """Returns a summary of the outcomes of each draw."""
        at_once = dataclasses.replace(self.base, study="", num_draws=1, load=0.0)
        qps = self.load and self.load * capacity_qps(at_once)
        num_uncounted = num_warmup(self.num_requests) if qps else 0
        draws = []
        for seed in range(self.num_draws):
            arrivals = draw_requests(
                MIXES[self.mix], num_requests=self.num_requests, seed=seed, qps=qps
            )
            outcomes, _ = _serve(self, arrivals, seed=seed)
            draws.append(summarise(outcomes[num_uncounted:]))
        return draws

    @property
    def base(self) -> "Cell":
        """The cell of the base policy on the same requests."""
        return dataclasses.replace(self, policy=BASE, lengths=ORACLE)


def cells(num_draws: int, num_runs: int, policies: Sequence[str]) -> Iterator[Cell]:
    """Yields every cell of the study.

    There are `num_draws` draws of requests that are due at once, and `num_runs` runs of
    300 requests that arrive one by one.
    """
    for mix, numbers in (("azure", (10, 20, 50)), ("long_code", (10, 20))):
        for number in numbers:
            for limit in (1, 2, 4):
                for policy in policies:
                    yield Cell(
                        study="at once",
                        mix=mix,
                        policy=policy,
                        num_requests=number,
                        max_num_seqs=limit,
                        num_draws=num_draws,
                    )
    one_by_one = Cell(
        study="arrivals",
        mix="azure",
        policy=BASE,
        num_requests=300,
        max_num_seqs=4,
        num_draws=num_runs,
        load=1.0,
    )
    for limit in (4, 0):
        for load in (0.8, 1.0, 1.2, 1.4):
            for policy in policies:
                yield dataclasses.replace(
                    one_by_one, max_num_seqs=limit, load=load, policy=policy
                )
    for lengths in LENGTHS:
        for policy in (SORTED, SEARCHED):
            yield dataclasses.replace(
                one_by_one, study="lengths", policy=policy, lengths=lengths
            )
    yield dataclasses.replace(one_by_one, study="lengths")


@functools.cache
def _machine(max_num_seqs: int) -> CostModel:
    model = gpu_cost_model(MACHINE)
    limit = max_num_seqs or model.max_num_seqs
    return dataclasses.replace(model, max_num_seqs=limit)


@functools.cache
def capacity_qps(cell: Cell) -> float:
    """Returns requests per second that a cell completes if all are due at once."""
    arrivals = draw_requests(MIXES[cell.mix], num_requests=cell.num_requests, seed=0)
    return cell.num_requests / _serve(cell, arrivals, seed=0)[1]


def _serve(
    cell: Cell, arrivals: Sequence[Arrival], *, seed: int
) -> tuple[list[Outcome], float]:
    """Serves requests; returns their outcomes and the time at which the last ended."""
    machine = _machine(cell.max_num_seqs)
    lengths = cell.lengths
    if lengths != ORACLE:
        arrivals = declare(arrivals, DECLARED_MAX_TOKENS, max_model_len=MAX_MODEL_LEN)
        if lengths.startswith(ORACLE):
            lengths += f":seed={seed}"
    table = Continuous().table(
        max_num_seqs=machine.max_num_seqs,
        max_num_batched_tokens=machine.max_num_batched_tokens,
        block_tokens=1,
    )
    scheduler = make_scheduler(
        policy=make_policy(cell.policy, make_kernel=best_kernel),
        cost_model=machine,
        buckets=table,
        predictor=OraclePredictor(machine, 1),
        max_model_len=MAX_MODEL_LEN,
        lengths=make_lengths(lengths, arrivals),
    )
    result = simulate(scheduler, machine, arrivals, max_spans=_MAX_SPANS)
    return result.outcomes, result.end_s


def summarise(outcomes: Sequence[Outcome]) -> Entry:
    """Returns a summary of one draw's outcomes, in counts and seconds.

    Raises:
      RuntimeError: If a request did not finish.
    """
    latencies_s = [one.e2e_s for one in outcomes if one.e2e_s is not None]
    if len(latencies_s) < len(outcomes):
        raise RuntimeError(f"{len(outcomes) - len(latencies_s)} requests did not end")
    return {
        "num_requests": len(outcomes),
        "num_attained": sum(one.is_attained for one in outcomes),
        "num_attained_mean_tpot": sum(one.is_attained_mean_tpot for one in outcomes),
        "total_e2e_s": sum(latencies_s),
    }


def _column(draws: Sequence[Entry], name: str) -> np.ndarray:
    return np.array([one[name] for one in draws], np.float64)


def pool(draws: Sequence[Entry], base: Sequence[Entry]) -> Entry:
    """Returns draws as one entry, with ratios to the base on the same draws.

    `attainment` is by token deadlines, `attainment_mean_tpot` by the mean TPOT.
    `goal_per_s` is the mean over draws of G = requests that attained their SLO / sum of
    all latencies. Intervals are 95 %; a ratio is None if the base's value is 0.
    """
    num_requests = int(np.sum(_column(draws, "num_requests")))
    num_attained = int(np.sum(_column(draws, "num_attained")))
    total_s = _column(draws, "total_e2e_s")
    entry: Entry = {
        "num_draws": len(draws),
        "attainment": num_attained / num_requests,
        "attainment_ci95": list(wilson_interval(num_attained, num_requests)),
        "attainment_mean_tpot": float(np.sum(_column(draws, "num_attained_mean_tpot")))
        / num_requests,
        "mean_e2e_s": float(np.sum(total_s)) / num_requests,
        "goal_per_s": float(np.mean(_column(draws, "num_attained") / total_s)),
    }
    for name, column in (
        ("attainment_ratio", "num_attained"),
        ("latency_ratio", "total_e2e_s"),
    ):
        entry[name], entry[f"{name}_ci95"] = _ratio(
            _column(draws, column), _column(base, column)
        )
    return entry


def _ratio(
    ours: np.ndarray, theirs: np.ndarray
) -> tuple[float | None, list[float] | None]:
    """Returns the ratio of two sums, and its bootstrap interval over pairs `[D]`."""
    total = float(np.sum(theirs))
    if not total:
        return None, None
    ratio = float(np.sum(ours)) / total
    if len(ours) < 2:
        return ratio, None
    picks = np.random.default_rng(0).integers(
        len(ours), size=(_NUM_RESAMPLES, len(ours))
    )
    sums = np.sum(theirs[picks], axis=1)
    spread = np.sum(ours[picks], axis=1)[sums > 0] / sums[sums > 0]
    return ratio, np.percentile(spread, (2.5, 97.5)).tolist()


def claims(entries: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """Returns each policy's ratios to `fcfs`, by mix: the median and the best cell.

    `share` is a policy's gain in attainment as a share of the search's gain: the median
    over the cells in which the search gains at least 1 % of the requests.
    """
    at_once = [one for one in entries if one["study"] == "at once"]
    attainment = {
        (one["mix"], one["policy"], one["num_requests"], one["max_num_seqs"]): one[
            "attainment"
        ]
        for one in at_once
    }
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in at_once:
        groups.setdefault((one["mix"], one["policy"]), []).append(one)
    found = []
    for (mix, policy), own in groups.items():
        if policy == BASE:
            continue
        shares = []
        for one in own:
            cell = (one["num_requests"], one["max_num_seqs"])
            least = attainment[mix, BASE, *cell]
            most = attainment.get((mix, SEARCHED, *cell), least)
            if most - least >= 0.01:
                shares.append((one["attainment"] - least) / (most - least))
        entry: Entry = {"mix": mix, "policy": policy, "num_cells": len(own)}
        for name, best in (("attainment_ratio", max), ("latency_ratio", min)):
            known = [one for one in own if one[name] is not None]
            one = best(known, key=operator.itemgetter(name))
            entry[name] = {
                "median": float(np.median([one[name] for one in known])),
                "best": one[name],
                "best_cell": [one["num_requests"], one["max_num_seqs"]],
            }
        entry["share"] = float(np.median(shares)) if shares else None
        found.append(entry)
    return found
