"""Steps of a model on this device: compiled, timed, and their share of the ceilings.

  python -m benchmarks.accelerator.steps --output=out/h200/steps.json
  python -m benchmarks.accelerator.steps --small        on CPU, in seconds

An engine as the server builds it, of Llama-3.1-8B's shapes and random weights, runs the
programs of a few steps. `alone_s` is a step that is awaited; `s` one of many that
are enqueued, as the server does one step ahead; `host_s` what the host takes to pack
and launch one. What a step has to read and to compute, over `s`, is given as a share of
the ceilings in --ceilings, if there. `programs` has the seconds of tracing and
compiling; with a --compile_cache_dir that is filled they are loaded instead.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Mapping, Sequence

from jserve.engine.memory import claim_memory
from jserve.flags import define_config_flags, define_engine_flags
from jserve.program import run_program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
    """What is measured, and where it is written.

    Attributes:
      output: JSON file to write.
      ceilings: File of `benchmarks.accelerator.attention`.
      small: Whether sizes are such that a CPU takes seconds.
      repeats: Number of runs of each step.
      max_s: Seconds after which no further step begins.
    """

    output: pathlib.Path = pathlib.Path("out/accelerator/steps.json")
    ceilings: pathlib.Path = pathlib.Path("out/accelerator/attention.json")
    small: bool = False
    repeats: int = 40
    max_s: float = 600.0


_read = define_config_flags(Steps, group="Steps")
_read_engine = define_engine_flags(exclude=("model", "capture_logits"))
_SMALL = {"model": "tiny", "max_num_seqs": 4, "max_num_batched_tokens": 68}
# Tokens before each decode; tokens before a chunk, and its own.
_Step = tuple[Sequence[int], Sequence[tuple[int, int]]]


def steps(longest: int, max_rows: int, most_chunk: int) -> dict[str, _Step]:
    """Returns the steps by name, those that matter most first."""
    context = min(2048, longest // 2)
    chunk = min(512, most_chunk)
    named: dict[str, _Step] = {
        "32 decodes": ([context] * min(32, max_rows), []),
        "a whole chunk": ([], [(0, most_chunk)]),
        "one decode": ([context], []),
        "all decodes": ([context] * max_rows, []),
        "32 decodes and a chunk": (
            [context] * min(32, max_rows - 1),
            [(context, chunk)],
        ),
    }
    return named


def peaks(path: pathlib.Path) -> Mapping[str, float]:
    """Returns the ceilings that a file states: bytes and operations a second."""
    if not path.exists():
        return {}
    found = {one["case"]: one for one in json.loads(path.read_text())["cases"]}
    units = (("copy", "bytes"), ("matmul", "operations"))
    return {unit: found[name][unit] / found[name]["low_s"] for name, unit in units}


def main(argv: Sequence[str]) -> None:
    """Measures all steps in their order until the time is over."""
    del argv
    config = _read()
    sizes = _SMALL if config.small else {"model": "llama-8b"}
    engine_config = dataclasses.replace(_read_engine(), **sizes)
    claim_memory(os.environ, engine_config.device_memory_fraction)
    # Here, since JAX takes memory as it starts.
    from benchmarks.accelerator.results import Results, timed
    from benchmarks.needs import Span, needs
    from jserve.build import build_engine
    from jserve.engine.compile_cache import open_compile_cache
    from jserve.engine.engine import PendingStep, kv_page_bytes
    from jserve.engine.sizing import plan_engine
    from jserve.timing.roofline_prior import decoder_of
    from jserve_tools.training.step_grid import ProfileLimits, step_plan

    results = Results(config.output, "steps.py", config.max_s)
    engine_config, plan = plan_engine(engine_config)
    start_s = time.perf_counter()
    store = open_compile_cache(engine_config.compile_cache_dir)
    engine = build_engine(engine_config, store)
    load_s = time.perf_counter() - start_s
    table = plan.final
    limits = ProfileLimits.of(engine, engine_config, table)
    most_chunk = table.max_blocks * table.block_tokens
    room = engine.num_pages * engine.page_size
    named = steps(
        min(engine.max_model_len, room // table.max_rows), table.max_rows, most_chunk
    )
    most = peaks(config.ceilings)
    for name, (decodes, chunks) in named.items():
        if results.is_late:
            break
        one = step_plan(limits, decodes, chunks)
        engine.warm_up([one.bucket])
        for _ in range(3):
            engine.launch(one).wait()
        alone_s, host_s = [], []
        for _ in range(config.repeats):
            start_s = time.perf_counter()
            pending = engine.launch(one)
            host_s.append(pending.transfer_s + pending.launch_s)
            pending.wait()
            alone_s.append(time.perf_counter() - start_s)

        def launch(_: object) -> object:
            last: PendingStep = engine.launch(one)  # noqa: B023  run at once
            return last._out

        times = timed(launch, None, least_s=config.repeats * min(alone_s))
        read_bytes, operations = needs(
            decoder_of(engine.model.config),
            [
                Span(row.start, row.stop, row.draws_token)
                for row in (*one.decodes, *one.chunks)
            ],
            item_bytes=engine.dtype.itemsize,
            token_bytes=kv_page_bytes(engine.model, 1, engine.kv_dtype),
        )
        shares = {
            f"{unit}_share": amount / times["s"] / most[unit]
            for unit, amount in (("bytes", read_bytes), ("operations", operations))
            if unit in most
        }
        results.add(
            case=name,
            bucket=str(one.bucket),
            **times,
            alone_s=statistics.median(alone_s),
            host_s=statistics.median(host_s),
            read_bytes=read_bytes,
            gigaoperations=operations / 1e9,
            **shares,
        )
        results.write(
            model=engine.model.config.name,
            attention=engine.model.attention.__name__,
            num_kv_tokens=room,
            load_s=load_s,
            programs=engine.programs.reports,
        )


if __name__ == "__main__":
    run_program(sys.modules[__name__])
