"""Measures how long an engine's steps take, in every bucket and for random batches.

An engine like the server's is built and warmed up; then it runs synthetic steps, one at
a time, as the server runs them, in shuffled rounds. The result is a samples file for
jserve-train-predictor; Ctrl-C leaves the file of an earlier run unchanged.

  jserve-profile --output=out/profile/samples.npz
  jserve-profile --model=toy --rounds=3 --num_random_shapes=20 --output=toy.npz

Prints a table, and one JSON document as the last line of stdout.
"""

import dataclasses
import json
import logging
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jserve.config import EngineConfig, check_range, check_writable
from jserve.engine.memory import claim_memory
from jserve.flags import define_config_flags, define_engine_flags
from jserve.program import ProgramError, run_program
from jserve.progress import Progress, timed_lines
from jserve_sched.buckets.table import Bucket
from jserve_sched.steps.features import SCENARIOS, scenarios
from jserve_sched.steps.plan import StepPlan
from jserve_sched.timing.predictor import StepSample, stack_samples
from jserve_tools.reporting.documents import commit, plain
from jserve_tools.reporting.tables import render
from jserve_tools.training.samples import (
    Samples,
    repeat_spread,
    split_steps,
    write_samples,
)
from jserve_tools.training.step_grid import ProfileLimits, profile_plans, time_rounds

if TYPE_CHECKING:
    from jserve.engine.engine import Engine

# The fields of EngineConfig that decide which steps there are and how long they take.
_ENGINE_FIELDS = {
    *("model", "dtype", "weights", "kv_dtype", "bucket_strategy", "buckets"),
    *("max_programs", "max_model_len", "max_num_seqs"),
    *("max_num_batched_tokens", "block_tokens", "page_size", "device_memory_fraction"),
    *("kv_cache_bytes", "attention", "compile_cache_dir"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Steps that are measured, and the number of measurements.

    Attributes:
      output: Samples file to write.
      rounds: Number of measurements of each step.
      warmup_rounds: Number of rounds that are run first and discarded.
      num_random_shapes: Number of random batches beside the grid, in equal parts
        decode only, prefill only and mixed.
      max_s: Seconds of measuring after which no further round begins; one round is
        always kept.
      seed: Seed of the steps, of the order of every round, of the held-out steps and
        of the weights.
    """

    output: pathlib.Path = pathlib.Path("out/profile/samples.npz")
    rounds: int = 9
    warmup_rounds: int = 1
    num_random_shapes: int = 600
    max_s: float = 600.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("rounds", self.rounds, 1, 10_000)
        check_range("warmup_rounds", self.warmup_rounds, 0, 100)
        check_range("num_random_shapes", self.num_random_shapes, 0, 1_000_000)
        check_range("max_s", self.max_s, 0.0, 1e6)
        check_range("seed", self.seed, 0, 2**32 - 1)


_read_config = define_config_flags(ProfileConfig, group="Profile")
_read_engine_config = define_engine_flags(
    exclude={field.name for field in dataclasses.fields(EngineConfig)} - _ENGINE_FIELDS
)


def main(argv: Sequence[str]) -> None:
    """Measures what the flags describe."""
    del argv  # the flags say it all
    try:
        config = _read_config()
        engine_config = _read_engine_config(seed=config.seed)
        check_writable("output", config.output)
        _profile(config, engine_config)
    except (ValueError, OSError, RuntimeError) as error:
        raise ProgramError(str(error)) from error


def _profile(config: ProfileConfig, engine_config: EngineConfig) -> None:
    """Builds the engine, measures it, writes the file, prints a table and JSON."""
    claim_memory(os.environ, engine_config.device_memory_fraction)
    import jax  # here, since it takes a second and --help does not need it

    from jserve.build import build_engine
    from jserve.engine.compile_cache import open_compile_cache
    from jserve.engine.sizing import plan_engine

    # Measure.
    logging.getLogger("jax").setLevel(logging.WARNING)
    engine_config, plan = plan_engine(engine_config)
    table = plan.final
    store = open_compile_cache(engine_config.compile_cache_dir)
    engine = build_engine(engine_config, store)
    limits = ProfileLimits.of(engine, engine_config, table)
    shapes_rng, order_rng, split_rng = (
        np.random.default_rng((config.seed, stream)) for stream in range(3)
    )
    plans = profile_plans(limits, shapes_rng, num_random=config.num_random_shapes)
    matrix = np.stack([plan.features for plan in plans])
    timed, duration_s = _measure(engine, table.buckets, plans, config, order_rng)
    timed_features, timed_s = stack_samples(timed)
    summary = _summary(matrix, duration_s)

    # Write the samples and the facts that they hold for.
    facts = plain(
        {
            "command": ["jserve-profile", *sys.argv[1:]],
            "jax": jax.__version__,
            "numpy": np.__version__,
            "model": engine_config.model,
            "predictor": engine.predictor_facts(commit=commit() or ""),
            "engine": dataclasses.replace(
                engine_config, bucket_strategy=engine_config.strategy
            ),
            "buckets": table.to_json(),
            "max_model_len": limits.max_model_len,
            "num_kv_tokens": engine.num_pages * engine.page_size,
            "seed": config.seed,
            "num_compiles_after_warmup": 0,
            **summary,
        }
    )
    samples = Samples(
        features=matrix,
        duration_s=duration_s,
        split=split_steps(matrix, split_rng),
        timed_features=timed_features,
        timed_s=timed_s,
        facts=facts,
    )
    write_samples(config.output, samples)

    # Print.
    rows = [["scenario", "steps", "median", "longest", "repeat spread"]]
    for name, entry in summary["scenarios"].items():
        times = [f"{entry['median_ms']:.2f}ms", f"{entry['longest_ms']:.1f}ms"]
        spread = f"{entry['repeat_spread']:.1%}"
        rows.append([name, str(entry["num_steps"]), *times, spread])
    print(f"\n{render(rows)}\n\nsamples: {config.output}")
    document = {**facts, "output": str(config.output)}
    print(json.dumps(document, separators=(",", ":")), flush=True)


def _measure(
    engine: "Engine",
    buckets: Sequence[Bucket],
    plans: Sequence[StepPlan],
    config: ProfileConfig,
    rng: np.random.Generator,
) -> tuple[list[StepSample], np.ndarray]:
    """Returns the steps timed at warm-up, and durations `[R, N]` in seconds.

    The measured steps overwrite the engine's KV pool.

    Raises:
      RuntimeError: If a program was compiled while steps were measured.
    """
    progress = Progress(timed_lines())
    with progress.doing(f"compiling {len(buckets)} programs"):
        engine.warm_up(buckets)
        timed = list(engine.timed_pass(buckets))
    num_runs, num_done = len(plans) * (config.warmup_rounds + config.rounds), 0

    def time_step(index: int) -> float:
        nonlocal num_done
        pending = engine.launch(plans[index])
        pending.wait()
        num_done += 1
        return time.monotonic() - pending.launched_s

    with progress.doing(
        f"measuring {len(plans)} steps, runs", num_runs, lambda: num_done
    ):
        duration_s = time_rounds(
            time_step,
            len(plans),
            rounds=config.rounds,
            warmup_rounds=config.warmup_rounds,
            rng=rng,
            max_s=config.max_s,
        )
    num_compiles = engine.programs.num_compiles_after_warmup
    if num_compiles:
        raise RuntimeError(f"{num_compiles} programs were compiled while measuring")
    return timed, duration_s


def _summary(matrix: np.ndarray, duration_s: np.ndarray) -> dict[str, Any]:
    """Returns the number of measured steps, their times and their repeats' spread."""
    spread, median_s = repeat_spread(duration_s), np.median(duration_s, axis=0)
    groups = {}
    for index, name in enumerate(SCENARIOS):
        chosen = scenarios(matrix) == index
        if chosen.any():
            groups[name] = {
                "num_steps": int(np.count_nonzero(chosen)),
                "median_ms": np.median(median_s[chosen]) * 1e3,
                "longest_ms": median_s[chosen].max() * 1e3,
                "repeat_spread": np.median(spread[chosen]),
            }
    return {
        "num_steps": len(matrix),
        "num_rounds": len(duration_s),
        "repeat_spread": {
            "median": np.median(spread),
            "p90": np.quantile(spread, 0.9),
        },
        "scenarios": groups,
    }


def run() -> None:
    """Entry point of the command `jserve-profile`."""
    run_program(sys.modules[__name__])


if __name__ == "__main__":
    run()
