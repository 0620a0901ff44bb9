"""Facts: what ranks requests, in columns beside them.

A queue may hold ten thousand requests, so policies compute with columns `[N]` of all of
them and look at the few that a step can take.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jserve_sched.requests.request import Request, RequestState


class Facts(NamedTuple):
    """Requests, and what ranks them: columns `[N]`, float64.

    Attributes:
      requests: Requests whose facts they are, in an order.
      pace_s: Time at which the next output token is wanted, clock seconds.
      deadline_s: Time after which that token violates the SLO, clock seconds.
      arrival_s: Time of arrival, clock seconds.
      end_s: Time after which the last token violates the SLO, clock seconds.
      known_tokens: Tokens there will be once the plans in flight are applied.
      start: Those of them whose KV exists or is shared.
      answer_tokens: Output tokens still to be planned, as predicted.
      guard: Whether the class is guarded.
      is_running: Whether a slot is held.
    """

    requests: Sequence[Request]
    pace_s: np.ndarray
    deadline_s: np.ndarray
    arrival_s: np.ndarray
    end_s: np.ndarray
    known_tokens: np.ndarray
    start: np.ndarray
    answer_tokens: np.ndarray
    guard: np.ndarray
    is_running: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """Tokens left to compute, r_i."""
        left: np.ndarray = self.known_tokens - self.start
        return left

    def take(self, places: np.ndarray) -> "Facts":
        """Returns those at the given places, in that order."""
        requests = self.requests
        chosen = [requests[place] for place in places.tolist()]
        return Facts(chosen, *(column[places] for column in self[1:]))

    def before(self, others: "Facts") -> "Facts":
        """Returns these and others behind them."""
        pairs = zip(self[1:], others[1:], strict=True)
        both = [*self.requests, *others.requests]
        return Facts(both, *map(np.concatenate, pairs))


def fact_row(request: Request) -> tuple[float, ...]:
    """Returns one request's value in each column of `Facts`."""
    is_running = request.state is RequestState.RUNNING
    slo, arrival_s = request.slo, request.arrival_s
    num_outputs = len(request.output_tokens) + request.num_pending_tokens
    answer_tokens = request.predicted_output_tokens - num_outputs
    return (
        request.pacing.pace_s(num_outputs),
        slo.deadline_s(arrival_s, num_outputs),
        arrival_s,
        math.inf if slo.ttlt_s is None else arrival_s + slo.ttlt_s,
        len(request.prompt_tokens) + num_outputs,
        request.num_dispatched_tokens if is_running else request.num_shared_tokens,
        answer_tokens if answer_tokens > 1 else 1,
        request.guard,
        is_running,
    )


def facts_of(requests: Iterable[Request]) -> Facts:
    """Returns the facts of requests, in their order."""
    requests = list(requests)
    flat = itertools.chain.from_iterable(map(fact_row, requests))
    rows = np.fromiter(flat, np.float64).reshape(-1, len(Facts._fields) - 1)
    return Facts(requests, *rows.T)
