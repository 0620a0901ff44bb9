"""How wrong the prior of step times is on a device that was never profiled.

  python -m benchmarks.predictor.transfer

Each machine of `jserve_tools/gpu_profiles` is left out in turn: its vendor's figures
are known, but of the shares of them that kernels reach only what the others have, their
medians. A server's table is filled with these prices; then it serves a random third
each of decodes, prefill and mixed steps in the pow2 buckets, and calibrates itself by
the first of them. Prints the median error of all steps before any was seen, and of
later ones, each predicted before it is learned from.
"""

import dataclasses
import statistics
import sys
from collections.abc import Sequence

import numpy as np

from benchmarks.study import markdown
from jserve.program import run_program
from jserve_sched.simulation.priced_table import priced_table
from jserve_sched.simulation.roofline import DEVICES, Device, RooflineCost
from jserve_sched.steps.features import SCENARIOS, scenarios
from jserve_sched.timing.best import BestPredictor
from jserve_sched.timing.calibrated import CalibratedPredictor
from jserve_sched.timing.predictor import StepSample
from jserve_tools.gpu_profiles.machines import load_machine, simulated_table
from jserve_tools.simulating.predictors import random_batches

MACHINES = {  # left out, and what is known of it
    "rtx4090-llama3.1-8b-table": "rtx4090",
    "rtxpro6000-llama3.1-8b-table": "rtxpro6000",
    "a100-llama3-8b": "a100",
    "h100-llama3-8b": "h100",
}
_SHARES = ("products", "attention", "reading", "mixed", "key_s")
_NUM_STEPS = 1200
_SEEN = 200
_MAX_MODEL_LEN = 8192
_NOISE = 0.05  # standard deviation of the logarithm of a step's time


def prior_device(name: str) -> Device:
    """Returns a device with its own figures, and the shares of the others."""
    others = [DEVICES[one] for one in MACHINES.values() if one != name]
    shares = {
        share: statistics.median(getattr(one, share) for one in others)
        for share in _SHARES
    }
    return dataclasses.replace(DEVICES[name], **shares)


def errors(machine: str) -> list[list[str]]:
    """Returns a row for each kind of step, and one for all: median errors in %."""
    known = MACHINES[machine]
    truth = load_machine(machine)
    buckets = simulated_table("pow2", truth, None, 32)
    prior = load_machine(f"roofline:device={known}:model=llama-8b")
    assert isinstance(prior, RooflineCost)
    prior = dataclasses.replace(
        prior, device=prior_device(known), page_size=truth.page_size
    )
    table = priced_table(prior, buckets, max_model_len=_MAX_MODEL_LEN)
    predictor = BestPredictor(CalibratedPredictor(table, "table"))
    # The steps of a server that has just started, as they come.
    matrix = random_batches(
        truth, buckets, max_model_len=_MAX_MODEL_LEN, num_batches=_NUM_STEPS
    )
    rng = np.random.default_rng(1)
    matrix = rng.permutation(matrix)
    time_s = truth.step_s(matrix, buckets.block_tokens)
    time_s *= rng.lognormal(0.0, _NOISE, len(time_s))
    first = np.abs(time_s / table.predict(matrix) - 1.0)
    later = np.empty(len(matrix))
    for index, one in enumerate(matrix):
        later[index] = abs(time_s[index] / predictor.predict(one[None])[0] - 1.0)
        predictor.update(StepSample(one, float(time_s[index])))
    # By kind of step.
    kinds, is_later = scenarios(matrix), np.arange(len(matrix)) >= _SEEN
    rows = []
    for name, chosen in (
        ("all", np.ones(len(matrix), bool)),
        *((name, kinds == kind) for kind, name in enumerate(SCENARIOS)),
    ):
        medians = np.median(first[chosen]), np.median(later[chosen & is_later])
        rows.append([machine, name, *(f"{100 * one:.1f}" for one in medians)])
    return rows


def main(argv: Sequence[str]) -> None:
    """Prints a table."""
    del argv
    rows = [row for machine in MACHINES for row in errors(machine)]
    columns = "machine", "steps", "prior alone, %", f"after {_SEEN} steps, %"
    print(markdown(columns, rows))


if __name__ == "__main__":
    run_program(sys.modules[__name__])
