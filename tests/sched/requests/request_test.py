import pytest

from jserve_sched.requests.slo import Slo
from tests.fakes import make_request


@pytest.mark.parametrize(
    ("tokens", "predicted"),
    [(-5, 6), (1, 6), (6, 6), (7, 7), (40, 40), (10**9, 40)],
)
def test_a_prediction_is_possible(tokens: int, predicted: int) -> None:
    request = make_request(8, 40, min_tokens=5)  # a stop token may be the sixth
    request.predict(tokens)
    assert request.predicted_output_tokens == predicted


def test_who_has_outlived_the_prediction_ends_with_the_next_token() -> None:
    request = make_request(8, 40)
    request.predict(10)
    lefts = []
    for num_outputs in (0, 9, 10, 30):
        request.output_tokens = [1] * num_outputs
        lefts.append(request.expected_tokens_left)
    assert lefts == [10, 1, 1, 1]
    request.output_tokens = [1] * 3
    request.num_pending_tokens = 2
    assert request.expected_tokens_left == 5


def test_a_completion_bound_is_paced_over_the_predicted_length() -> None:
    request = make_request(8, 401, slo=Slo(ttlt_s=8.0))
    first_s = request.pace_s
    request.predict(5)
    assert request.pacing.first_s == first_s == request.pace_s == 4.0
    due_s = []
    for num_outputs in range(1, 7):
        request.output_tokens = [1] * num_outputs
        due_s.append(request.pace_s)
        assert request.deadline_s == 8.0
    assert due_s == [5.0, 6.0, 7.0, 8.0, 8.0, 8.0]
    request.predict(401)
    assert request.pace_s == pytest.approx(4.0 + 4.0 * 6 / 400)
