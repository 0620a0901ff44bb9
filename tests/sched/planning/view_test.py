"""When the times of whole requests are fitted to a predictor."""

import dataclasses

import numpy as np

from jserve_sched.buckets.table import BucketTable
from jserve_sched.planning.view import LatencySource
from jserve_sched.timing.request_latency import RequestLatency
from tests.step_costs import Curve, make_view

TABLE = BucketTable((2, 8), (0, 4, 16), block_tokens=8)


def equal(step_s: float) -> Curve:
    """A predictor of equal steps."""
    return Curve(lambda tokens: np.full(len(tokens), step_s))


def latency_at(
    source: LatencySource, step_id: int, predictor: Curve, table: BucketTable = TABLE
) -> RequestLatency:
    view = dataclasses.replace(
        make_view(table, predictor), step_id=step_id, latencies=source
    )
    return view.latency


def test_a_source_fits_again_only_when_something_may_have_changed() -> None:
    predictor, source = equal(0.02), LatencySource()
    first = latency_at(source, 100, predictor)
    assert latency_at(source, 511, predictor) is first
    assert len(predictor.asked) == 1
    latency_at(source, 512, predictor)
    latency_at(source, 700, predictor)
    assert len(predictor.asked) == 2
    other = equal(0.5)
    slower = latency_at(source, 701, other)
    assert slower.decode.base > 0.4 > first.decode.base
    latency_at(source, 702, other, BucketTable((4,), (0, 2), block_tokens=8))
    assert len(other.asked) == 2
