import math

import pytest

from fakes import make_request
from jserve_sched.request import Request
from jserve_sched.slack import decode_slack
from jserve_sched.slo import Slo


def decoding(num_outputs: int, slo: Slo, arrival_s: float = 0.0) -> Request:
    request = make_request(8, 64, arrival_s=arrival_s, slo=slo)
    request.output_tokens.extend([1] * num_outputs)
    return request


def test_two_windows_add_up_to_the_tightest_second_deadline() -> None:
    decodes = [
        decoding(3, Slo(ttft_s=1.0, tbt_s=0.04), arrival_s=5.0),
        decoding(9, Slo(ttft_s=0.8, tbt_s=0.08), arrival_s=4.9),
    ]
    slack = decode_slack(decodes, start_s=6.0)
    assert slack.next_s == pytest.approx([0.12, 0.42])
    assert slack.after_s == pytest.approx([0.16, 0.50])
    current_s, next_s = slack.tightest(0.0)
    assert current_s == pytest.approx(0.12)
    assert current_s + next_s == pytest.approx(0.16)


def test_an_answer_longer_than_predicted_is_due_at_the_end() -> None:
    request = decoding(0, Slo(ttlt_s=10.0))
    request.predict(5)  # paced at 5, 6.25, 7.5, 8.75 and 10 s
    request.output_tokens = [1] * 4
    assert decode_slack([request], 7.0).next_s == pytest.approx([3.0])
    request.output_tokens = [1] * 40
    slack = decode_slack([request], 7.0)
    assert slack.next_s == pytest.approx([3.0])  # neither at once nor at leisure
    assert slack.after_s == pytest.approx([4.25])  # a pace on, as for a last token


def test_tokens_in_flight_count_as_produced() -> None:
    request = decoding(3, Slo(ttft_s=1.0, tbt_s=0.04))
    request.num_pending = 1
    assert decode_slack([request], 1.0).next_s == pytest.approx([0.16])


def test_a_decode_that_cannot_be_in_time_holds_nobody_back() -> None:
    decodes = [
        decoding(1, Slo(ttft_s=1.0, tbt_s=0.04)),
        decoding(9, Slo(ttft_s=1.0, tbt_s=0.1)),
    ]
    slack = decode_slack(decodes, start_s=1.03)  # 10 ms and 870 ms left
    assert slack.tightest(0.005)[0] == pytest.approx(0.01)
    assert slack.tightest(0.02)[0] == pytest.approx(0.87)
    assert slack.tightest(2.0) == (math.inf, math.inf)


def test_after_a_first_token_the_pace_of_the_completion_bound_counts() -> None:
    request = make_request(1, 10, slo=Slo(ttft_s=2.0, ttlt_s=10.0))
    slack = decode_slack([request], start_s=0.0)
    assert slack.next_s == pytest.approx([2.0])
    assert slack.after_s == pytest.approx([5.0 + 5.0 / 9])


def test_no_promise_and_no_decode_mean_no_limit() -> None:
    assert decode_slack([], 0.0).tightest(0.0) == (math.inf, math.inf)
    free = decode_slack([decoding(2, Slo(ttft_s=1.0))], 0.0)
    assert free.tightest(0.0) == (math.inf, math.inf)
