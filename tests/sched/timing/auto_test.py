"""Of several predictors the one that was right lately serves."""

import logging
import math

import numpy as np
import pytest

from jserve_sched.buckets.table import BucketTable
from jserve_sched.requests.slo import Slo
from jserve_sched.steps import features
from jserve_sched.steps.plan import StepPlan
from jserve_sched.timing.auto import AutoPredictor, Reservoir
from jserve_sched.timing.best import BestPredictor
from jserve_sched.timing.calibrated import CalibratedPredictor
from jserve_sched.timing.mlp import MlpWeights
from jserve_sched.timing.predictor import MAX_STEP_S, StepSample
from jserve_sched.timing.table import TablePredictor
from tests.fake_predictors import Constant, flat_weights
from tests.fakes import Driver, make_features, make_request, make_scheduler

DECODE, PREFILL, MIXED = features.SCENARIOS
TABLE = BucketTable((2, 4, 8), (0, 1, 2, 4), block_tokens=4)


class Sizes:
    """Knows one feature's share of the time of a step."""

    def __init__(self, column: int):
        self.column = column

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        return np.asarray(0.001 * (1.0 + matrix[:, self.column]))

    def quantiles(self, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.predict(matrix), 1.1 * self.predict(matrix)

    def update(self, sample: StepSample) -> None:
        pass


def some_steps(count: int, seed: int = 0) -> list[StepSample]:
    """Decodes whose time goes by their pages, and mixed steps whose goes by blocks."""
    rng = np.random.default_rng(seed)
    pages, blocks = rng.integers(1, 30, (2, count))
    blocks[::2] = 0
    matrix = make_features(
        count,
        **{
            "NUM_DECODES": 4,
            "NUM_ROWS": 8,
            "NUM_BLOCKS": blocks,
            "PREFILL_TOKENS": blocks,
        },
        DECODE_PAGES=pages,
    )
    seconds = 0.001 * (1.0 + np.where(blocks > 0, blocks, pages))
    return list(map(StepSample, matrix, seconds * rng.lognormal(0.0, 0.05, count)))


def teach(predictor: BestPredictor, steps: list[StepSample]) -> dict[str, str]:
    for one in steps:
        predictor.update(one)
    return {kind: errors.predictor for kind, errors in predictor.errors().items()}


def test_each_kind_is_served_by_the_better_one_and_handed_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    blocks = CalibratedPredictor(Sizes(features.NUM_BLOCKS), "blocks")
    pages = CalibratedPredictor(Sizes(features.DECODE_PAGES), "pages")
    best = BestPredictor(blocks)
    assert teach(best, some_steps(320)) == {DECODE: "blocks", MIXED: "blocks"}
    with caplog.at_level(logging.INFO, "jserve"):
        best.offer(pages)
        assert teach(best, some_steps(320, 1)) == {DECODE: "pages", MIXED: "blocks"}
    assert [one.message.partition(":")[0] for one in caplog.records] == [
        "decode steps are priced by pages from now on"
    ]
    errors = best.errors()[DECODE]
    assert errors.median_error < 0.06 and 0.9 < errors.p95_coverage < 0.99
    # The machine changes: decodes no longer go by their pages.
    matrix = make_features(640, NUM_DECODES=4, NUM_ROWS=8)
    matrix[:, features.DECODE_PAGES] = np.arange(640) % 30
    assert teach(best, [StepSample(row, 0.004) for row in matrix])[DECODE] == "blocks"


WRONG = (math.nan, -1.0, 0.0, math.inf, 1e9, 1e3, 1e-6)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("is_judging", [True, False])
def test_no_predictor_reaches_a_plan_unbounded_or_stops_service(
    wrong: float, is_judging: bool
) -> None:
    table = CalibratedPredictor(TablePredictor(TABLE), "table")
    absurd = CalibratedPredictor(Constant(wrong, 0.002), "absurd")
    best = BestPredictor(table, absurd, is_judging=is_judging)
    scheduler = make_scheduler(policy="ontime", table=TABLE, num_pages=96)
    scheduler.predictor = best
    plans: list[StepPlan] = []
    driver = Driver(scheduler, on_plan=plans.append)
    for _ in range(24):
        slo = Slo(ttft_s=0.1, tbt_s=0.02)
        scheduler.submit(make_request(10, 60, slo=slo))
    driver.run()
    assert len(driver.finished) == 24
    assert all(0.0 < plan.predicted_s <= MAX_STEP_S for plan in plans)
    if is_judging and not 0 < wrong <= MAX_STEP_S:
        assert best.num_replaced > 0
        assert best.errors()[DECODE].predictor == "table"


def test_networks_are_trained_on_live_steps_and_kept_once_they_serve() -> None:
    trainings: list[tuple[np.ndarray, np.ndarray]] = []
    kept: list[MlpWeights] = []
    good = flat_weights(0.001)
    good.cost_s[4] = 0.001  # of a decode's page

    def train(matrix: np.ndarray, duration_s: np.ndarray) -> tuple[MlpWeights, None]:
        trainings.append((matrix, duration_s))
        if len(trainings) == 1:
            raise RuntimeError("it failed")
        return (flat_weights(1e3) if len(trainings) == 2 else good), None

    anchors = make_features(3, NUM_DECODES=1, NUM_ROWS=2, DECODE_PAGES=range(3))
    auto = AutoPredictor(
        CalibratedPredictor(Sizes(features.NUM_BLOCKS), "table"),
        anchors=anchors,
        train=train,
        keep=kept.append,
    )
    steps = some_steps(4000)
    assert teach(auto, steps[:1100])[DECODE] == "table"
    assert len(trainings) == 2 and auto.num_trained == 0, "one failed, one was absurd"
    assert not kept
    assert teach(auto, steps[1100:])[DECODE] == "mlp"
    assert auto.num_trained == len(trainings) - 2 and kept[0] is good
    matrix, duration_s = trainings[-1]
    assert np.array_equal(matrix[-3:], anchors) and len(duration_s) == len(matrix)


def test_a_network_of_an_earlier_start_serves_at_once() -> None:
    auto = AutoPredictor(
        CalibratedPredictor(Constant(0.5), "table"),
        flat_weights(0.25),
        anchors=make_features(),
        train=lambda matrix, duration_s: (flat_weights(1.0), None),
    )
    assert auto.predict(make_features(2)).tolist() == [0.25, 0.25]


def test_a_reservoir_is_spread_over_programs_contexts_and_time() -> None:
    reservoir = Reservoir()
    for number in range(20_000):
        matrix = make_features(NUM_ROWS=8, DECODE_PAGES=1 + 7 * (number % 100 == 0))
        reservoir.add(StepSample(matrix[0], float(number)))
    reservoir.add(StepSample(make_features(NUM_ROWS=4)[0], 1.0))
    found = reservoir.samples()
    assert found.shape == (24 + 24 + 1, features.NUM_FEATURES + 1)
    assert (np.sort(found[:48, -1]) < 10_000).mean() == pytest.approx(0.5, abs=0.2)
    for rows in range(1, 1000):
        for number in range(24):
            row = make_features(NUM_ROWS=rows)[0]
            reservoir.add(StepSample(row, float(number)))
    assert len(reservoir.samples()) == 8192
