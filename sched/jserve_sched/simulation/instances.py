"""Assignment of requests to one of several engines.

An assignment sees a snapshot of each engine, in which a running step has not ended yet,
so it knows no more than a router in front of real engines could know.
"""

from collections.abc import Callable, Sequence

from jserve_sched.planning.view import SchedulerView

Assignment = Callable[[Sequence[SchedulerView]], int]
"""Returns the index of the engine that gets the next request, from the snapshots of all
engines just before the request arrives."""


def in_turn(views: Sequence[SchedulerView]) -> int:
    """Gives requests to each engine in turn."""
    return sum(view.queue.num_arrived for view in views) % len(views)
