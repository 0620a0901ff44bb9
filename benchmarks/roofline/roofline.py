"""Which share of this machine's bandwidth and arithmetic an engine's steps reach.

  .venv/bin/python -m benchmarks.roofline.roofline --output=out/roofline.json

Two peaks are measured: the bandwidth of reading (a float32 matrix of 1 GiB times a
vector) and float32 arithmetic (a product of two square matrices), each by NumPy and by
a JAX program on all cores; the faster one counts. Between them run an engine's steps,
one at a time and without a server. A step needs its weights and its rows' KV once, and
two operations for each weight and token; what it reads or computes beyond that, padding
for one, lowers its share.

All of this takes turns in shuffled rounds. A share or ratio is taken within a round;
the result is the median over rounds, with the range. The engine's flags choose another
model, page size or bucket strategy.
"""

import dataclasses
import functools
import json
import logging
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.roofline.needs import needs
from jserve.build import build_engine
from jserve.config import EngineConfig
from jserve.engine.compile_cache import open_compile_cache
from jserve.engine.sizing import plan_engine
from jserve.flags import define_config_flags, define_engine_flags
from jserve.program import run_program
from jserve_sched.buckets.table import Bucket
from jserve_sched.steps.plan import StepPlan
from jserve_tools.reporting.documents import commit, plain, write_whole
from jserve_tools.reporting.tables import render
from jserve_tools.training.step_grid import ProfileLimits, step_plan, time_rounds

_READ_BYTES = 2**30
_MATRIX_SIZE = 3072
_LEAST_S = 0.15  # a turn repeats its work until this has passed,
_LEAST_REPEATS = 3  # at least so often; the first, with cold caches, is discarded
_SHORT, _LONG, _PROMPT = 128, 8064, 1024  # tokens of context
# Pairs of cases whose times are compared, and what their ratio says.
_RATIOS = {
    "one_row / one_row_alone": "a lone row against a program of one row",
    "31_rows_1_long / 32_rows": "one decode of 8,064 tokens among short ones",
    "15_blocks_1_long / 16_blocks": "one block at 8,064 tokens among short ones",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """What is measured, and where it is written.

    Attributes:
      model: Model, as in the engine's flag of this name.
      rounds: Number of rounds; each measures everything once.
      output: JSON file to write.
    """

    model: str = "peer-19m"
    rounds: int = 7
    output: pathlib.Path = pathlib.Path("out/roofline.json")


_read = define_config_flags(Roofline, group="Roofline")
_read_engine = define_engine_flags(exclude=("model", "capture_logits"))


@dataclasses.dataclass(frozen=True)
class Work:
    """What is repeated and timed, and what it needs at least.

    Attributes:
      run: Does it once.
      read_bytes: Bytes that it has to read.
      operations: Multiplications and additions that it has to do.
    """

    run: Callable[[], object]
    read_bytes: float
    operations: float


def peaks() -> dict[str, Work]:
    """Returns what measures the machine, by name: reading, then arithmetic."""
    import jax

    rng = np.random.default_rng(0)
    columns = 4096
    tall = rng.random((_READ_BYTES // (4 * columns), columns), np.float32)
    vector = rng.random(columns, np.float32)
    square = rng.random((_MATRIX_SIZE, _MATRIX_SIZE), np.float32)
    product = jax.jit(lambda a, b: a @ b)
    found = {}
    for name, a, b in (("read", tall, vector), ("matmul", square, square)):
        size = 2.0 * a.size * (b.shape[1] if b.ndim == 2 else 1)
        on_device = jax.device_put(a), jax.device_put(b)

        def jax_run(pair: Any = on_device) -> object:
            return product(*pair).block_until_ready()

        found[f"{name}_numpy"] = Work(
            functools.partial(np.matmul, a, b), a.nbytes, size
        )
        found[f"{name}_jax"] = Work(jax_run, a.nbytes, size)
    return found


def cases(
    limits: ProfileLimits, max_num_batched_tokens: int
) -> dict[str, tuple[StepPlan, ...]]:
    """Returns the steps of each case, by its name.

    Raises:
      ValueError: If the engine's limits do not allow one of them.
    """
    make = functools.partial(step_plan, limits)
    size = limits.table.block_tokens
    # The prompt, in chunks as large as a step allows, of which the last samples.
    most = size * limits.table.block_edge_beside(0, max_num_batched_tokens)
    chunks = [
        make([], [(start, min(most, _PROMPT - start))])
        for start in range(0, _PROMPT, most)
    ]
    chunks[:-1] = [
        dataclasses.replace(
            plan, chunks=tuple(row._replace(draws_token=False) for row in plan.chunks)
        )
        for plan in chunks[:-1]
    ]
    short, long = (_SHORT - size, size), (_LONG - size, size)
    one = make([_SHORT], [])
    alone = dataclasses.replace(one, bucket=Bucket(1, 0, size))
    return {
        "one_row": (one,),
        "one_row_alone": (alone,),
        "32_rows": (make([_SHORT] * 32, []),),
        "31_rows_1_long": (make([_SHORT] * 31 + [_LONG], []),),
        "16_blocks": (make([], [short] * 16),),
        "15_blocks_1_long": (make([], [short] * 15 + [long]),),
        "prefill_1024": tuple(chunks),
    }


def _turn_s(run: Callable[[], object]) -> float:
    """Returns the median seconds of a work over the repeats of one turn."""
    run()
    times_s: list[float] = []
    while len(times_s) < _LEAST_REPEATS or sum(times_s) < _LEAST_S:
        start_s = time.perf_counter()
        run()
        times_s.append(time.perf_counter() - start_s)
    return float(np.median(times_s))


def measure(config: Roofline, engine_config: EngineConfig) -> dict[str, Any]:
    """Returns the report: peaks, cases with their shares, ratios."""
    engine_config, plan = plan_engine(engine_config)
    table = plan.final
    engine = build_engine(
        engine_config, open_compile_cache(engine_config.compile_cache_dir)
    )
    limits = ProfileLimits.of(engine, engine_config, table)
    plans = cases(limits, engine_config.max_num_batched_tokens)
    engine.warm_up(sorted({plan.bucket for steps in plans.values() for plan in steps}))

    def run(steps: Sequence[StepPlan]) -> None:
        for plan in steps:
            engine.launch(plan).wait()

    works = peaks()
    num_peaks = len(works)
    for name, steps in plans.items():
        works[name] = Work(functools.partial(run, steps), *needs(engine, steps))
    all_works = list(works.values())
    times_s = time_rounds(
        lambda index: _turn_s(all_works[index].run),
        len(works),
        rounds=config.rounds,
        warmup_rounds=1,
        rng=np.random.default_rng(0),
        max_s=600.0,
    )
    # Shares and ratios within a round.
    read = np.array([work.read_bytes for work in all_works]) / times_s
    compute = np.array([work.operations for work in all_works]) / times_s
    most_read = read[:, :2].max(axis=1, keepdims=True)
    most_compute = compute[:, 2:num_peaks].max(axis=1, keepdims=True)
    report_cases = {
        name: {
            "buckets": [str(plan.bucket) for plan in plans[name]],
            "step_ms": _spread(1e3 * times_s[:, index]),
            "read_mb": all_works[index].read_bytes / 1e6,
            "gigaoperations": all_works[index].operations / 1e9,
            "bandwidth_share": _spread((read / most_read)[:, index]),
            "matmul_share": _spread((compute / most_compute)[:, index]),
        }
        for index, name in enumerate(works)
        if name in plans
    }
    by_name = dict(zip(works, times_s.T, strict=True))
    ratios = {
        ratio: _spread(np.divide(*(by_name[name] for name in ratio.split(" / "))))
        for ratio in _RATIOS
    }
    return {
        "peaks": {
            name: _spread((read if index < 2 else compute)[:, index] / 1e9)
            for index, name in enumerate(works)
            if name not in plans
        },
        "cases": report_cases,
        "ratios": ratios,
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    """Returns median and range over rounds."""
    low, median, high = np.quantile(values, (0.0, 0.5, 1.0)).tolist()
    return {"median": median, "low": low, "high": high}


def _print(report: Mapping[str, Any]) -> None:
    rows = [["peak", "median", "range"]]
    for name, one in report["peaks"].items():
        unit = "GB/s" if name.startswith("read") else "GFLOP/s"
        rows.append(
            [
                name,
                f"{one['median']:.1f} {unit}",
                f"{one['low']:.1f} to {one['high']:.1f}",
            ]
        )
    print(f"{render(rows)}\n")
    rows = [["case", "bucket", "step", "of bandwidth", "of matmul"]]
    for name, case in report["cases"].items():
        shares = [case[key]["median"] for key in ("bandwidth_share", "matmul_share")]
        step = f"{case['step_ms']['median']:.2f} ms"
        buckets = " ".join(dict.fromkeys(case["buckets"]))
        rows.append([name, buckets, step, *(f"{share:.1%}" for share in shares)])
    print(f"{render(rows)}\n")
    rows = [["ratio of times", "median", "range", "what it says"]]
    for name, one in report["ratios"].items():
        found = f"{one['low']:.2f} to {one['high']:.2f}"
        rows.append([name, f"{one['median']:.2f}", found, _RATIOS[name]])
    print(render(rows))


def main(argv: Sequence[str]) -> None:
    """Measures, prints tables and writes the JSON file."""
    del argv
    import jax

    logging.getLogger("jax").setLevel(logging.WARNING)
    config = _read()
    engine_config = _read_engine(model=config.model)
    report = {
        "commit": commit(),
        "command": ["roofline.py", *sys.argv[1:]],
        "machine": {"processor": platform.machine(), "num_cpus": os.cpu_count()},
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "model": config.model,
        "rounds": config.rounds,
        **measure(config, engine_config),
    }
    write_whole(config.output, (json.dumps(plain(report), indent=1) + "\n").encode())
    _print(report)
    print(f"\n{config.output}")


if __name__ == "__main__":
    run_program(sys.modules[__name__])
