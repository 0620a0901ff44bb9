"""When the times of whole requests are fitted to a predictor."""

import dataclasses

import numpy as np

from jserve_sched.buckets.table import BucketTable
from jserve_sched.planning import LatencySource, SchedulerView
from jserve_sched.timing.request_latency import Bilinear, RequestLatency
from tests.step_costs import Curve, make_view

TABLE = BucketTable((2, 8), (0, 4, 16), block_tokens=8)


def equal(step_s: float) -> Curve:
    """A predictor of equal steps."""
    return Curve(lambda tokens: np.full(len(tokens), step_s))


def view_at(step_id: int, predictor: Curve, table: BucketTable) -> SchedulerView:
    return dataclasses.replace(make_view(table, predictor), step_id=step_id)


def test_a_source_fits_again_only_when_something_may_have_changed() -> None:
    predictor, source = equal(0.02), LatencySource()
    first = source.at(view_at(100, predictor, TABLE))
    assert source.at(view_at(511, predictor, TABLE)) is first
    assert len(predictor.asked) == 1
    source.at(view_at(512, predictor, TABLE))
    source.at(view_at(700, predictor, TABLE))
    assert len(predictor.asked) == 2
    other = equal(0.5)
    slower = source.at(view_at(701, other, TABLE))
    assert slower.decode.base > 0.4 > first.decode.base
    source.at(view_at(702, other, BucketTable((4,), (0, 2), block_tokens=8)))
    assert len(other.asked) == 2


def test_a_given_latency_is_never_fitted() -> None:
    step = Bilinear(both=0.0, batch=0.0, length=0.0, base=1.0)
    given, predictor = RequestLatency(prefill=step, decode=step), equal(0.02)
    assert LatencySource(given).at(view_at(0, predictor, TABLE)) is given
    assert len(predictor.asked) == 0
