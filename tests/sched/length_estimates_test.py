import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import make_request
from jserve_sched.length_estimates import (
    LENGTH_ESTIMATORS,
    LengthEstimator,
    OracleLengths,
    make_length_estimator,
)
from jserve_sched.request import FinishReason, Request

LEARNING = ["mean", "gaussian", "quantile:q=0.75"]


def ask(
    max_tokens: int = 2048, *, request_id: str = "a", has_stop: bool = True
) -> Request:
    stop = frozenset((1,)) if has_stop else frozenset()
    return make_request(
        max_tokens=max_tokens,
        prompt=[0] * 8,
        request_id=request_id,
        stop_token_ids=stop,
    )


def teach(
    estimator: LengthEstimator, lengths: list[int], max_tokens: int = 2048
) -> None:
    for tokens in lengths:
        request = ask(max_tokens)
        request.output_tokens = [0] * min(tokens, max_tokens)
        is_cut = tokens > max_tokens
        request.finish_reason = FinishReason.LENGTH if is_cut else FinishReason.STOP
        estimator.update(request)


def taught(spec: str, lengths: list[int]) -> LengthEstimator:
    estimator = make_length_estimator(spec)
    teach(estimator, lengths)
    return estimator


@pytest.mark.parametrize("spec", ["max_tokens", *LEARNING])
def test_without_evidence_an_answer_is_as_long_as_it_may_be(spec: str) -> None:
    least = 8
    estimator = taught(spec, [30] * (least - 1))
    assert estimator.estimate(ask(500)) == 500
    teach(estimator, [30])
    assert estimator.estimate(ask(500)) == (500 if spec == "max_tokens" else 30)


@pytest.mark.parametrize("spec", LEARNING)
def test_a_request_that_cannot_stop_is_not_guessed_at(spec: str) -> None:
    estimator = taught(spec, [30] * 50)
    assert estimator.estimate(ask(500, has_stop=False)) == 500


@pytest.mark.parametrize("spec", LEARNING)
def test_estimates_follow_data_that_drifts(spec: str) -> None:
    rng = np.random.default_rng(1)
    estimator = make_length_estimator(f"{spec}:memory=128")
    for centre in (100, 900, 300):
        teach(estimator, rng.integers(centre - 50, centre + 50, 150).tolist())
        assert abs(estimator.estimate(ask()) - centre) < 70


def test_each_estimator_means_what_it_says() -> None:
    rng = np.random.default_rng(2)
    lengths = rng.normal(500, 100, 2000).astype(int).tolist()
    last = lengths[-512:]
    assert taught("mean", lengths).estimate(ask()) == pytest.approx(500, abs=25)
    for q in (0.25, 0.75, 0.95):
        found = taught(f"quantile:q={q}", lengths).estimate(ask())
        share = np.mean(np.array(last) <= found)
        assert share == pytest.approx(q, abs=0.06)
    gaussian = taught("gaussian", lengths)
    draws = [gaussian.estimate(ask(request_id=f"{k}")) for k in range(2000)]
    assert statistics.fmean(draws) == pytest.approx(500, abs=25)
    assert statistics.stdev(draws) == pytest.approx(100, rel=0.2)


def test_a_draw_is_the_requests_own_and_the_seeds() -> None:
    lengths = np.random.default_rng(3).integers(1, 900, 100).tolist()
    ids = [f"r{k}" for k in range(20)]
    first, again, other = (
        [taught(spec, lengths).estimate(ask(request_id=one)) for one in ids]
        for spec in ("gaussian:seed=1", "gaussian:seed=1", "gaussian:seed=2")
    )
    assert first == again
    assert len(set(first)) > 10 and first != other


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    spec=st.sampled_from([*LEARNING, "quantile:q=0.01", "quantile:q=0.99"]),
    lengths=st.lists(st.integers(1, 5000), min_size=8, max_size=40),
    max_tokens=st.integers(1, 5000),
)
def test_estimates_are_possible_lengths(
    spec: str, lengths: list[int], max_tokens: int
) -> None:
    estimator = taught(f"{spec}:memory=16", lengths)
    assert 1 <= estimator.estimate(ask(max_tokens)) <= max_tokens


def test_the_oracle_tells_the_truth() -> None:
    oracle = OracleLengths({"a": 70})
    assert oracle.estimate(ask(request_id="a")) == 70
    assert oracle.estimate(ask(50, request_id="a")) == 50
    assert not oracle.update(ask())
    with pytest.raises(KeyError):
        oracle.estimate(ask(request_id="b"))


def oracle_of(**errors: float) -> np.ndarray:
    truth = {f"{k}": 1000 for k in range(500)}
    oracle = OracleLengths(truth, **errors)  # type: ignore[arg-type]
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
    ("errors", "message"),
    [
        ({"error": -0.1}, "error=-0.1 is not in 0..1"),
        ({"error": math.nan}, "error=nan is not in 0..1"),
        ({"factor": 0.5}, "factor=0.5 is not a finite number from 1"),
        ({"factor": math.inf}, "factor=inf is not"),
    ],
)
def test_impossible_errors_are_named(errors: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OracleLengths({}, **errors)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("guess", r"length estimator 'guess' is unknown; known: \['gaussian', "),
        ("mean:q=0.5", "length estimator 'mean' has no option 'q=0.5'"),
        ("quantile:q=1", r"q=1.0 is not between 0 and 1"),
        ("quantile:q=high", "quantile:q=high is not a number"),
        ("mean:least=0", "least=0 is not in 1..memory=512"),
    ],
)
def test_bad_specs_are_named(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_length_estimator(spec)


def test_every_estimator_can_be_named() -> None:
    for name, kind in LENGTH_ESTIMATORS.items():
        assert isinstance(make_length_estimator(name), kind)
