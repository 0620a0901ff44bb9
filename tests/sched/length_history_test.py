import numpy as np
import pytest

from fakes import make_request
from jserve_sched.length_history import MAX_GROUPS, LengthGroups, LengthHistory, Summary
from jserve_sched.request import FinishReason, Request


def history(*answers: tuple[int, bool], memory: int = 10**4) -> LengthHistory:
    made = LengthHistory(memory)
    for tokens, is_cut in answers:
        made.add(tokens, is_cut=is_cut)
    return made


def ended(
    num_tokens: int,
    *,
    reason: FinishReason = FinishReason.STOP,
    service_class: str = "chat",
    num_prompt_tokens: int = 8,
    stop_token_ids: frozenset[int] = frozenset((1,)),
) -> Request:
    request = make_request(
        max_tokens=max(num_tokens, 100),
        prompt=[0] * num_prompt_tokens,
        service_class=service_class,
        stop_token_ids=stop_token_ids,
    )
    request.output_tokens = [0] * num_tokens
    request.finish_reason = reason
    return request


def mean(tokens: np.ndarray, shares: np.ndarray) -> Summary:
    return Summary(float(tokens @ shares), 0.0)


def groups(*, least: int = 2, memory: int = 64) -> LengthGroups:
    return LengthGroups(mean, least=least, memory=memory)


def known(made: LengthGroups, **fields: object) -> float | None:
    found = made.find(ended(1, **fields))  # type: ignore[arg-type]
    return None if found is None else round(found.centre, 6)


def test_an_answer_weighs_less_with_every_later_one() -> None:
    tokens, shares = history((30, False), (10, False), (20, False)).distribution()
    assert tokens.tolist() == [10, 20, 30]
    fade = 0.5 ** (4 / 10**4)
    weights = np.array([fade, 1.0, fade**2])
    assert shares == pytest.approx(weights / np.sum(weights))


def test_a_history_forgets() -> None:
    made = history(*[(1000, False)] * 50, *[(10, False)] * 7, memory=8)
    tokens, shares = made.distribution()
    assert tokens.tolist() == [10] * 7 + [1000]
    assert shares[-1] < 0.04  # the oldest of eight has seen four half-lives less one


def test_a_cut_answer_counts_as_one_of_the_longer() -> None:
    # Kaplan and Meier's estimator by hand: 1/4 end at 10; of the three that go on one
    # is cut at 20, so what is left is shared by 30 and 40.
    made = history((10, False), (20, True), (30, False), (40, False))
    tokens, shares = made.distribution()
    assert dict(zip(tokens.tolist(), shares.tolist(), strict=True)) == pytest.approx(
        {10: 0.25, 20: 0.0, 30: 0.375, 40: 0.375}, abs=1e-3
    )


def test_of_equal_lengths_the_cut_one_was_longer() -> None:
    tokens, shares = history((20, True), (20, False), (50, False)).distribution()
    assert tokens.tolist() == [20, 20, 50]
    assert shares == pytest.approx([1 / 3, 0.0, 2 / 3], abs=1e-3)


def test_the_longest_keeps_what_is_left_though_it_was_cut() -> None:
    tokens, shares = history((10, True), (60, True), (30, True)).distribution()
    assert (tokens.tolist(), shares.tolist()) == ([10, 30, 60], [0.0, 0.0, 1.0])


def test_cut_answers_do_not_shorten_the_estimate() -> None:
    rng = np.random.default_rng(0)
    true = rng.exponential(100.0, 4000).astype(int) + 1
    limit = rng.choice([50, 100, 400], 4000)
    made = LengthHistory(4000)
    for tokens, most in zip(true.tolist(), limit.tolist(), strict=True):
        made.add(min(tokens, most), is_cut=tokens > most)
    tokens, shares = made.distribution()
    assert float(tokens @ shares) == pytest.approx(np.mean(true), rel=0.06)
    assert float(np.mean(np.minimum(true, limit))) < 0.75 * float(np.mean(true))


def test_the_closest_kind_with_enough_answers_is_believed() -> None:
    made = groups()
    assert known(made) is None
    made.learn(ended(10))
    assert known(made) is None, "one answer is not enough"
    made.learn(ended(20, service_class="code"))
    everything = known(made)
    assert everything is not None and 15 < everything < 15.3  # the later weighs more
    assert known(made, service_class="code") == everything
    made.learn(ended(40, num_prompt_tokens=64))
    by_class = known(made)
    assert by_class is not None and 25 < by_class < 26
    made.learn(ended(42, num_prompt_tokens=127))
    assert 41 <= (known(made, num_prompt_tokens=100) or 0) < 41.1
    assert known(made) == by_class  # another band; its class is summed up anew later


def test_news_is_rare() -> None:
    made = groups(memory=256)
    rng = np.random.default_rng(0)
    news = [made.learn(ended(int(rng.integers(80, 120)))) for _ in range(400)]
    assert sum(news) == 1 and news[1]
    news = [made.learn(ended(int(rng.integers(800, 1200)))) for _ in range(400)]
    assert 2 <= sum(news) <= 12
    assert known(made) == pytest.approx(1000, rel=0.1)


@pytest.mark.parametrize(
    "request_",
    [
        ended(50, reason=FinishReason.CANCELLED),
        ended(50, reason=FinishReason.LENGTH, stop_token_ids=frozenset()),
    ],
    ids=["cancelled", "as long as asked for"],
)
def test_other_ends_teach_nothing(request_: Request) -> None:
    made = groups(least=1)
    assert not made.learn(request_)
    assert len(made) == 0


def test_memory_is_bounded_whatever_clients_call_their_classes() -> None:
    made = groups(least=1, memory=4)
    for index in range(MAX_GROUPS):
        made.learn(ended(10, service_class=f"class {index}"))
        made.learn(ended(70, service_class="busy"))
        assert len(made) <= MAX_GROUPS
    assert len(made) == MAX_GROUPS
    assert known(made, service_class="busy") == 70, "what is used is not forgotten"
    assert 10 <= (known(made, service_class="class 0") or 0) < 70, "by all classes now"


@pytest.mark.parametrize(
    ("least", "memory", "message"),
    [
        (0, 8, "least=0 is not in 1..memory=8"),
        (9, 8, "least=9 is not in 1..memory=8"),
        (1, 0, "memory=0 is not in 1..65536"),
        (1, 65537, "memory=65537 is not in 1..65536"),
    ],
)
def test_bad_limits_are_named(least: int, memory: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        groups(least=least, memory=memory)
