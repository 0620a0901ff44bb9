"""Times the making of the default server's programs, cold and warm.

  python benchmarks/compile_time.py --output=benchmarks/compile_time.json

Each measurement is a process of its own; kinds take turns, `--num_repeats` times.
Processor seconds stand beside the clock's, as they mind a busy machine less.

  serial      an empty cache, one program after the other
  parallel    an empty cache, as the server does it
  cache       the parallel start's folder, but only JAX's persistent cache in it
  store       the same folder with its stored executables
  whole       no cache; the step in one program a bucket, as the server has it
  factorised  no cache; a backbone a bucket, and a program for head and sampler for
              each padded number of rows that sample
  steps       no compile time: steps of both forms in turns, greedy rows, at the
              corners of the table

Targets: `cache` and `store` take at most a quarter of `parallel`.
"""

import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from factorised_step import EngineParts, measure_factors, measure_steps

from jserve.compile_cache import open_compile_cache
from jserve.config import EngineConfig
from jserve.program import ProgramError, run_program
from jserve.programs import Programs
from jserve_tools.documents import commit, plain, write_whole

_OUTPUT = flags.DEFINE_string("output", "", "JSON file to write as well.")
_NUM_REPEATS = flags.DEFINE_integer(
    "num_repeats", 2, "Times each kind is measured.", lower_bound=1
)
_MODEL = flags.DEFINE_string("model", EngineConfig().model, "Model, by name.")
_BUCKETS = flags.DEFINE_string(
    "bucket_strategy", EngineConfig().bucket_strategy, "Chooses the programs."
)
_KINDS = ("serial", "parallel", "cache", "store", "whole", "factorised", "steps")
_KIND_LIST = flags.DEFINE_multi_enum(
    "kinds", _KINDS, _KINDS, "What to measure; `cache` and `store` need `parallel`."
)
_MEASURE = flags.DEFINE_enum(
    "measure", None, _KINDS, "Measure this kind here; what the program tells its own."
)
_CACHE_DIR = flags.DEFINE_string("cache_dir", "", "Where `--measure` has its cache.")


def _folder_bytes(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure_start(
    kind: str, parts: EngineParts, cache_dir: pathlib.Path
) -> dict[str, Any]:
    """Makes the programs as a server does; returns seconds, numbers and bytes."""
    start_s = time.perf_counter()
    cache = open_compile_cache(str(cache_dir))
    if cache is None:
        raise ProgramError(f"cache_dir={str(cache_dir)!r} cannot be used")
    store = None if kind == "cache" else cache
    open_s = time.perf_counter() - start_s
    programs = Programs(
        model=parts.model,
        table=parts.table,
        max_pages_per_row=parts.max_pages_per_row,
        captures_logits=False,
        store=store,
    )
    buckets = parts.table.buckets
    start_cpu_s = time.process_time()
    for some in [[one] for one in buckets] if kind == "serial" else [buckets]:
        programs.compile(some, parts.state)
    return {
        "wall_s": programs.wall_s,
        "cpu_s": time.process_time() - start_cpu_s,
        "open_s": open_s,
        "trace_s": sum(one.trace_s for one in programs.reports),
        "compile_s": sum(one.compile_s for one in programs.reports),
        "num_programs": programs.num_compiled,
        "sources": sorted({one.source for one in programs.reports}),
        "xla_bytes": _folder_bytes(cache.folder / "xla"),
        "store_bytes": _folder_bytes(cache.folder / "programs"),
    }


def measure_here(kind: str) -> dict[str, Any]:
    """Measures one kind in this process.

    Raises:
      ProgramError: if the model or the strategy is unknown, or the cache unusable.
    """
    try:
        parts = EngineParts(_MODEL.value, _BUCKETS.value)
    except ValueError as error:
        raise ProgramError(error) from None
    if kind == "steps":
        return measure_steps(parts)
    if kind in ("whole", "factorised"):
        return measure_factors(kind, parts)
    return measure_start(kind, parts, pathlib.Path(_CACHE_DIR.value))


def _in_a_process(kind: str, cache_dir: pathlib.Path) -> dict[str, Any]:
    command = [
        *(sys.executable, __file__, f"--measure={kind}", f"--cache_dir={cache_dir}"),
        *(f"--model={_MODEL.value}", f"--bucket_strategy={_BUCKETS.value}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ProgramError(f"{kind} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{kind:10s} {found['wall_s']:7.2f} s, of processors {found['cpu_s']:7.2f} s, "
        f"{found['num_programs']} programs",
        flush=True,
    )
    return found


def measure_all() -> dict[str, list[dict[str, Any]]]:
    """Measures every kind, in turns."""
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _KIND_LIST.value}
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(_NUM_REPEATS.value):
            folder = pathlib.Path(scratch) / str(repeat)
            for kind in found:
                # The warm starts find what the parallel one left.
                shared = folder / "parallel"
                cold = kind in ("serial", "parallel")
                found[kind].append(
                    _in_a_process(kind, folder / kind if cold else shared)
                )
            shutil.rmtree(folder, ignore_errors=True)
    return found


_RATIOS = (
    ("parallel", "serial"),
    ("cache", "parallel"),
    ("store", "parallel"),
    ("factorised", "whole"),
)


def summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Returns medians and the ratios that the targets speak of."""
    medians = {
        f"{kind}_{name}": statistics.median(one[name] for one in runs)
        for kind, runs in found.items()
        for name in ("wall_s", "cpu_s")
    }
    ratios = {
        f"{kind}_over_{other}_{name}": medians[f"{kind}_{name}"]
        / medians[f"{other}_{name}"]
        for kind, other in _RATIOS
        if kind in found and other in found
        for name in ("wall_s", "cpu_s")
    }
    if "steps" in found:
        ratios["factorised_over_whole_step"] = statistics.median(
            bucket["ratio_p50"]
            for one in found["steps"]
            for bucket in one["steps"].values()
        )
    return {**medians, **ratios}


def main(argv: Sequence[str]) -> None:
    """Prints one JSON document on the last line."""
    del argv
    if {"cache", "store"} & {*_KIND_LIST.value} and "parallel" not in _KIND_LIST.value:
        raise ProgramError(f"kinds={_KIND_LIST.value} lacks parallel")
    if _MEASURE.value is not None:
        print(json.dumps(measure_here(_MEASURE.value)))
        return
    found = measure_all()
    document = plain(
        {
            "commit": commit(),
            "jax": jax.__version__,
            "machine": {"processor": platform.machine(), "num_cpus": os.cpu_count()},
            "model": _MODEL.value,
            "bucket_strategy": _BUCKETS.value,
            "summary": summary(found),
            "runs": found,
        }
    )
    if _OUTPUT.value:
        text = json.dumps(document, indent=1)
        write_whole(pathlib.Path(_OUTPUT.value), f"{text}\n".encode())
    print(json.dumps(document, separators=(",", ":")))


if __name__ == "__main__":
    run_program(sys.modules[__name__])
