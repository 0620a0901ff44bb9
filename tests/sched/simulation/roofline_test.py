"""Roofline costs: by hand, padding charged, devices that divide the layers."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from jserve_sched.buckets.table import Bucket
from jserve_sched.simulation.roofline import (
    DEVICES,
    Decoder,
    Device,
    RooflineCost,
    roofline_cost,
)
from jserve_sched.steps.features import Span, step_features

DECODER = Decoder(
    hidden_size=100,
    num_layers=3,
    num_heads=8,
    num_kv_heads=2,
    head_dim=10,
    intermediate_size=400,
    vocab_size=1000,
)
CHANGES: tuple[dict[str, Any], ...] = ({}, {"mixed": 0.5}, {"key_s": 1.0})
LAYER = 100 * (80 + 20 + 20 + 80 + 3 * 400)
# Nothing but peaks, and the small kernels' latency.
IDEAL = Device(
    memory=1e7,
    bandwidth=1e6,
    operations=1e9,
    link=1e5,
    link_s=1e-3,
    products=1.0,
    attention=1.0,
    reading=1.0,
    layer_s=0.25,
    tile=1,
)
LLAMA_8B = Decoder(
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14336,
    vocab_size=128256,
)


def machine(device: Device = IDEAL, tensor_parallel: int = 1) -> RooflineCost:
    return roofline_cost("ideal", device, DECODER, tensor_parallel)


def step(bucket: Bucket, decodes=(), chunks=()) -> np.ndarray:
    spans = [Span(context - 1, 1) for context in decodes]
    return step_features(spans, [Span(*one) for one in chunks], bucket, 128)[None]


def test_a_mixed_step_by_hand() -> None:
    # Three decodes of two pages in four rows; a chunk of 60 tokens after 96 in two
    # blocks, which read one page and two; 4 + 2 * 32 positions.
    found = machine().step_s(
        step(Bucket(4, 2, 32), decodes=[200] * 3, chunks=[(96, 60)]), 32
    )
    products = np.hypot(2 * 3 * LAYER * 68 / 1e9, 2 * 3 * LAYER / 1e6)
    head = np.hypot(2 * 100_000 * 4 / 1e9, 2 * 100_000 / 1e6)
    between = 3 * (2 * (3 * 400 + 2 * 100) * 68 / 1e6 + 0.25)
    pair, token_bytes = 4 * 3 * 8 * 10, 3 * 2 * 2 * 10 * 2
    decodes = 768 * np.hypot(pair / 1e9, token_bytes / 1e6)
    blocks = 384 * np.hypot(32 * pair / 1e9, token_bytes / 1e6)
    by_hand = products + head + between + decodes + blocks
    assert found[0] == pytest.approx(by_hand, rel=1e-12)


def test_decodes_beside_blocks_and_long_rows_take_longer_where_kernels_make_them() -> (
    None
):
    plain, mixed, slow = (
        machine(dataclasses.replace(IDEAL, **changes)) for changes in CHANGES
    )
    alone = step(Bucket(1, 0, 32), decodes=[1280])
    beside = step(Bucket(1, 1, 32), decodes=[1280], chunks=[(0, 32)])
    for one in (mixed, slow):
        assert one.step_s(alone, 32) == plain.step_s(alone, 32)
    read_s = 1280 * 3 * 2 * 2 * 10 * 2 / 1e6
    gain_s = mixed.step_s(beside, 32) - plain.step_s(beside, 32)
    assert gain_s[0] == pytest.approx(read_s, rel=0.01)
    # Ten pages at a second a key and layer drown all else.
    assert slow.step_s(beside, 32)[0] == pytest.approx(3 * 1280, rel=0.01)


def test_padded_positions_cost_products_and_padded_decodes_next_to_nothing() -> None:
    costs = roofline_cost("h200", DEVICES["h200"], LLAMA_8B)

    def padding_s(bucket: Bucket, padded: Bucket, **work: list) -> np.ndarray:
        times_s = [costs.step_s(step(one, **work), 32) for one in (bucket, padded)]
        return times_s[1] / times_s[0] - 1

    # A decode waits for the weights; 1,024 positions of a prompt compute.
    rows = padding_s(Bucket(9, 0), Bucket(16, 0), decodes=[1000] * 9)
    blocks = padding_s(Bucket(8, 32), Bucket(8, 64), chunks=[(0, 1024)])
    assert 0 < rows[0] < 0.01
    assert 0.8 < blocks[0] < 1.0


def test_devices_divide_the_work_and_pay_for_two_all_reduces_a_layer() -> None:
    full = step(Bucket(4, 2, 32), decodes=[200] * 3, chunks=[(96, 60)])
    one, four = machine(), machine(tensor_parallel=4)
    for name, (operations, num_bytes) in one.work(full, 32).items():
        quarter_operations, part_bytes = four.work(full, 32)[name]
        # Two KV heads on four devices: each reads one.
        is_attention = name in ("decodes", "blocks")
        kv = 3 * 100 * 2 * 10 * 68 * 2 if name == "products" else 0  # K and V twice
        assert quarter_operations[0] == pytest.approx((operations[0] + 2 * kv) / 4)
        share = 2 if is_attention else 4
        kv = 2 * 3 * 100 * 2 * 10 * 2 if name == "products" else 0
        assert part_bytes[0] == pytest.approx((num_bytes[0] + kv) / share)
    # 2 layers' halves * 3 layers * 2 * 3 messages of a quarter of [68, 100] bfloat16.
    messages = 2 * 3 * 2 * 3
    by_hand = messages * (68 * 100 * 2 / 4 / 1e5 + 1e-3)
    assert four.all_reduce_s(np.array([68.0]))[0] == pytest.approx(by_hand)
    assert one.all_reduce_s(np.array([68.0]))[0] == 0
    without = dataclasses.replace(four, device=dataclasses.replace(IDEAL, link=1e30))
    gain_s = four.step_s(full, 32) - without.step_s(full, 32)
    assert gain_s[0] == pytest.approx(by_hand - messages * 1e-3)


def test_the_pool_is_what_weights_leave() -> None:
    costs = roofline_cost("h200", DEVICES["h200"], LLAMA_8B)
    assert costs.num_kv_tokens == pytest.approx(845_000, rel=0.002)  # aot/README.md
    with pytest.raises(ValueError, match=r"16\.1 GB of weights a device leave no room"):
        roofline_cost("v5e", DEVICES["v5e"], LLAMA_8B)
    assert roofline_cost("v5e", DEVICES["v5e"], LLAMA_8B, 2).num_kv_tokens > 0
    with pytest.raises(ValueError, match="tensor_parallel=3 does not divide num_heads"):
        roofline_cost("h200", DEVICES["h200"], LLAMA_8B, 3)
