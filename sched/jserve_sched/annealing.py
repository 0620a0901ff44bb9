"""Simulated annealing over the order and the batches of waiting jobs.

The one idea: start from the better of two plain orders, change one job's place at a
time, and go back less and less readily (arXiv 2504.14966, "priority mapping"). That
order and batch sizes are annealed together is the paper's. Ours, since its text was
not to be had: the starts, the early exit, the three moves, the temperatures, and that
acceptance looks at the *relative* change of G. G itself is tiny, so that temperatures
in the hundreds accept everything and only the record of the best plan makes progress;
`scale="raw"` does that for comparison.

Temperatures are in shares of one job: 1 is G / N. One job met or missed changes G by
about so much, hence what is hot for 10 jobs is a random walk for 200. The chain cools
several times over, which a deadline may cut short with little lost.

The chain is `annealing_kernel.anneal`. `evaluate` is the other way to the same number,
from the whole plan at once.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from jserve_sched import annealing_kernel
from jserve_sched.annealing_kernel import (
    FOREVER_NS,
    NEVER_NS,
    PYTHON_KERNEL,
    Draws,
    Kernel,
    State,
    Tables,
)
from jserve_sched.annealing_problem import AnnealingProblem, BatchPlan, Score

WINDOW_JOBS = 256  # most jobs of one search; the others keep their start's order
DEFAULT_PROPOSALS = 10_000  # what 20 jobs take 2 ms for, compiled, in all
RAW_TEMPERATURES = (500.0, 20.0)  # first and last, of G in 1/s
NUM_COOLINGS = 4  # times that the temperature falls from first to last
_COLDEST = 0.003  # shares of one job
_HOTTEST = (0.1, 2.0)  # least and most
_BLOCK_PROPOSALS = 4_096  # whose chance is drawn at a time
_PAIR_HEAT = 0.06  # the first temperature for each proposal that a pair of jobs gets
_HEATING_PROPOSALS = 12_000  # more of them start no hotter

Scale = Literal["relative", "raw"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found.

    Attributes:
      plan: the best plan seen.
      score: its worth.
      start_score: of the start taken: the best of sorted, arrival and given ones.
      sorted_score: of the plan sorted by duration.
      num_proposals: moves tried.
      is_early_exit: whether no move was tried, since none could have helped.
    """

    plan: BatchPlan
    score: Score
    start_score: Score
    sorted_score: Score
    num_proposals: int
    is_early_exit: bool


@dataclasses.dataclass(frozen=True)
class _Laid:
    """A plan with everything computed; `P` positions, `K` batches."""

    order: np.ndarray  # [P] jobs
    sizes: np.ndarray  # [K]
    execs_ns: np.ndarray  # [P]
    starts_ns: np.ndarray  # [K]
    durations_ns: np.ndarray  # [K]
    is_met: np.ndarray  # [P]
    score: Score


def _lay(problem: AnnealingProblem, plan: BatchPlan) -> _Laid:
    order = np.asarray(plan.order, np.int64)
    sizes = np.asarray(plan.sizes, np.int64)
    columns = np.repeat(sizes, sizes) - 1
    execs_ns = problem.exec_ns[order, columns]
    ends = np.cumsum(sizes)
    durations_ns = np.maximum.reduceat(execs_ns, ends - sizes)
    starts_ns = problem.start_ns + np.cumsum(durations_ns) - durations_ns
    waits_ns = np.repeat(starts_ns, sizes)
    is_met = waits_ns <= problem.latest_ns[order, columns]
    total_ns = np.sum(waits_ns) + np.sum(execs_ns) + np.sum(problem.waited_ns[order])
    score = Score(num_met=int(np.count_nonzero(is_met)), total_ns=int(total_ns))
    return _Laid(order, sizes, execs_ns, starts_ns, durations_ns, is_met, score)


def evaluate(problem: AnnealingProblem, plan: BatchPlan) -> Score:
    """Returns what a plan is worth, computed from the whole of it."""
    return _lay(problem, plan).score


def check_plan(problem: AnnealingProblem, plan: BatchPlan) -> None:
    """Checks that a plan is one of this problem.

    Raises:
      ValueError: if a job is missing or repeated, or a batch is empty, too large, or
        over the KV budget with more than one job.
    """
    if sorted(plan.order) != list(range(problem.num_jobs)):
        raise ValueError(f"the order does not hold jobs 0..{problem.num_jobs - 1} once")
    if sum(plan.sizes) != problem.num_jobs:
        raise ValueError(
            f"the batches hold {sum(plan.sizes)} jobs, not {problem.num_jobs}"
        )
    kv_tokens = problem.kv_tokens[list(plan.order)].tolist()
    first = 0
    for size in plan.sizes:
        if not 1 <= size <= problem.max_batch:
            raise ValueError(f"a batch of {size} is not in 1..{problem.max_batch}")
        batch_tokens = sum(kv_tokens[first : first + size])
        if size > 1 and batch_tokens > problem.max_kv_tokens:
            raise ValueError(
                f"a batch of {batch_tokens} KV tokens is over {problem.max_kv_tokens}"
            )
        first += size


def packed(problem: AnnealingProblem, order: Sequence[int]) -> BatchPlan:
    """Returns an order cut into batches, each as full as it may be."""
    sizes: list[int] = []
    size = room = 0
    max_batch, max_kv_tokens = problem.max_batch, problem.max_kv_tokens
    for kv_tokens in problem.kv_tokens[list(order)].tolist():
        if size and (size == max_batch or kv_tokens > room):
            sizes.append(size)
            size = 0
        if not size:
            room = max_kv_tokens
        size += 1
        room -= kv_tokens
    sizes.append(size)
    return BatchPlan(tuple(order), tuple(sizes))


def sorted_start(problem: AnnealingProblem) -> BatchPlan:
    """Returns the shortest jobs first, by their duration in a full batch."""
    order = np.argsort(problem.exec_ns[:, -1], kind="stable")
    return packed(problem, order.tolist())


def arrival_start(problem: AnnealingProblem) -> BatchPlan:
    """Returns the jobs that have waited longest first."""
    order = np.argsort(-problem.waited_ns, kind="stable")
    return packed(problem, order.tolist())


def search(
    problem: AnnealingProblem,
    *,
    num_proposals: int = DEFAULT_PROPOSALS,
    seed: int = 0,
    kernel: Kernel = PYTHON_KERNEL,
    starts: Sequence[BatchPlan] = (),
    temperatures: tuple[float, float] | None = None,
    scale: Scale = "relative",
    deadline: Callable[[], bool] | None = None,
) -> Found:
    """Returns the best plan found; the same for the same arguments.

    Of more than `WINDOW_JOBS` jobs only the first batches of the best start are
    searched, that many jobs at most (but a whole batch at least); the others keep that
    start's order and batches behind them. The search counts how much later they end,
    but not which promises of theirs that breaks. The plan returned is never below the
    best start in any case.

    The search is left out only where nothing can be gained: in batches of one, when the
    sorted start keeps every promise, for then n is the most and t the least there is.
    Where larger batches are allowed another cut may be better, so it goes on. (Ours:
    when the paper's own search ends early is not known to us.)

    Args:
      problem: the jobs.
      num_proposals: moves tried; the temperature falls over just so many.
      seed: of the draws.
      kernel: what carries the moves out.
      starts: further plans to start from, such as the last one.
      temperatures: the first and the last of each cooling. By default it starts the
        hotter, the more proposals there are for each pair of jobs, as was best on
        the mixes of 2 to 200 jobs that we tried.
      scale: what a temperature is compared with: the change of G in shares of one
        job of the start's G, or the change of G in 1/s.
      deadline: asked now and then; once it says yes, the best plan so far is returned.

    Raises:
      ValueError: if `num_proposals` is below 0, a temperature is not above 0, or one
        of `starts` is no plan of this problem.
    """
    if num_proposals < 0:
        raise ValueError(f"num_proposals={num_proposals} is below 0")
    if temperatures is not None and min(temperatures) <= 0.0:
        raise ValueError(f"{temperatures=} are not both above 0")
    for start in starts:
        check_plan(problem, start)
    plan = sorted_start(problem)
    laid = _lay(problem, plan)
    sorted_score = laid.score
    for other in (arrival_start(problem), *starts):
        found = _lay(problem, other)
        if found.score.merit > laid.score.merit:
            plan, laid = other, found
    start_score = laid.score
    is_early_exit = problem.num_jobs == 1 or (
        problem.max_batch == 1 and sorted_score.num_met == problem.num_jobs
    )
    done = 0
    if not is_early_exit:
        _, num_jobs = _num_searched(laid)
        unit = start_score.merit / num_jobs if scale == "relative" else 1e-9
        if temperatures is None:
            temperatures = (
                _temperatures(num_proposals, num_jobs)
                if scale == "relative"
                else RAW_TEMPERATURES
            )
        cooling = _Cooling(
            num_proposals=num_proposals, temperatures=temperatures, unit=unit
        )
        rng = np.random.default_rng(seed)
        better, done = _anneal(problem, laid, cooling, rng, kernel, deadline)
        found = _lay(problem, better)
        if found.score.merit > start_score.merit:
            plan, laid = better, found
    return Found(
        plan=plan,
        score=laid.score,
        start_score=start_score,
        sorted_score=sorted_score,
        num_proposals=done,
        is_early_exit=is_early_exit,
    )


def _num_searched(laid: _Laid) -> tuple[int, int]:
    """Returns how many batches and jobs of a start are searched."""
    ends = np.cumsum(laid.sizes)
    num_batches = max(int(np.searchsorted(ends, WINDOW_JOBS, side="right")), 1)
    return num_batches, int(ends[num_batches - 1])


def _temperatures(num_proposals: int, num_jobs: int) -> tuple[float, float]:
    """Returns the first and last temperature in shares of one job."""
    first = _PAIR_HEAT * min(num_proposals, _HEATING_PROPOSALS) / num_jobs**2
    return float(np.clip(first, *_HOTTEST)), _COLDEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Cooling:
    """How the bar for a worse plan rises over a search.

    Attributes:
      num_proposals: of the whole search.
      temperatures: the first and the last of each fall.
      unit: a temperature of 1, as a change of merit.
    """

    num_proposals: int
    temperatures: tuple[float, float]
    unit: float

    def draws(
        self, rng: np.random.Generator, num_jobs: int, first: int, last: int
    ) -> Draws:
        """Returns the chance of proposals `first` to `last` - 1.

        Metropolis: a change d is accepted if a uniform draw u is below exp(d / T),
        that is if d is not below T * log(u); and -log(u) is an exponential draw.
        """
        size = last - first
        progress = np.arange(first, last) * (NUM_COOLINGS / self.num_proposals) % 1.0
        start, end = np.log(self.temperatures)
        heats = np.exp(start + (end - start) * progress)
        return Draws(
            moves=rng.integers(annealing_kernel.NUM_MOVES, size=size),
            jobs=rng.integers(num_jobs, size=size),
            others=rng.integers(num_jobs, size=size),
            bars=rng.standard_exponential(size) * heats * -self.unit,
        )


def _anneal(
    problem: AnnealingProblem,
    laid: _Laid,
    cooling: _Cooling,
    rng: np.random.Generator,
    kernel: Kernel,
    deadline: Callable[[], bool] | None,
) -> tuple[BatchPlan, int]:
    """Returns the best plan of a chain from this start, and the proposals it took."""
    num_batches, num_jobs = _num_searched(laid)
    jobs = laid.order[:num_jobs]
    table = kernel.table
    tables = Tables(
        max_batch=problem.max_batch,
        max_kv_tokens=problem.max_kv_tokens,
        num_behind=problem.num_jobs - num_jobs,
        exec_ns=table(problem.exec_ns[jobs].ravel()),
        latest_ns=table(problem.latest_ns[jobs].ravel()),
        kv_tokens=table(problem.kv_tokens[jobs]),
    )
    state = _chain(problem, laid, num_batches, kernel)
    slice_size = _BLOCK_PROPOSALS if deadline is None else kernel.slice_proposals
    done = 0
    for block in range(0, cooling.num_proposals, _BLOCK_PROPOSALS):
        last = min(block + _BLOCK_PROPOSALS, cooling.num_proposals)
        draws = Draws(*map(table, cooling.draws(rng, num_jobs, block, last)))
        while done < last and (deadline is None or not deadline()):
            end = min(done + slice_size, last)
            kernel.run(tables, draws, state, done - block, end - block)
            done = end
        if done < last:
            break
    starts_ns = np.asarray(state.best_starts, np.int64)
    turns = np.argsort(starts_ns, kind="stable")
    _, sizes = np.unique(starts_ns, return_counts=True)
    order = np.concatenate([jobs[turns], laid.order[num_jobs:]])
    sizes = np.concatenate([sizes, laid.sizes[num_batches:]])
    return BatchPlan(tuple(order.tolist()), tuple(sizes.tolist())), done


def _chain(
    problem: AnnealingProblem, laid: _Laid, num_batches: int, kernel: Kernel
) -> State:
    """Returns the kernel's state at the first batches of a plan, job 0 in front."""
    sizes = laid.sizes[:num_batches]
    batches = np.arange(num_batches)
    num_jobs = int(np.sum(sizes))
    max_batch = problem.max_batch
    batch_of = np.repeat(batches, sizes)
    firsts = np.cumsum(sizes) - sizes
    places = np.arange(num_jobs) - np.repeat(firsts, sizes)
    members = np.zeros(num_jobs * max_batch, np.int64)
    members[batch_of * max_batch + places] = np.arange(num_jobs)
    starts_ns = laid.starts_ns[:num_batches]
    waits_ns = np.repeat(starts_ns, sizes)
    latest_ns = problem.latest_ns[laid.order[:num_jobs], np.repeat(sizes, sizes) - 1]
    is_met = latest_ns >= waits_ns
    low = np.where(is_met, NEVER_NS, latest_ns)
    high = np.where(is_met, latest_ns, FOREVER_NS)
    sums = np.zeros(annealing_kernel.NUM_SUMS, np.int64)
    sums[annealing_kernel.MET] = sums[annealing_kernel.BEST_MET] = laid.score.num_met
    sums[annealing_kernel.TOTAL_NS] = laid.score.total_ns
    sums[annealing_kernel.BEST_TOTAL_NS] = laid.score.total_ns
    sums[annealing_kernel.NUM_UNUSED] = num_jobs - num_batches

    def by_batch(values: np.ndarray) -> np.ndarray:
        whole = np.zeros(num_jobs, np.int64)
        whole[:num_batches] = values
        return whole

    kv_tokens = problem.kv_tokens[laid.order[:num_jobs]]
    state = State(
        sums=sums,
        batch_of=batch_of,
        members=members,
        sizes=by_batch(sizes),
        before=by_batch(batches - 1),
        after=by_batch(np.append(batches[1:], -1)),
        starts=by_batch(starts_ns),
        durations=by_batch(laid.durations_ns[:num_batches]),
        execs=by_batch(np.add.reduceat(laid.execs_ns[:num_jobs], firsts)),
        met=by_batch(np.add.reduceat(is_met.astype(np.int64), firsts)),
        low=by_batch(np.maximum.reduceat(low, firsts)),
        high=by_batch(np.minimum.reduceat(high, firsts)),
        kv=by_batch(np.add.reduceat(kv_tokens, firsts)),
        unused=np.append(
            np.arange(num_batches, num_jobs), np.zeros(num_batches, np.int64)
        ),
        best_starts=waits_ns.copy(),
        changed=np.zeros(num_jobs * 4, np.int64),
        edited=np.zeros(12, np.int64),
    )
    return State(*map(kernel.table, state))
