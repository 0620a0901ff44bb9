import json
import logging
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

from engine_harness import small_config
from jserve import planning
from jserve.bucket_choice import choose_buckets
from jserve.build import build_engine, build_loop, resolve_dtype
from jserve.config import EngineConfig
from jserve_sched.annealing import anneal
from jserve_sched.output_lengths import QuantileLength
from jserve_sched.policies import Annealing
from jserve_sched.step_demand import prior_demand


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy": "lifo"}, "policy 'lifo' is unknown; known: .*'edf'"),
        (
            {"bucket_strategy": "fib", "buckets": None},
            "bucket strategy 'fib' is unknown",
        ),
        ({"model": "no-such"}, "no-such"),
        ({"max_model_len": 99_999}, "max_model_len=99999 exceeds"),
        ({"kv_cache_bytes": 1000}, "kv_cache_bytes=1000 holds no KV page"),
        ({"buckets": pathlib.Path("absent.json")}, "absent.json"),
        ({"max_programs": 1}, "max_programs=1 is below 2"),
        ({"step_log": pathlib.Path("/dev/null/steps")}, "step_log='/dev/null/steps'"),
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
        ({"bucket_strategy": "pow2"}, "'pow2' with buckets='.*four_programs.json'"),
        ({"bucket_strategy": "fitted", "buckets": None}, "'fitted' with buckets=''"),
        ({"max_programs": -1}, "max_programs=-1"),
        ({"max_compile_s": -1.0}, "max_compile_s=-1.0"),
        ({"step_log_max_bytes": 10}, "step_log_max_bytes=10"),
    ],
)
def test_bad_limits_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**fields)


def test_the_strategy_goes_by_what_is_given(tmp_path: pathlib.Path) -> None:
    assert EngineConfig().bucket_strategy == "pow2"
    assert EngineConfig(buckets=tmp_path).bucket_strategy == "explicit"
    fitted = EngineConfig(bucket_strategy="fitted", buckets=tmp_path)
    assert fitted.bucket_strategy == "fitted"
    linear = EngineConfig(bucket_strategy="linear:block_gap=4")
    assert 4 in choose_buckets(linear).table.block_edges


def test_a_bucket_file_may_say_what_it_was_fitted_to(tmp_path: pathlib.Path) -> None:
    demand = prior_demand(2, 1)
    path = tmp_path / "buckets.json"
    edges = {"row_edges": [4, 16], "block_edges": [0, 4]}
    path.write_text(json.dumps({**edges, "demand": demand.to_json()}))
    choice = choose_buckets(small_config(buckets=path))
    assert (choice.table.row_edges, choice.table.block_edges) == ((4, 16), (0, 4))
    found = choice.demand
    assert found.rows.tolist() == demand.rows.tolist()
    path.write_text(json.dumps({**edges, "demand": {"rows": [1]}}))
    with pytest.raises(ValueError, match=r"buckets\.json.*a step demand is"):
        choose_buckets(small_config(buckets=path))


def test_few_programs_are_those_worth_most(caplog: pytest.LogCaptureFixture) -> None:
    config = small_config(
        **{"model": "toy", "buckets": None, "max_programs": 6, "max_num_seqs": 16}
    )
    with caplog.at_level(logging.WARNING, logger="jserve"):
        table = build_engine(config).programs.table
    assert 4 <= table.num_programs <= 6
    assert (table.max_rows, table.max_blocks) == (16, 4)
    assert "max_programs=6: " in caplog.text and "left out" in caplog.text


def test_auto_is_float32_on_cpu() -> None:
    assert resolve_dtype("auto") == jnp.float32


def test_a_scheduler_plans_by_what_the_config_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(planning, "best_kernel", lambda: anneal)
    part = {"both": 1e-5, "batch": 0.0, "length": 1e-4, "base": 0.01}
    path = tmp_path / "request_latency.json"
    path.write_text(json.dumps({"prefill": part, "decode": part}))
    config = small_config(
        model="toy",
        policy="annealing:seed=9",
        annealing_budget_ms=3.0,
        length_estimator="quantile:q=0.9",
        request_latency=path,
    )
    scheduler = build_loop(config)._scheduler
    policy = scheduler.policy
    assert isinstance(policy, Annealing)
    assert policy.seed == 9
    assert policy.limit is not None
    assert policy.limit.budget_s == 0.003
    estimator = scheduler._lengths._estimator
    assert isinstance(estimator, QuantileLength)
    assert estimator.q == 0.9
    assert scheduler.view(0.0).request_latency.prefill.length == 1e-4


def test_a_request_latency_of_another_model_is_not_used(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    part = {"both": 1e-5, "batch": 0.0, "length": 1e-4, "base": 0.01}
    path = tmp_path / "request_latency.json"
    content = {"prefill": part, "decode": part, "measured_with": {"model": "other"}}
    path.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING, logger="jserve"):
        loop = build_loop(small_config(model="toy", request_latency=path))
    assert caplog.text.count("was made for model 'other'") == 1
    assert loop.stats().request_latency_fallback == "model"
    assert loop._scheduler.view(0.0).request_latency.prefill.length != 1e-4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length_estimator": "crystal_ball"}, "crystal_ball"),
        ({"request_latency": pathlib.Path("absent.json")}, "absent.json"),
        ({"bucket_strategy": "fib", "buckets": None}, "fib"),
    ],
)
def test_a_slip_is_found_before_anything_takes_long(
    fields: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_long(*_: object, **__: object) -> None:
        raise AssertionError("a kernel was compiled or a model loaded")

    monkeypatch.setattr(planning, "best_kernel", take_long)
    monkeypatch.setattr("jserve.build.load_model", take_long)
    with pytest.raises(ValueError, match=message):
        build_loop(small_config(policy="annealing", **fields))


@pytest.fixture
def quick_compiler() -> Iterator[None]:
    """Machine code is not optimised; who shares which buffer is decided before."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiler")
def test_default_programs_update_the_cache_in_place() -> None:
    config = EngineConfig(compile_cache_dir="")
    engine = build_engine(config)
    assert engine.kv_bytes == config.kv_cache_bytes
    table = engine.programs.table
    assert len(table.buckets) == 30
    # The corners, and the smallest with blocks: whatever else differs lies between.
    rows, blocks = table.row_edges, table.block_edges
    corners = [
        bucket
        for bucket in table.buckets
        if bucket.num_rows in (rows[0], rows[-1])
        and bucket.num_blocks in (*blocks[:2], blocks[-1])
    ]
    assert len(corners) > 4
    engine.compile(corners)
    for bucket in corners:
        memory = engine.programs.memory(bucket)
        assert memory.alias_size_in_bytes >= engine.kv_bytes, bucket
        assert memory.temp_size_in_bytes < 0.25 * engine.kv_bytes, bucket
