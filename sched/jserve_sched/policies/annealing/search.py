"""Simulated annealing over the order and the batches of waiting jobs.

The chain starts from the better of two plain orders, changes one job's place at a time,
and accepts worse plans less and less readily (arXiv 2504.14966, "priority mapping").
That order and batch sizes are annealed together is the paper's. Ours, since its text
could not be read: the starts, the early exit, the moves, the temperatures, and that
acceptance looks at the change of G relative to the start's, in shares of one job: 1 is
G / N. G itself is so small that temperatures in the hundreds would accept any change,
and what is hot for 10 jobs is a random walk for 200. The chain cools several times
over, so a deadline that ends it early loses little.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jserve_sched.policies.annealing.problem import (
    JOB_SHARE,
    AnnealingProblem,
    Score,
    evaluate,
    packed,
)

DEFAULT_PROPOSALS = 10_000
MOST_JOBS = 256  # of one search, as its callers see to
_NUM_COOLINGS = 4  # times that the temperature falls from first to last
_COLDEST = 0.003  # shares of one job
_HOTTEST = (0.1, 2.0)  # least and most
_PAIR_HEAT = 0.06  # the first temperature for each proposal that a pair of jobs gets
_HEATING_PROPOSALS = 12_000  # more of them start no hotter

# Three moves of one job, each as likely (ours; the paper's are not known).
SQUEEZE = 0  # into the batch before; if that is full, in exchange for a job of it
DELAY = 1  # into the batch after; if that is full, into a new one between the two
SWAP = 2  # in exchange for any other job

Numbers = Any  # a list where Python runs the kernel, an array where it is compiled
Kernel = Callable[..., tuple[float, float]]  # `anneal`, or what a compiler made of it


class Found(NamedTuple):
    """What a search found: batches of jobs, from 0 without gaps, and their worth.

    `num_proposals` moves were tried; 0 where none could have helped.
    """

    batch_of: np.ndarray
    score: Score
    num_proposals: int


def anneal(
    exec_s: Numbers,
    latest_s: Numbers,
    kv_tokens: Numbers,
    max_kv_tokens: int,
    start_s: float,
    waited_s: float,
    moves: Numbers,
    jobs: Numbers,
    others: Numbers,
    bars: Numbers,
    places: Numbers,
    best_places: Numbers,
    sizes: Numbers,
    kv: Numbers,
    waits_s: Numbers,
    merit: float,
    best_merit: float,
) -> tuple[float, float]:
    """Carries out `K` proposals; changes `places`, `best_places`, `sizes` and `kv`.

    One function without helpers, fast on lists in plain Python and on arrays where
    Numba compiles it, to the same plan bit for bit. Hence chance comes in as draws.
    Batch k stands at place 2 k + 1, so that a new batch fits between any two.

    Args:
      exec_s: `[N * B]` durations; `job * B + size - 1` is a row and column.
      latest_s: `[N * B]` longest waits.
      kv_tokens: `[N]`; batches of two or more hold at most `max_kv_tokens`.
      start_s: Time until the first batch starts, seconds.
      waited_s: Time that all jobs have waited already, summed.
      moves: `[K]` `SQUEEZE`, `DELAY` or `SWAP`.
      jobs: `[K]` the job that moves.
      others: `[K]` the job it is exchanged for, or where the search for one begins.
      bars: `[K]` the least change of merit accepted, 0 or below.
      places: `[N]` place of each job's batch in the chain's plan.
      best_places: `[N]` the same of the best plan seen.
      sizes: `[2 N + 1]` jobs at each place.
      kv: `[2 N + 1]` KV tokens at each place.
      waits_s: `[2 N + 1]` scratch.

    Returns:
      `Score.merit` of the chain's plan and of the best one, as `merit` and `best_merit`
      were before the first proposal.
    """
    num_jobs = len(places)
    max_batch = len(exec_s) // num_jobs
    last_place = 0
    for job in range(num_jobs):
        last_place = max(last_place, places[job])
    for step in range(len(moves)):
        # Propose a neighbour (the paper's priority mapping changes order p_i and batch
        # a_i together): job `x` goes from place `a` to `b`; in an exchange `y` goes
        # back from `b` to `a`.
        x, y = jobs[step], -1
        a, b = places[x], 0
        if moves[step] == SWAP:
            y = others[step]
            b = places[y]
            if a == b:
                continue
        else:
            b = a - 2 if moves[step] == SQUEEZE else a + 2
            is_end = b < 0 or b > last_place
            if is_end and (moves[step] == SQUEEZE or sizes[a] == 1):
                continue
            if is_end or sizes[b] == max_batch or kv[b] + kv_tokens[x] > max_kv_tokens:
                if moves[step] == DELAY and sizes[a] > 1:
                    b = a + 1
                else:
                    y = others[step]
                    while places[y] != b:
                        y = y + 1 if y + 1 < num_jobs else 0

        size_moved, kv_moved = 1, kv_tokens[x]
        if y >= 0:
            size_moved, kv_moved = 0, kv_moved - kv_tokens[y]
        if (sizes[a] - size_moved > 1 and kv[a] - kv_moved > max_kv_tokens) or (
            sizes[b] + size_moved > 1 and kv[b] + kv_moved > max_kv_tokens
        ):
            continue

        # Change the plan.
        places[x] = b
        if y >= 0:
            places[y] = a
        sizes[a] -= size_moved
        sizes[b] += size_moved
        kv[a] -= kv_moved
        kv[b] += kv_moved

        # Execute (t_e2e = t_exec + t_wait): a batch lasts as long as its longest job,
        # and the next one waits for it.
        for place in range(1, last_place + 2):
            waits_s[place] = 0.0
        sum_s = waited_s
        for job in range(num_jobs):
            place = places[job]
            own_s = exec_s[job * max_batch + sizes[place] - 1]
            sum_s += own_s
            waits_s[place] = max(waits_s[place], own_s)
        wait_s = start_s
        for place in range(1, last_place + 2):
            if sizes[place]:
                duration_s = waits_s[place]
                waits_s[place] = wait_s
                sum_s += sizes[place] * wait_s
                wait_s += duration_s
        # Judge: x_i is whether job i attains its SLO, n their sum, G = n / t.
        num_attained = 0
        for job in range(num_jobs):
            place = places[job]
            if waits_s[place] <= latest_s[job * max_batch + sizes[place] - 1]:
                num_attained += 1
        new_merit = (num_attained + JOB_SHARE) / sum_s

        # Accept by Metropolis (simulated annealing), or change back.
        if new_merit - merit >= bars[step]:
            merit = new_merit
            if sizes[a] == 0 or b == a + 1:
                # A batch was emptied or opened: number the places through.
                fresh = 1
                for place in range(1, last_place + 2):
                    if sizes[place]:
                        waits_s[place] = fresh
                        fresh += 2
                for place in range(1, last_place + 2):
                    sizes[place] = kv[place] = 0
                last_place = fresh - 2
                for job in range(num_jobs):
                    place = int(waits_s[places[job]])
                    places[job] = place
                    sizes[place] += 1
                    kv[place] += kv_tokens[job]
            if merit > best_merit:
                best_merit = merit
                best_places[:] = places
        else:
            places[x] = a
            if y >= 0:
                places[y] = b
            sizes[a] += size_moved
            sizes[b] -= size_moved
            kv[a] += kv_moved
            kv[b] -= kv_moved
    return merit, best_merit


def search(
    problem: AnnealingProblem,
    *,
    num_proposals: int = DEFAULT_PROPOSALS,
    seed: int = 0,
    kernel: Kernel = anneal,
    starts: Sequence[np.ndarray] = (),
    spent: Callable[[], float] | None = None,
) -> Found:
    """Returns the best plan found; the same for the same arguments.

    The search is left out only where nothing can be gained: in batches of one, when
    the sorted start attains every SLO, for then n is the most and t the least there is.
    (Ours: when the paper's own search ends early is not known to us.)

    Args:
      kernel: Carries the moves out; any but `anneal` is given arrays.
      starts: Further plans to start from, such as the last one.
      spent: Says which share of the time allowed is spent; from 1 on the best plan so
        far is returned. The temperature falls over time or proposals, as either ends.
    """
    # Start from the best of the sorted plans and those given.
    num_jobs, max_batch = problem.exec_s.shape
    sort_keys = (problem.exec_s[:, -1], -problem.waited_s)
    orders = [np.argsort(key, kind="stable").tolist() for key in sort_keys]
    plans = [*(packed(problem, order) for order in orders), *starts]
    scores = [evaluate(problem, plan) for plan in plans]
    start_score = max(scores, key=lambda score: score.merit)
    start = plans[scores.index(start_score)]
    if num_jobs == 1 or (max_batch == 1 and scores[0].num_attained == num_jobs):
        return Found(start, start_score, 0)

    # Lay out the chain's state as the kernel takes it: lists or arrays.
    is_python = kernel is anneal
    table: Callable[[np.ndarray], Numbers] = np.ascontiguousarray
    if is_python:
        table = np.ndarray.tolist
    most_at_once = (1_000 if is_python else 100_000) // num_jobs  # between two looks
    rng = np.random.default_rng(seed)
    sizes, kv = np.zeros((2, 2 * num_jobs + 1), np.int64)
    places = 2 * start + 1
    np.add.at(sizes, places, 1)
    np.add.at(kv, places, problem.kv_tokens)
    best_places = table(places.copy())
    state = (table(places), best_places, table(sizes), table(kv), table(sizes * 0.0))
    tables = (
        table(problem.exec_s.ravel()),
        table(problem.latest_s.ravel()),
        table(problem.kv_tokens),
        problem.max_kv_tokens,
        problem.start_s,
        float(np.sum(problem.waited_s)),
    )

    # Propose in portions, each as hot as the share of the search that is over says.
    done, merit, best_merit = 0, start_score.merit, start_score.merit
    while done < num_proposals:
        share = max(spent() if spent else 0.0, done / num_proposals)
        if share >= 1.0:
            break
        in_all = done / share if done else num_proposals
        size = num_proposals - done
        if spent:
            size = min(size, max(most_at_once, 1))
        # The more proposals there are for each pair of jobs, the hotter the start, as
        # was best on the mixes of 2 to 200 jobs that we tried.
        pairs_share = min(in_all, _HEATING_PROPOSALS) / num_jobs**2
        hottest = np.clip(_PAIR_HEAT * pairs_share, *_HOTTEST)
        cooled = (share + np.arange(size) / in_all) * _NUM_COOLINGS % 1.0
        heats = hottest * np.exp(np.log(_COLDEST / hottest) * cooled)
        draws = (
            rng.integers(3, size=size),
            *rng.integers(num_jobs, size=(2, size)),
            # Metropolis: a change d is accepted if a uniform draw u is below
            # exp(d / T), so not below T * log(u); -log(u) is an exponential draw.
            rng.standard_exponential(size) * heats * (-start_score.merit / num_jobs),
        )
        merit, best_merit = kernel(
            *tables, *map(table, draws), *state, merit, best_merit
        )
        done += size
    found = np.unique(np.asarray(best_places), return_inverse=True)[1]
    return Found(found, evaluate(problem, found), done)
