import itertools

import numpy as np
import pytest

from jserve_sched.policies.sliding.constructor import select


def brute_force(slack_s, weight, is_at_risk, capacity) -> list[int]:
    """Algorithm 2 by trying every subset of every anchor's pool."""
    best_score: tuple[float, ...] = ()
    best: list[int] = []
    for anchor in range(len(slack_s)):
        room = capacity[anchor] - weight[anchor]
        if not is_at_risk[anchor] or slack_s[anchor] <= 0 or room < 0:
            continue
        pool = [j for j in range(len(slack_s)) if slack_s[j] >= slack_s[anchor]]
        slack_sum = sum(slack_s[j] for j in pool)
        weight_sum = sum(weight[j] for j in pool)
        value = {j: 1 / (slack_s[j] / slack_sum + weight[j] / weight_sum) for j in pool}
        others = [j for j in pool if j != anchor]
        subsets = (
            subset
            for size in range(len(others) + 1)
            for subset in itertools.combinations(others, size)
            if sum(weight[j] for j in subset) <= room
        )
        subset = max(subsets, key=lambda one: sum(value[j] for j in one))
        chosen = sorted([anchor, *subset])
        score = (
            len(chosen),
            sum(value[j] for j in chosen),
            sum(weight[j] for j in chosen),
        )
        if score > best_score:
            best_score, best = score, chosen
    return best


@pytest.mark.parametrize("seed", range(60))
def test_it_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 9))
    slack_s = rng.uniform(-0.02, 0.2, count)
    weight = rng.integers(1, 12, count)
    capacity = np.floor(np.maximum(slack_s, 0) * rng.uniform(50, 200)).astype(int)
    is_at_risk = rng.random(count) < 0.6
    chosen = select(
        slack_s=slack_s,
        weight=weight,
        is_at_risk=is_at_risk,
        capacity=capacity,
    )
    assert chosen.tolist() == brute_force(slack_s, weight, is_at_risk, capacity)


@pytest.mark.parametrize(
    ("slack_s", "weight", "is_at_risk", "capacity", "chosen"),
    [
        # Late requests are neither anchors nor in the pool.
        ([-0.1, 0.0, 0.05], [1, 1, 1], [True, True, True], [9, 9, 9], [2]),
        # No anchor fits.
        ([0.01, 0.5], [8, 1], [True, False], [4, 90], []),
        # Requests without an SLO may fill up.
        ([0.05, np.inf, np.inf], [2, 3, 50], [True, False, False], [6, 0, 0], [0, 1]),
    ],
)
def test_special_cases(slack_s, weight, is_at_risk, capacity, chosen) -> None:
    found = select(
        slack_s=np.array(slack_s),
        weight=np.array(weight),
        is_at_risk=np.array(is_at_risk),
        capacity=np.array(capacity),
    )
    assert found.tolist() == chosen
