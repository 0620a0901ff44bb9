"""Compares the simulator with replays of this machine's engine, request by request.

  python -m benchmarks.simulator_truth.engine --samples=out/simulator_truth/samples.npz

Reads the profile of the engine, and the replays that `replays.py` made. How this
machine's steps differ from its profile is fitted to the replays' steps; then each
replay is simulated with the arrivals, lengths and objectives that it had. Prints
tables, and writes them to --output.
"""

import concurrent.futures
import dataclasses
import datetime
import itertools
import json
import os
import pathlib
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from jserve.program import run_program
from jserve_sched.outcomes import Failure, Outcome
from jserve_sched.policies.registry import make_policy
from jserve_sched.requests.slo import Slo
from jserve_sched.simulation.cost_model import CostModel
from jserve_sched.simulation.disturbance import Disturbance, Disturbed
from jserve_sched.simulation.simulator import make_scheduler, simulate
from jserve_sched.simulation.workload import Arrival
from jserve_sched.steps import features
from jserve_tools.gpu_profiles.machines import load_machine, simulated_table
from jserve_tools.reporting.documents import write_whole
from jserve_tools.simulating.predictors import make_predictor

_SEEDS = range(31, 32)
_MAX_MODEL_LEN = 4096
_CLASSES = ("interactive", "batch")
_CLOSE_POINTS = 5.0
_WINDOW_S = 10.0  # in which speed is taken to be constant
_MIN_STEPS = 100  # of a program whose bias is looked at
_SHORT_S, _STALL_S = 0.015, 0.05  # a step of less than the first may stall
_COLUMNS = {  # what the step-time table reads, as a step's record has it
    features.NUM_ROWS: "num_rows",
    features.NUM_BLOCKS: "num_blocks",
    features.DECODE_PAGES: "decode_pages",
    features.BLOCK_PAGES: "block_pages",
    features.NUM_DECODES: "used_rows",
}
Run = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled(CostModel):
    """A machine that is slower, or quicker, by a factor."""

    machine: CostModel
    factor: float

    def step_s(self, matrix: np.ndarray, block_tokens: int) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        return self.factor * self.machine.step_s(matrix, block_tokens)


def scaled(machine: CostModel, factor: float) -> CostModel:
    """Returns a machine whose steps take `factor` times as long."""
    names = [field.name for field in dataclasses.fields(CostModel)]
    limits = {name: getattr(machine, name) for name in names}
    return Scaled(machine=machine, factor=factor, **limits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known(Disturbance):
    """A disturbance whose drift is known.

    Attributes:
      factors: Factor on the durations in each `_WINDOW_S` from the first arrival.
    """

    factors: tuple[float, ...]

    def drawn(self, seed: Sequence[int]) -> Disturbed:
        """Returns the disturbance of one engine."""
        factors = self.factors

        class Drifting(Disturbed):
            def __call__(
                self, duration_s: float, row: np.ndarray, now_s: float
            ) -> float:
                place = min(int(now_s / _WINDOW_S), len(factors) - 1)
                return super().__call__(duration_s * factors[place], row, now_s)

        return Drifting(self, seed)


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of a replay, `[N]`.

    Attributes:
      measured_s: Durations, seconds.
      profile_s: Durations by the profile, seconds.
      rows: Decode rows.
      program: A number for each program.
      window: A number for each `_WINDOW_S` of each replay.
    """

    measured_s: np.ndarray
    profile_s: np.ndarray
    rows: np.ndarray
    program: np.ndarray
    window: np.ndarray


def steps_of(run: Run, machine: CostModel, place: int) -> Steps:
    """Returns the steps of a replay, number `place` of all."""
    records = run["steps"]
    end_s = np.array([one["end_s"] for one in records])
    matrix = np.zeros((len(records), features.NUM_FEATURES))
    for column, name in _COLUMNS.items():
        matrix[:, column] = [one[name] for one in records]
    return Steps(
        measured_s=np.array([one["duration_s"] for one in records]),
        profile_s=machine.step_s(matrix, machine.block_tokens),
        rows=matrix[:, features.NUM_DECODES],
        program=1000 * matrix[:, features.NUM_ROWS] + matrix[:, features.NUM_BLOCKS],
        window=1000 * place + (end_s - end_s[0]) // _WINDOW_S,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """How steps of replays differ from a profile.

    Attributes:
      factor: Mean time of a step, over that of the profile, without the mean of the
        noise.
      factors: The same in each `_WINDOW_S` of each replay.
      disturbance: What is not in the factor.
    """

    factor: float
    factors: list[list[float]]
    disturbance: Disturbance


def fit(runs: Sequence[Steps]) -> Fit:
    """Fits a factor and a disturbance to the steps of all replays."""
    # A factor on the profile and a time for each row, by least squares without stalls.
    measured_s, profile_s, rows, program, window = (
        np.concatenate([getattr(one, name) for one in runs])
        for name in ("measured_s", "profile_s", "rows", "program", "window")
    )
    matrix = np.stack((profile_s, rows), axis=1)
    kept = np.ones(len(rows), bool)
    for _ in range(5):
        found = np.linalg.lstsq(matrix[kept], measured_s[kept], rcond=None)[0]
        rest_s = np.abs(measured_s - matrix @ found)
        kept = rest_s < 4 * np.median(rest_s)
    send_s = max(float(found[1]), 0.0)

    def factor_of(chosen: np.ndarray) -> float:
        spent_s = measured_s[chosen].sum() - send_s * rows[chosen].sum()
        return float(spent_s / profile_s[chosen].sum())

    # What is left: of windows of time, of programs, of single steps.
    factor = factor_of(rows >= 0)
    modelled_s = factor * profile_s + send_s * rows
    rest = np.log(measured_s / modelled_s)
    windows = np.unique(window)
    drifts = {one: factor_of(window == one) / factor for one in windows}
    rest -= np.log([drifts[one] for one in window])
    medians = {}
    for one in np.unique(program):
        chosen = program == one
        medians[one] = float(np.median(rest[chosen]))
    rest -= np.array([medians[one] for one in program])
    counted = [medians[one] for one in medians if (program == one).sum() >= _MIN_STEPS]
    is_short = modelled_s < _SHORT_S
    noise = float(1.4826 * np.median(np.abs(rest)))
    factor *= float(np.exp(-(noise**2) / 2))
    return Fit(
        factor=factor,
        factors=[
            [factor * drifts[one] for one in np.unique(run.window)] for run in runs
        ],
        disturbance=Disturbance(
            noise=noise,
            bias=float(np.sqrt(3.0) * np.std(counted)),
            drift=float(np.std(np.log(list(drifts.values())))),
            stall_share=float(np.mean((measured_s - modelled_s)[is_short] > _STALL_S)),
            send_s=send_s,
        ),
    )


def attained(found: Sequence[Outcome]) -> dict[str, float]:
    """Returns the shares of requests that attained their SLO, percent, by class."""
    shares = {}
    for name in ("all", *_CLASSES):
        chosen = [one for one in found if name in ("all", one.service_class)]
        shares[name] = 100 * statistics.fmean(one.is_attained for one in chosen)
    return shares


def measured(run: Run) -> list[Outcome]:
    """Returns what the clients of a replay saw."""
    return [
        Outcome(
            service_class=one["service_class"],
            slo=Slo(**one["slo"]),
            arrival_s=one["arrival_s"],
            num_prompt_tokens=one["prompt_tokens"],
            max_tokens=one["max_tokens"],
            token_times_s=one["token_times_s"],
            failure=Failure(one["failure"]) if one["failure"] else None,
        )
        for one in run["requests"]
    ]


def simulated(
    run: Run, machine: CostModel, disturbance: Disturbance, seed: int
) -> list[Outcome]:
    """Simulates the requests of a replay."""
    first_s = run["requests"][0]["arrival_s"]
    arrivals = [
        Arrival(
            request_id=str(index),
            arrival_s=one["arrival_s"] - first_s,
            num_prompt_tokens=one["prompt_tokens"],
            max_tokens=one["max_tokens"],
            service_class=one["service_class"],
            slo=Slo(**one["slo"]),
        )
        for index, one in enumerate(run["requests"])
    ]
    table = simulated_table("pow2", machine, None, machine.block_tokens)
    scheduler = make_scheduler(
        policy=make_policy(run["policy"]),
        cost_model=machine,
        buckets=table,
        predictor=make_predictor("table", machine, table, max_model_len=_MAX_MODEL_LEN),
        max_model_len=_MAX_MODEL_LEN,
    )
    return simulate(
        scheduler, machine, arrivals, lag=1, disturbance=disturbance, seed=seed
    ).outcomes


def mean_attained(
    run: Run, machine: CostModel, disturbance: Disturbance, seeds: Sequence[int]
) -> dict[str, float]:
    """Returns `attained` of a replay's simulations, the mean over seeds."""
    found = [attained(simulated(run, machine, disturbance, seed)) for seed in seeds]
    return {name: statistics.fmean(one[name] for one in found) for name in found[0]}


VARIANTS = ("profile", "disturbed", "known speed")
"""The profile alone; disturbed; and at the speed that the machine had in the replay."""


def compare(run: Run, machine: CostModel, place: int, found: Fit) -> dict[str, Any]:
    """Returns the shares attained in replay `place`: measured, and in each variant."""
    factors = found.factors[place]
    known = dataclasses.asdict(found.disturbance) | {"drift": 0.0}
    slower = scaled(machine, found.factor)
    steady = Known(factors=tuple(factors), **known)
    return {
        **{name: run[name] for name in ("trace", "load", "policy")},
        "factor": statistics.fmean(factors),
        "measured": attained(measured(run)),
        "profile": mean_attained(run, machine, Disturbance(), _SEEDS[:1]),
        "disturbed": mean_attained(run, slower, found.disturbance, _SEEDS),
        "known speed": mean_attained(run, machine, steady, _SEEDS[:1]),
    }


def summary(entries: Sequence[Mapping[str, Any]], variant: str) -> str:
    """Returns how close a variant is, and how often it orders two policies right.

    Entries without the variant do not count.
    """
    entries = [one for one in entries if variant in one]
    gaps = [
        abs(one[variant][name] - one["measured"][name])
        for one in entries
        for name in _CLASSES
    ]
    num_right = num_pairs = 0
    for left, right in itertools.combinations(entries, 2):
        if (left["trace"], left["load"]) != (right["trace"], right["load"]):
            continue
        ahead = left["measured"]["all"] - right["measured"]["all"]
        if abs(ahead) > _CLOSE_POINTS:
            num_pairs += 1
            num_right += ahead * (left[variant]["all"] - right[variant]["all"]) > 0
    num_close = sum(gap <= _CLOSE_POINTS for gap in gaps)
    return (
        f"* *{variant}*: {num_close} of {len(gaps)} shares by class within "
        f"{_CLOSE_POINTS:g} points (median {statistics.median(gaps):.1f}, largest "
        f"{max(gaps):.1f}); of {num_pairs} pairs of policies more than "
        f"{_CLOSE_POINTS:g} points apart {num_right} in the same order"
    )


def page(entries: Sequence[Mapping[str, Any]], found: Fit, commits: str) -> str:
    """Returns the tables as text."""
    head = ["trace", "load", "policy", "speed", "measured", *VARIANTS]
    rows = [head, ["---"] * len(head)]
    for one in entries:
        cells = [
            " / ".join(f"{one[name][part]:.1f}" for part in ("all", *_CLASSES))
            if name in one
            else ""
            for name in ("measured", *VARIANTS)
        ]
        labels = [one["trace"], f"{one['load']}", f"`{one['policy']}`"]
        rows.append([*labels, f"{found.factor / one['factor']:.2f}", *cells])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    fitted = ", ".join(
        f"{name} {value:.3g}"
        for name, value in dataclasses.asdict(found.disturbance).items()
    )
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [
        f"Attained %: all / {' / '.join(_CLASSES)}. {date}, commit {commits}, "
        f"{os.cpu_count()} cores {platform.machine()}.\n",
        f"{table}\n",
        *(summary(entries, name) for name in VARIANTS),
        f"\nSteps take {found.factor:.3f} times as long as in the profile; {fitted}.\n",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Reads profile and replays; prints and writes the page."""
    del argv
    machine = load_machine(f"table:{flags.FLAGS.samples}")
    paths = sorted(pathlib.Path(flags.FLAGS.folder).glob("*-[0-9].[0-9].json"))
    runs = [json.loads(path.read_text()) for path in paths]
    runs.sort(key=lambda one: (one["trace"], one["load"], one["policy"]))
    found = fit([steps_of(run, machine, place) for place, run in enumerate(runs)])
    with concurrent.futures.ProcessPoolExecutor(flags.FLAGS.num_processes) as pool:
        work = [
            pool.submit(compare, run, machine, place, found)
            for place, run in enumerate(runs)
        ]
        entries = []
        for one in work:
            entries.append(one.result())
            print(json.dumps(entries[-1]), flush=True)
    text = page(entries, found, " and ".join({str(run["commit"]) for run in runs}))
    print(text)
    if flags.FLAGS.output:
        write_whole(pathlib.Path(flags.FLAGS.output), text.encode())


if __name__ == "__main__":
    flags.DEFINE_string("folder", "out/simulator_truth", "Folder of all files.")
    flags.DEFINE_string("samples", "", "Profile of the engine.")
    flags.DEFINE_string("output", "", "Markdown file to write as well.")
    flags.DEFINE_integer("num_processes", 2, "Processes that simulate.")
    run_program(sys.modules[__name__])
