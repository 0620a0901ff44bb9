"""Matrices stored in fewer bits than they are computed in, and their product.

A quantised matrix stays so in device memory: its values are cast as they enter the
product, which is then scaled by output channel. XLA for TPU and for GPU fuses the cast
into the product, so that no dequantised matrix is written to memory.
"""

import concurrent.futures
import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STORAGES = ("auto", "bfloat16", "int8", "fp8")
_FP8, _FP8_CAPABILITY = jnp.float8_e4m3fn, 8.9
_CHANNELS = 256  # output channels that are quantised at once
LARGEST = {"int8": 127.0, "fp8": 448.0}  # of float8_e4m3fn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Quantised:
    """The matrix `values * scale`, with one scale for each output channel."""

    values: Any  # [..., in, out] int8 or float8_e4m3fn, of JAX, or of NumPy on the host
    scale: Any  # [..., out] float32


Matrix = jax.Array | Quantised


def check_storage(weights: str, device: jax.Device) -> None:
    """Checks that a device computes with matrices that are so stored.

    Raises:
      ValueError: If it does not, or the storage is not one of `STORAGES`.
    """
    if weights not in STORAGES:
        raise ValueError(f"weights={weights!r} is not one of {', '.join(STORAGES)}")
    capability = getattr(device, "compute_capability", None)  # of an NVIDIA GPU
    if weights == "fp8" and capability and float(capability) < _FP8_CAPABILITY:
        raise ValueError(
            f"weights='fp8' needs a GPU of compute capability {_FP8_CAPABILITY} or "
            f"more, and {device.device_kind} has {capability}: before that XLA writes "
            "each matrix to memory in full; int8 takes as little"
        )


def dequantise(matrix: np.ndarray | Quantised) -> np.ndarray:
    """Returns a matrix of NumPy; one of a checkpoint in fewer bits becomes float32."""
    if isinstance(matrix, Quantised):
        wide: np.ndarray = matrix.values.astype(np.float32)
        wide *= matrix.scale[..., None, :]
        return wide
    return matrix


def quantise(matrix: np.ndarray | jax.Array | Quantised, weights: str) -> Quantised:
    """Returns a matrix [..., in, out] of NumPy, or a traced one, in fewer bits.

    A matrix that a checkpoint has in this type keeps its values and scales.

    The largest number of an output channel becomes the largest of the type. Channels
    are independent, so those of a large matrix are shared out among the processors.

    Args:
      weights: "int8" or "fp8".
    """
    kind = jnp.int8 if weights == "int8" else _FP8
    if isinstance(matrix, Quantised):
        if matrix.values.dtype == kind:
            return matrix
        matrix = dequantise(matrix)
    if not isinstance(matrix, np.ndarray):
        return _quantise(matrix, weights, jnp)
    values = np.empty(matrix.shape, kind)
    scale = np.empty((*matrix.shape[:-2], matrix.shape[-1]), np.float32)

    def fill(begin: int) -> None:
        some = slice(begin, begin + _CHANNELS)
        part = _quantise(matrix[..., some], weights, np)
        values[..., some], scale[..., some] = part.values, part.scale

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(0, scale.shape[-1], _CHANNELS)))
    return Quantised(values, scale)


def _quantise(matrix: Any, weights: str, xp: Any) -> Quantised:
    wide = matrix.astype(np.float32)
    scale = xp.maximum(wide.max(axis=-2), -wide.min(axis=-2)) / LARGEST[weights]
    scale = xp.where(scale > 0, scale, 1).astype(np.float32)  # a channel of zeros
    wide = wide / scale[..., None, :]
    values = xp.rint(wide).astype(np.int8) if weights == "int8" else wide.astype(_FP8)
    return Quantised(values, scale)


def product(
    x: jax.Array, matrix: Matrix, dtype: jax.typing.DTypeLike | None = None
) -> jax.Array:
    """Returns `x @ matrix` [..., out] of x [..., in].

    Args:
      dtype: Type of the sums and of the result; None takes that of `x`. Sums of a
        quantised matrix are float32.
    """
    if isinstance(matrix, Quantised):
        values: jax.Array = matrix.values.astype(x.dtype)
        y = jnp.matmul(x, values, preferred_element_type=jnp.float32)
        scaled: jax.Array = y * matrix.scale
        return scaled.astype(dtype or x.dtype)
    return jnp.matmul(x, matrix.astype(x.dtype), preferred_element_type=dtype)


def grouped_product(
    x: jax.Array, matrices: Matrix, sizes: jax.Array, groups: jax.Array
) -> jax.Array:
    """Returns `x[i] @ matrices[groups[i]]` [rows, out] of x [rows, in].

    Args:
      matrices: One [in, out] for each group.
      sizes: [groups] number of rows of each.
      groups: [rows] ascending.
    """
    if isinstance(matrices, Quantised):
        values: jax.Array = matrices.values.astype(x.dtype)
        y = jax.lax.ragged_dot(x, values, sizes, preferred_element_type=jnp.float32)
        scaled: jax.Array = y * matrices.scale[groups]
        return scaled.astype(x.dtype)
    return jax.lax.ragged_dot(x, matrices.astype(x.dtype), sizes)
