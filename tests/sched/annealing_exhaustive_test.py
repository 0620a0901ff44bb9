"""The exact search against every order and every batching, one by one."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from annealing_instances import NO_LIMIT, draw
from jserve_sched.annealing import check_plan, evaluate
from jserve_sched.annealing_exhaustive import MAX_JOBS, best_plan
from jserve_sched.annealing_problem import AnnealingProblem, BatchPlan


def cuts(num_jobs: int, max_batch: int) -> Iterator[tuple[int, ...]]:
    if num_jobs == 0:
        yield ()
    for size in range(1, min(num_jobs, max_batch) + 1):
        for rest in cuts(num_jobs - size, max_batch):
            yield (size, *rest)


def listed(problem: AnnealingProblem) -> tuple[float, int]:
    """The best (G, -t) of all plans."""
    found = []
    for order in itertools.permutations(range(problem.num_jobs)):
        for sizes in cuts(problem.num_jobs, problem.max_batch):
            plan = BatchPlan(order, sizes)
            try:
                check_plan(problem, plan)
            except ValueError:
                continue
            score = evaluate(problem, plan)
            found.append((score.goal, -score.total_ns))
    return max(found)


@pytest.mark.parametrize(
    ("num_jobs", "max_batch", "max_kv_tokens", "ttft_s"),
    [
        (1, 1, 0, 3.0),
        (3, 2, NO_LIMIT, 0.01),  # nobody can be met: the shortest plan wins
        (4, 1, NO_LIMIT, 3.0),
        (4, 4, NO_LIMIT, 3.0),
        (4, 2, 600, 3.0),
        (5, 2, NO_LIMIT, 3.0),
    ],
)
def test_equals_the_best_of_all_plans(
    num_jobs: int, max_batch: int, max_kv_tokens: int, ttft_s: float
) -> None:
    rng = np.random.default_rng(num_jobs)
    instance = draw(
        rng,
        num_jobs,
        max_batch,
        max_kv_tokens=max_kv_tokens,
        max_waited_ms=2000,
        ttlt_s=2 * ttft_s,
        ttft_s=ttft_s,
    )
    problem = instance.problem()
    plan, score = best_plan(problem)
    check_plan(problem, plan)
    assert evaluate(problem, plan) == score
    assert (score.goal, -score.total_ns) == listed(problem)


def test_too_many_jobs_are_refused() -> None:
    problem = draw(np.random.default_rng(0), MAX_JOBS + 1, 1).problem()
    with pytest.raises(ValueError, match="11 jobs are above 10"):
        best_plan(problem)
