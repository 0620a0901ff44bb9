"""From a configuration to sizes for this device: limits, buckets, and the KV pool."""

import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp

from jserve.config import EngineConfig
from jserve.engine.bucket_plan import plan_buckets
from jserve.engine.memory import MemoryNeeds, fit_memory, step_bytes
from jserve_models.config import NAMED
from jserve_models.decoder import Decoder
from jserve_models.hf_config import read_config
from jserve_sched.buckets.growth import BucketPlan


def plan_engine(config: EngineConfig) -> tuple[EngineConfig, BucketPlan]:
    """Returns the configuration with the sizes of this device, and what to compile.

    Nothing is allocated yet. On CPU memory is not asked about.

    Raises:
      ValueError: If the buckets are invalid, or do not fit in the device's memory
        beside the weights and the KV of one request.
    """
    config = config.for_device(jax.default_backend())
    plan = plan_buckets(config)
    device_bytes = _usable_bytes(config.device_memory_fraction)
    if device_bytes is None:
        return config, plan
    needs = _needs(config, plan)
    plan, kv_cache_bytes = fit_memory(
        needs, plan, device_bytes=device_bytes, kv_cache_bytes=config.kv_cache_bytes
    )
    return dataclasses.replace(config, kv_cache_bytes=kv_cache_bytes), plan


def _usable_bytes(fraction: float) -> int | None:
    """Returns the device's memory that may be used; None if it states none, as a CPU.

    JAX states the share of a GPU's memory that it has taken (`memory.claim_memory`).
    """
    device = jax.devices()[0]
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:
        return None
    share = 1.0 if device.platform == "gpu" else fraction
    return int(stats["bytes_limit"] * share) - int(stats.get("bytes_in_use", 0))


def _needs(config: EngineConfig, plan: BucketPlan) -> MemoryNeeds:
    """Returns what a model needs, from its configuration alone."""
    path = pathlib.Path(config.model).expanduser()
    model = NAMED.get(config.model) or read_config(path)
    dtype = jnp.dtype("bfloat16" if config.dtype == "auto" else config.dtype)
    structure = Decoder(model)
    one, two = (
        dtype.itemsize * sum(map(math.prod, shapes))
        for shapes in (
            structure.attention.kv_shapes(model, num_pages, config.page_size)
            for num_pages in (1, 2)
        )
    )
    return MemoryNeeds(
        weight_bytes=dtype.itemsize
        * sum(math.prod(leaf.shape) for leaf in structure.leaves),
        page_bytes=two - one,
        fixed_bytes=2 * one - two,
        page_size=config.page_size,
        max_model_len=config.max_model_len or model.max_model_len,
        num_layers=model.num_layers,
        step_bytes={
            bucket: step_bytes(
                model,
                bucket,
                num_slots=config.max_num_seqs,
                page_size=config.page_size,
                itemsize=dtype.itemsize,
            )
            for bucket in plan.final.buckets
        },
    )
