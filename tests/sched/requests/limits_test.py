import pytest

from jserve_sched.requests.limits import RequestLimits, TooLongError


@pytest.mark.parametrize(
    ("limits", "size", "message"),
    [
        ((64, 100), (20, 45), r"max_tokens=45 is over 44: the context is 64 tokens"),
        ((64, 32), (20, 13), r"=13 is over 12: the KV pool is 32 tokens .* has 20$"),
        ((64, 64), (64, 1), r"the prompt has 64 tokens; the context is 64 tokens, "),
        ((64, 64), (1, 10**400), r"max_tokens=1000000.{30,40}0 is over 63: "),
    ],
)
def test_a_size_over_a_limit_is_refused_by_value_and_limit(
    limits: tuple[int, int], size: tuple[int, int], message: str
) -> None:
    with pytest.raises(TooLongError, match=message):
        RequestLimits(*limits).check(*size)


def test_what_fills_the_lower_limit_can_run() -> None:
    limits = RequestLimits(max_model_len=64, num_kv_tokens=32)
    assert limits.context_tokens == 32
    limits.check(20, 12)
    limits.check(31, 1)
