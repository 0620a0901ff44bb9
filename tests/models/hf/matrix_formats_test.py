"""Quantised checkpoints, each against matrices that NumPy puts together one by one."""

import functools
import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jserve_models.hf.tensor_files import SafetensorsFiles
from jserve_models.matrices import Quantised
from jserve_models.registry import load_model
from tests import TESTS
from tests.golden.drawing import draw_tensors

GOLDEN = TESTS / "golden"
FP8, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # column of each nibble, from the lowest


def words(integers, axis, order=range(8), bits=4):
    """Packs unsigned integers, word by word."""
    integers = np.moveaxis(integers, axis, 0)
    count = 32 // bits
    found = np.zeros((len(integers) // count, *integers.shape[1:]), np.uint64)
    for word in range(len(found)):
        for nibble, place in enumerate(list(order)[:count]):
            value = integers[word * count + place].astype(np.uint64)
            found[word] |= value << np.uint64(bits * nibble)
    packed = np.moveaxis(found.astype(np.uint32).view(np.int32), 0, axis)
    return np.ascontiguousarray(packed)


def fp8(rng, shape, scale_shape, name, block=None):
    values = rng.standard_normal(shape).astype(np.float32).astype(FP8)
    scale = rng.uniform(0.1, 0.2, scale_shape).astype(np.float32)
    wide = scale if scale.ndim == 2 else scale.reshape(-1, 1)
    if block:
        wide = np.kron(scale, np.ones(block))[: shape[0], : shape[1]]
    tensors = {"weight": values, name: scale, "input_scale": np.ones(1, np.float32)}
    return tensors, values.astype(np.float32) * wide


def integers(rng, shape, size, low, high, zeros=(0, 1)):
    """Returns q [out, in], and by group of inputs s and z [out, groups]."""
    groups = shape[0], shape[1] // size
    scale = rng.uniform(0.02, 0.05, groups).astype(np.float16)
    values = rng.integers(low, high, shape)
    return values, scale, rng.integers(*zeros, groups)


def joined(values, scale, zero, group):
    return (values - zero[:, group]) * scale.astype(np.float32)[:, group]


def fp8_tensor(rng, shape):
    return fp8(rng, shape, (), "weight_scale")


def fp8_channel(rng, shape):
    return fp8(rng, shape, (shape[0], 1), "weight_scale")


def fp8_block(rng, shape):
    blocks = -(-shape[0] // 24), -(-shape[1] // 20)
    return fp8(rng, shape, blocks, "weight_scale_inv", (24, 20))


def int8_channel(rng, shape):
    values, scale, _ = integers(rng, shape, shape[1], -127, 128)
    tensors = {"weight": values.astype(np.int8), "weight_scale": scale}
    return tensors, values * scale.astype(np.float32)


def packed(rng, shape, bits=4, is_ordered=True):
    values, scale, _ = integers(rng, shape, 16, -(2 ** (bits - 1)), 2 ** (bits - 1))
    group = np.arange(shape[1]) // 16
    tensors = {
        "weight_packed": words(values + 2 ** (bits - 1), 1, bits=bits),
        "weight_scale": scale.astype(BF16),
        "weight_shape": np.array(shape, np.int64),
    }
    if not is_ordered:
        group = rng.permutation(group)
        tensors["weight_g_idx"] = group.astype(np.int32)
    zero = np.zeros(scale.shape, np.int64)
    return tensors, joined(values, scale.astype(BF16), zero, group)


def packed_int8(rng, shape):
    return packed(rng, shape, bits=8)


def packed_shuffled(rng, shape):
    return packed(rng, shape, is_ordered=False)


def packed_zeros(rng, shape):
    values, scale, zero = integers(rng, shape, 16, -8, 8, (-8, 8))
    tensors = {
        "weight_packed": words(values + 8, 1),
        "weight_scale": scale,
        "weight_zero_point": words(zero + 8, 0),
    }
    return tensors, joined(values, scale, zero, np.arange(shape[1]) // 16)


def gptq(rng, shape, offset=1):
    values, scale, zero = integers(rng, shape, 16, 0, 16, (1, 16))
    group = rng.permutation(np.arange(shape[1]) // 16)
    tensors = {
        "qweight": words(values.T, 0),
        "qzeros": words(zero.T - offset, 1),
        "scales": np.ascontiguousarray(scale.T),
        "g_idx": group.astype(np.int32),
        "bias": np.zeros(shape[0], np.float16),
    }
    return tensors, joined(values, scale, zero, group)


def gptq_v2(rng, shape):
    return gptq(rng, shape, offset=0)


def awq(rng, shape):
    values, scale, zero = integers(rng, shape, 16, 0, 16, (0, 16))
    tensors = {
        "qweight": words(values.T, 1, AWQ_ORDER),
        "qzeros": words(zero.T, 1, AWQ_ORDER),
        "scales": np.ascontiguousarray(scale.T),
    }
    return tensors, joined(values, scale, zero, np.arange(shape[1]) // 16)


def compressed(kind, **weights):
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "sparsity_config": {"format": "dense"},
        "ignore": ["lm_head"],
    }


BY_GROUP = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True}
CASES = [
    (fp8_tensor, {"quant_method": "fp8", "activation_scheme": "static"}),
    (fp8_block, {"quant_method": "fp8", "weight_block_size": [24, 20]}),
    (fp8_channel, compressed("float-quantized", num_bits=8, type="float")),
    (int8_channel, compressed("int-quantized", num_bits=8, type="int")),
    (packed, compressed("pack-quantized", **BY_GROUP)),
    (packed_int8, compressed("pack-quantized", **{**BY_GROUP, "num_bits": 8})),
    (packed_shuffled, compressed("pack-quantized", **BY_GROUP, actorder="group")),
    (packed_zeros, compressed("pack-quantized", **BY_GROUP, symmetric=False)),
    (gptq, GPTQ),
    (gptq_v2, GPTQ | {"checkpoint_format": "gptq_v2"}),
    (awq, {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}),
]


@pytest.fixture
def write(tmp_path):
    def write_folder(family, tensors, quantization=None):
        config = json.loads((GOLDEN / family / "config.json").read_text())
        if quantization:
            config["quantization_config"] = quantization
        folder = tmp_path / ("quantised" if quantization else "plain")
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        return str(folder)

    return write_folder


def both(write, encode, quantization):
    """Writes llama's checkpoint with drawn matrices, quantised and in float32."""
    rng = np.random.default_rng(0)
    plain = dict(safetensors.numpy.load_file(GOLDEN / "llama" / "model.safetensors"))
    quantised = dict(plain)
    for name, value in list(plain.items()):
        if name.endswith("proj.weight"):
            tensors, wide = encode(rng, value.shape)
            stem = name.removesuffix("weight")
            del quantised[name]
            quantised |= {f"{stem}{one}": tensors[one] for one in tensors}
            plain[name] = wide.astype(np.float32)
    return write("llama", quantised, quantization), write("llama", plain)


def load(folder, **options):
    return load_model(folder, seed=0, dtype="float32", **options).leaves


@pytest.mark.parametrize(("encode", "quantization"), CASES)
def test_a_quantised_checkpoint_is_dequantised(write, encode, quantization):
    found, wanted = map(load, both(write, encode, quantization))
    same = functools.partial(np.testing.assert_allclose, rtol=2e-7)
    jax.tree.map(same, found, wanted)


@pytest.mark.parametrize(
    ("encode", "weights"), [(fp8_tensor, "fp8"), (int8_channel, "int8")]
)
def test_values_stay_as_they_are_where_weights_says_so(write, encode, weights):
    quantization = next(one for case, one in CASES if case is encode)
    folder = both(write, encode, quantization)[0]
    kept = next(
        leaf[1]
        for leaf in load(folder, weights=weights)
        if isinstance(leaf, tuple)
        and isinstance(leaf[1], Quantised)
        and leaf[1].values.shape == (48, 32)
    )
    name = "model.layers.1.mlp.down_proj.weight"
    files = SafetensorsFiles(pathlib.Path(folder))
    np.testing.assert_array_equal(kept.values, files.raw(name).T)
    scale = files.raw(f"{name}_scale").reshape(-1)
    np.testing.assert_array_equal(kept.scale, np.broadcast_to(scale, (32,)))


def test_experts_in_mxfp4_are_dequantised(write):
    with np.load(GOLDEN / "gpt_oss" / "golden.npz") as arrays:
        plain = draw_tensors(json.loads(str(arrays["shapes"])), norm_mean=1.0)
    rng, quantised = np.random.default_rng(0), dict(plain)
    numbers = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    numbers += [-one for one in numbers]
    for name in [one for one in plain if one.endswith("experts.down_proj")]:
        experts, num_in, num_out = plain[name].shape
        nibbles = rng.integers(0, 16, (experts, num_out, num_in // 16, 16))
        # A block of 32 in the published models; the size follows from the shape.
        scale = rng.integers(120, 125, (experts, num_out, num_in // 16))
        del quantised[name]
        low_first = nibbles[..., ::2] | nibbles[..., 1::2] << 4
        quantised[f"{name}_blocks"] = low_first.astype(np.uint8)
        quantised[f"{name}_scales"] = scale.astype(np.uint8)
        wide = np.take(numbers, nibbles) * 2.0 ** (scale[..., None] - 127)
        wide = wide.reshape(experts, num_out, num_in).swapaxes(1, 2)
        plain[name] = np.ascontiguousarray(wide, np.float32)
    found = load(write("gpt_oss", quantised, {"quant_method": "mxfp4"}))
    jax.tree.map(np.testing.assert_array_equal, found, load(write("gpt_oss", plain)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method='bitsandbytes' is not"),
        ({"quant_method": None}, "quant_method='None' is not supported, only fp8, "),
        ({"version": "gemv"}, "'awq gemv' is not supported"),
        ({"bits": 3}, "3 bits of quant_method='awq'"),
        ({"group_size": "all"}, "'all'"),
        ({"group_size": 8}, r"scales \(2, 16\), .* gives \(4, 16\)"),
        (compressed("nvfp4-pack-quantized"), "compressed-tensors nvfp4-pack-quantized"),
        (compressed("pack-quantized") | {"config_groups": 1}, "config_groups=1"),
        ({"transform_config": {"a": 1}}, "awq with transform_config"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(write, change, message):
    folder = both(write, awq, CASES[-1][1] | change)[0]
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_a_missing_scale_is_named(write):
    folder = both(write, awq, CASES[-1][1])[0]
    tensors = dict(safetensors.numpy.load_file(f"{folder}/model.safetensors"))
    del tensors["model.layers.0.mlp.up_proj.scales"]
    safetensors.numpy.save_file(tensors, f"{folder}/model.safetensors")
    with pytest.raises(ValueError, match=r"no tensor .*0\.mlp\.up_proj\.weight"):
        load(folder)
