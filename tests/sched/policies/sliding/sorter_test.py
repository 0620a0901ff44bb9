import itertools

import numpy as np
import pytest

from jserve_sched.buckets.strategies import Continuous
from jserve_sched.planning.step_prices import StepPrices
from jserve_sched.policies.sliding.sorter import rank, surplus
from jserve_sched.requests.facts import facts_of
from jserve_sched.requests.slo import Slo
from tests.fakes import make_request
from tests.step_costs import Curve, make_view

TABLE = Continuous().table(max_num_seqs=8, max_num_batched_tokens=1032, block_tokens=1)
NOW_S = 10.0


def ranking_of(requests, tokens_per_s: float | None = 1000.0, **options):
    """How requests are ranked, and their names in that order."""
    view = make_view(
        TABLE,
        Curve(lambda tokens: tokens / 1000),
        now_s=NOW_S,
        prefill_tokens_per_s=tokens_per_s,
    )
    prompts = facts_of(requests)
    ranking = rank(view, StepPrices(view, []), prompts, **options)
    return ranking, [requests[index].request_id for index in ranking.order]


def ranked(*args, **options) -> list[str]:
    return ranking_of(*args, **options)[1]


def one(name: str, tokens: int, slack_s: float, guard: bool = False):
    slo = Slo(ttft_s=NOW_S + slack_s)
    return make_request(tokens, 4, request_id=name, slo=slo, guard=guard)


def six():
    return [
        one("late", 20, -1.0),
        one("normal-long", 500, 60.0),
        one("urgent-long", 600, 0.9),
        one("urgent-short", 300, 0.5),
        one("normal-short", 50, 60.0),
        one("guarded", 700, 60.0, guard=True),
    ]


def test_levels_then_the_least_work_left() -> None:
    assert ranked(six(), sorter="mlps") == [
        "guarded",
        "urgent-short",
        "urgent-long",
        "normal-short",
        "normal-long",
        "late",
    ]


@pytest.mark.parametrize(("alpha", "first"), [(0.5, "tight"), (0.9, "calm")])
def test_urgency_is_the_share_of_slack_that_the_work_takes(alpha, first) -> None:
    requests = [one("calm", 100, 9), one("tight", 700, 1)]
    assert ranked(requests, sorter="mlps", alpha=alpha)[0] == first


def test_by_deadline_if_everybody_can_be_in_time() -> None:
    requests = [one("c", 400, 1.3), one("a", 400, 0.5), one("b", 400, 0.9)]
    assert ranked(requests) == ranked(requests, sorter="off") == ["a", "b", "c"]


def test_moore_counts_the_work_of_the_guarded_for_the_others() -> None:
    others = [one(name, 50, 0.16) for name in ("a", "b", "c")]
    ranking, names = ranking_of([one("guarded", 100, 9.0, guard=True), *others], None)
    assert ranking.late.sum() == 2, "only one of three can be in time"
    assert names[0] == "guarded"


def test_a_pace_that_has_passed_does_not_violate_the_slo() -> None:
    # Half of its time is gone, so its first token is overdue; but it is not late.
    old = make_request(
        40, 10, request_id="old", arrival_s=NOW_S - 31, slo=Slo(ttlt_s=60.0)
    )
    requests = [*(one(f"o{i}", 40, 200) for i in range(3)), old]
    assert ranked(requests)[0] == ranked(requests, sorter="mlps")[0] == "old"


@pytest.mark.parametrize("seed", range(30))
def test_no_other_choice_saves_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 9))
    work_s = rng.uniform(0.1, 1.0, count)
    slack_s = rng.uniform(0.05, 2.5, count)
    kept = np.flatnonzero(~surplus(slack_s, work_s))

    def is_in_time(chosen) -> bool:
        order = sorted(chosen, key=lambda index: slack_s[index])
        ends_s = np.cumsum(work_s[order])
        return bool(np.all(ends_s <= slack_s[order] + 1e-12))

    assert is_in_time(list(kept))
    assert not any(
        is_in_time(list(chosen))
        for chosen in itertools.combinations(range(count), len(kept) + 1)
    )
