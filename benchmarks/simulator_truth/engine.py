"""Compares the simulator with replays of this machine's engine, request by request.

  python -m benchmarks.simulator_truth.engine > benchmarks/simulator_truth/engine.md

Reads the engine's profile and the replays that `replays.py` made. How this machine's
steps differ from the profile is fitted to the replays' steps; then each replay is
simulated with the arrivals, lengths and objectives that it had. Prints tables.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import json
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from jserve.program import run_program
from jserve_sched.policies.registry import make_policy
from jserve_sched.requests.slo import Slo
from jserve_sched.simulation.cost_model import CostModel, PredictorCost
from jserve_sched.simulation.disturbance import Disturb, Disturbance
from jserve_sched.simulation.simulator import make_scheduler, simulate
from jserve_sched.simulation.workload import Arrival
from jserve_sched.steps import features
from jserve_tools.gpu_profiles.machines import load_machine, simulated_table
from jserve_tools.reporting.documents import commit
from jserve_tools.simulating.predictors import make_predictor

_MAX_MODEL_LEN = 4096
_CLASSES = ("interactive", "batch")
_CLOSE_POINTS = 5.0
_WINDOW_S = 10.0  # in which speed is taken to be constant
_COLUMNS = {  # what the step-time table reads, as a step's record has it
    features.NUM_ROWS: "num_rows",
    features.NUM_BLOCKS: "num_blocks",
    features.DECODE_PAGES: "decode_pages",
    features.BLOCK_PAGES: "block_pages",
    features.NUM_DECODES: "used_rows",
}
VARIANTS = ("profile", "disturbed", "as it ran")
Run = Mapping[str, Any]
Fit = tuple[float, Disturbance]
Ways = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slower(PredictorCost):
    """A machine whose steps take `factor` times as long."""

    factor: float

    def step_s(self, matrix: np.ndarray, block_tokens: int) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        return self.factor * super().step_s(matrix, block_tokens)


class Steps(NamedTuple):
    """The steps of a replay, `[N]`."""

    start_s: np.ndarray
    measured_s: np.ndarray
    profile_s: np.ndarray
    rows: np.ndarray  # decode rows
    received: np.ndarray  # requests sent while a step as long as profiled would run
    program: np.ndarray  # a number for each program
    window: np.ndarray  # a number for each `_WINDOW_S` of each replay


def steps_of(run: Run, machine: CostModel, place: int) -> Steps:
    """Returns the steps of a replay, number `place` of all."""
    records = run["steps"]
    measured_s = np.array([one["duration_s"] for one in records])
    start_s = np.array([one["end_s"] for one in records]) - measured_s
    matrix = np.zeros((len(records), features.NUM_FEATURES))
    for column, name in _COLUMNS.items():
        matrix[:, column] = [one[name] for one in records]
    profile_s = machine.step_s(matrix, machine.block_tokens)
    sent_s = np.sort([one["sent_s"] for one in run["requests"]])
    before = [np.searchsorted(sent_s, end) for end in (start_s, start_s + profile_s)]
    window = 1000 * place + (start_s - start_s[0]) // _WINDOW_S
    program = 1000 * matrix[:, features.NUM_ROWS] + matrix[:, features.NUM_BLOCKS]
    rows, received = matrix[:, features.NUM_DECODES], before[1] - before[0]
    return Steps(start_s, measured_s, profile_s, rows, received, program, window)


def fit(runs: Sequence[Steps]) -> Fit:
    """Returns the time of a step over that of the profile, and what else differs."""
    # A factor, and a time for each row and request, by least squares without outliers.
    steps = Steps(*(np.concatenate(column) for column in zip(*runs, strict=True)))
    matrix = np.stack((steps.profile_s, steps.rows, steps.received), axis=1)
    kept = np.ones(len(matrix), bool)
    for _ in range(5):
        found = np.linalg.lstsq(matrix[kept], steps.measured_s[kept], rcond=None)[0]
        rest_s = np.abs(steps.measured_s - matrix @ found)
        kept = rest_s < 4 * np.median(rest_s)
    added_s = matrix[:, 1:] @ found[1:]
    # What is left: of windows of time, of programs, of single steps.
    _, place = np.unique(steps.window, return_inverse=True)
    spent_s = np.bincount(place, steps.measured_s - added_s)
    drifts = np.log(spent_s / np.bincount(place, steps.profile_s))
    rest = np.log(
        steps.measured_s / (np.exp(drifts[place]) * steps.profile_s + added_s)
    )
    programs, place = np.unique(steps.program, return_inverse=True)
    medians = np.array([np.median(rest[steps.program == one]) for one in programs])
    noise = float(1.4826 * np.median(np.abs(rest - medians[place])))
    factor = float(spent_s.sum()) / float(steps.profile_s.sum())
    factor *= float(np.exp(-(noise**2) / 2))
    return factor, Disturbance(
        noise=noise,
        bias=float(np.sqrt(3.0 * np.cov(medians[place], aweights=steps.measured_s))),
        drift=float(np.std(drifts)),
        send_s=float(found[1]),
        receive_s=float(found[2]),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AsItRan(Disturbance):
    """A machine as slow at each moment as the nearest step of a replay."""

    between_s: np.ndarray  # halfway between two starts of steps
    slowness: np.ndarray  # time of each step, over that of the profile

    def drawn(self, seed: Sequence[int]) -> Disturb:
        """Returns the durations of steps, the same for every seed."""
        return lambda duration_s, row, now_s, num_received: float(
            duration_s * self.slowness[np.searchsorted(self.between_s, now_s)]
        )


def ways_s(runs: Sequence[Run]) -> Ways:
    """Returns the seconds from a request's being due to its plan, and of its tokens.

    Medians over all replays: the first of requests that came to an idle engine, the
    other from the end of a step until the client had its token.
    """
    to_s: list[float] = []
    back_s: list[float] = []
    for run in runs:
        ends_s = np.array([one["end_s"] for one in run["steps"]])
        host = [one["plan_s"] + one["transfer_s"] for one in run["steps"]]
        waited_s = np.array([one["launched_s"] for one in run["steps"]]) - host
        due_s = np.append([one["arrival_s"] for one in run["requests"]], np.inf)
        waited_s[1:] -= due_s[np.searchsorted(due_s, ends_s[:-1])]
        to_s += waited_s[1:][waited_s[1:] > 0].tolist()
        token_s = np.concatenate([one["token_times_s"] for one in run["requests"]])
        back_s += (token_s - ends_s[np.searchsorted(ends_s, token_s) - 1]).tolist()
    return statistics.median(to_s), statistics.median(back_s)


def attained(run: Run, times_s: Sequence[Sequence[float]]) -> dict[str, float]:
    """Returns the shares of requests, percent, that attain with these token times."""
    kept: dict[str, list[bool]] = {name: [] for name in ("all", *_CLASSES)}
    for one, times in zip(run["requests"], times_s, strict=True):
        is_attained = Slo(**one["slo"]).is_attained(
            one["arrival_s"], times, is_complete=len(times) == one["max_tokens"]
        )
        for name in ("all", one["service_class"]):
            kept[name].append(is_attained)
    return {name: 100 * statistics.fmean(flags) for name, flags in kept.items()}


def simulated(
    run: Run,
    machine: CostModel,
    disturbance: Disturbance | None = None,
    ways: Ways = (0.0, 0.0),
) -> dict[str, float]:
    """Simulates the requests of a replay; returns what its clients attain."""
    first_s = run["requests"][0]["arrival_s"]
    arrivals = [
        Arrival(
            request_id=str(index),
            arrival_s=one["arrival_s"] - first_s + ways[0],
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
    found = simulate(
        scheduler, machine, arrivals, lag=1, disturbance=disturbance, seed=31
    )
    later_s = first_s + ways[1]
    return attained(
        run, [[later_s + at_s for at_s in one.token_times_s] for one in found.outcomes]
    )


def compare(
    machine: PredictorCost, found: Fit, ways: Ways, run: Run, steps: Steps
) -> Run:
    """Returns the shares attained in a replay: measured, and in each variant."""
    slower = Slower(**vars(machine), factor=found[0])
    start_s = steps.start_s - run["requests"][0]["arrival_s"]
    slowness = steps.measured_s / steps.profile_s
    ran = AsItRan(between_s=(start_s[1:] + start_s[:-1]) / 2, slowness=slowness)
    return {
        **{name: run[name] for name in ("trace", "load", "policy", "commit")},
        "speed": float(steps.profile_s.sum()) / float(steps.measured_s.sum()),
        "measured": attained(run, [one["token_times_s"] for one in run["requests"]]),
        "profile": simulated(run, machine),
        "disturbed": simulated(run, slower, found[1], ways),
        "as it ran": simulated(run, machine, ran, ways),
    }


def summary(entries: Sequence[Run], variant: str) -> str:
    """Returns how close a variant is, and how often it orders two policies right."""
    gaps = [
        abs(one[variant][name] - one["measured"][name])
        for one in entries
        for name in _CLASSES
    ]
    leads = [
        [left[name]["all"] - right[name]["all"] for name in ("measured", variant)]
        for left, right in itertools.combinations(entries, 2)
        if (left["trace"], left["load"]) == (right["trace"], right["load"])
    ]
    is_right = [a * b > 0 for a, b in leads if abs(a) > _CLOSE_POINTS]
    num_close = sum(gap <= _CLOSE_POINTS for gap in gaps)
    return (
        f"* *{variant}*: {num_close} of {len(gaps)} shares by class within "
        f"{_CLOSE_POINTS:g} points (median {statistics.median(gaps):.1f}, largest "
        f"{max(gaps):.1f}); of {len(is_right)} pairs of policies more than "
        f"{_CLOSE_POINTS:g} points apart {sum(is_right)} in the same order"
    )


def page(entries: Sequence[Run], found: Fit, ways: Ways) -> str:
    """Returns the tables as text."""
    head = ["trace", "load", "policy", "replay of", "speed", "measured", *VARIANTS]
    rows = [head, ["---"] * len(head)]
    for one in entries:
        cells = [
            " / ".join(f"{one[name][part]:.1f}" for part in ("all", *_CLASSES))
            for name in ("measured", *VARIANTS)
        ]
        labels = [one["trace"], f"{one['load']}", f"`{one['policy']}`", one["commit"]]
        rows.append([*labels, f"{one['speed']:.2f}", *cells])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    fits = vars(found[1]).items()
    fitted = ", ".join(f"{key} {value:.3g}" for key, value in fits if value)
    lines = [
        f"Attained %: all / {' / '.join(_CLASSES)}. Simulated at {commit()}.\n",
        f"{table}\n",
        *(summary(entries, name) for name in VARIANTS),
        f"\nSteps take {found[0]:.3f} times as long as in the profile; {fitted}. A "
        f"request needs {1e3 * ways[0]:.1f} ms until it is planned, a token "
        f"{1e3 * ways[1]:.1f} ms to its client.\n",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Reads profile and replays; prints and writes the page."""
    del argv
    folder = pathlib.Path(flags.FLAGS.folder)
    machine = load_machine(f"table:{folder / 'samples.npz'}")
    assert isinstance(machine, PredictorCost)
    runs = [json.loads(one.read_text()) for one in folder.glob("*-[0-9].[0-9].json")]
    runs.sort(key=lambda one: (one["trace"], one["load"], one["policy"]))
    steps = [steps_of(run, machine, place) for place, run in enumerate(runs)]
    found, ways = fit(steps), ways_s(runs)
    with concurrent.futures.ProcessPoolExecutor() as pool:
        work = functools.partial(compare, machine, found, ways)
        print(page(list(pool.map(work, runs, steps)), found, ways), end="")


if __name__ == "__main__":
    flags.DEFINE_string("folder", "out/simulator_truth", "Folder of all files.")
    run_program(sys.modules[__name__])
