import math

import pytest

from jserve_sched.requests.slo import Slo


def test_incomplete_requests_violate_their_objectives() -> None:
    assert not Slo(ttft_s=9.0).is_attained(0.0, [0.1], is_complete=False)
    assert not Slo(ttft_s=9.0).is_attained(0.0, [], is_complete=True)
    assert Slo().is_attained(0.0, [], is_complete=False)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_bounds_are_positive_and_finite(value: float) -> None:
    with pytest.raises(ValueError, match="ttft_s"):
        Slo(ttft_s=value)


def test_tbt_needs_ttft() -> None:
    with pytest.raises(ValueError, match="needs ttft_s"):
        Slo(tbt_s=0.1)


@pytest.mark.parametrize(
    ("slo", "due_s"),
    [
        (Slo(ttlt_s=8.0), [104.0, 105.0, 106.0, 107.0, 108.0]),
        (Slo(ttlt_s=8.0), [104.0]),
        (Slo(ttft_s=1.0, ttlt_s=8.0), [101.0, 106.0, 108.0]),
        (Slo(ttft_s=1.0, tbt_s=0.5, ttlt_s=8.0), [101.0, 101.5, 102.0]),
        (Slo(ttft_s=1.0, tbt_s=5.0, ttlt_s=8.0), [101.0, 104.5, 108.0]),
        (Slo(), [math.inf, math.inf]),
        (Slo(ttft_s=1.0), [101.0, math.inf]),
    ],
)
def test_tokens_are_paced_by_the_tighter_bound(slo: Slo, due_s: list[float]) -> None:
    pacing = slo.pacing(100.0, len(due_s))
    assert [pacing.pace_s(k) for k in range(len(due_s))] == due_s


@pytest.mark.parametrize(
    ("slo", "deadlines_s"),
    [
        (Slo(ttlt_s=8.0), [108.0, 108.0, 108.0]),
        (Slo(ttft_s=1.0), [101.0, math.inf, math.inf]),
        (Slo(ttft_s=1.0, ttlt_s=8.0), [101.0, 108.0, 108.0]),
        (Slo(ttft_s=6.0, ttlt_s=8.0), [106.0, 108.0, 108.0]),  # wanted after 4 s
        (Slo(ttft_s=9.0, ttlt_s=8.0), [108.0, 108.0, 108.0]),
        (Slo(), [math.inf, math.inf, math.inf]),
        (Slo(ttft_s=1.0, tbt_s=0.5), [101.0, 101.5, 102.0]),
        (Slo(ttft_s=1.0, tbt_s=5.0, ttlt_s=8.0), [101.0, 106.0, 108.0]),
    ],
)
def test_a_token_violates_nothing_before_its_deadline(
    slo: Slo, deadlines_s: list[float]
) -> None:
    assert [slo.deadline_s(100.0, k) for k in range(3)] == deadlines_s
    pacing = slo.pacing(100.0, 3)
    assert all(pacing.pace_s(k) <= deadlines_s[k] for k in range(3))
    assert slo.is_attained(100.0, deadlines_s, is_complete=True)
    for k, due_s in enumerate(deadlines_s):
        if due_s < math.inf:
            late_s = [min(one, due_s) for one in deadlines_s[:k]]
            late_s += [max(one, due_s + 1e-6) for one in deadlines_s[k:]]
            assert not slo.is_attained(100.0, late_s, is_complete=True)


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
    due_s = [pacing.pace_s(k) for k in range(2000)]
    assert due_s == sorted(due_s)
    assert due_s[-1] <= 108.0 + 1e-9
    assert due_s[-1] + pacing.gap_s >= 108.0 - 1e-9  # and hardly before it
    expected = [pacing._replace(last=math.inf).pace_s(k) for k in range(num_tokens)]
    assert due_s[:num_tokens] == expected  # those expected are paced as ever
