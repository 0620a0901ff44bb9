import json
import math

import pytest

from jserve_sched.slo import NO_LAST, ServiceClass, Slo, parse_service_classes


def test_token_deadlines_are_anchored_at_arrival() -> None:
    slo = Slo(ttft_s=1.0, tbt_s=0.1)
    assert slo.token_deadline_s(5.0, 0) == pytest.approx(6.0)
    assert slo.token_deadline_s(5.0, 3) == pytest.approx(6.3)


def test_ttlt_bounds_every_token() -> None:
    slo = Slo(ttft_s=1.0, tbt_s=1.0, ttlt_s=2.5)
    assert slo.token_deadline_s(0.0, 9) == 2.5
    assert Slo(ttlt_s=3.0).token_deadline_s(1.0, 0) == 4.0
    assert Slo().token_deadline_s(1.0, 0) == math.inf
    assert Slo(ttft_s=1.0).token_deadline_s(0.0, 1) == math.inf


@pytest.mark.parametrize(
    ("slo", "times_s", "is_met"),
    [
        (Slo(ttft_s=1.0, tbt_s=0.1), [1.0, 1.1], True),
        (Slo(ttft_s=1.0, tbt_s=0.1), [1.01, 1.05], False),
        (Slo(ttft_s=1.0, tbt_s=0.1), [0.2, 1.05, 1.15], True),  # slack was banked
        (Slo(ttft_s=1.0, tbt_s=0.1), [0.2, 1.05, 1.25], False),
        (Slo(ttlt_s=2.0), [0.1, 1.9], True),
        (Slo(ttlt_s=2.0), [0.1, 2.1], False),
        (Slo(), [99.0], True),
    ],
)
def test_is_met(slo: Slo, times_s: list[float], is_met: bool) -> None:
    assert slo.is_met(0.0, times_s, is_complete=True) is is_met


def test_incomplete_requests_violate_what_they_were_promised() -> None:
    assert not Slo(ttft_s=9.0).is_met(0.0, [0.1], is_complete=False)
    assert not Slo(ttft_s=9.0).is_met(0.0, [], is_complete=True)
    assert Slo().is_met(0.0, [], is_complete=False)


def test_the_mean_tpot_rule_is_laxer() -> None:
    slo = Slo(ttft_s=1.0, tbt_s=0.1)
    times_s = [1.0, 1.19, 1.2]  # the second token is late, the mean is not
    assert not slo.is_met(0.0, times_s, is_complete=True)
    assert slo.is_met_mean_tpot(0.0, times_s, is_complete=True)
    assert not slo.is_met_mean_tpot(0.0, [1.1, 1.2], is_complete=True)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_bounds_are_positive_and_finite(value: float) -> None:
    with pytest.raises(ValueError, match="ttft_s"):
        Slo(ttft_s=value)
    with pytest.raises(ValueError, match="ttft_s"):
        ServiceClass(name="a", ttft_s=value)


def test_tbt_needs_ttft() -> None:
    with pytest.raises(ValueError, match="needs ttft_s"):
        Slo(tbt_s=0.1)
    with pytest.raises(ValueError, match="needs a ttft bound"):
        ServiceClass(name="a", tbt_step_multiple=2)


def test_relative_classes_resolve_against_measurements() -> None:
    chat = ServiceClass(name="chat", ttft_slowdown=4, tbt_step_multiple=3)
    assert chat.is_relative
    assert chat.resolve(isolated_ttft_s=0.5, step_s=0.01) == Slo(ttft_s=2.0, tbt_s=0.03)
    with pytest.raises(ValueError, match="needs a measured TTFT"):
        chat.resolve(step_s=0.01)
    with pytest.raises(ValueError, match="needs a measured step"):
        chat.resolve(isolated_ttft_s=0.5)


def test_parse_service_classes() -> None:
    text = json.dumps([{"name": "a", "share": 0.5, "ttft_s": 1}, {"name": "b"}])
    assert [one.name for one in parse_service_classes(text)] == ["a", "b"]
    (one,) = parse_service_classes('[{"name": "a", "tbt_s": null, "guard": true}]')
    assert one == ServiceClass(name="a", guard=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "non-empty"),
        ('"a"', "non-empty"),
        ("[1]", "must be a JSON object"),
        ('[{"name": "a", "tfft_s": 1}]', "tfft_s"),
        ('[{"name": "a"}, {"name": "a"}]', "repeat"),
        ('[{"name": "a", "share": 2}]', "share=2"),
        ('[{"name": "a", "ttft_s": 1, "ttft_slowdown": 2}]', "not both"),
        ('[{"name": ""}]', "needs a name"),
        ('[{"share": 1}]', r"\{'share': 1\}: name=None is not a string"),
        ('[{"name": 7}]', "name=7 is not a string"),
        ('[{"name": "a", "share": "0.5"}]', "class 'a': share='0.5' is not a number"),
        ('[{"name": "a", "share": null}]', "class 'a': share=None is not a number"),
        ('[{"name": "a", "share": true}]', "class 'a': share=True is not a number"),
        ('[{"name": "a", "ttft_s": "1"}]', "class 'a': ttft_s='1' is not a number"),
        ('[{"name": "a", "ttlt_s": [1]}]', r"class 'a': ttlt_s=\[1\] is not a number"),
        ('[{"name": "a", "guard": 1}]', "class 'a': guard=1 is not true or false"),
        (
            f'[{{"name": "a", "ttft_s": 1{"0" * 400}}}]',
            "class 'a': ttft_s is too large",
        ),
    ],
)
def test_bad_service_classes_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_service_classes(text)


def dues(slo: Slo, num_tokens: int) -> list[float]:
    pacing = slo.pacing(100.0, num_tokens)
    return [pacing.deadline_s(k) for k in range(num_tokens)]


def test_a_completion_bound_is_paced_over_the_tokens() -> None:
    assert dues(Slo(ttlt_s=8.0), 5) == [104.0, 105.0, 106.0, 107.0, 108.0]
    assert dues(Slo(ttlt_s=8.0), 1) == [104.0]
    assert dues(Slo(ttft_s=1.0, ttlt_s=8.0), 3) == [101.0, 106.0, 108.0]


def test_the_tighter_of_two_paces_counts() -> None:
    assert dues(Slo(ttft_s=1.0, tbt_s=0.5, ttlt_s=8.0), 3) == [101.0, 101.5, 102.0]
    assert dues(Slo(ttft_s=1.0, tbt_s=5.0, ttlt_s=8.0), 3) == [101.0, 104.5, 108.0]


def test_a_paced_token_breaks_no_promise_before_the_end() -> None:
    pacing = Slo(ttlt_s=8.0).pacing(100.0, 5)
    assert [pacing.promise_s(k) for k in range(5)] == [108.0] * 5
    both = Slo(ttft_s=1.0, ttlt_s=8.0).pacing(100.0, 3)
    assert [both.promise_s(k) for k in range(3)] == [101.0, 108.0, 108.0]
    token = Slo(ttft_s=1.0, tbt_s=0.5).pacing(100.0, 3)
    assert [token.promise_s(k) for k in range(3)] == [101.0, 101.5, 102.0]


@pytest.mark.parametrize(
    "slo",
    [
        Slo(ttlt_s=8.0),
        Slo(ttft_s=1.0, ttlt_s=8.0),
        Slo(ttft_s=1.0, tbt_s=0.5, ttlt_s=8.0),
        Slo(ttft_s=1.0, tbt_s=5.0, ttlt_s=8.0),
        Slo(ttft_s=9.0, tbt_s=5.0, ttlt_s=8.0),
    ],
)
@pytest.mark.parametrize("num_tokens", [1, 2, 5, 1000])
def test_tokens_beyond_the_expected_are_due_by_the_end(
    slo: Slo, num_tokens: int
) -> None:
    pacing = slo.pacing(100.0, num_tokens)
    due_s = [pacing.deadline_s(k) for k in range(2000)]
    assert due_s == sorted(due_s)
    assert due_s[-1] <= 108.0 + 1e-9
    assert due_s[-1] + pacing.gap_s >= 108.0 - 1e-9  # and hardly before it
    expected = [pacing._replace(last=NO_LAST).deadline_s(k) for k in range(num_tokens)]
    assert due_s[:num_tokens] == expected  # those expected are paced as ever


def test_a_bound_on_gaps_alone_goes_on_for_ever() -> None:
    pacing = Slo(ttft_s=1.0, tbt_s=0.5).pacing(100.0, 3)
    assert pacing.deadline_s(1000) == 601.0


def test_without_a_promise_nothing_is_due() -> None:
    assert dues(Slo(), 2) == [math.inf, math.inf]
    assert dues(Slo(ttft_s=1.0), 2) == [101.0, math.inf]
