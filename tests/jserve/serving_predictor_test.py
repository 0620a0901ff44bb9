"""A server plans by the predictor it was told, or warns once and plans by the table."""

import collections
import dataclasses
import json
import logging
import pathlib
import queue
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
import pytest

from engine_harness import small_config
from fakes import make_request
from jserve.build import build_loop
from jserve.config import EngineConfig
from jserve.events import Health, PredictorStatus, TokenEvent
from jserve.loop import EngineLoop
from jserve.predictor_checkpoint import PredictorFacts, save_checkpoint
from jserve.serving_predictor import choose_predictor, table_samples
from jserve_models.registry import load_model
from jserve_sched.buckets import BucketTable
from jserve_sched.features import NUM_FEATURES, SCENARIOS, scenarios
from jserve_sched.linear_predictor import LinearModel
from jserve_sched.mlp_predictor import NUM_INPUTS, MlpWeights
from jserve_sched.predictor import StepSample
from jserve_sched.table_predictor import TablePredictor

ServeOne = Callable[[str], tuple[EngineLoop, list[float]]]
TABLE = BucketTable((4, 16), (0, 4))
FACTS = PredictorFacts.here(
    load_model("toy", seed=0, dtype=np.float32).config,
    dtype="float32",
    page_size=128,
    block_tokens=32,
)


def flat_weights(step_s: float = 0.02) -> MlpWeights:
    """Every step takes as long."""
    coefficients = np.zeros((4, 8))
    coefficients[:, 0] = step_s
    return MlpWeights(
        linear=LinearModel(coefficients=coefficients, has_expert=np.zeros(3, bool)),
        mean=np.zeros(NUM_INPUTS),
        scale=np.ones(NUM_INPUTS),
        low=np.zeros(NUM_INPUTS),
        high=np.full(NUM_INPUTS, 50.0),
        layers=((np.zeros((NUM_INPUTS, 2)), np.zeros(2)),),
    )


@pytest.fixture(scope="module", name="serve_one")
def serve_one_fixture(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], tuple[EngineLoop, list[float]]]]:
    """Two small programs, compiled once for all tests of this file."""
    folder = tmp_path_factory.mktemp("serve")
    buckets = folder / "buckets.json"
    buckets.write_text(json.dumps({"row_edges": [4], "block_edges": [0, 1]}))
    config = small_config(
        model="toy",
        buckets=buckets,
        max_num_seqs=4,
        max_num_batched_tokens=4 + 32,
        kv_cache_bytes=2**20,
        compile_cache_dir=str(folder / "cache"),
    )
    yield lambda name: serve(dataclasses.replace(config, predictor=name))
    jax.config.update("jax_compilation_cache_dir", None)


def serve(config: EngineConfig, num_tokens: int = 5) -> tuple[EngineLoop, list[float]]:
    """Serves a request; returns the stopped loop and the predictions of its steps."""
    loop = build_loop(config)
    told: queue.Queue[Sequence[TokenEvent]] = queue.Queue()
    loop.set_listener(told.put)
    loop.start()
    try:
        assert loop.wait_until(Health.WARM, 120.0)
        loop.submit(make_request(8, num_tokens))
        counts: collections.Counter[str] = collections.Counter()
        while True:
            for event in told.get(timeout=60.0):
                counts["tokens"] += event.token is not None
                counts["ends"] += event.finish_reason is not None
            if counts["ends"]:
                break
        assert counts["tokens"] == num_tokens
        return loop, [step.predicted_s for step in loop.steps()]
    finally:
        loop.stop()


def missing(folder: pathlib.Path) -> None:
    (folder / "facts.json").unlink()


def truncated(folder: pathlib.Path) -> None:
    files = [one for one in (folder / "weights").rglob("*") if one.is_file()]
    largest = max(files, key=lambda one: one.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])


def changed(**fields: object) -> Callable[[pathlib.Path], None]:
    def change(folder: pathlib.Path) -> None:
        path = folder / "facts.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (missing, "missing"),
        (truncated, "unreadable"),
        (changed(format_version=0), "version"),
        (changed(device_kind="another"), "device"),
    ],
)
def test_a_useless_checkpoint_is_told_once_and_the_table_serves(
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    serve_one: ServeOne,
    damage: Callable[[pathlib.Path], None],
    reason: str,
) -> None:
    save_checkpoint(tmp_path, flat_weights(), FACTS)
    damage(tmp_path)
    with caplog.at_level(logging.WARNING):
        loop, _ = serve_one(str(tmp_path))
    warnings = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert [one.name for one in warnings] == ["jserve"]
    assert str(tmp_path) in warnings[0].getMessage()
    assert loop.stats().predictor == PredictorStatus(name="table", fallback=reason)


def test_a_checkpoint_prices_the_steps(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, serve_one: ServeOne
) -> None:
    save_checkpoint(tmp_path, flat_weights(0.25), FACTS)
    with caplog.at_level(logging.WARNING):
        loop, predicted_s = serve_one(str(tmp_path))
    assert not caplog.records
    assert loop.stats().predictor == PredictorStatus(name="mlp")
    assert predicted_s == pytest.approx([0.25] * len(predicted_s))


def test_linear_starts_from_the_timed_pass(serve_one: ServeOne) -> None:
    loop, predicted_s = serve_one("linear")
    assert loop.stats().predictor.name == "linear"
    assert all(1e-6 < one < 1.0 for one in predicted_s)


def test_a_word_that_is_no_predictor_is_a_folder_that_is_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, logger="jserve"):
        serving = choose("forest")
    assert serving.status().fallback == "missing"
    assert "'forest'" in caplog.text or "/forest'" in caplog.text


def test_no_name_is_refused() -> None:
    with pytest.raises(ValueError, match="predictor='' is not one of table, linear"):
        small_config(predictor="")


def choose(name: str):
    return choose_predictor(
        name,
        TablePredictor(TABLE, max_pages_per_row=16),
        buckets=TABLE,
        expected=FACTS,
        max_pages_per_row=16,
    )


def test_the_table_says_what_steps_of_every_scenario_take() -> None:
    table = TablePredictor(TABLE, max_pages_per_row=16)
    rows = table_samples(table, TABLE, page_size=128, max_pages_per_row=16)
    assert set(scenarios(rows)) == set(range(len(SCENARIOS)))
    assert rows.shape[1] == NUM_FEATURES + 1
    assert np.array_equal(rows[:, -1], table.predict(rows[:, :-1]))
    assert rows[:, -1].min() > 0


def test_linear_agrees_with_its_table_where_the_table_is_linear() -> None:
    """The cold table is linear in tokens and pages, so x1 to x7 explain most of it."""
    table = TablePredictor(TABLE, max_pages_per_row=16)
    rows = table_samples(table, TABLE, page_size=128, max_pages_per_row=16)
    predictor = choose("linear").predictor
    error = predictor.predict(rows[:, :-1]) / rows[:, -1] - 1.0
    assert float(np.median(np.abs(error))) < 0.15


def test_broken_weights_are_replaced_by_the_table_and_counted(
    tmp_path: pathlib.Path,
) -> None:
    save_checkpoint(tmp_path, flat_weights(1e6), FACTS)  # finite, and absurd
    serving = choose(str(tmp_path))
    table = TablePredictor(TABLE, max_pages_per_row=16)
    rows = table_samples(table, TABLE, page_size=128, max_pages_per_row=16)[:, :-1]
    assert np.array_equal(serving.predictor.predict(rows), table.predict(rows))
    assert serving.status().num_replaced == len(rows)


def test_linear_is_refitted_until_it_is_stopped() -> None:
    serving = choose("linear")
    rows = table_samples(
        TablePredictor(TABLE, max_pages_per_row=16),
        TABLE,
        page_size=128,
        max_pages_per_row=16,
    )[:, :-1]
    serving.start()
    for index in range(600):
        serving.predictor.update(StepSample(rows[index % len(rows)], 0.5))
    deadline_s = time.monotonic() + 20.0
    while not serving.status().num_refits and time.monotonic() < deadline_s:
        time.sleep(0.01)
    serving.stop()
    assert serving.status().num_refits == 1
    assert serving.predictor.predict(rows) == pytest.approx(0.5, rel=0.5)
