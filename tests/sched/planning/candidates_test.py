import math

import pytest

from jserve_sched.planning.candidates import tightest_slack
from jserve_sched.requests.request import Request
from jserve_sched.requests.slo import Slo
from tests.fakes import make_request


def decoding(num_outputs: int, slo: Slo, arrival_s: float = 0.0) -> Request:
    request = make_request(8, 64, arrival_s=arrival_s, slo=slo)
    request.output_tokens.extend([1] * num_outputs)
    return request


def slack(decodes, start_s: float, least_s: float = 0.0):
    current_s, next_s = tightest_slack(decodes, start_s=start_s, least_s=least_s)
    return pytest.approx((current_s, current_s + next_s))


def test_two_windows_add_up_to_the_tightest_second_deadline() -> None:
    decodes = [
        decoding(3, Slo(ttft_s=1.0, tbt_s=0.04), arrival_s=5.0),
        decoding(9, Slo(ttft_s=0.8, tbt_s=0.08), arrival_s=4.9),
    ]
    assert slack(decodes, 6.0) == (0.12, 0.16)
    assert slack(decodes[1:], 6.0) == (0.42, 0.50)


def test_an_answer_longer_than_predicted_is_due_at_the_end() -> None:
    request = decoding(0, Slo(ttlt_s=10.0))
    request.predict(5)  # paced at 5, 6.25, 7.5, 8.75 and 10 s
    request.output_tokens = [1] * 2
    assert slack([request], 7.0) == (0.5, 1.75)
    # Neither at once nor at leisure; then a pace on, as for a last token.
    request.output_tokens = [1] * 40
    assert slack([request], 7.0) == (3.0, 4.25)


def test_a_decode_that_cannot_be_in_time_delays_no_prefill() -> None:
    decodes = [
        decoding(1, Slo(ttft_s=1.0, tbt_s=0.04)),
        decoding(9, Slo(ttft_s=1.0, tbt_s=0.1)),
    ]
    for least_s, current_s in ((0.005, 0.01), (0.02, 0.87), (2.0, math.inf)):
        found, _ = tightest_slack(decodes, start_s=1.03, least_s=least_s)
        assert found == pytest.approx(current_s)


def test_no_objective_and_no_decode_mean_no_limit() -> None:
    for decodes in ([], [decoding(2, Slo(ttft_s=1.0))]):
        assert slack(decodes, 0.0) == (math.inf, math.inf)
