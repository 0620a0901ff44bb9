"""PlannedAdmission: who is let in next, by a search over order and batch sizes.

From "SLO-Aware Scheduling for Large Language Model Inferences" (arXiv 2504.14966) come
the objective G = n / t (promises kept, over the sum of all latencies) and the annealing
of order and batch sizes together. How its result drives an engine that batches
continuously is not known from the paper; all of this is ours:

* Whenever requests came or ended, but at most once in `interval_s`, and only while a
  slot is free, the waiting requests are searched anew, starting among others from the
  last result.
* Requests are admitted in the planned turn; who came since the last search goes behind,
  by arrival.
* With `cap` the largest planned batch limits how many run together, as long as planned
  requests wait. A plan of one batch limits nothing: it had no choice. It is off unless
  asked for: an engine that batches continuously fills what a planned batch leaves
  empty. In simulations of overload the cap kept more promises about the *mean* time
  between tokens, fewer about each token's own deadline, and answers took longer.
* G has no ageing. Whoever has waited longer than `max_age_s` goes before all that have
  not, by arrival, cap or not; the search moves the others only, and starts after them.
* What runs is never stopped by the plan, only by KV pressure: see `Candidates.victims`.
  Those over the bound on age are stopped last, by arrival.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from jserve_sched.annealing import DEFAULT_PROPOSALS, WINDOW_JOBS, Scale, search
from jserve_sched.annealing_kernel import PYTHON_KERNEL, Kernel
from jserve_sched.annealing_problem import (
    AnnealingProblem,
    BatchPlan,
    TpotRule,
    make_problem,
)
from jserve_sched.annealing_stream import make_stream_problem
from jserve_sched.candidates import Candidates, choose_waiting
from jserve_sched.clock import Clock
from jserve_sched.outlook import Outlook
from jserve_sched.request import Request
from jserve_sched.request_latency import RequestLatency
from jserve_sched.view import SchedulerView

PlanModel = Literal["batches", "stream"]


@dataclasses.dataclass(frozen=True)
class SearchLimit:
    """Ends a search by the clock; what it finds then depends on the machine's speed.

    Attributes:
      clock: tells the time.
      budget_s: seconds that one search may take, with all that it prepares; infinite
        to measure only.
    """

    clock: Clock
    budget_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedAdmission:
    """Orders the queue by simulated annealing; what a step holds is left to others.

    Attributes:
      proposals: changes of the plan that one search tries.
      interval_s: least time between two searches, seconds.
      max_batch: largest batch planned; 0 takes as many as slots are free.
      max_age_s: who has come longer ago goes first, seconds.
      model: how requests wait for each other in a plan: "batches", one after another
        (our reading of the paper), each beside all that runs now (ours); or "stream"
        (ours), see `annealing_stream`.
      cap: whether the largest planned batch limits how many run together.
      tpot: how a bound on the time between tokens is judged: "anchored" by the last
        token's own deadline, as this project's reports do, or "mean".
      scale: what the search compares: the "relative" change of G, or "raw".
      window: most requests that are searched, 2 to `WINDOW_JOBS`.
      seed: of the search, together with `SchedulerView.epoch`.
      kernel: runs the search; no option of a spec.
      limit: ends it early and measures it; no option of a spec.

    Raises:
      ValueError: for an option out of range.
    """

    proposals: int = DEFAULT_PROPOSALS
    interval_s: float = 0.05
    max_batch: int = 0
    max_age_s: float = 120.0
    model: PlanModel = "batches"
    cap: bool = False
    tpot: TpotRule = "anchored"
    scale: Scale = "relative"
    window: int = WINDOW_JOBS
    seed: int = 0
    kernel: Kernel = PYTHON_KERNEL
    limit: SearchLimit | None = None

    def __post_init__(self) -> None:
        for name, least in (
            *(("proposals", 1), ("max_batch", 0), ("window", 2)),
            *(("interval_s", 0), ("max_age_s", 0), ("seed", 0)),
        ):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}={getattr(self, name)} is below {least}")
        if self.window > WINDOW_JOBS:
            raise ValueError(f"window={self.window} is above {WINDOW_JOBS}")
        if self.cap and self.model == "stream":
            raise ValueError("cap=on needs model=batches: a stream has no batches")

    def revise(self, view: SchedulerView) -> Outlook | None:
        """Searches if that is due; None if it is not, or nobody can be moved."""
        last = view.outlook
        if not view.num_free_slots or (
            last is not None
            and (view.epoch == last.epoch or view.now_s - last.made_s < self.interval_s)
        ):
            return None
        clock = None if self.limit is None else self.limit.clock
        begun_s = 0.0 if clock is None else clock.now_s()
        num_aged = self._num_aged(view)
        requests = choose_waiting(view, self.window, first=num_aged)
        if not requests:
            return None
        problem = self._problem(view, requests, num_aged)
        found = search(
            problem,
            num_proposals=self.proposals,
            seed=(self.seed << 32) + view.epoch,
            kernel=self.kernel,
            starts=() if last is None else (_renewed(last, requests, problem),),
            scale=self.scale,
            deadline=self._deadline(begun_s),
        )
        sizes = found.plan.sizes
        return Outlook(
            order=tuple(requests[index].request_id for index in found.plan.order),
            batches=tuple(np.repeat(np.arange(len(sizes)), sizes).tolist()),
            cap=len(view.running) + max(sizes) if self.cap and len(sizes) > 1 else None,
            made_s=view.now_s,
            epoch=view.epoch,
            num_proposals=found.num_proposals,
            start_goal=found.start_score.goal,
            goal=found.score.goal,
            search_s=None if clock is None else clock.now_s() - begun_s,
        )

    def admitted(self, view: SchedulerView) -> Sequence[Request]:
        """Returns the waiting requests that may be let in now, in their turn.

        One more than there are slots, if there is one: so a plan can tell that slots
        are what it lacks.
        """
        waiting, outlook = view.admissible, view.outlook
        num_aged = self._num_aged(view)
        most = view.num_free_slots + 1
        chosen = list(waiting[: min(num_aged, most)])
        if outlook is not None and len(chosen) < most:
            turns = outlook.turns
            young = waiting[num_aged:]
            planned = [one for one in young if one.request_id in turns]
            planned.sort(key=lambda one: turns[one.request_id])
            if planned and outlook.cap is not None:
                room = outlook.cap - len(view.running) - len(chosen)
                most = min(most, len(chosen) + max(room, 0))
            chosen += planned[: most - len(chosen)]
            if len(chosen) < most:
                later = (one for one in young if one.request_id not in turns)
                chosen += itertools.islice(later, most - len(chosen))
        elif len(chosen) < most:
            chosen += waiting[num_aged:most]
        return chosen

    def candidates(self, view: SchedulerView) -> Candidates:
        """Returns who may be in the next step."""
        return Candidates(
            view,
            self.admitted(view),
            aged_before_s=view.now_s - self.max_age_s,
        )

    def _num_aged(self, view: SchedulerView) -> int:
        """Returns how many of the waiting, the first by arrival, are over the bound."""
        since_s = view.now_s - self.max_age_s
        return bisect.bisect_left(
            view.admissible, since_s, key=lambda one: one.arrival_s
        )

    def _deadline(self, begun_s: float) -> Callable[[], bool] | None:
        if self.limit is None:
            return None
        clock, end_s = self.limit.clock, begun_s + self.limit.budget_s
        return lambda: clock.now_s() >= end_s

    def _problem(
        self, view: SchedulerView, requests: Sequence[Request], num_aged: int
    ) -> AnnealingProblem:
        """Returns what to search: these requests, once the aged have had their turn."""
        most = self.max_batch or view.max_num_seqs
        latency = view.request_latency
        start_s = view.in_flight_s + _turns_s(view.waiting[:num_aged], latency, most)
        num_running = len(view.running)
        num_kv_tokens = view.ledger.num_pages * view.ledger.page_size
        if self.model == "stream":
            return make_stream_problem(
                requests,
                latency,
                now_s=view.now_s,
                num_together=min(most, num_running + len(requests)),
                max_kv_tokens=num_kv_tokens,
                start_s=start_s,
                tpot=self.tpot,
            )
        held = sum(one.num_projected + one.expected_tokens_left for one in view.running)
        return make_problem(
            requests,
            latency,
            now_s=view.now_s,
            max_batch=min(most, view.num_free_slots, len(requests)),
            max_kv_tokens=max(num_kv_tokens - held, 0),
            num_running=num_running,
            start_s=start_s,
            tpot=self.tpot,
        )


def _turns_s(aged: Sequence[Request], latency: RequestLatency, most: int) -> float:
    """Returns how long requests take that run by arrival, in batches of so many.

    The first `WINDOW_JOBS` count by their own lengths, the others as so many more of
    them: of thousands, not each is looked at.
    """
    counted = aged[:WINDOW_JOBS]
    if not counted:
        return 0.0
    known = np.array([one.num_known for one in counted])
    left = np.array([one.expected_tokens_left for one in counted])
    batch = np.arange(len(counted)) // most
    exec_s = latency.exec_s(np.bincount(batch)[batch], known, left)
    batches_s = np.maximum.reduceat(exec_s, np.arange(0, len(counted), most))
    return float(np.sum(batches_s)) * len(aged) / len(counted)


def _renewed(
    last: Outlook, requests: Sequence[Request], problem: AnnealingProblem
) -> BatchPlan:
    """Returns the last plan of those who wait still, with the new ones behind.

    Args:
      last: the plan; a batch that no longer fits is cut.
      requests: those of the problem, by arrival.
      problem: gives the limits of a batch.
    """
    batch_of = dict(zip(last.order, last.batches, strict=True))
    turns = last.turns
    names = [one.request_id for one in requests]
    order = sorted(
        range(len(names)), key=lambda index: turns.get(names[index], len(turns))
    )
    tokens = problem.kv_tokens.tolist()
    sizes: list[int] = []
    open_batch: int | None = None
    used = 0
    for index in order:
        batch = batch_of.get(names[index], len(turns))
        used += tokens[index]
        if (
            not sizes
            or batch != open_batch
            or sizes[-1] == problem.max_batch
            or used > problem.max_kv_tokens
        ):
            sizes.append(0)
            open_batch, used = batch, tokens[index]
        sizes[-1] += 1
    return BatchPlan(order=tuple(order), sizes=tuple(sizes))
