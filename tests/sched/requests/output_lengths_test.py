"""Output lengths: estimated on arrival, learned from answers, and their errors."""

import functools
from typing import Any

import numpy as np
import pytest

from jserve_sched.requests.output_lengths import (
    LengthErrors,
    LengthEstimator,
    OracleLengths,
    make_length_estimator,
)
from jserve_sched.requests.request import FinishReason, Request
from tests.fakes import Driver, expected_output, make_request, make_scheduler

LEARNING = ["mean", "quantile:q=0.75"]


def ask(max_tokens: int = 2048, *, prompt_tokens: int = 8, **fields: Any) -> Request:
    return make_request(
        max_tokens=max_tokens,
        prompt=[0] * prompt_tokens,
        **{"request_id": "a", "stop_token_ids": frozenset((1,)), **fields},
    )


def teach(estimator: LengthEstimator, lengths: list[int], **fields: Any) -> None:
    for tokens in lengths:
        request = ask(**fields)
        request.output_tokens = [0] * tokens
        request.finish_reason = FinishReason.STOP
        estimator.update(request)


def taught(spec: str, lengths: list[int]) -> LengthEstimator:
    estimator = make_length_estimator(spec)
    teach(estimator, lengths)
    return estimator


@pytest.mark.parametrize("spec", LEARNING)
def test_without_evidence_an_answer_is_as_long_as_it_may_be(spec: str) -> None:
    estimator = taught(spec, [30] * 7)
    assert estimator.estimate(ask(500)) == 500
    teach(estimator, [30])
    assert estimator.estimate(ask(500)) == 30
    # A request that cannot stop is not guessed at, nor learned from.
    teach(estimator, [400] * 50, stop_token_ids=frozenset())
    assert estimator.estimate(ask(500, stop_token_ids=frozenset())) == 500
    assert estimator.estimate(ask(500)) == 30


def test_a_rare_kind_is_judged_by_its_class_and_that_by_all() -> None:
    estimator = taught("mean", [10] * 16)
    teach(estimator, [70] * 16, prompt_tokens=900)
    teach(estimator, [200] * 8, service_class="code")
    assert estimator.estimate(ask()) == 10
    assert estimator.estimate(ask(prompt_tokens=1000)) == 70, "a power of two"
    assert estimator.estimate(ask(prompt_tokens=100)) == 40, "its class"
    assert estimator.estimate(ask(service_class="new")) == 72, "all"


@pytest.mark.parametrize("spec", LEARNING)
def test_estimates_follow_data_that_drifts(spec: str) -> None:
    rng = np.random.default_rng(1)
    estimator = make_length_estimator(spec)
    for centre in (100, 900, 300):
        teach(estimator, rng.integers(centre - 50, centre + 50, 512).tolist())
        assert abs(estimator.estimate(ask()) - centre) < 70


def test_the_oracle_tells_the_truth() -> None:
    oracle = make_length_estimator("oracle", {"a": 70})
    assert oracle.estimate(ask()) == 70
    assert oracle.estimate(ask(50)) == 50


def oracle_of(**errors: float) -> np.ndarray:
    truth = {f"{k}": 1000 for k in range(500)}
    oracle = OracleLengths(true_tokens=truth, **errors)  # type: ignore[arg-type]
    found = [oracle.estimate(ask(10**6, request_id=name)) for name in truth]
    assert found == [oracle.estimate(ask(10**6, request_id=name)) for name in truth]
    return np.array(found)


def test_the_oracles_errors_are_as_large_as_asked_for() -> None:
    even = oracle_of(error=0.5)
    assert 500 <= np.min(even) < 520 and 1480 < np.max(even) <= 1500
    assert abs(np.mean(even) - 1000) < 30
    assert np.any(even != oracle_of(error=0.5, seed=1))
    coin = oracle_of(factor=10.0)
    assert set(coin.tolist()) == {100, 10000}
    assert 200 < np.count_nonzero(coin == 100) < 300


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("guess", r"length estimator 'guess' is unknown; known: \['max_tokens', "),
        ("quantile:q=1", r"q=1.0 is not between 0 and 1"),
        ("oracle:error=-0.1", "error=-0.1 is not in 0..1"),
        ("oracle:factor=0.5", "factor=0.5 is not a finite number from 1"),
    ],
)
def test_bad_specs_are_named(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_length_estimator(spec, {})


def errors_of(*predictions: tuple[int, int]) -> LengthErrors:
    """Sums over answers, each of (tokens, predicted tokens)."""
    each = [LengthErrors(1, a, b, abs(a - b)) for a, b in predictions]
    return functools.reduce(LengthErrors.plus, each)


def test_answers_are_predicted_on_arrival_and_compared_at_the_end() -> None:
    lengths = OracleLengths(true_tokens={"a": 3, "b": 9, "c": 2})
    scheduler = make_scheduler(lengths=lengths)
    stops = frozenset((999,))  # which no answer has
    for name, service_class in (("a", "chat"), ("b", "chat"), ("c", "code")):
        request = make_request(
            8, 5, request_id=name, service_class=service_class, stop_token_ids=stops
        )
        scheduler.submit(request)
        assert request.predicted_output_tokens == {"a": 3, "b": 5, "c": 2}[name]
    Driver(scheduler).run()
    assert scheduler.length_errors == {
        "chat": errors_of((5, 3), (5, 5)),
        "code": errors_of((5, 2)),
    }


def test_only_what_might_stop_can_be_wrong() -> None:
    scheduler = make_scheduler()
    prompt = [3, 1, 4]
    second = expected_output(make_request(max_tokens=5, prompt=prompt))[1]
    scheduler.submit(
        make_request(
            max_tokens=5,
            prompt=prompt,
            min_tokens=1,
            stop_token_ids=frozenset((second,)),
        )
    )
    scheduler.submit(make_request(8, 5, service_class="as long as asked for"))
    Driver(scheduler).run()
    assert scheduler.length_errors == {"best_effort": errors_of((2, 5))}


def test_cancelled_requests_teach_nothing() -> None:
    scheduler = make_scheduler(lengths=make_length_estimator("mean"))
    for name in ("a", "b"):
        stops = frozenset((999,))
        scheduler.submit(make_request(8, 5, request_id=name, stop_token_ids=stops))
    scheduler.cancel("a")
    Driver(scheduler).run()
    assert scheduler.length_errors["best_effort"].num_requests == 1
