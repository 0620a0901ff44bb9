"""What the storage of the weights costs or saves a decode step, on this machine.

  python -m benchmarks.weights.speed --model=peer-19m > benchmarks/weights/cpu.json

One engine for each storage; their decode steps are timed in turns.
"""

import json
import platform
import statistics
import sys
from collections.abc import Sequence

import jax

from jserve.build import build_engine
from jserve.config import EngineConfig
from jserve.flags import define_engine_flags
from jserve.program import run_program
from jserve_sched.buckets.table import Bucket

_STORAGES = ("auto", "bfloat16", "int8", "fp8")
_BUCKETS = (Bucket(1, 0), Bucket(32, 0))
_ROUNDS = 30

_read = define_engine_flags(
    exclude=set(EngineConfig.__dataclass_fields__) - {"model", "dtype"}
)


def main(argv: Sequence[str]) -> None:
    """Measures each storage and prints one JSON document."""
    del argv
    engines = {}
    for weights in _STORAGES:
        engines[weights] = build_engine(_read(weights=weights, compile_cache_dir=""))
        engines[weights].warm_up(_BUCKETS)
    times_s: dict[tuple[str, Bucket], list[float]] = {}
    for _ in range(_ROUNDS):
        for weights, engine in engines.items():
            for bucket in _BUCKETS:
                # The first of a round has a context of one page.
                sample = next(iter(engine.timed_pass([bucket], repeats=1)))
                times_s.setdefault((weights, bucket), []).append(sample.duration_s)
    found = []
    for (weights, bucket), durations_s in times_s.items():
        base_s = statistics.median(times_s["auto", bucket])
        leaves = jax.tree.leaves(engines[weights].model.leaves)
        found.append(
            {
                "weights": weights,
                "bucket": str(bucket),
                "weight_bytes": sum(leaf.nbytes for leaf in leaves),
                "median_s": statistics.median(durations_s),
                "least_s": min(durations_s),
                "ratio": statistics.median(durations_s) / base_s,
            }
        )
    engine = engines["auto"]
    document = {
        "model": engine.model.config.name,
        "dtype": engine.dtype.name,
        "rounds": _ROUNDS,
        "jax": jax.__version__,
        "machine": platform.machine(),
        "device": jax.devices()[0].device_kind,
        "cases": found,
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    run_program(sys.modules[__name__])
