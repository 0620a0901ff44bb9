"""Dispatcher: routes requests by snapshots that are old by the time they are used."""

from collections.abc import Sequence

from jserve_sched.routing.load import Newcomer, ReplicaLoad
from jserve_sched.routing.routers import ROUTERS, Router


class Dispatcher:
    """Remembers what was sent since each snapshot was made, and corrects it by that."""

    def __init__(self, router: str, num_replicas: int, seed: int = 0):
        """Makes one.

        Raises:
          ValueError: If there is no such router.
        """
        if router not in ROUTERS:
            raise ValueError(f"router {router!r} is not one of {', '.join(ROUTERS)}")
        self._router = Router(ROUTERS[router], seed)
        self._sent: list[list[tuple[float, Newcomer]]] = [
            [] for _ in range(num_replicas)
        ]

    def route(
        self, newcomer: Newcomer, loads: Sequence[ReplicaLoad], now_s: float
    ) -> int | None:
        """Returns the place of the replica that gets a request; None refuses it."""
        present = list(loads)
        for place, load in enumerate(loads):
            self._sent[place] = [
                sent for sent in self._sent[place] if sent[0] >= load.made_s
            ]
            for _, earlier in self._sent[place]:
                present[place] = present[place].plus(earlier)
        chosen = self._router.choose(newcomer, present, now_s)
        if chosen is not None:
            self._sent[chosen].append((now_s, newcomer))
        return chosen
