"""Tensor parallelism: which part of a weight, and of the cache, each device has.

The devices are one mesh axis. Attention heads, the feed-forward's width and the
vocabulary are shared out among them, and all else stands on each: a layer's two sums,
behind attention and behind the feed-forward, are all that goes between devices, as in
Megatron-LM (Shoeybi et al., 2019, section 3). The compiler derives this from where
weights stand; attention, whose heads need nothing of each other, is mapped by hand, so
that every backend runs on its own heads as if there were no others.
"""

import concurrent.futures
import dataclasses
import mmap
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jserve_models.attention import AttentionBackend, CacheShapes
from jserve_models.config import ModelConfig
from jserve_models.steps import KvCache, StepLayout

_AXIS = "tp"
_SHARED = frozenset({"heads", "kv_heads", "mlp", "vocab"})
_PIECE_BYTES = 2**19  # of an array, checked and copied while it is in a core's cache


def make_mesh(devices: Sequence[jax.Device] = ()) -> Mesh:
    """Returns a mesh of devices, which need not be there; without any, of the first."""
    return Mesh(np.array(devices or jax.devices()[:1]), (_AXIS,))


def placement(mesh: Mesh, axes: Sequence[str | None] = ()) -> Sharding:
    """Returns where an array stands.

    Args:
      axes: What its first dimensions count, as in `layers.parameter`; without one that
        is shared out, the whole array stands on each device.
    """
    if mesh.size == 1:
        return jax.sharding.SingleDeviceSharding(mesh.devices.item())
    return NamedSharding(mesh, _spec(axes))


def _spec(axes: Sequence[str | None]) -> PartitionSpec:
    return PartitionSpec(*(_AXIS if axis in _SHARED else None for axis in axes))


class NotFiniteError(ValueError):
    """A weight is NaN or infinite."""


def put(
    host: np.ndarray, where: Sharding, dtype: jax.typing.DTypeLike | None = None
) -> jax.Array:
    """Copies an array to its devices, part by part.

    Args:
      host: Array of which each process reads its own devices' parts only.
      dtype: Type that it is cast to; None takes it as it is.

    Raises:
      NotFiniteError: If a number is NaN or infinite.
    """
    parts = [
        jax.device_put(_copied(host[index], dtype), device)
        for device, index in where.addressable_devices_indices_map(host.shape).items()
    ]
    return jax.make_array_from_single_device_arrays(host.shape, where, parts)


def _copied(view: Any, dtype: jax.typing.DTypeLike | None) -> np.ndarray:
    """Returns a contiguous copy; the pages of a file are released piece by piece."""
    view = np.asanyarray(view)  # a memory map stays one
    found = np.empty(view.shape, dtype or view.dtype)
    axis = int(np.argmax(view.strides))
    rows = max(1, _PIECE_BYTES * view.shape[axis] // max(view.nbytes, 1))
    file = getattr(view, "_mmap", None)

    def copy(begin: int) -> None:
        some = (slice(None),) * axis + (slice(begin, begin + rows),)
        piece = view[some]
        if not is_finite(piece):
            raise NotFiniteError("a weight is NaN or infinite")
        found[some] = piece
        if file is not None:
            first, last = np.lib.array_utils.byte_bounds(piece)
            start = first - np.frombuffer(file, np.uint8).ctypes.data
            start, end = -(-start // mmap.PAGESIZE), (start + last - first)
            size = (end // mmap.PAGESIZE - start) * mmap.PAGESIZE
            if size > 0:
                file.madvise(mmap.MADV_DONTNEED, start * mmap.PAGESIZE, size)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(copy, range(0, view.shape[axis], rows)))
    return found


def is_finite(x: np.ndarray) -> bool:
    """Returns whether no number is NaN or infinite, by its bits: those come last."""
    if not jnp.issubdtype(x.dtype, jnp.floating) or not x.size:
        return True
    size = x.dtype.itemsize
    least = int(np.array(np.inf, x.dtype).view(f"u{size}"))
    most = x.view(f"i{size}").max(), x.view(f"u{size}").max()
    return int(most[0]) < least and int(most[1]) < least + 2 ** (8 * size - 1)


def shared_config(config: ModelConfig, num_devices: int) -> ModelConfig:
    """Returns the configuration that devices share: each has a KV head of its own.

    Raises:
      ValueError: If something cannot be shared out evenly.
    """
    if config.experts is not None and num_devices > 1:
        raise ValueError(
            f"tensor_parallel={num_devices} shares no experts, and model "
            f"{config.name!r} has {config.experts.count}; only 1 runs it"
        )
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if kv_heads < num_devices and num_devices % kv_heads == 0:
        kv_heads = num_devices
    for name, size in (
        ("num_kv_heads", kv_heads),
        ("num_heads", heads),
        ("intermediate_size", config.intermediate_size),
        ("vocab_size", config.vocab_size),
    ):
        if size % num_devices:
            raise ValueError(
                f"tensor_parallel={num_devices} does not divide the {name}={size} of "
                f"model {config.name!r}"
            )
    return dataclasses.replace(config, num_kv_heads=kv_heads)


def device_config(config: ModelConfig, num_devices: int) -> ModelConfig:
    """Returns what one device computes of a configuration of `shared_config`."""
    return dataclasses.replace(
        config,
        num_heads=config.num_heads // num_devices,
        num_kv_heads=config.num_kv_heads // num_devices,
        intermediate_size=config.intermediate_size // num_devices,
    )


def repeat_heads(kernel: np.ndarray, head_dim: int, times: int) -> np.ndarray:
    """Returns K or V weights [..., heads * head_dim] with each head several times."""
    heads = kernel.reshape(*kernel.shape[:-1], -1, head_dim)
    return np.repeat(heads, times, axis=-2).reshape(*kernel.shape[:-1], -1)


def share_attention(backend: AttentionBackend, mesh: Mesh) -> AttentionBackend:
    """Returns a backend that attends with each device's heads on that device."""
    return backend if mesh.size == 1 else _SharedAttention(backend, mesh)


class _SharedAttention:
    """An `AttentionBackend` that maps another over a mesh."""

    def __init__(self, backend: AttentionBackend, mesh: Mesh):
        self.__name__ = backend.__name__
        self.KV_AXES = backend.KV_AXES
        self.pool_size = backend.pool_size
        self._backend = backend
        self._mesh = mesh

    def kv_shapes(
        self, config: ModelConfig, num_pages: int, page_size: int
    ) -> CacheShapes:
        part = device_config(config, self._mesh.size)
        axis = self.KV_AXES.index("kv_heads")
        return tuple(
            (*shape[:axis], shape[axis] * self._mesh.size, *shape[axis + 1 :])
            for shape in self._backend.kv_shapes(part, num_pages, page_size)
        )

    def attend(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        kv: KvCache,
        layout: StepLayout,
        layer: jax.Array,
        *,
        sinks: jax.Array | None = None,
        **options: Any,
    ) -> tuple[jax.Array, KvCache]:
        num_pages = layout.num_pages

        def attend_part(
            q: jax.Array,
            k: jax.Array,
            v: jax.Array,
            kv: KvCache,
            layout: StepLayout,
            layer: jax.Array,
            sinks: jax.Array | None,
        ) -> tuple[jax.Array, KvCache]:
            layout = layout._replace(num_pages=num_pages)  # which stays static
            return self._backend.attend(
                q, k, v, kv, layout, layer, sinks=sinks, **options
            )

        whole, heads = PartitionSpec(), _spec((None, "heads"))
        cache = _spec(self.KV_AXES)
        mapped = jax.shard_map(
            attend_part,
            mesh=self._mesh,
            in_specs=(heads, heads, heads, cache, whole, whole, _spec(("heads",))),
            out_specs=(heads, cache),
            check_vma=False,
        )
        found: tuple[jax.Array, KvCache] = mapped(q, k, v, kv, layout, layer, sinks)
        return found
