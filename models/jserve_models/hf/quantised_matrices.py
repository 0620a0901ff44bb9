"""Reads matrices of quantised checkpoints, as `matrix_formats` describes them."""

import concurrent.futures
import os
from typing import Any

import numpy as np

from jserve_models.hf.matrix_formats import MatrixFormat
from jserve_models.hf.tensor_files import TensorFiles
from jserve_models.matrices import Quantised

_WORD_BITS = 32
# Nibbles of float4_e2m1fn (OCP Microscaling Formats 1.0, section 5.3.3).
_FLOAT4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_FLOAT4 = np.concatenate([_FLOAT4, -_FLOAT4])


def is_stored(form: MatrixFormat, stem: str, tensors: TensorFiles) -> bool:
    """Returns whether a matrix, named without "weight", is quantised."""
    return f"{stem}{form.values}" in tensors and any(
        f"{stem}{one}" in tensors for one in form.scales
    )


def read_matrix(
    form: MatrixFormat, stem: str, tensors: TensorFiles
) -> np.ndarray | Quantised:
    """Returns a matrix [in, out]: in float32, or as stored if scales allow it.

    Args:
      stem: Name of the matrix without "weight".

    Raises:
      ValueError: If scales are missing, or as many as the block does not give.
    """
    if form.is_float4:
        return _experts(
            *(tensors.raw(f"{stem}{one}") for one in ("_blocks", "_scales"))
        )
    name = next(one for one in form.scales if f"{stem}{one}" in tensors)
    values = _take(form, f"{stem}{form.values}", tensors, form.packed_axis)
    scale = _take(form, f"{stem}{name}", tensors).astype(np.float32)
    if scale.ndim < 2:
        scale = scale.reshape(1, -1)
    num_in, num_out = values.shape
    block_in, block_out = form.block
    if len(scale) == 1 or not block_in:
        block_in = num_in
    wanted = -(-num_in // block_in), -(-num_out // block_out)
    if scale.shape not in (wanted, (1, 1), (1, num_out)):
        raise ValueError(
            f"tensor {stem}{name} has scales {scale.shape}, quantization_config "
            f"gives {wanted} for a matrix {values.shape}"
        )
    if scale.shape[1] == wanted[1]:
        scale = scale.repeat(block_out, axis=1)
    scale = np.broadcast_to(scale[:, :num_out], (len(scale), num_out))
    middle = 2 ** (form.bits - 1) if form.bits else 0
    zeros = np.full((1, 1), middle, np.float32)
    if f"{stem}{form.zeros}" in tensors:
        zeros = _take(form, f"{stem}{form.zeros}", tensors, 1).astype(np.float32)
        zeros += form.zero_offset
    if len(scale) == 1 and not zeros.any():
        return Quantised(values, scale[0])
    zeros = np.broadcast_to(zeros, scale.shape)
    # The inputs of each block.
    rows: list[Any] = [
        slice(begin, begin + block_in) for begin in range(0, num_in, block_in)
    ]
    if f"{stem}{form.groups}" in tensors:
        groups = tensors.raw(f"{stem}{form.groups}")
        if (groups != np.arange(num_in) // block_in).any() and (groups >= 0).all():
            rows = [np.flatnonzero(groups == one) for one in range(len(scale))]
    found = np.empty(values.shape, np.float32)

    def fill(block: int) -> None:
        wide = values[rows[block]].astype(np.float32)
        wide -= zeros[block]
        wide *= scale[block]
        found[rows[block]] = wide

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(len(scale))))
    return found


def _take(
    form: MatrixFormat, name: str, tensors: TensorFiles, packed_axis: int | None = None
) -> np.ndarray:
    """Returns a tensor with the axes of `[in, out]`, words taken apart."""
    value = tensors.raw(name)
    if value.ndim == 2 and not form.is_transposed:
        value = value.T
    if packed_axis is None or not form.bits:
        return value
    words, count = value.view(np.uint32), _WORD_BITS // form.bits
    shape = [*words.shape]
    shape.insert(packed_axis + 1, count)
    found = np.empty(shape, np.uint8)
    for place, part in enumerate(form.order or range(count)):
        at = (slice(None),) * (packed_axis + 1) + (place,)
        found[at] = words >> (form.bits * part) & (2**form.bits - 1)
    shape[packed_axis : packed_axis + 2] = [words.shape[packed_axis] * count]
    return found.reshape(shape)


def _experts(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Returns the matrices [experts, in, out] of gpt-oss."""
    nibbles = np.stack([blocks & 15, blocks >> 4], axis=-1)
    wide = _FLOAT4[nibbles.reshape(*scales.shape, -1)]
    np.ldexp(wide, scales.astype(np.int32)[..., None] - 127, out=wide)
    return wide.reshape(*scales.shape[:2], -1).swapaxes(1, 2)
