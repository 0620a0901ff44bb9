"""Compares the simulator with replays of this machine's engine, request by request.

  python -m benchmarks.simulator_truth.engine > benchmarks/simulator_truth/engine.md

Reads the engine's profile and the replays that `replays.py` made, and simulates each
replay with the arrivals, lengths and objectives that it had: by the profile, and with
steps as much slower than profiled as those of the replay. Prints tables.
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

from benchmarks.study import markdown
from jserve.program import run_program
from jserve_sched.policies.registry import make_policy
from jserve_sched.requests.slo import Slo
from jserve_sched.simulation.cost_model import CostModel
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
# Medians of 24 replays: from a request's being due to its plan on an idle engine, and
# from the end of a step until the client has its token.
_WAYS_S = (0.0040, 0.0038)
_COLUMNS = {  # what the step-time table reads, as a step's record has it
    features.NUM_ROWS: "num_rows",
    features.NUM_BLOCKS: "num_blocks",
    features.DECODE_PAGES: "decode_pages",
    features.BLOCK_PAGES: "block_pages",
    features.NUM_DECODES: "used_rows",
}
VARIANTS = ("profile", "as it ran")
Run = Mapping[str, Any]


class Steps(NamedTuple):
    """The steps of a replay, `[N]` seconds."""

    start_s: np.ndarray
    measured_s: np.ndarray
    profile_s: np.ndarray


def steps_of(run: Run, machine: CostModel) -> Steps:
    """Returns the steps of a replay."""
    records = run["steps"]
    measured_s = np.array([one["duration_s"] for one in records])
    start_s = np.array([one["end_s"] for one in records]) - measured_s
    matrix = np.zeros((len(records), features.NUM_FEATURES))
    for column, name in _COLUMNS.items():
        matrix[:, column] = [one[name] for one in records]
    return Steps(start_s, measured_s, machine.step_s(matrix, machine.block_tokens))


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
    ways_s: tuple[float, float] = (0.0, 0.0),
) -> dict[str, float]:
    """Simulates the requests of a replay; returns what its clients attain."""
    first_s = run["requests"][0]["arrival_s"]
    arrivals = [
        Arrival(
            request_id=str(index),
            arrival_s=one["arrival_s"] - first_s + ways_s[0],
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
    later_s = first_s + ways_s[1]
    return attained(
        run, [[later_s + at_s for at_s in one.token_times_s] for one in found.outcomes]
    )


def compare(machine: CostModel, run: Run) -> Run:
    """Returns the shares attained in a replay: measured, and in each variant."""
    steps = steps_of(run, machine)
    start_s = steps.start_s - run["requests"][0]["arrival_s"]
    slowness = steps.measured_s / steps.profile_s
    ran = AsItRan(between_s=(start_s[1:] + start_s[:-1]) / 2, slowness=slowness)
    return {
        **{name: run[name] for name in ("trace", "load", "policy", "commit")},
        "speed": float(steps.profile_s.sum()) / float(steps.measured_s.sum()),
        "measured": attained(run, [one["token_times_s"] for one in run["requests"]]),
        "profile": simulated(run, machine),
        "as it ran": simulated(run, machine, ran, _WAYS_S),
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


def page(entries: Sequence[Run]) -> str:
    """Returns the tables as text."""
    head = ["trace", "load", "policy", "replay of", "speed", "measured", *VARIANTS]
    rows = []
    for one in entries:
        cells = [
            " / ".join(f"{one[name][part]:.1f}" for part in ("all", *_CLASSES))
            for name in ("measured", *VARIANTS)
        ]
        labels = [one["trace"], f"{one['load']}", f"`{one['policy']}`", one["commit"]]
        rows.append([*labels, f"{one['speed']:.2f}", *cells])
    lines = [
        f"Attained %: all / {' / '.join(_CLASSES)}. Simulated at {commit()}.\n",
        f"{markdown(head, rows)}\n",
        *(summary(entries, name) for name in VARIANTS),
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    """Reads profile and replays; prints the page."""
    del argv
    folder = pathlib.Path(flags.FLAGS.folder)
    machine = load_machine(f"table:{folder / 'samples.npz'}")
    runs = [json.loads(one.read_text()) for one in folder.glob("*-[0-9].[0-9].json")]
    runs.sort(key=lambda one: (one["trace"], one["load"], one["policy"]))
    with concurrent.futures.ProcessPoolExecutor() as pool:
        print(page(list(pool.map(functools.partial(compare, machine), runs))), end="")


if __name__ == "__main__":
    flags.DEFINE_string("folder", "out/simulator_truth", "Folder of all files.")
    run_program(sys.modules[__name__])
