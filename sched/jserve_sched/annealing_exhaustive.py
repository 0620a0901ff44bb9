"""The best plan there is, for a handful of jobs: what a search is judged by.

The one idea: what stands behind a set of jobs only asks how late that set ends. So of
all plans of one set (any order, any batches) those suffice that no other beats in all
three of end, jobs met and sum of latencies. Sets are built up batch by batch, which
covers every order and every batching without listing them; a plan kept out can be no
part of a best one, since an earlier start loses no promise and adds no latency.

The paper's straw man lists all orders and batchings (arXiv 2504.14966, as reviewed);
this comes to the same plan, and how is ours.
"""

import itertools
from typing import NamedTuple

from jserve_sched.annealing_problem import AnnealingProblem, BatchPlan, Score

MAX_JOBS = 10  # above it the sets are too many


class _Partial(NamedTuple):
    """A plan of some of the jobs."""

    end_ns: int
    num_met: int
    total_ns: int
    batches: tuple[tuple[int, ...], ...]


def best_plan(problem: AnnealingProblem) -> tuple[BatchPlan, Score]:
    """Returns a plan with the highest G; of plans with G = 0 the shortest.

    Raises:
      ValueError: with more than `MAX_JOBS` jobs.
    """
    num_jobs = problem.num_jobs
    if num_jobs > MAX_JOBS:
        raise ValueError(f"{num_jobs} jobs are above {MAX_JOBS} for an exact search")
    batches = _batches(problem)
    kept: list[list[_Partial]] = [[] for _ in range(1 << num_jobs)]
    kept[0] = [_Partial(problem.start_ns, 0, 0, ())]
    for done in range(1, 1 << num_jobs):
        # The last batch of the set may be any of its subsets.
        found = [
            _followed(partial, *batches[last])
            for last in _subsets(done)
            if last in batches
            for partial in kept[done ^ last]
        ]
        kept[done] = _undominated(found)
    best = max(kept[-1], key=lambda one: (one.num_met / one.total_ns, -one.total_ns))
    plan = BatchPlan(
        tuple(itertools.chain.from_iterable(best.batches)),
        tuple(len(batch) for batch in best.batches),
    )
    return plan, Score(num_met=best.num_met, total_ns=best.total_ns)


class _Batch(NamedTuple):
    """Jobs that run together."""

    jobs: tuple[int, ...]
    duration_ns: int
    latencies_ns: int  # of all of them, were they to start now
    latest_ns: tuple[int, ...]


def _batches(problem: AnnealingProblem) -> dict[int, _Batch]:
    """Returns every batch that may run, by the set of its jobs as bits."""
    found = {}
    for size in range(1, min(problem.max_batch, problem.num_jobs) + 1):
        exec_ns = problem.exec_ns[:, size - 1].tolist()
        latest_ns = problem.latest_ns[:, size - 1].tolist()
        kv_tokens = problem.kv_tokens.tolist()
        waited_ns = problem.waited_ns.tolist()
        for jobs in itertools.combinations(range(problem.num_jobs), size):
            if size > 1 and sum(kv_tokens[job] for job in jobs) > problem.max_kv_tokens:
                continue
            found[sum(1 << job for job in jobs)] = _Batch(
                jobs,
                max(exec_ns[job] for job in jobs),
                sum(exec_ns[job] + waited_ns[job] for job in jobs),
                tuple(latest_ns[job] for job in jobs),
            )
    return found


def _subsets(whole: int) -> list[int]:
    """Returns the non-empty sets within a set, as bits."""
    found = []
    part = whole
    while part:
        found.append(part)
        part = (part - 1) & whole
    return found


def _followed(
    partial: _Partial,
    jobs: tuple[int, ...],
    duration_ns: int,
    latencies_ns: int,
    latest_ns: tuple[int, ...],
) -> _Partial:
    """Returns a plan with one more batch at its end."""
    start_ns = partial.end_ns
    return _Partial(
        start_ns + duration_ns,
        partial.num_met + sum(latest >= start_ns for latest in latest_ns),
        partial.total_ns + latencies_ns + len(jobs) * start_ns,
        (*partial.batches, jobs),
    )


def _undominated(plans: list[_Partial]) -> list[_Partial]:
    """Returns plans of one set that no other one matches in all three respects."""
    kept: list[_Partial] = []
    for plan in sorted(plans, key=lambda one: (one.end_ns, -one.num_met, one.total_ns)):
        if not any(
            other.num_met >= plan.num_met and other.total_ns <= plan.total_ns
            for other in kept
        ):
            kept.append(plan)
    return kept
