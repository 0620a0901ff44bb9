"""Rules that choose a replica: the usual ones, and ours.

round_robin        each in turn
least_outstanding  the fewest requests that have not ended
prefix             the longest prefix that was sent there, unless the replica has
                   twice as many requests as the emptiest
lmetric            tokens to prefill times batch size (LMetric, OSDI 2026)
slo                ours: the most requests in time, the newcomer and those that it
                   would disturb; then the least of LMetric's product, in seconds
"""

import collections
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jserve_sched.routing.load import Newcomer, ReplicaLoad

_MANY = 16  # replicas, above which two at random are looked at
_MOST_PREFIXES = 2**16  # remembered, over all replicas


class Offer(NamedTuple):
    """One replica, and what a rule may know of it.

    Attributes:
      load: What the replica told.
      newcomer: The request to be sent.
      now_s: The time, clock seconds.
      num_cached: Tokens of its prompt that were sent there before.
      least: Requests of the emptiest replica.
    """

    load: ReplicaLoad
    newcomer: Newcomer
    now_s: float
    num_cached: int
    least: int


Cost = tuple[float, ...]
Rule = Callable[[Offer], Cost]
"""Returns what a request costs at a replica; of equal ones each gets its turn."""


def round_robin(offer: Offer) -> Cost:
    """All cost the same."""
    del offer
    return ()


def least_outstanding(offer: Offer) -> Cost:
    """The requests that have not ended."""
    return (offer.load.num_requests,)


def prefix(offer: Offer) -> Cost:
    """The longest prefix, where the load is not far from even."""
    is_even = offer.load.num_requests <= 2 * offer.least + 1
    return (-offer.num_cached * is_even, offer.load.num_requests)


def lmetric(offer: Offer) -> Cost:
    """Tokens to prefill, the newcomer's too, times the batch that it would join."""
    new = offer.newcomer.num_tokens - offer.num_cached
    return ((offer.load.prefill_tokens + new) * (offer.load.num_requests + 1),)


def slo(offer: Offer) -> Cost:
    """Requests in time; then time to prefill times the length of a step."""
    load, newcomer = offer.load, offer.newcomer
    gain = load.gain(newcomer, offer.now_s, offer.num_cached)
    busy_s = sum(load.works_s) + load.work_s(newcomer, offer.num_cached)
    busy_s += load.in_flight_s
    return (-gain, busy_s * (load.num_requests + 1) * load.step_s)


ROUTERS: dict[str, Rule] = {
    one.__name__: one for one in (round_robin, least_outstanding, prefix, lmetric, slo)
}


class PrefixMemory:
    """Where prefixes were sent lately; a replica may have forgotten them since."""

    def __init__(self) -> None:
        self._sent = collections.OrderedDict[tuple[bytes, int], None]()

    def add(self, newcomer: Newcomer, place: int) -> None:
        """Notes that a prompt was sent to a replica."""
        for one in newcomer.prefix:
            self._sent[one, place] = None
            self._sent.move_to_end((one, place))
        while len(self._sent) > _MOST_PREFIXES:
            self._sent.popitem(last=False)

    def num_pages(self, newcomer: Newcomer, place: int) -> int:
        """Returns how many of a prompt's first pages a replica should have."""
        count = 0
        for one in newcomer.prefix:
            if (one, place) not in self._sent:
                break
            count += 1
        return count


class Router:
    """Chooses the replica that costs least."""

    def __init__(self, rule: Rule, seed: int = 0):
        self._rule = rule
        self._rng = random.Random(seed)
        self._turn = 0
        self._prefixes = PrefixMemory()

    def choose(
        self, newcomer: Newcomer, loads: Sequence[ReplicaLoad], now_s: float
    ) -> int | None:
        """Returns the place of a replica; None refuses the request.

        It is refused if its class asks for that, and no replica would have one more in
        time. Among many replicas, two at random are looked at, which is nearly as good
        (Mitzenmacher, *The Power of Two Choices*, 2001).
        """
        places: Sequence[int] = range(len(loads))
        if len(loads) > _MANY:
            places = self._rng.sample(places, 2)
        least = min(loads[place].num_requests for place in places)
        costs: dict[int, Cost] = {}
        for place in places:
            load = loads[place]
            cached = self._prefixes.num_pages(newcomer, place) * load.page_tokens
            cached = min(cached, newcomer.num_tokens - 1)
            turn = (place - self._turn) % len(loads)
            offer = Offer(load, newcomer, now_s, cached, least)
            costs[place] = (*self._rule(offer), turn)
        place = min(costs, key=costs.__getitem__)
        if self._rule is slo and newcomer.can_be_refused and costs[place][0] >= 0:
            return None
        self._turn = (place + 1) % len(loads)
        self._prefixes.add(newcomer, place)
        return place
