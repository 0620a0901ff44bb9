"""From a configuration to sizes for this device: limits, buckets, and the KV pool."""

import dataclasses
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jserve.config import EngineConfig
from jserve.engine import machine
from jserve.engine.bucket_plan import plan_buckets
from jserve.engine.engine import kv_bytes
from jserve.engine.memory import MemoryNeeds, check_host, fit_memory, step_bytes
from jserve.engine.sampling import empty_slots
from jserve_models import sharding
from jserve_models.attention import AttentionBackend, AttentionUse
from jserve_models.attention.choose import choose_attention
from jserve_models.config import ModelConfig
from jserve_models.matrices import check_storage
from jserve_models.registry import abstract_model, model_config
from jserve_models.toy import TOY
from jserve_sched.buckets.growth import BucketPlan


class EngineShape(NamedTuple):
    """What a configuration comes to on this device, before anything is loaded."""

    model: ModelConfig
    dtype: np.dtype
    kv_dtype: np.dtype
    max_model_len: int
    attention: AttentionBackend
    reason: str  # for the attention
    mesh: jax.sharding.Mesh


def engine_shape(config: EngineConfig) -> EngineShape:
    """Returns what a configuration, with the sizes of this device, comes to.

    Raises:
      ValueError: If the model is invalid, its context is shorter than the limit, or the
        device does not run the attention or the weights.
    """
    platform = jax.default_backend()
    check_storage(config.weights, jax.devices()[0])
    name = config.dtype
    if name == "auto":
        name = "float32" if platform == "cpu" else "bfloat16"
    dtype = jnp.dtype(name)
    kv_dtype = dtype if config.kv_dtype == "auto" else jnp.dtype(jnp.float8_e4m3fn)
    model = model_config(config.model, config.max_model_len)
    if model is TOY and kv_dtype != dtype:
        raise ValueError(
            f"kv_dtype={config.kv_dtype!r} has too few digits for the model toy"
        )
    max_model_len = config.max_model_len or model.max_model_len
    if max_model_len > model.max_model_len:
        raise ValueError(
            f"max_model_len={max_model_len} exceeds the {model.max_model_len} "
            f"of model {config.model!r}"
        )
    mesh = sharding.make_mesh(_devices(config.tensor_parallel))
    most_blocks = config.max_num_batched_tokens // config.block_tokens
    use = AttentionUse(
        config=_part(model, mesh.size),
        platform=platform,
        dtype=kv_dtype,
        page_size=config.page_size,
        num_rows=config.max_num_seqs + most_blocks,
        max_pages_per_row=-(-max_model_len // config.page_size),
    )
    attention, reason = choose_attention(config.attention, use)
    return EngineShape(model, dtype, kv_dtype, max_model_len, attention, reason, mesh)


def _devices(tensor_parallel: int) -> list[jax.Device]:
    """Returns the devices that share the model, equally many of each process.

    Raises:
      ValueError: If there are fewer.
    """
    devices, num_processes = jax.devices(), jax.process_count()
    if tensor_parallel % num_processes:
        raise ValueError(
            f"tensor_parallel={tensor_parallel} is not a multiple of "
            f"num_processes={num_processes}"
        )
    if tensor_parallel > len(devices):
        raise ValueError(
            f"tensor_parallel={tensor_parallel} exceeds the {len(devices)} devices of "
            f"platform {devices[0].platform}"
        )
    by_process = itertools.groupby(devices, lambda one: one.process_index)
    share = tensor_parallel // num_processes
    return [one for _, some in by_process for one in itertools.islice(some, share)]


def _part(model: ModelConfig, num_devices: int) -> ModelConfig:
    """Returns what each device computes of a model.

    Raises:
      ValueError: If the devices cannot share the model evenly.
    """
    whole = sharding.shared_config(model, num_devices)
    return sharding.device_config(whole, num_devices)


def plan_engine(config: EngineConfig) -> tuple[EngineConfig, BucketPlan]:
    """Returns the configuration with the sizes of this device, and what to compile.

    Nothing is allocated yet.

    Raises:
      ValueError: If the buckets are invalid, or do not fit in the device's memory
        beside the weights and the KV of one request; on CPU, if weights and KV exceed
        the memory that is free.
    """
    config = config.for_device(jax.default_backend())
    plan = plan_buckets(config)
    device_bytes = _usable_bytes(config.device_memory_fraction)
    needs = _needs(config, plan)
    if device_bytes is None:
        free_bytes = machine.free_memory_bytes()
        num_local = len(engine_shape(config).mesh.local_devices)
        check_host(
            config.model,
            num_local * needs.weight_bytes,
            num_local * config.kv_cache_bytes,
            free_bytes,
        )
        return config, plan
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
    """Returns what a model needs of each device, from its shapes alone."""
    shape = engine_shape(config)
    model = abstract_model(
        shape.model,
        dtype=shape.dtype,
        mesh=shape.mesh,
        attention=shape.attention,
        weights=config.weights,
    )
    one, two = (
        kv_bytes(model, num_pages, config.page_size, shape.kv_dtype)
        for num_pages in (1, 2)
    )
    slot_bytes = sum(part.nbytes for part in empty_slots(1, shape.model.vocab_size))
    return MemoryNeeds(
        weight_bytes=sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(model.leaves)
        )
        + config.max_num_seqs * slot_bytes,
        page_bytes=two - one,
        fixed_bytes=2 * one - two,
        page_size=config.page_size,
        max_model_len=shape.max_model_len,
        num_layers=shape.model.num_layers,
        step_bytes={
            bucket: step_bytes(
                _part(shape.model, shape.mesh.size),
                bucket,
                num_slots=config.max_num_seqs,
                page_size=config.page_size,
                itemsize=shape.dtype.itemsize,
            )
            for bucket in plan.final.buckets
        },
    )
