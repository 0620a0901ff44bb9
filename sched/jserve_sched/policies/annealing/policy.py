"""`annealing`: admission by a searched plan.

From "SLO-Aware Scheduling for Large Language Model Inferences" (arXiv 2504.14966) come
the objective G = n / t (requests that attain their SLOs, over the sum of all latencies)
and the annealing of order and batch sizes together. How its result drives an engine
that batches continuously is not known from the paper; all of this is ours:

* Whenever requests came or ended, but at most once in 50 ms, and only while a slot is
  free, the waiting requests are searched again, starting among others from the last
  order. Finding a good order takes longer than a step and stays good for many.
* Requests are admitted in the planned turn; those that came since the last search go
  behind, by arrival.
* G has no ageing. A request that has waited longer than `max_age_s` goes before all
  that have not, by arrival; the search moves the others only, and starts after them.
* What runs is never stopped by the plan, only by KV pressure: see `Candidates.victims`.
  Those over the bound on age are stopped last, by arrival.
"""

import bisect
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jserve_sched.planning.builder import PlanBuilder
from jserve_sched.planning.candidates import Candidates, choose_waiting
from jserve_sched.planning.step_prices import StepPrices
from jserve_sched.planning.view import SchedulerView
from jserve_sched.policies.annealing.problem import (
    AnnealingProblem,
    make_problem,
    packed,
)
from jserve_sched.policies.annealing.search import (
    DEFAULT_PROPOSALS,
    MOST_JOBS,
    Kernel,
    anneal,
    search,
)
from jserve_sched.policies.base import SearchTotals
from jserve_sched.requests.facts import Facts
from jserve_sched.requests.request import Request
from jserve_sched.steps.plan import StepPlan

_INTERVAL_S = 0.05  # least time between two searches


class SearchLimit(NamedTuple):
    """Ends a search by the clock; what it finds then depends on the machine's speed.

    The budget counts all that a search prepares; infinite, it is measured only.
    """

    clock: Callable[[], float]  # seconds
    budget_s: float


class FoundOrder(NamedTuple):
    """The order in which a search would admit the requests that waited then."""

    turns: Mapping[str, int]  # places by id
    made_s: float
    num_changes: int


def num_changes(view: SchedulerView) -> int:
    """Returns how often a request has come, ended, or been preempted.

    While the count stands still, a plan for the queue is as good as it was.
    """
    queue = view.queue
    num_ended = queue.num_arrived - len(queue) - view.max_num_seqs + view.num_free_slots
    return queue.num_arrived + queue.num_returned + num_ended


@dataclasses.dataclass(eq=False, kw_only=True)
class Annealing:
    """Simulated annealing orders the queue; steps are filled as `fcfs` fills them.

    It remembers the order that the last search found, which every step until the next
    search follows, and the totals of its searches. Plans thus depend on earlier views.

    Attributes:
      proposals: Most changes that one search tries.
      max_age_s: Age above which a request goes first, seconds.
      make_kernel: Returns what runs the searches; called once.
      limit: Ends a search early and measures it.
    """

    proposals: int = DEFAULT_PROPOSALS
    max_age_s: float = 120.0
    make_kernel: Callable[[], Kernel] = dataclasses.field(
        default=lambda: anneal, repr=False
    )
    limit: SearchLimit | None = dataclasses.field(default=None, repr=False)
    searches: SearchTotals = dataclasses.field(
        init=False, default_factory=SearchTotals, repr=False
    )
    found: FoundOrder | None = dataclasses.field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = int(name == "proposals")
            if isinstance(value, int | float) and not value >= least:
                raise ValueError(f"{name}={value} is below {least}")
        self._kernel = self.make_kernel()

    def order(
        self, view: SchedulerView, steps: StepPrices, prompts: Facts
    ) -> np.ndarray:
        """Returns the places of prompts: what runs, then in the planned turn."""
        turns = np.array([*map(self._turn, prompts.requests)])
        return np.lexsort((prompts.arrival_s, turns, prompts.is_running <= 0))

    def search_if_due(self, view: SchedulerView) -> None:
        """Searches the order of the queue again, if that is due."""
        last, changes = self.found, num_changes(view)
        if not view.num_free_slots or (
            last is not None
            and (changes == last.num_changes or view.now_s - last.made_s < _INTERVAL_S)
        ):
            return
        clock, budget_s = self.limit or (None, math.inf)
        begun_s = clock() if clock else 0.0
        requests = choose_waiting(view, MOST_JOBS, first=self._num_aged(view)).requests
        if not requests:
            return
        problem = self._problem(view, requests)
        starts = []
        if last is not None:
            turns = np.array([*map(self._turn, requests)])
            starts.append(packed(problem, np.argsort(turns, kind="stable").tolist()))
        found = search(
            problem,
            num_proposals=self.proposals,
            seed=changes,
            kernel=self._kernel,
            starts=starts,
            spent=(lambda: (clock() - begun_s) / budget_s) if clock else None,
        )
        order = np.lexsort((problem.exec_s[:, -1], found.batch_of)).tolist()
        self.found = FoundOrder(
            turns={requests[job].request_id: turn for turn, job in enumerate(order)},
            made_s=view.now_s,
            num_changes=changes,
        )
        self.searches.num_searches += 1
        self.searches.search_s += clock() - begun_s if clock else 0.0

    def _problem(
        self, view: SchedulerView, requests: Sequence[Request]
    ) -> AnnealingProblem:
        """Returns what to search: these requests, in batches that join what runs.

        The first batch starts once the aged have had their turn. Of thousands of them
        the first ones are looked at; the others count as their mean.
        """
        latency, num_aged = view.latency, self._num_aged(view)
        start_s = view.in_flight_s
        if num_aged:
            known, left = _lengths(view.waiting[: min(num_aged, MOST_JOBS)])
            together = min(view.max_num_seqs, num_aged)
            mean_s = float(np.mean(latency.exec_s(np.array(together), known, left)))
            start_s += mean_s * num_aged / together
        held = sum(
            one.num_projected_tokens + one.expected_tokens_left for one in view.running
        )
        pool_tokens = view.ledger.num_pages * view.ledger.page_size
        return make_problem(
            requests,
            latency,
            now_s=view.now_s,
            max_batch=min(view.num_free_slots, len(requests)),
            max_kv_tokens=max(pool_tokens - held, 0),
            num_running=len(view.running),
            start_s=start_s,
        )

    def _num_aged(self, view: SchedulerView) -> int:
        """Returns how many of the waiting, the first by arrival, are over the bound."""
        since_s = view.now_s - self.max_age_s
        return bisect.bisect_left(
            view.admissible, since_s, key=lambda one: one.arrival_s
        )

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step; its prompts in turn."""
        self.search_if_due(view)
        waiting, num_aged = view.admissible, self._num_aged(view)
        young = sorted(waiting[num_aged:], key=self._turn)  # newcomers stay behind
        candidates = Candidates(
            view,
            [*waiting[:num_aged], *young],
            aged_before_s=view.now_s - self.max_age_s,
        )
        builder = PlanBuilder(view)
        candidates.add_decodes(builder)
        candidates.add_prompts(builder, candidates.prompts)
        return builder.build()

    def _turn(self, request: Request) -> int:
        """Returns a request's place in the last order; the most if it has none."""
        found = self.found
        return found.turns.get(request.request_id, MOST_JOBS) if found else MOST_JOBS


def _lengths(requests: Sequence[Request]) -> np.ndarray:
    """Returns tokens known and tokens expected to be left, `[2, N]`."""
    rows = [(one.num_known_tokens, one.expected_tokens_left) for one in requests]
    return np.array(rows, np.float64).T
