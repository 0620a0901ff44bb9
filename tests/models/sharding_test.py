"""How a model is shared out; `tests/jserve/engine/tensor_parallel_test.py` runs it."""

import dataclasses

import numpy as np
import pytest

from jserve_models.config import NAMED
from jserve_models.sharding import device_config, repeat_heads, shared_config

TINY = NAMED["tiny"]  # 8 heads and 4 KV heads


def test_each_device_has_a_kv_head_and_the_queries_that_read_it():
    for num_devices, kv_heads in ((2, 2), (4, 1), (8, 1)):
        part = device_config(shared_config(TINY, num_devices), num_devices)
        assert (part.num_heads, part.num_kv_heads) == (8 // num_devices, kv_heads)
    kernel = np.arange(8.0).reshape(1, 8)  # two heads
    first, second = kernel.reshape(2, 4)
    repeated = repeat_heads(kernel, 4, 2).reshape(4, 4)
    np.testing.assert_array_equal(repeated, [first, first, second, second])


@pytest.mark.parametrize(
    ("num_devices", "change", "what"),
    [
        (3, {}, "num_kv_heads=4"),
        (6, {}, "num_kv_heads=4"),
        (16, {}, "num_heads=8"),
        (4, {"intermediate_size": 90}, "intermediate_size=90"),
        (4, {"vocab_size": 321}, "vocab_size=321"),
    ],
)
def test_what_does_not_divide_is_refused_by_name(num_devices, change, what):
    config = dataclasses.replace(TINY, **change)
    with pytest.raises(ValueError, match=f"={num_devices} does not divide the {what} "):
        shared_config(config, num_devices)
