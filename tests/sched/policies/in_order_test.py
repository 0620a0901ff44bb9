import numpy as np
import pytest

from jserve_sched.buckets.table import BucketTable
from jserve_sched.policies.in_order import first_waiting
from tests.fakes import make_request
from tests.step_costs import Curve, make_view


@pytest.mark.parametrize("num_slots", [1, 4, 30, 80])
def test_the_first_of_a_queue_are_those_of_its_whole_order(num_slots: int) -> None:
    table = BucketTable((num_slots,), (0, 1), block_tokens=4)
    queue = [make_request(4, 2, arrival_s=float(place)) for place in range(60)]
    view = make_view(table, Curve(lambda tokens: tokens), waiting=queue)
    rng = np.random.default_rng(0)
    for values in ([0.0], [1.0, 2.0, np.inf], np.arange(9.0)):
        key = rng.choice(values, len(queue))
        ordered = [queue[place] for place in np.argsort(key, kind="stable").tolist()]
        first = first_waiting(view, key)
        assert first.requests == ordered[: num_slots + 1]
        assert first.arrival_s.tolist() == [one.arrival_s for one in first.requests]
