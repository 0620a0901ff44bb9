import logging
import math
import pathlib

import pytest

from jserve import build
from jserve.build import build_engine, build_loop
from jserve.config import EngineConfig
from jserve.engine.bucket_plan import plan_buckets
from jserve_models.attention.choose import BACKENDS
from jserve_sched.buckets.table import Bucket
from jserve_sched.policies.annealing.policy import Annealing
from jserve_sched.policies.annealing.search import anneal
from jserve_sched.requests.output_lengths import QuantileLength
from tests import TESTS
from tests.engine_harness import small_config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"policy": "lifo"}, "policy 'lifo' is unknown; known: .*'edf'"),
        ({"max_num_batched_tokens": 20}, "max_num_batched_tokens=20"),
        ({"page_size": 100}, "page_size=100 is not a multiple of block_tokens=32"),
        ({"dtype": "int4"}, "dtype='int4' is not one of auto, float32, bfloat16"),
        ({"weights": "fp4"}, "weights='fp4' is not one of auto, bfloat16, int8, fp8"),
        ({"kv_dtype": "int8"}, "kv_dtype='int8' is not one of auto, fp8"),
        ({"kv_dtype": "fp8", "model": "toy"}, "kv_dtype='fp8' has too few digits for"),
        ({"attention": "gpus"}, "attention='gpus' is not one of auto, cpu, page_loop"),
        ({"attention": "tpu"}, "attention='tpu': tpu needs a TPU, and the platform is"),
        (
            {"attention": "gpu"},
            "attention='gpu': gpu needs an NVIDIA GPU, and the",
        ),
        ({"bucket_strategy": "pow3"}, "'pow3' is unknown; known: .*'explicit', 'fit"),
        ({"bucket_strategy": "pow2"}, "'pow2' with buckets='.*four_programs.json'"),
        ({"bucket_strategy": "fitted", "buckets": None}, "'fitted' with buckets=''"),
        ({"annealing_budget_ms": -1.0}, "annealing_budget_ms=-1.0 is not in"),
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


def test_step_times_of_quantised_weights_are_their_own() -> None:
    model = str(TESTS / "golden" / "llama")
    names = {
        weights: build_engine(
            small_config(model=model, max_model_len=0, weights=weights)
        ).predictor_facts()
        for weights in ("auto", "int8")
    }
    assert names["auto"].dtype == "float32"
    assert names["int8"].dtype == "float32, weights int8"


def test_the_strategy_goes_by_what_is_given(tmp_path: pathlib.Path) -> None:
    assert EngineConfig().strategy == "pow2"
    path = tmp_path / "buckets.json"
    path.touch()
    assert EngineConfig(buckets=path).strategy == "explicit"
    fitted = EngineConfig(bucket_strategy="fitted", buckets=path)
    assert fitted.strategy == "fitted"
    linear = EngineConfig(bucket_strategy="linear:block_gap=4").for_device("cpu")
    assert 4 in plan_buckets(linear).final.block_edges


def test_few_programs_are_those_worth_most(caplog: pytest.LogCaptureFixture) -> None:
    config = small_config(
        **{"model": "toy", "buckets": None, "max_programs": 6, "max_num_seqs": 16}
    ).for_device("cpu")
    with caplog.at_level(logging.WARNING, logger="jserve"):
        table = plan_buckets(config).final
    assert 4 <= table.num_programs <= 6
    assert (table.max_rows, table.max_blocks) == (16, 4)
    assert "max_programs=6: " in caplog.text and "left out" in caplog.text


def test_a_backend_by_name_is_logged_and_its_discard_page_charged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert [EngineConfig(attention=name).attention for name in BACKENDS]
    config = small_config(attention="page_loop")
    with caplog.at_level(logging.INFO, logger="jserve"):
        engine = build_engine(config)
    assert "attention: page_loop (on cpu)" in caplog.text
    assert sum(part.nbytes for part in engine._state.kv) == config.kv_cache_bytes
    assert engine.num_pages == 128 - 1


@pytest.mark.parametrize(("budget_ms", "budget_s"), [(5.0, 0.005), (0.0, math.inf)])
def test_a_scheduler_plans_by_what_the_config_says(
    budget_ms: float, budget_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "best_kernel", lambda: anneal)
    config = small_config(
        model="toy",
        policy="annealing:proposals=9",
        length_estimator="quantile:q=0.9",
        annealing_budget_ms=budget_ms,
    )
    scheduler = build_loop(config)._scheduler
    policy = scheduler.policy
    assert isinstance(policy, Annealing)
    assert policy.proposals == 9
    assert policy.limit is not None and policy.limit.budget_s == budget_s
    estimator = scheduler._lengths._estimator
    assert isinstance(estimator, QuantileLength)
    assert estimator.q == 0.9


def test_a_slip_is_found_before_anything_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "best_kernel", None)
    monkeypatch.setattr("jserve.build.load_model", None)
    with pytest.raises(ValueError, match="oops"):
        build_loop(small_config(policy="annealing", length_estimator="oops"))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiler")
def test_default_programs_update_the_cache_in_place() -> None:
    config = EngineConfig(compile_cache_dir="").for_device("cpu")
    engine = build_engine(config)
    kv_bytes = sum(part.nbytes for part in engine._state.kv)
    assert kv_bytes == config.kv_cache_bytes
    table = plan_buckets(config).final
    assert len(table.buckets) == 21
    # Whatever else differs lies between these.
    corners = [
        max(table.buckets, key=lambda one: one.num_tokens),
        Bucket(table.max_rows, 0),
        Bucket(table.prefill_row_edges[0], table.block_edges[1]),
    ]
    engine.programs.compile(corners)
    for bucket in corners:
        memory = engine.programs._compiled[bucket].memory_analysis()
        assert memory is not None
        assert memory.alias_size_in_bytes >= kv_bytes, bucket
        assert memory.temp_size_in_bytes < 0.25 * kv_bytes, bucket
