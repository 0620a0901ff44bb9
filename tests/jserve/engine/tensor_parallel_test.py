"""Devices that share a model give the tokens of one."""

import json
import os
import subprocess
import sys

import pytest

from jserve.engine.sizing import engine_shape
from tests.engine_harness import small_config

DEVICES = (1, 2, 4, 8)  # the model has 4 KV heads


@pytest.mark.parallel
def test_tokens_do_not_depend_on_the_number_of_devices() -> None:
    flags = f"--xla_force_host_platform_device_count={max(DEVICES)}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.shared_model", *map(str, DEVICES)],
        env={**os.environ, "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for one in found:
        assert one["tokens"] == found[0]["tokens"]
        assert one["num_preemptions"] > 0 and one["prefix_hit_tokens"] > 0
        assert one["num_compiles_after_warmup"] == 0
    assert [one["kv_shape"][1] for one in found] == [4, 2, 1, 1]


def test_more_devices_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tensor_parallel=2 exceeds the 1 devices of"):
        engine_shape(small_config(tensor_parallel=2).for_device("cpu"))
