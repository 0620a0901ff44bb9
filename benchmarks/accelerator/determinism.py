"""Whether a request's logits depend on what runs beside it, on this device.

  python -m benchmarks.accelerator.determinism --output=out/h200/determinism.json
  python -m benchmarks.accelerator.determinism --small        on CPU, in seconds

A prompt is computed whole, or in two chunks; then its first decode runs in row 0 of a
program, alone or among others of several contexts. Within one program and row the
logits have to be equal to the last bit (`difference` 0); across programs they are near.
"""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from jserve.engine.memory import claim_memory
from jserve.flags import define_config_flags, define_engine_flags
from jserve.program import run_program
from jserve_sched.buckets.table import Bucket
from jserve_sched.steps.plan import StepPlan

_SMALL = {"model": "tiny", "max_num_seqs": 4, "max_num_batched_tokens": 68}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Determinism:
    """What is compared, and where it is written.

    Attributes:
      output: JSON file to write.
      small: Whether sizes are such that a CPU takes seconds.
    """

    output: pathlib.Path = pathlib.Path("out/accelerator/determinism.json")
    small: bool = False


_read = define_config_flags(Determinism, group="Determinism")
_read_engine = define_engine_flags(exclude=("model", "capture_logits"))


def main(argv: Sequence[str]) -> None:
    """Compares, and ends with 1 if a row depends on its neighbours."""
    del argv
    config = _read()
    sizes = _SMALL if config.small else {"model": "llama-1b"}
    engine_config = dataclasses.replace(_read_engine(), capture_logits=True, **sizes)
    claim_memory(os.environ, engine_config.device_memory_fraction)
    # Here, since JAX takes memory as it starts.
    from benchmarks.accelerator.results import Results
    from jserve.build import build_engine
    from jserve.engine.sizing import plan_engine
    from jserve_tools.training.step_grid import ProfileLimits, step_plan

    results = Results(config.output, "determinism.py", max_s=600.0)
    engine_config, plan = plan_engine(engine_config)
    engine = build_engine(engine_config)
    table = plan.final
    limits = ProfileLimits.of(engine, engine_config, table)
    most_rows, size = table.max_rows, table.block_tokens
    chunk = size * table.block_edge_beside(0, engine_config.max_num_batched_tokens)
    prompt = np.random.default_rng(0).integers(0, 256, chunk).astype(np.int32)

    def logits(*plans: StepPlan) -> np.ndarray:
        """Runs steps; returns the logits of the last one's first row."""
        for one in plans:
            for row in one.chunks:
                row.request.prompt_tokens[:] = prompt[: row.stop]
            engine.programs.compile([one.bucket])
            pending = engine.launch(one)
            pending.wait()
        first: np.ndarray = pending.captured()[0][0]
        return first

    def planned(bucket: Bucket, *rows: Any) -> StepPlan:
        return dataclasses.replace(step_plan(limits, *rows), bucket=bucket)

    # All but the last use one head, that of the most rows.
    blocks, rows = Bucket(0, chunk // size, size), Bucket(most_rows, 0, size)
    engine.programs.compile([blocks, rows])
    whole = planned(blocks, [], [(0, chunk)])
    half = chunk // size // 2 * size
    parts = [planned(blocks, [], [one]) for one in ((0, half), (half, chunk - half))]
    # A prompt leaves its pages, and the token that it drew, to the decode.
    crowds = {
        "alone": [chunk],
        "in a crowd": [chunk] * most_rows,
        "among long ones": [chunk, *[engine.max_model_len // 2] * (most_rows - 1)],
        "among short ones": [chunk, *[1] * (most_rows - 1)],
    }
    base = {"prompt": logits(whole)}
    base["decode"] = logits(whole, planned(rows, crowds["alone"], []))
    compared = {
        "prompt again": ("prompt", [whole], True),
        "prompt in two chunks": ("prompt", parts, False),
    }
    for name, contexts in crowds.items():
        plans = [whole, planned(rows, contexts, [])]
        compared[f"decode {name}"] = ("decode", plans, True)
    one_row = [whole, planned(Bucket(1, 0, size), [chunk], [])]
    compared["decode in a program of one row"] = ("decode", one_row, False)
    is_kept = True
    for name, (kind, plans, is_equal) in compared.items():
        found = logits(*plans)
        difference = float(np.max(np.abs(found - base[kind])))
        is_kept &= not (is_equal and difference)
        results.add(
            case=name,
            difference=difference,
            must_be_equal=is_equal,
            same_token=bool(np.argmax(found) == np.argmax(base[kind])),
            largest_logit=float(np.max(np.abs(base[kind]))),
        )
    results.write(
        model=engine.model.config.name,
        attention=engine.model.attention.__name__,
        is_kept=is_kept,
    )
    sys.exit(not is_kept)


if __name__ == "__main__":
    run_program(sys.modules[__name__])
