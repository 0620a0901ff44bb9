import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jserve_sched.request_grid import LatencyPoints

from fakes import make_request
from jserve_sched.bucket_strategies import Continuous
from jserve_sched.buckets import BucketTable
from jserve_sched.cost_model import CLOSED_FORMS, OraclePredictor
from jserve_sched.ledger import KvLedger
from jserve_sched.plan import StepResult
from jserve_sched.policies import make_policy
from jserve_sched.request_latency import (
    Bilinear,
    LatencySource,
    RequestLatency,
    fit_bilinear,
    request_latency_from_json,
)
from jserve_sched.scheduler import Scheduler
from jserve_sched.view import SchedulerView
from step_costs import Curve, make_view

PREFILL = Bilinear(both=1e-4, batch=2e-4, length=3e-5, base=0.01)
DECODE = Bilinear(both=2e-7, batch=5e-5, length=1e-7, base=0.015)
LATENCY = RequestLatency(prefill=PREFILL, decode=DECODE)
TABLE = BucketTable((2, 8), (0, 4, 16), block_tokens=8)

coefficients = st.floats(0.0, 1e-2)
models = st.builds(
    Bilinear, both=coefficients, batch=coefficients, length=coefficients,
    base=st.floats(1e-4, 1e-1),
)  # fmt: skip


def points_of(model: Bilinear) -> LatencyPoints:
    batch, length = np.meshgrid([1.0, 2, 4, 8], [16.0, 64, 256, 1024])
    batch, length = batch.ravel(), length.ravel()
    return LatencyPoints(batch=batch, length=length, duration_s=model.of(batch, length))


@given(
    model=models,
    batch=st.integers(1, 64),
    prompt_tokens=st.integers(1, 4000),
    output_tokens=st.integers(1, 300),
)
@settings(derandomize=True, max_examples=60)
def test_the_closed_form_is_the_sum_of_the_steps(
    model: Bilinear, batch: int, prompt_tokens: int, output_tokens: int
) -> None:
    latency = RequestLatency(prefill=PREFILL, decode=model)
    # The first token comes from the prefill; the first decode reads the prompt.
    context = prompt_tokens + np.arange(output_tokens - 1)
    summed_s = float(np.sum(model.of(np.array(batch), context)))
    arguments = [np.array(one) for one in (batch, prompt_tokens, output_tokens)]
    assert latency.decode_s(*arguments) == pytest.approx(summed_s, rel=1e-9)
    whole_s = float(PREFILL.of(*arguments[:2])) + summed_s
    assert latency.exec_s(*arguments) == pytest.approx(whole_s, rel=1e-9)


def test_requests_and_batch_sizes_broadcast() -> None:
    batch = np.arange(1.0, 5.0)
    prompt_tokens, output_tokens = np.array([[10.0], [700.0]]), np.array([[1], [40]])
    exec_s = LATENCY.exec_s(batch, prompt_tokens, output_tokens)
    assert exec_s.shape == (2, 4)
    one = LATENCY.exec_s(np.array(3), np.array(700), np.array(40))
    assert exec_s[1, 2] == pytest.approx(float(one), rel=1e-12)
    assert exec_s[0, 2] == LATENCY.prefill_s(np.array(3), np.array(10))


@given(model=models)
@settings(derandomize=True, max_examples=40)
def test_a_fit_finds_the_coefficients(model: Bilinear) -> None:
    points = points_of(model)
    found = fit_bilinear(points)
    assert found.of(points.batch, points.length) == pytest.approx(
        points.duration_s, rel=1e-3
    )


def test_known_coefficients_come_back() -> None:
    found = fit_bilinear(points_of(PREFILL))
    assert dataclasses.astuple(found) == pytest.approx(
        dataclasses.astuple(PREFILL), rel=1e-5
    )


@given(seed=st.integers(0, 2**31))
@settings(derandomize=True, max_examples=40)
def test_no_fit_is_ever_negative_or_falls_with_more_work(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = LatencyPoints(
        batch=rng.integers(1, 64, 20).astype(float),
        length=rng.integers(1, 4000, 20).astype(float),
        duration_s=rng.lognormal(-4, 2, 20),  # noise, and nothing else
    )
    found = fit_bilinear(points)
    batch, length = np.arange(1.0, 100.0), np.geomspace(1, 1e5, 40)[:, None]
    predicted_s = found.of(batch, length)
    assert np.min(predicted_s) > 0
    assert np.min(np.diff(predicted_s, axis=0)) >= 0
    assert np.min(np.diff(predicted_s, axis=1)) >= 0


def test_short_steps_count_as_much_as_long_ones() -> None:
    # A quadratic cannot be met: the errors must be shared out, not all be the short.
    length = np.geomspace(16, 4096, 9)
    points = LatencyPoints(
        batch=np.ones(9), length=length, duration_s=0.01 + 1e-8 * length**2
    )
    found_s = fit_bilinear(points).of(points.batch, points.length)
    assert np.max(np.abs(found_s / points.duration_s - 1)[:5]) < 0.2


def test_a_latency_survives_its_file() -> None:
    text = json.dumps({**LATENCY.to_json(), "device": "of no interest"})
    assert request_latency_from_json(text) == LATENCY


GOOD = LATENCY.to_json()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is a JSON object with prefill and decode"),
        ("[]", "is a JSON object with prefill and decode"),
        (json.dumps({"prefill": GOOD["prefill"]}), "'decode'"),
        (json.dumps({**GOOD, "decode": {"both": 0}}), "'batch'"),
        (json.dumps({**GOOD, "decode": GOOD["decode"] | {"base": "1"}}), "'1' is no"),
        (json.dumps({**GOOD, "decode": GOOD["decode"] | {"base": True}}), "True is no"),
        (json.dumps({**GOOD, "decode": GOOD["decode"] | {"base": -1}}), "base=-1.0"),
        (json.dumps({**GOOD, "decode": GOOD["decode"] | {"both": np.nan}}), "both=nan"),
        (json.dumps({**GOOD, "decode": dict.fromkeys(GOOD["decode"], 0)}), "all coeff"),
        (json.dumps({**GOOD, "decode": GOOD["decode"] | {"base": 10**400}}), "too la"),
    ],
)  # fmt: skip
def test_other_files_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="request latency") as error:
        request_latency_from_json(text)
    assert message in str(error.value)


class Counting:
    """A predictor that counts how often it is asked."""

    def __init__(self, seconds: float):
        self.inner = Curve(lambda tokens: seconds + 1e-4 * tokens)
        self.num_asked = 0

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        self.num_asked += 1
        return self.inner.predict(matrix)

    predict_upper = predict

    def update(self, sample: object) -> None:
        raise AssertionError("a source must not teach the predictor")


def view_at(step_id: int, predictor: Counting, table: BucketTable) -> SchedulerView:
    return dataclasses.replace(
        make_view(table, predictor.inner), step_id=step_id, predictor=predictor
    )


def test_a_source_fits_anew_only_when_something_may_have_changed() -> None:
    predictor, source = Counting(0.02), LatencySource()
    source.keep_up(view_at(99, predictor, TABLE))
    assert predictor.num_asked == 0, "nobody has asked yet"
    first = source.of(view_at(100, predictor, TABLE))
    source.keep_up(view_at(511, predictor, TABLE))
    assert source.of(view_at(511, predictor, TABLE)) is first
    assert predictor.num_asked == 1
    source.keep_up(view_at(512, predictor, TABLE))
    source.keep_up(view_at(512, predictor, TABLE))
    assert predictor.num_asked == 2
    other = Counting(0.5)
    slower = source.of(view_at(513, other, TABLE))
    assert slower.decode.base > 0.4 > first.decode.base
    source.of(view_at(514, other, BucketTable((4,), (0, 2), block_tokens=8)))
    assert other.num_asked == 2


def test_fits_are_due_at_steps_that_are_counted_from_the_first() -> None:
    before = LatencySource.num_steps_before
    assert [before(step) for step in (0, 1, 511, 512, 513)] == [0, 511, 1, 0, 511]


def test_points_of_one_kind_have_no_slope() -> None:
    alone = LatencyPoints(
        batch=np.ones(3),
        length=np.array([10.0, 20.0, 40.0]),
        duration_s=np.array([0.03, 0.04, 0.06]),
    )
    found = fit_bilinear(alone)
    assert (found.both, found.batch) == (0.0, 0.0)
    assert (found.length, found.base) == pytest.approx((1e-3, 0.02))
    alike = LatencyPoints(
        batch=np.array([1.0, 2.0, 4.0]),
        length=np.full(3, 8.0),
        duration_s=np.array([0.03, 0.04, 0.06]),
    )
    found = fit_bilinear(alike)
    assert (found.both, found.length) == (0.0, 0.0)
    assert (found.batch, found.base) == pytest.approx((0.01, 0.02))
    single = LatencyPoints(
        batch=np.ones(1), length=np.ones(1), duration_s=np.array([0.5])
    )
    assert fit_bilinear(single).base == pytest.approx(0.5)


def test_a_fixed_source_asks_nobody() -> None:
    predictor = Counting(0.02)
    source = LatencySource(LATENCY)
    source.keep_up(view_at(512, predictor, TABLE))
    assert source.of(view_at(0, predictor, TABLE)) is LATENCY
    assert predictor.num_asked == 0


@pytest.mark.parametrize("num_requests", [1, 4, 16])
@pytest.mark.parametrize(("prompt_tokens", "output_tokens"), [(100, 30), (1000, 20)])
def test_it_is_near_what_the_schedulers_steps_take(
    num_requests: int, prompt_tokens: int, output_tokens: int
) -> None:
    machine = CLOSED_FORMS["rtx4090-llama3.1-8b"]
    table = Continuous().table(
        max_num_seqs=64, max_num_batched_tokens=2048, block_tokens=1
    )
    scheduler = Scheduler(
        policy=make_policy("fcfs"),
        buckets=table,
        ledger=KvLedger(num_pages=2588, page_size=16, enable_prefix_caching=False),
        predictor=OraclePredictor(machine, 1),
        max_num_seqs=64,
        max_num_batched_tokens=2048,
        max_model_len=4096,
    )
    for _ in range(num_requests):
        scheduler.submit(make_request(prompt_tokens, output_tokens))
    latency = scheduler.view(0.0).request_latency
    now_s = 0.0
    first_s: dict[str, float] = {}
    while scheduler.has_work:
        plan = scheduler.plan(now_s)
        assert plan is not None
        scheduler.dispatch(plan, now_s)
        now_s += plan.predicted_s
        sampled = sum(row.samples for row in (*plan.decodes, *plan.chunks))
        result = StepResult(tokens=(1,) * sampled, duration_s=plan.predicted_s)
        for output in scheduler.apply(result):
            first_s.setdefault(output.request.request_id, now_s)
    size, prompt, answer = (
        np.array(one) for one in (num_requests, prompt_tokens, output_tokens)
    )
    assert latency.prefill_s(size, prompt) == pytest.approx(
        max(first_s.values()), rel=0.15
    )
    assert latency.exec_s(size, prompt, answer) == pytest.approx(now_s, rel=0.1)
