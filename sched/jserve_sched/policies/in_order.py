"""Chunked prefill in a fixed order: what `fcfs`, `edf`, `sjf` and `laxity` share.

All decodes go first; the rest of the step's token limit is filled with prompt chunks
(Sarathi-Serve, arXiv 2403.02310; vLLM's default).
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from jserve_sched.planning.builder import PlanBuilder
from jserve_sched.planning.candidates import Candidates
from jserve_sched.planning.step_prices import StepPrices
from jserve_sched.planning.view import SchedulerView
from jserve_sched.requests.facts import Facts, facts_of
from jserve_sched.requests.request import Request, RequestState
from jserve_sched.steps.plan import StepPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class InOrder:
    """A policy whose steps have a fixed size and take requests in an order.

    Attributes:
      chunk_tokens: Tokens in a step, decodes included (Sarathi's chunk size), rounded
        down to whole blocks but at least one; 0 fills the step.
    """

    chunk_tokens: int = 0

    def __post_init__(self) -> None:
        if self.chunk_tokens < 0:
            raise ValueError(f"chunk_tokens={self.chunk_tokens} is below 0")

    def key(self, view: SchedulerView, facts: Facts) -> np.ndarray:
        """Returns `[N]` what ranks requests before their arrival does: who runs."""
        return np.where(facts.is_running > 0, 0.0, 1.0)

    def order(
        self, view: SchedulerView, steps: StepPrices, prompts: Facts
    ) -> np.ndarray:
        """Returns the places of prompts by key and arrival."""
        return np.lexsort((prompts.arrival_s, self.key(view, prompts)))

    def plan_in_order(
        self, view: SchedulerView, ordered: Sequence[Request]
    ) -> StepPlan | None:
        """Plans all decodes first, then prefill blocks in order until nothing fits.

        Args:
          ordered: All running requests, of which the last is preempted first, and the
            first admissible ones, `view.most_offered` at least.
        """
        builder = PlanBuilder(view)
        running = [one for one in ordered if one.state is RequestState.RUNNING]
        waiting = [one for one in ordered if one.state is RequestState.WAITING]
        candidates = Candidates(view, waiting, running=running)
        candidates.add_decodes(builder)
        builder.limit_tokens(self.chunk_tokens)
        decodes = set(candidates.decodes)
        prompts = [one for one in ordered if one not in decodes]
        candidates.add_prompts(builder, prompts)
        return builder.build()


def first_waiting(view: SchedulerView, key: np.ndarray) -> Facts:
    """Returns the admissible requests that a plan may look at, by a key and arrival.

    Args:
      key: `[N]`, of the view's facts.
    """
    places, most = np.arange(len(key)), view.most_offered
    if len(key) > most:  # sorted are only those up to the last one of them
        last = np.partition(key, most - 1)[most - 1]
        places = np.flatnonzero(key <= last)
    order = np.argsort(key[places], kind="stable")[:most]
    return view.facts.take(places[order])


def rank(
    view: SchedulerView, key_of: Callable[[Facts], np.ndarray]
) -> Sequence[Request]:
    """Returns what `plan_in_order` takes, by a key `[N]` of facts, then by arrival."""
    running = facts_of(view.running)
    facts = running.before(first_waiting(view, key_of(view.facts)))
    order = np.lexsort((facts.arrival_s, key_of(facts)))
    return facts.take(order).requests
