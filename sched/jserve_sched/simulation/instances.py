"""Routing between simulated engines, by what a router in front of real ones would know.

A snapshot is taken while a step runs, and does not show what that step will give.
"""

from collections.abc import Sequence

from jserve_sched.memory.ledger import chain_hashes
from jserve_sched.routing import Dispatcher, Newcomer, ReplicaLoad, load_of
from jserve_sched.simulation.engine import SimulatedEngine
from jserve_sched.simulation.workload import Arrival


class Routing:
    """A router, and the snapshots that it has of the engines."""

    def __init__(self, dispatcher: Dispatcher, *, snapshot_age_s: float = 0.0):
        """Takes a new snapshot of an engine once the last is `snapshot_age_s` old."""
        self._dispatcher = dispatcher
        self._snapshot_age_s = snapshot_age_s
        self._loads: dict[int, ReplicaLoad] = {}

    def place_of(
        self, one: Arrival, engines: Sequence[SimulatedEngine], now_s: float
    ) -> int | None:
        """Returns the place of the engine that gets a request; None refuses it."""
        for place, engine in enumerate(engines):
            known = self._loads.get(place)
            if known is None or now_s - known.made_s >= self._snapshot_age_s:
                self._loads[place] = load_of(engine.scheduler.view(now_s))
        newcomer = Newcomer(
            arrival_s=one.arrival_s,
            num_tokens=one.num_prompt_tokens,
            answer_tokens=max(one.declared_max_tokens, one.max_tokens),
            slo=one.slo,
            can_be_refused=one.admission == "refuse",
            prefix=self._prefix(one),
        )
        loads = [self._loads[place] for place in range(len(engines))]
        return self._dispatcher.route(newcomer, loads, now_s)

    def _prefix(self, one: Arrival) -> tuple[bytes, ...]:
        if not one.block_ids:
            return ()
        return tuple(chain_hashes(one.prompt(), self._loads[0].page_tokens))
