import pathlib
import unittest.mock

import hypothesis
import jax
import pytest
from hypothesis import strategies

from jserve.build import build_loop
from jserve.config import EngineConfig
from jserve.engine import machine, sizing
from jserve.engine.memory import fit_memory
from jserve.engine.sizing import plan_engine
from jserve_models.config import ModelConfig
from jserve_sched.buckets.table import BucketTable
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


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(
    model=strategies.builds(
        ModelConfig,
        name=strategies.just("any"),
        vocab_size=strategies.integers(256, 256_000),
        hidden_size=strategies.integers(64, 8192),
        intermediate_size=strategies.integers(64, 32_768),
        num_layers=strategies.integers(1, 64),
        num_heads=strategies.sampled_from((8, 64)),
        num_kv_heads=strategies.sampled_from((2, 8)),
        head_dim=strategies.just(128),
        max_model_len=strategies.integers(1, 131_072),
    ),
    table_index=strategies.integers(0, 20),
    spare_bytes=strategies.integers(-1, 1) | strategies.integers(-(2**30), 2**36),
)
def test_a_plan_fits_in_the_device_and_is_refused_only_if_none_does(
    model: ModelConfig, table_index: int, spare_bytes: int
) -> None:
    """Devices have room for a table and one request, and `spare_bytes` more."""
    # What the model needs, counted by hand in numbers of 2 bytes.
    hidden, heads = model.hidden_size, model.num_heads + model.num_kv_heads
    layer = hidden * (2 * heads * 128 + 3 * model.intermediate_size + 2)
    weights = 2 * (hidden * (2 * model.vocab_size + 1) + model.num_layers * layer)
    # Of each slot: counts, 1024 biases, 64 words of 8 tokens, and the last 7 tokens.
    weights += 128 * (2 * model.vocab_size + 1024 * 8 + 64 * 8 * 4 + 7 * 4)
    page = 4 * model.num_layers * model.num_kv_heads * 128 * 128
    request = page * (1 + -(-model.max_model_len // 128))
    device = unittest.mock.Mock(platform="tpu")
    config = EngineConfig(device_memory_fraction=0.5)
    with (
        unittest.mock.patch.object(jax, "devices", return_value=[device]),
        unittest.mock.patch.object(jax, "default_backend", return_value="tpu"),
        unittest.mock.patch.object(sizing, "model_config", return_value=model),
        unittest.mock.patch.object(sizing, "fit_memory", wraps=fit_memory) as fitting,
    ):
        device.memory_stats.return_value = {"bytes_limit": 2**50}
        plan_engine(config)
        needs, wanted = fitting.call_args.args

        def least_bytes(table: BucketTable) -> int:
            return weights + int(needs.table_bytes(table)) + request

        table = wanted.tables[table_index % len(wanted.tables)]
        usable_bytes = max(least_bytes(table) + spare_bytes, 0)
        device.memory_stats.return_value = {"bytes_limit": 2 * usable_bytes}
        fitting_tables = [
            one for one in wanted.tables if least_bytes(one) <= usable_bytes
        ]
        if not fitting_tables:
            with pytest.raises(ValueError, match="do not fit"):
                plan_engine(config)
            return
        planned, plan = plan_engine(config)
    assert plan.final == fitting_tables[-1]
    spare = usable_bytes - least_bytes(plan.final) + request - planned.kv_cache_bytes
    assert spare >= 0 and planned.kv_cache_bytes >= request


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
