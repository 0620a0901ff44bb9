"""After every proposal the chain's books equal those of the whole plan."""

import collections
import math

import numpy as np
import pytest

from annealing_instances import NO_LIMIT, draw
from jserve_sched import annealing
from jserve_sched.annealing import arrival_start, check_plan, evaluate
from jserve_sched.annealing_kernel import (
    BEST_MET,
    BEST_TOTAL_NS,
    DELAY,
    MET,
    NUM_ACCEPTED,
    NUM_MOVES,
    PYTHON_KERNEL,
    SQUEEZE,
    SWAP,
    TOTAL_NS,
    Draws,
    State,
    Tables,
    anneal,
)
from jserve_sched.annealing_problem import AnnealingProblem, BatchPlan, Score


def chain(problem: AnnealingProblem) -> tuple[Tables, State]:
    laid = annealing._lay(problem, arrival_start(problem))
    tables = Tables(
        max_batch=problem.max_batch,
        max_kv_tokens=problem.max_kv_tokens,
        num_behind=0,
        exec_ns=problem.exec_ns[laid.order].ravel().tolist(),
        latest_ns=problem.latest_ns[laid.order].ravel().tolist(),
        kv_tokens=problem.kv_tokens[laid.order].tolist(),
    )
    return tables, annealing._chain(problem, laid, len(laid.sizes), PYTHON_KERNEL)


def batches(tables: Tables, state: State) -> list[list[int]]:
    """The plan that the chain stands at, checked link by link."""
    found = []
    (batch,) = (
        k for k, size in enumerate(state.sizes) if size and state.before[k] == -1
    )
    previous = -1
    while batch != -1:
        assert state.before[batch] == previous
        first = batch * tables.max_batch
        members = state.members[first : first + state.sizes[batch]]
        assert all(state.batch_of[job] == batch for job in members)
        assert state.kv[batch] == sum(tables.kv_tokens[job] for job in members)
        found.append(members)
        previous, batch = batch, state.after[batch]
    assert sum(1 for size in state.sizes if size) == len(found)
    return found


def score(problem: AnnealingProblem, order: list[int], parts: list[list[int]]) -> Score:
    jobs = tuple(order[job] for part in parts for job in part)
    plan = BatchPlan(jobs, tuple(len(part) for part in parts))
    check_plan(problem, plan)
    return evaluate(problem, plan)


@pytest.mark.parametrize("max_kv_tokens", [NO_LIMIT, 900])
@pytest.mark.parametrize("max_batch", [1, 2, 3, 4, 5, 6])
def test_books_equal_a_full_evaluation_after_every_proposal(
    max_batch: int, max_kv_tokens: int
) -> None:
    rng = np.random.default_rng(max_batch)
    seen: collections.Counter[tuple[int, bool]] = collections.Counter()
    for num_jobs in (2, 5, 13, 24):
        instance = draw(
            rng,
            num_jobs,
            max_batch,
            max_kv_tokens=max_kv_tokens,
            start_ms=500,
            max_waited_ms=3000,
            ttft_s=4.0,
        )
        problem = instance.problem()
        order = list(arrival_start(problem).order)
        tables, state = chain(problem)
        best = evaluate(problem, arrival_start(problem))
        num = 150
        # Of the worse moves two in five are kept, so that plans of all kinds come up.
        draws = Draws(
            moves=rng.integers(NUM_MOVES, size=num).tolist(),
            jobs=rng.integers(num_jobs, size=num).tolist(),
            others=rng.integers(num_jobs, size=num).tolist(),
            bars=rng.choice([0.0, -math.inf], p=[0.6, 0.4], size=num).tolist(),
        )
        for step in range(num):
            before = batches(tables, state)
            num_accepted = state.sums[NUM_ACCEPTED]
            anneal(tables, draws, state, step, step + 1)
            now = batches(tables, state)
            found = score(problem, order, now)
            assert (state.sums[MET], state.sums[TOTAL_NS]) == (
                found.num_met,
                found.total_ns,
            )
            is_accepted = state.sums[NUM_ACCEPTED] > num_accepted
            assert is_accepted or list(map(set, now)) == list(map(set, before))
            seen[draws.moves[step], is_accepted] += 1
            best = max(best, found, key=lambda one: one.merit)
            assert (state.sums[BEST_MET], state.sums[BEST_TOTAL_NS]) == (
                best.num_met,
                best.total_ns,
            )
            starts = dict.fromkeys(sorted(state.best_starts))
            kept = [
                [job for job, at in enumerate(state.best_starts) if at == start]
                for start in starts
            ]
            assert score(problem, order, kept) == best
    for move in (SQUEEZE, DELAY, SWAP):
        assert seen[move, True] > 20
        assert seen[move, False] > 20


def moved(
    move: int, job: int, other: int, *, max_kv_tokens: int = 100
) -> list[list[int]]:
    """Jobs 0 to 4 of one KV token each, in batches [0, 1], [2, 3], [4]; one move."""
    problem = AnnealingProblem(
        exec_ns=np.full((5, 2), 1000),
        latest_ns=np.full((5, 2), 10**6),
        waited_ns=np.zeros(5, np.int64),
        kv_tokens=np.ones(5, np.int64),
        max_kv_tokens=2,
    )
    tables, state = chain(problem)
    tables = tables._replace(max_kv_tokens=max_kv_tokens)
    draws = Draws(moves=[move], jobs=[job], others=[other], bars=[-math.inf])
    anneal(tables, draws, state, 0, 1)
    return [sorted(part) for part in batches(tables, state)]


def test_squeeze_joins_the_batch_before_or_takes_a_place_in_it() -> None:
    assert moved(SQUEEZE, 0, 0) == [[0, 1], [2, 3], [4]]  # nothing runs before it
    assert moved(SQUEEZE, 2, 0) == [[1, 2], [0, 3], [4]]
    assert moved(SQUEEZE, 4, 1) == [[0, 1], [2, 4], [3]]


def test_delay_joins_the_batch_behind_or_opens_one() -> None:
    assert moved(DELAY, 3, 0) == [[0, 1], [2], [3, 4]]
    assert moved(DELAY, 1, 0) == [[0], [1], [2, 3], [4]]
    assert moved(DELAY, 3, 0, max_kv_tokens=1) == [[0, 1], [2], [3], [4]]
    assert moved(DELAY, 4, 0) == [[0, 1], [2, 3], [4]]  # alone and last


def test_swap_leaves_the_sizes() -> None:
    assert moved(SWAP, 0, 4) == [[1, 4], [2, 3], [0]]
    assert moved(SWAP, 4, 0) == [[1, 4], [2, 3], [0]]
    assert moved(SWAP, 2, 3) == [[0, 1], [2, 3], [4]]


def test_a_single_job_that_is_delayed_changes_places_with_one_of_the_next() -> None:
    problem = AnnealingProblem(
        exec_ns=np.array([[2000], [1000]]),
        latest_ns=np.full((2, 1), 10**6),
        waited_ns=np.zeros(2, np.int64),
        kv_tokens=np.ones(2, np.int64),
        max_kv_tokens=2,
    )
    tables, state = chain(problem)
    draws = Draws(moves=[DELAY], jobs=[0], others=[0], bars=[0.0])
    anneal(tables, draws, state, 0, 1)
    assert batches(tables, state) == [[1], [0]]
    assert state.sums[TOTAL_NS] == 1000 + 3000
