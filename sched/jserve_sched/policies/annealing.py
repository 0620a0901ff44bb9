"""`annealing` and `annealing+sliding`: admission by a searched plan.

From "SLO-Aware Scheduling for Large Language Model Inferences" (arXiv 2504.14966) come
the objective G = n / t (requests that attain their SLOs, over the sum of all latencies)
and the annealing of order and batch sizes together. How its result drives an engine
that batches continuously is not known from the paper; all of this is ours:

* Whenever requests came or ended, but at most once in `interval_s`, and only while a
  slot is free, the waiting requests are searched again, starting among others from the
  last order.
* Requests are admitted in the planned turn; those that came since the last search go
  behind, by arrival.
* G has no ageing. A request that has waited longer than `max_age_s` goes before all
  that have not, by arrival; the search moves the others only, and starts after them.
* What runs is never stopped by the plan, only by KV pressure: see `Candidates.victims`.
  Those over the bound on age are stopped last, by arrival.

`annealing` fills a step as `fcfs` does: all decodes, then prompts partly computed, by
admission, then the admitted in their turn. `annealing+sliding` sizes steps as `sliding`
does, by the slack of the decodes and by what late arrivals may want, without its
constructor, which selects prompts out of turn and would break the bound on age.
"""

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jserve_sched.annealing import (
    DEFAULT_PROPOSALS,
    MOST_JOBS,
    PYTHON_KERNEL,
    Kernel,
    search,
)
from jserve_sched.annealing_problem import AnnealingProblem, make_problem, packed
from jserve_sched.builder import PlanBuilder
from jserve_sched.candidates import Candidates, choose_waiting
from jserve_sched.clock import Clock
from jserve_sched.outlook import Outlook
from jserve_sched.plan import StepPlan
from jserve_sched.policies.base import check_chunk_tokens
from jserve_sched.policies.sliding import SlidingServe
from jserve_sched.request import Request
from jserve_sched.view import SchedulerView


class SearchLimit(NamedTuple):
    """Ends a search by the clock; what it finds then depends on the machine's speed.

    Attributes:
      clock: Tells the time.
      budget_s: Seconds that one search may take, with all that it prepares; infinite
        to measure only.
    """

    clock: Clock
    budget_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedAdmission:
    """Orders the queue by simulated annealing; what a step holds is left to others.

    Attributes:
      proposals: Most changes of the plan that one search tries.
      interval_s: Least time between two searches, seconds.
      max_batch: Largest batch planned; 0 takes the number of free slots.
      max_age_s: A request that came longer ago goes first, seconds.
      seed: Seed of the search, together with `SchedulerView.epoch`.
      kernel: Runs the search; not an option of a spec.
      limit: Ends the search early and measures it; not an option of a spec.

    Raises:
      ValueError: For an option out of range.
    """

    proposals: int = DEFAULT_PROPOSALS
    interval_s: float = 0.05
    max_batch: int = 0
    max_age_s: float = 120.0
    seed: int = 0
    kernel: Kernel = PYTHON_KERNEL
    limit: SearchLimit | None = None

    def __post_init__(self) -> None:
        for name in ("proposals", "interval_s", "max_batch", "max_age_s", "seed"):
            least = 1 if name == "proposals" else 0
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}={getattr(self, name)} is below {least}")

    def revise(self, view: SchedulerView) -> Outlook | None:
        """Searches if that is due; None if it is not, or no request can be moved."""
        last = view.outlook
        if not view.num_free_slots or (
            last is not None
            and (view.epoch == last.epoch or view.now_s - last.made_s < self.interval_s)
        ):
            return None
        clock, budget_s = self.limit or (None, math.inf)
        begun_s = clock.now_s() if clock else 0.0
        requests = choose_waiting(view, MOST_JOBS, first=self._num_aged(view))
        if not requests:
            return None
        problem = self._problem(view, requests)
        starts = []
        if last is not None:
            turns = last.turns
            order = sorted(
                range(len(requests)),
                key=lambda job: turns.get(requests[job].request_id, len(turns)),
            )
            starts.append(packed(problem, order))
        found = search(
            problem,
            num_proposals=self.proposals,
            seed=(self.seed << 32) + view.epoch,
            kernel=self.kernel,
            starts=starts,
            spent=(lambda: (clock.now_s() - begun_s) / budget_s) if clock else None,
        )
        order = np.lexsort((problem.exec_s[:, -1], found.batch_of)).tolist()
        return Outlook(
            order=tuple(requests[job].request_id for job in order),
            made_s=view.now_s,
            epoch=view.epoch,
            num_proposals=found.num_proposals,
            gain=max(found.score.merit / found.start_score.merit - 1.0, 0.0),
            search_s=clock.now_s() - begun_s if clock else None,
        )

    def _problem(
        self, view: SchedulerView, requests: Sequence[Request]
    ) -> AnnealingProblem:
        """Returns what to search: these requests, in batches that join what runs."""
        held = sum(one.num_projected + one.expected_tokens_left for one in view.running)
        return make_problem(
            requests,
            view.request_latency,
            now_s=view.now_s,
            max_batch=min(self._most(view), view.num_free_slots, len(requests)),
            max_kv_tokens=max(_pool_tokens(view) - held, 0),
            num_running=len(view.running),
            start_s=self._start_s(view),
        )

    def _most(self, view: SchedulerView) -> int:
        return self.max_batch or view.max_num_seqs

    def _start_s(self, view: SchedulerView) -> float:
        """Returns when the first batch can start: once the aged have had their turn.

        Of thousands the first ones are looked at; the others count as their mean.
        """
        aged = view.waiting[: self._num_aged(view)]
        if not aged:
            return view.in_flight_s
        counted = aged[:MOST_JOBS]
        known = np.array([one.num_known for one in counted])
        left = np.array([one.expected_tokens_left for one in counted])
        together = min(self._most(view), len(aged))
        exec_s = view.request_latency.exec_s(np.array(float(together)), known, left)
        return view.in_flight_s + float(np.mean(exec_s)) * len(aged) / together

    def _num_aged(self, view: SchedulerView) -> int:
        """Returns how many of the waiting, the first by arrival, are over the bound."""
        since_s = view.now_s - self.max_age_s
        return bisect.bisect_left(
            view.admissible, since_s, key=lambda one: one.arrival_s
        )

    def candidates(self, view: SchedulerView) -> Candidates:
        """Returns the requests that may be in the next step, the waiting in turn.

        One more waits than there are slots, if there is one: so a plan can tell that it
        lacks slots.
        """
        waiting, most = view.admissible, view.num_free_slots + 1
        num_aged = min(self._num_aged(view), most)
        turns = view.outlook.turns if view.outlook else {}
        admitted = list(waiting[:num_aged])
        if num_aged < most:
            young = waiting[num_aged:]
            planned = [one for one in young if one.request_id in turns]
            planned.sort(key=lambda one: turns[one.request_id])
            others = (one for one in young if one.request_id not in turns)
            both = itertools.chain(planned, others)
            admitted += itertools.islice(both, most - num_aged)
        return Candidates(view, admitted, aged_before_s=view.now_s - self.max_age_s)


def _pool_tokens(view: SchedulerView) -> int:
    return view.ledger.num_pages * view.ledger.page_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annealing(PlannedAdmission):
    """Simulated annealing orders the queue; steps are filled.

    Attributes:
      chunk_tokens: Tokens in a step, decodes included (Sarathi's chunk size), rounded
        down to whole blocks but at least one; 0 fills the step.
    """

    chunk_tokens: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_chunk_tokens(self.chunk_tokens)

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step."""
        candidates = self.candidates(view)
        builder = PlanBuilder(view)
        candidates.add_decodes(builder)
        builder.limit_tokens(self.chunk_tokens)
        candidates.add_prompts(builder, candidates.prompts)
        return builder.build()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnealingSliding(PlannedAdmission):
    """Simulated annealing orders the queue; `sliding` sizes the steps."""

    def _problem(
        self, view: SchedulerView, requests: Sequence[Request]
    ) -> AnnealingProblem:
        """Returns what to search: these requests, as a stream through the engine.

        A request keeps an engine that batches continuously busy for its prefill and for
        its share of the decode steps, and the next one can be let in as much later.
        (Ours: with even steps it gives a higher G than batches that wait for one
        another.)
        """
        known = np.array([one.num_known for one in requests], np.float64)
        left = np.array([one.expected_tokens_left for one in requests])
        together = min(
            self._most(view),
            len(view.running) + len(requests),
            max(int(_pool_tokens(view) / np.mean(known + left)), 1),
        )
        whole = make_problem(
            requests,
            view.request_latency,
            now_s=view.now_s,
            max_batch=1,
            max_kv_tokens=0,
            num_running=together - 1,
            prefills_alone=True,
            start_s=self._start_s(view),
        )
        prefill_s = view.request_latency.prefill_s(np.ones(1), known)[:, None]
        rest_s = (whole.exec_s - prefill_s) * (1.0 - 1.0 / together)
        return dataclasses.replace(
            whole,
            exec_s=whole.exec_s - rest_s,
            waited_s=whole.waited_s + rest_s[:, 0],
        )

    @functools.cached_property
    def _sliding(self) -> SlidingServe:
        return SlidingServe(sorter="given", constructor=False)

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step."""
        return self._sliding.plan_for(view, self.candidates(view))
