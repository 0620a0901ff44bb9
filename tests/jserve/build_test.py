import json
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine_harness import small_config
from jserve.build import bucket_table, build_loop, resolve_dtype
from jserve.config import EngineConfig
from jserve.engine import Engine
from jserve.events import Health
from jserve_models.registry import load_model


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy": "lifo"}, "policy 'lifo' is unknown; known: .*'edf'"),
        (
            {"bucket_strategy": "fib", "buckets": None},
            "bucket_strategy 'fib' is unknown",
        ),
        ({"model": "no-such"}, "no-such"),
        ({"max_model_len": 99_999}, "max_model_len=99999 exceeds"),
        ({"kv_cache_bytes": 1000}, "kv_cache_bytes=1000 holds no KV page"),
        ({"buckets": pathlib.Path("absent.json")}, "absent.json"),
    ],
)
def test_what_cannot_be_built_is_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_loop(small_config(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs=0"),
        ({"max_num_batched_tokens": 20}, "max_num_batched_tokens=20"),
        ({"page_size": 100}, "page_size=100 is not a multiple of block_tokens=32"),
        ({"dtype": "int4"}, "dtype='int4' is not one of"),
    ],
)
def test_bad_limits_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**fields)


def test_a_bucket_file_replaces_the_strategy(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "buckets.json"
    path.write_text(json.dumps({"row_edges": [4, 16], "block_edges": [0, 4]}))
    table = bucket_table(small_config(buckets=path))
    assert (table.row_edges, table.block_edges) == ((4, 16), (0, 4))


def test_auto_is_float32_on_cpu() -> None:
    assert resolve_dtype("auto") == jnp.float32


def test_step_times_are_measured_once_and_survive_a_broken_file(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(model="toy", compile_cache_dir=str(tmp_path))

    def start_and_stop() -> None:
        loop = build_loop(config)
        loop.start()
        assert loop.wait_until(Health.WARM, 120.0)
        loop.stop()

    try:
        start_and_stop()
        (times,) = tmp_path.rglob("step_times_*.json")
        written = times.read_text()
        assert any(tmp_path.rglob("xla/*")), "the compile cache is empty"
        start_and_stop()
        assert times.read_text() == written
        times.write_text("{broken")
        with caplog.at_level(logging.WARNING, logger="jserve"):
            start_and_stop()
        assert "unreadable" in caplog.text
        assert json.loads(times.read_text())["base_s"]
    finally:
        jax.config.update("jax_compilation_cache_dir", None)


def test_a_cache_folder_that_cannot_be_made_is_done_without(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    config = small_config(model="toy", compile_cache_dir=str(blocker / "cache"))
    with caplog.at_level(logging.WARNING, logger="jserve"):
        build_loop(config)
    assert "no compile cache" in caplog.text


@pytest.mark.slow
def test_every_default_program_updates_the_cache_in_place() -> None:
    config = EngineConfig()
    dtype = np.dtype(np.float32)
    model = load_model(config.model, seed=0, dtype=dtype)
    page_bytes = 2 * 4 * model.config.num_kv_heads * 128 * model.config.head_dim * 4
    engine = Engine(
        model=model,
        dtype=dtype,
        table=bucket_table(config),
        num_slots=config.max_num_seqs,
        num_pages=config.kv_cache_bytes // page_bytes,
        page_size=config.page_size,
        max_model_len=model.config.max_model_len,
    )
    assert engine.kv_bytes == config.kv_cache_bytes
    engine.warm_up()
    reports = engine.programs.reports
    assert len(reports) == len(engine.programs.table.buckets) == 30
    for report in reports:
        assert report.alias_bytes >= engine.kv_bytes, report
        assert report.temp_bytes < 0.25 * engine.kv_bytes, report
