"""How checkpoints store quantised matrices, one row of a table for each format.

All are integers or eight-bit floats `q` with a scale `s` and perhaps a zero point `z`
for each block of inputs and outputs: the matrix is `(q - z) * s`. They differ in the
names of their tensors, in how words of 32 bits hold several integers, and in the size
of a block. A matrix that a checkpoint leaves as it was is a tensor of floats there.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from jserve_models.hf.keys import Keys, short
from jserve_models.hf.tensor_files import TensorFiles
from jserve_models.matrices import Quantised

_WORD_BITS = 32
# Nibbles of float4_e2m1fn (OCP Microscaling Formats 1.0, section 5.3.3).
_FLOAT4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_FLOAT4 = np.concatenate([_FLOAT4, -_FLOAT4])


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatrixFormat:
    """How a quantised matrix is stored; axes are those of `[in, out]`.

    Attributes:
      values: End of the name of the tensor `q`, in place of "weight".
      scales: Ends of the names that the tensor `s` may have.
      zeros: End of the name of the tensor `z`; without it all are equal.
      groups: End of the name of the tensor that says which block of inputs each input
        belongs to; without it they follow each other.
      is_transposed: Whether tensors are [in, out], and not [out, in].
      bits: Bits of an integer, of which words of 32 bits hold several; 0 if none do.
      packed_axis: Axis of `q` along which a word holds several; of `z` it is 1.
      order: Which of a word's integers, from the lowest bits, comes first, second...
      zero_offset: What is added to the stored `z`.
      block: Inputs and outputs that share a scale; 0 is all inputs.
    """

    values: str = "weight"
    scales: tuple[str, ...] = ("weight_scale", "weight_scale_inv")
    zeros: str = "weight_zero_point"
    groups: str = "weight_g_idx"
    is_transposed: bool = False
    bits: int = 0
    packed_axis: int = 0
    order: tuple[int, ...] = ()
    zero_offset: int = 0
    block: tuple[int, int] = (0, 1)

    def has(self, stem: str, tensors: TensorFiles) -> bool:
        """Returns whether a matrix, named without "weight", is stored so."""
        return f"{stem}{self.values}" in tensors and any(
            f"{stem}{one}" in tensors for one in self.scales
        )

    def read(self, stem: str, tensors: TensorFiles) -> np.ndarray | Quantised:
        """Returns a matrix [in, out]: in float32, or as stored if scales allow it.

        Raises:
          ValueError: If scales are missing, or as many as the block does not give.
        """
        name = next(one for one in self.scales if f"{stem}{one}" in tensors)
        values = self._take(f"{stem}{self.values}", tensors, self.packed_axis)
        scale = self._take(f"{stem}{name}", tensors).astype(np.float32)
        if scale.ndim < 2:
            scale = scale.reshape(1, -1)
        num_in, num_out = values.shape
        block_in, block_out = self.block
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
        middle = 2 ** (self.bits - 1) if self.bits else 0
        zeros = np.full((1, 1), middle, np.float32)
        if f"{stem}{self.zeros}" in tensors:
            zeros = self._take(f"{stem}{self.zeros}", tensors, 1).astype(np.float32)
            zeros += self.zero_offset
        if len(scale) == 1 and not zeros.any():
            return Quantised(values, scale[0])
        zeros = np.broadcast_to(zeros, scale.shape)
        # The inputs of each block.
        rows: list[Any] = [
            slice(begin, begin + block_in) for begin in range(0, num_in, block_in)
        ]
        if f"{stem}{self.groups}" in tensors:
            groups = tensors.raw(f"{stem}{self.groups}")
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
        self, name: str, tensors: TensorFiles, packed_axis: int | None = None
    ) -> np.ndarray:
        """Returns a tensor with the axes of `[in, out]`, words taken apart."""
        value = tensors.raw(name)
        if value.ndim == 2 and not self.is_transposed:
            value = value.T
        if packed_axis is None or not self.bits:
            return value
        words, count = value.view(np.uint32), _WORD_BITS // self.bits
        shape = [*words.shape]
        shape.insert(packed_axis + 1, count)
        found = np.empty(shape, np.uint8)
        for place, part in enumerate(self.order or range(count)):
            at = (slice(None),) * (packed_axis + 1) + (place,)
            found[at] = words >> (self.bits * part) & (2**self.bits - 1)
        shape[packed_axis : packed_axis + 2] = [words.shape[packed_axis] * count]
        return found.reshape(shape)


class Mxfp4:
    """Experts of gpt-oss: nibbles [experts, out, blocks, 16], a power of 2 a block."""

    def has(self, name: str, tensors: TensorFiles) -> bool:
        """Returns whether experts' matrices are stored so."""
        return f"{name}_blocks" in tensors and f"{name}_scales" in tensors

    def read(self, name: str, tensors: TensorFiles) -> np.ndarray:
        """Returns the matrices [experts, in, out] in float32."""
        blocks, scales = (tensors.raw(f"{name}_{one}") for one in ("blocks", "scales"))
        nibbles = np.stack([blocks & 15, blocks >> 4], axis=-1)
        wide = _FLOAT4[nibbles.reshape(*scales.shape, -1)]
        np.ldexp(wide, scales.astype(np.int32)[..., None] - 127, out=wide)
        return wide.reshape(*scales.shape[:2], -1).swapaxes(1, 2)


_PLAIN = MatrixFormat()
_WORDS = MatrixFormat(
    values="qweight",
    scales=("scales",),
    zeros="qzeros",
    groups="g_idx",
    is_transposed=True,
)
FORMATS: dict[str, MatrixFormat | Mxfp4] = {
    "fp8": _PLAIN,
    "compressed-tensors float-quantized": _PLAIN,
    "compressed-tensors int-quantized": _PLAIN,
    "compressed-tensors naive-quantized": _PLAIN,
    "compressed-tensors pack-quantized": MatrixFormat(values="weight_packed", bits=4),
    "gptq": dataclasses.replace(_WORDS, bits=4, zero_offset=1),
    "gptq gptq_v2": dataclasses.replace(_WORDS, bits=4),
    "awq": dataclasses.replace(
        _WORDS, bits=4, packed_axis=1, order=(0, 4, 1, 5, 2, 6, 3, 7)
    ),
    "mxfp4": Mxfp4(),
}
"""By `quant_method`, and what else of a `quantization_config` tells formats apart."""


def read_format(raw: Mapping[str, Any]) -> MatrixFormat | Mxfp4 | None:
    """Returns how a checkpoint stores matrices; None if all are floats.

    Args:
      raw: The `quantization_config` of its `config.json`, empty without one.

    Raises:
      ValueError: If it is not supported; names the method, and those that are.
    """
    if not raw:
        return None
    name = str(raw.get("quant_method"))
    kind = raw.get("format") or raw.get("checkpoint_format") or raw.get("version")
    if kind not in (None, "gptq", "gemm") and name != "fp8":
        name = f"{name} {kind}"
    for key in ("transform_config", "dynamic", "sparsity_config"):
        if (Keys(dict(raw)).table(key) or {"format": "dense"}).get("format") != "dense":
            name = f"{name} with {key}"
    if (found := FORMATS.get(name)) is None:
        raise ValueError(
            f"quantization_config: quant_method={short(name)} is not supported, only "
            f"{', '.join(FORMATS)}"
        )
    if isinstance(found, Mxfp4):
        return found
    by_name = Keys(Keys(dict(raw)).table("config_groups"))
    groups = [
        Keys(by_name.table(one)).table("weights")
        for one in raw.get("config_groups", ())
    ]
    options = groups[0] if groups else raw
    if any(_sizes(one) != _sizes(options) for one in groups):
        raise ValueError("quantization_config: config_groups differ in their weights")
    bits, group_size, blocks = _sizes(options)
    if found.bits:
        if bits not in (4, 8) or (found.order and bits != 4):
            raise ValueError(
                f"quantization_config: {short(bits)} bits of quant_method={name!r} are "
                "not supported, only 4 or 8, of awq 4"
            )
        found = dataclasses.replace(found, bits=bits)
    block = Keys({"block": [group_size or 0, 1]}).row("block", 2)
    if blocks is not None:
        block = Keys({"block": blocks}).row("block", 2)[::-1]
    if any(type(one) is not int for one in block) or block[1] < 1:
        raise ValueError(f"quantization_config: block={short(block)} is not a size")
    return dataclasses.replace(found, block=(max(block[0], 0), block[1]))


def _sizes(options: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Returns bits, inputs of a group, and [outputs, inputs] of a block."""
    return (
        options.get("num_bits", options.get("bits", options.get("w_bit"))),
        options.get("group_size", options.get("q_group_size")),
        options.get("weight_block_size", options.get("block_structure")),
    )
