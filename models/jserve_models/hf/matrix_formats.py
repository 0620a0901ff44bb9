"""How checkpoints store quantised matrices, one row of a table for each format.

All are integers or eight-bit floats `q` with a scale `s` and perhaps a zero point `z`
for each block of inputs and outputs: the matrix is `(q - z) * s`. They differ in the
names of their tensors, in how words of 32 bits hold several integers, and in the size
of a block. A matrix that a checkpoint leaves as it was is a tensor of floats there.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jserve_models.hf.keys import Keys, short


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
      is_float4: Whether they are experts' [experts, out, blocks, 16], whose bytes hold
        two floats of 4 bits; scales [experts, out, blocks] are powers of 2, plus 127.
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
    is_float4: bool = False


_PLAIN = MatrixFormat()
_WORDS = MatrixFormat(
    values="qweight",
    scales=("scales",),
    zeros="qzeros",
    groups="g_idx",
    is_transposed=True,
)
FORMATS: dict[str, MatrixFormat] = {
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
    "mxfp4": MatrixFormat(values="_blocks", scales=("_scales",), is_float4=True),
}
"""By `quant_method`, and what else of a `quantization_config` tells formats apart."""


def read_format(raw: Mapping[str, Any]) -> MatrixFormat | None:
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
    if found.is_float4:
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
