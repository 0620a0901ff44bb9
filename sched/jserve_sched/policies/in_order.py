"""Chunked prefill in an order: `fcfs`, `edf` and `sjf`; see `laxity` for another.

All decodes go first; the rest of the step's token limit is filled with prompt chunks
(Sarathi-Serve, arXiv 2403.02310; vLLM's default). Under KV pressure the last in order
is preempted.
"""

import dataclasses

import numpy as np

from jserve_sched.planning.builder import PlanBuilder
from jserve_sched.planning.candidates import Candidates
from jserve_sched.planning.step_prices import StepPrices
from jserve_sched.planning.view import SchedulerView
from jserve_sched.requests.facts import Facts, facts_of
from jserve_sched.requests.request import RequestState
from jserve_sched.steps.plan import StepPlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class InOrder:
    """A policy whose steps have a fixed size and take requests by a key and arrival.

    Attributes:
      chunk_tokens: Tokens in a step, decodes included (Sarathi's chunk size), rounded
        down to whole blocks but at least one; 0 fills the step.
    """

    chunk_tokens: int = 0

    def __post_init__(self) -> None:
        if self.chunk_tokens < 0:
            raise ValueError(f"chunk_tokens={self.chunk_tokens} is below 0")

    def key(self, view: SchedulerView, facts: Facts) -> np.ndarray:
        """Returns `[N]` what ranks requests before their arrival does."""
        raise NotImplementedError

    def order(
        self, view: SchedulerView, steps: StepPrices, prompts: Facts
    ) -> np.ndarray:
        """Returns the places of prompts by key and arrival."""
        return np.lexsort((prompts.arrival_s, self.key(view, prompts)))

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Plans all decodes first, then prefill blocks in order until nothing fits."""
        if not (view.running or view.admissible):
            return None
        facts = facts_of(view.running).before(self._first_waiting(view))
        order = np.lexsort((facts.arrival_s, self.key(view, facts)))
        ordered = facts.take(order).requests
        running = [one for one in ordered if one.state is RequestState.RUNNING]
        waiting = [one for one in ordered if one.state is RequestState.WAITING]
        candidates = Candidates(view, waiting, running=running)
        builder = PlanBuilder(view)
        candidates.add_decodes(builder)
        builder.limit_tokens(self.chunk_tokens)
        decodes = set(candidates.decodes)
        prompts = [one for one in ordered if one not in decodes]
        candidates.add_prompts(builder, prompts)
        return builder.build()

    def _first_waiting(self, view: SchedulerView) -> Facts:
        """Returns the admissible requests that a plan looks at, by key and arrival."""
        facts, most = view.facts, view.most_offered
        key = self.key(view, facts)
        places = np.arange(len(key))
        if len(key) > most:  # sorted are only those up to the last one of them
            last = np.partition(key, most - 1)[most - 1]
            places = np.flatnonzero(key <= last)
        order = np.argsort(key[places], kind="stable")[:most]
        return facts.take(places[order])


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstComeFirstServed(InOrder):
    """Running requests first, then waiting ones, each by arrival."""

    def key(self, view: SchedulerView, facts: Facts) -> np.ndarray:
        """Returns who runs."""
        return 1.0 - facts.is_running


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarliestDeadlineFirst(InOrder):
    """The request whose next token is wanted first goes first (Sarathi-EDF).

    Token deadlines are those of SlidingServe (Eq. 1, arXiv 2606.05933); a completion
    bound is spread over the tokens (`Slo.pacing`). Those without an SLO come last.
    """

    def key(self, view: SchedulerView, facts: Facts) -> np.ndarray:
        """Returns when tokens are wanted."""
        return facts.pace_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortestJobFirst(InOrder):
    """The request with the least predicted time left goes first.

    It is the best order for mean latency where all are equal, and the one that starves
    the long. SLOs are not looked at. A job's time is that of the tokens left of its
    prompt and of the expected rest of its answer, in a batch as large as may run at
    once (`RequestLatency`); the length estimator predicts the answer.
    """

    def key(self, view: SchedulerView, facts: Facts) -> np.ndarray:
        """Returns the seconds that each job has left `[N]`."""
        # What a waiting job may share is not taken off.
        tokens = facts.known_tokens - facts.start * facts.is_running
        latency, batch = view.latency, np.array(view.max_num_seqs)
        left_s: np.ndarray = latency.prefill.of(batch, tokens)
        left_s += latency.decode_s(batch, facts.known_tokens, facts.answer_tokens)
        return left_s
