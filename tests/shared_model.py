"""Serves requests with a model that devices share, in a process that has several.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.shared_model 1 2

Prints, for each number of devices, the tokens and what the engine counted.
"""

import dataclasses
import json
import sys
from typing import Any

import jax
import numpy as np

from jserve_models.config import NAMED
from jserve_models.registry import load_model
from jserve_models.sharding import make_mesh
from jserve_sched.buckets.table import BucketTable
from jserve_sched.requests.request import Request, SamplingParams
from tests.engine_harness import EngineDriver, make_engine, make_engine_scheduler

_TABLE = BucketTable((4,), (0, 3), 16)
_NUM_PAGES = 9  # too few for four rows
# Half as many KV heads as query heads.
_MODEL = dataclasses.replace(
    NAMED["tiny"],
    name="shared",
    num_layers=2,
    hidden_size=64,
    intermediate_size=64,
    qkv_bias=True,
    qk_norm=True,
)


def requests() -> list[Request]:
    """Requests of one stem, every second of which is drawn."""
    stem = np.random.default_rng(0).integers(0, 256, 170)
    return [
        Request(
            request_id=f"r{index}",
            arrival_s=0.0,
            prompt_tokens=stem[:length],
            max_tokens=30 + 3 * index,
            sampling=SamplingParams(temperature=float(index % 2), top_k=9, seed=index),
        )
        for index, length in enumerate((120, 33, 100, 30, 64, 1))
    ]


def serve(num_devices: int) -> dict[str, Any]:
    """Returns tokens and counts, one step ahead in a small pool."""
    NAMED["shared"] = _MODEL
    mesh = make_mesh(jax.devices()[:num_devices])
    model = load_model("shared", seed=0, dtype=np.float32, mesh=mesh)
    engine = make_engine(
        model, table=_TABLE, num_pages=_NUM_PAGES, page_size=32, max_model_len=256
    )
    scheduler = make_engine_scheduler(engine, table=_TABLE, enable_prefix_caching=True)
    served = requests()
    EngineDriver(engine, scheduler, lag=1).run(*served)
    return {
        "tokens": [one.output_tokens for one in served],
        "num_preemptions": scheduler.counters.num_preemptions,
        "prefix_hit_tokens": scheduler.counters.prefix_hit_tokens,
        "num_compiles_after_warmup": engine.programs.num_compiles_after_warmup,
        # What one device has of the cache.
        "kv_shape": engine._state.kv[0].addressable_shards[0].data.shape,
    }


def main() -> None:
    """Serves once for each number of devices on the command line."""
    jax.config.update("jax_disable_most_optimizations", True)
    for argument in sys.argv[1:]:
        print(json.dumps(serve(int(argument))), flush=True)


if __name__ == "__main__":
    main()
