import numpy as np

from fakes import make_request
from jserve_sched.slo import Slo
from jserve_sched.waiting import WaitingQueue


def test_facts_stay_beside_their_requests() -> None:
    rng = np.random.default_rng(0)
    queue, inside = WaitingQueue(), []
    for _ in range(300):
        if inside and rng.random() < 0.4:
            queue.remove(inside.pop(int(rng.integers(len(inside)))))
        else:
            request = make_request(
                int(rng.integers(1, 50)),
                4,
                arrival_s=float(rng.integers(0, 9)),  # many come at once
                slo=Slo(ttft_s=float(rng.uniform(1, 9))),
            )
            queue.add(request)
            inside.append(request)
        expected = sorted(inside, key=lambda one: (one.arrival_s, one.request_id))
        assert list(queue.requests) == expected
        assert len(queue) == len(expected)
        dues = [one.first_deadline_s for one in expected]
        assert queue.first_deadlines_s().tolist() == dues
        assert queue.tokens().tolist() == [one.num_known for one in expected]
