"""Measures how long steps of an engine take, over a grid of shapes and random batches.

An engine like the server's is built and warmed up; then made-up steps run on it, one at
a time, as the server runs them: launch, wait, and the host's clock. Every round visits
every step once, in an order of its own. What comes out is a samples file for
jserve-train-predictor.

  jserve-profile --output=out/profile/samples.npz
  jserve-profile --model=toy --rounds=3 --num_random_shapes=20 --output=toy.npz

Prints a table for people; the last line of stdout is one JSON document. Ctrl-C leaves
the file of an earlier run as it was.
"""

import dataclasses
import json
import logging
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from absl import flags

from jserve.build import build_engine
from jserve.config_flags import define_engine_flags
from jserve.engine import Engine
from jserve.predictor_checkpoint import PredictorFacts
from jserve.program import ProgramError, run_program
from jserve_sched.features import SCENARIOS, scenarios
from jserve_tools.documents import commit, plain
from jserve_tools.samples import Samples, split_steps, write_samples
from jserve_tools.step_grid import (
    StepLimits,
    designed_shapes,
    random_shapes,
    step_plan,
)
from jserve_tools.step_timer import repeat_spread, time_rounds
from jserve_tools.tables import render

# What plans steps, or feeds an engine; none of it changes how long a step takes.
_IDLE_FIELDS = (
    *("policy", "predictor", "enable_prefix_caching", "max_queued_requests"),
    *("enable_overlap", "capture_logits", "seed"),
)
_read_engine_config = define_engine_flags(exclude=_IDLE_FIELDS)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 9, "Measurements of each step.", lower_bound=1, upper_bound=10_000
)
_WARMUP_ROUNDS = flags.DEFINE_integer(
    "warmup_rounds",
    1,
    "Rounds before these that are thrown away.",
    lower_bound=0,
    upper_bound=100,
)
_NUM_RANDOM_SHAPES = flags.DEFINE_integer(
    "num_random_shapes",
    600,
    "Random batches beside the grid, a third of each scenario.",
    lower_bound=0,
    upper_bound=1_000_000,
)
_MAX_S = flags.DEFINE_float(
    "max_s",
    600.0,
    "Seconds of measuring after which no further round is begun; one round is always "
    "kept.",
    lower_bound=0.0,
)
_SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Draws the random batches, the order of every round, the held-out steps and the "
    "weights.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
_OUTPUT = flags.DEFINE_string(
    "output", "out/profile/samples.npz", "The samples file to write."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfilePlan:
    """What is measured, and how often.

    Attributes:
      limits: what bounds a step.
      rounds: measurements of each step.
      warmup_rounds: rounds before these, thrown away.
      num_random_shapes: random batches beside the grid.
      max_s: seconds after which no further round is begun.
      seed: draws batches, orders and held-out steps.
    """

    limits: StepLimits
    rounds: int
    warmup_rounds: int
    num_random_shapes: int
    max_s: float
    seed: int


def profile(engine: Engine, what: ProfilePlan, say: Callable[[str], object]) -> Samples:
    """Measures the steps of a plan on an engine that has compiled nothing yet.

    Args:
      engine: the engine; what its KV pool holds is lost.
      what: the plan.
      say: told what goes on.

    Raises:
      ValueError: if the limits allow too few different steps.
      RuntimeError: if a program was compiled while it was measured.
    """
    shapes_rng, order_rng, split_rng = (
        np.random.default_rng((what.seed, stream)) for stream in range(3)
    )
    grid = designed_shapes(what.limits)
    shapes = grid + random_shapes(
        what.limits, shapes_rng, num_shapes=what.num_random_shapes, but=grid
    )
    say(f"compiling {len(what.limits.table.buckets)} programs")
    engine.warm_up()
    timed = list(engine.timed_pass(what.limits.table.buckets))
    plans = [
        step_plan(shape, what.limits, num_pages=engine.num_pages) for shape in shapes
    ]

    def time_step(index: int) -> float:
        pending = engine.launch(plans[index])
        pending.wait()
        return time.monotonic() - pending.launched_s

    say(
        f"measuring {len(plans)} steps, {len(grid)} of them of the grid, in "
        f"{what.warmup_rounds} + {what.rounds} rounds"
    )
    num_runs = len(plans) * (what.warmup_rounds + what.rounds)
    with tqdm.tqdm(total=num_runs, unit="step", smoothing=0.02) as progress:
        duration_s = time_rounds(
            time_step,
            len(plans),
            rounds=what.rounds,
            warmup_rounds=what.warmup_rounds,
            rng=order_rng,
            max_s=what.max_s,
            on_step=progress.update,
        )
    num_compiles = engine.programs.num_compiles_after_warmup
    if num_compiles:
        raise RuntimeError(f"{num_compiles} programs were compiled while measuring")
    matrix = np.stack([plan.features for plan in plans])
    return Samples(
        features=matrix,
        duration_s=duration_s,
        split=split_steps(matrix, split_rng),
        timed_features=np.stack([sample.features for sample in timed]),
        timed_s=np.array([sample.duration_s for sample in timed]),
        facts={},
    )


def summary(samples: Samples) -> dict[str, Any]:
    """Returns how many steps were measured, and how far their repeats spread."""
    spread = repeat_spread(samples.duration_s)
    scenario = scenarios(samples.features)
    return {
        "num_steps": len(samples.features),
        "num_rounds": len(samples.duration_s),
        "num_compiles_after_warmup": 0,
        "repeat_spread": {
            "median": np.median(spread),
            "p90": np.quantile(spread, 0.9),
        },
        "scenarios": {
            name: {
                "num_steps": int(np.count_nonzero(chosen)),
                "median_ms": np.median(samples.median_s[chosen]) * 1e3,
                "longest_ms": samples.median_s[chosen].max() * 1e3,
                "repeat_spread": np.median(spread[chosen]),
            }
            for index, name in enumerate(SCENARIOS)
            if (chosen := scenario == index).any()
        },
    }


def _table(found: dict[str, Any]) -> str:
    rows = [["scenario", "steps", "median", "longest", "repeat spread"]]
    for name, entry in found["scenarios"].items():
        rows.append(
            [
                name,
                str(entry["num_steps"]),
                f"{entry['median_ms']:.2f}ms",
                f"{entry['longest_ms']:.1f}ms",
                f"{entry['repeat_spread'] * 100:.1f}%",
            ]
        )
    return render(rows)


def _say(line: str) -> None:
    print(line, flush=True)


def main(argv: Sequence[str]) -> None:
    """Measures what the flags describe."""
    del argv  # the flags say it all
    logging.getLogger("jax").setLevel(logging.WARNING)
    path = pathlib.Path(_OUTPUT.value).expanduser()
    try:
        config = _read_engine_config(seed=_SEED.value)
        engine = build_engine(config)
        limits = StepLimits(
            table=engine.programs.table,
            num_slots=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=engine.max_model_len,
            page_size=config.page_size,
        )
        what = ProfilePlan(
            limits=limits,
            rounds=_ROUNDS.value,
            warmup_rounds=_WARMUP_ROUNDS.value,
            num_random_shapes=_NUM_RANDOM_SHAPES.value,
            max_s=_MAX_S.value,
            seed=_SEED.value,
        )
        samples = profile(engine, what, _say)
    except (ValueError, OSError, RuntimeError) as error:
        raise ProgramError(str(error)) from error
    found = summary(samples)
    predictor = PredictorFacts.here(
        engine.model.config,
        dtype=engine.dtype.name,
        page_size=config.page_size,
        block_tokens=config.block_tokens,
        commit=commit() or "",
    )
    facts = {
        "command": ["jserve-profile", *sys.argv[1:]],
        "jax": jax.__version__,
        "numpy": np.__version__,
        "model": config.model,
        "predictor": dataclasses.asdict(predictor),
        "engine": dataclasses.asdict(config),
        "buckets": limits.table.to_json(),
        "max_model_len": limits.max_model_len,
        "num_kv_tokens": engine.num_pages * engine.page_size,
        "seed": _SEED.value,
        **found,
    }
    facts = plain(facts)
    try:
        write_samples(path, dataclasses.replace(samples, facts=facts))
    except OSError as error:
        raise ProgramError(f"output={str(path)!r}: {error}") from error
    _say("")
    _say(_table(found))
    _say(f"\nsamples: {path} ({path.stat().st_size / 1e3:.0f} kB)")
    _say(json.dumps({**facts, "output": str(path)}, separators=(",", ":")))


def run() -> None:
    """The console script."""
    run_program(sys.modules[__name__])


if __name__ == "__main__":
    run()
