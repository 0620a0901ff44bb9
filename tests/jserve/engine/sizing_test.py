import pathlib
import unittest.mock

import jax
import pytest

from jserve.build import build_loop
from jserve.config import EngineConfig
from jserve.engine import machine
from jserve.engine.sizing import plan_engine
from tests.engine_harness import small_config


def test_sizes_go_by_device_and_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(
        **{"model": "tiny", "buckets": None, "max_num_seqs": 0, "kv_cache_bytes": 0},
        max_num_batched_tokens=0,
    )
    on_cpu, _ = plan_engine(config)
    assert (on_cpu.max_num_seqs, on_cpu.kv_cache_bytes) == (32, 512 * 2**20)
    device = unittest.mock.Mock(platform="tpu")
    device.memory_stats.return_value = {"bytes_limit": 2**30, "bytes_in_use": 2**10}
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    on_tpu, plan = plan_engine(config)
    assert on_tpu.max_num_seqs == 128
    assert plan.covering.num_programs <= plan.final.num_programs <= 12
    assert 0.4 * 2**30 < on_tpu.kv_cache_bytes < 0.9 * 2**30
    device.memory_stats.return_value = {"bytes_limit": 2**26}
    with pytest.raises(ValueError, match="max_model_len=2048: "):
        build_loop(config)


def test_a_host_with_too_little_memory_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = small_config(model="tiny", buckets=None)
    sizes = iter((2**40, None, 2**20))
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: next(sizes))
    for _ in range(2):
        plan_engine(config)
    with pytest.raises(ValueError, match=r"model=tiny: 0\.01 GiB of weights and 0\.0"):
        plan_engine(config)


def test_free_memory_is_the_limit_of_a_container_if_that_is_less(
    tmp_path: pathlib.Path,
) -> None:
    assert machine.free_memory_bytes(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  8 kB\n")
    assert machine.free_memory_bytes(tmp_path) == 8192
    groups = tmp_path / "sys/fs/cgroup"
    groups.mkdir(parents=True)
    for text, size in (("max", 8192), ("4096", 4096), ("9999", 8192)):
        (groups / "memory.max").write_text(f"{text}\n")
        assert machine.free_memory_bytes(tmp_path) == size


def test_what_is_given_stays() -> None:
    config = EngineConfig(max_num_seqs=7, max_programs=0).for_device("gpu")
    assert (config.max_num_seqs, config.max_programs) == (7, 0)
    assert EngineConfig().for_device("gpu").max_programs == 12
    config = EngineConfig(max_num_seqs=1024).for_device("cpu")
    assert config.max_num_batched_tokens == 1024 + 512
