import numpy as np

from jserve_sched.requests.request import Request
from jserve_sched.requests.slo import Slo
from jserve_sched.requests.waiting import WaitingQueue
from tests.fakes import make_request


def test_facts_stay_beside_their_requests() -> None:
    rng = np.random.default_rng(0)
    queue = WaitingQueue()
    inside: list[Request] = []
    for _ in range(300):
        if inside and rng.random() < 0.4:
            queue.remove(inside.pop(int(rng.integers(len(inside)))))
        else:
            request = make_request(
                int(rng.integers(1, 50)),
                4,
                arrival_s=float(rng.integers(0, 9)),  # many come at once
                slo=Slo(ttlt_s=float(rng.uniform(1, 9))),
                guard=bool(rng.random() < 0.2),
            )
            queue.add(request)
            inside.append(request)
        expected = sorted(inside, key=lambda one: (one.arrival_s, one.request_id))
        assert list(queue.requests) == expected
        assert len(queue) == len(expected)
        facts = [
            (one.pace_s, one.deadline_s, one.num_known_tokens, one.guard)
            for one in expected
        ]
        assert queue.facts().T.tolist() == [list(map(float, row)) for row in facts]
        assert queue.facts(3).T.tolist() == queue.facts().T.tolist()[3:]
