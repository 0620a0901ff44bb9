"""What the benchmark asks of a server, whether over HTTP or in this process.

The one idea: a client turns a request into the times at which its tokens came,
on the client's own clock. Everything said about latency is computed from these,
so it means the same for every kind of server.
"""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, NamedTuple, Protocol

from jserve.events import StepRecord
from jserve_sched.output_lengths import LengthErrors
from jserve_sched.report import EngineCounters, Failure
from jserve_tools.workload import WorkloadRequest


class TokenTime(NamedTuple):
    """An output token's place, from 0, and when it came."""

    place: int
    time_s: float


class RequestFailedError(Exception):
    """A request that did not run to its end, and the kind of failure."""

    def __init__(self, failure: Failure, message: str):
        super().__init__(message)
        self.failure = failure


class Client(Protocol):
    """A server, as the benchmark sees it."""

    def now_s(self) -> float:
        """Returns the client's clock, in seconds."""
        ...

    def send(self, request: WorkloadRequest) -> AsyncGenerator[TokenTime, None]:
        """Yields the request's tokens; closing the iterator cancels the request.

        Raises:
          RequestFailedError: while iterating, if the request is refused or fails.
        """
        ...

    async def facts(self) -> Mapping[str, Any]:
        """Returns what is known of the server; of a foreign one, little."""
        ...

    async def stats(self) -> Mapping[str, Any] | None:
        """Returns the fields of EngineStats; None from a foreign server."""
        ...

    async def steps(self, since: int) -> list[StepRecord] | None:
        """Returns the steps numbered from `since`; None from a foreign server."""
        ...

    async def take_detokenise_s(self) -> float | None:
        """Returns the median time of a step's text; None if not timed.

        Over the steps since the last call, or over the server's recent ones.
        """
        ...


def counters_between(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> EngineCounters | None:
    """Returns the growth of an engine's counters, or None where they are unknown."""
    if before is None or after is None:
        return None
    growth = {
        name: int(after[name]) - int(before[name])
        for name in (
            "num_compiles_after_warmup",
            "num_preemptions",
            "prefix_hit_tokens",
        )
    }
    return EngineCounters(
        num_programs=int(after["num_programs"]),
        length_errors=_length_errors_between(
            before.get("length_errors", {}), after.get("length_errors", {})
        ),
        **growth,
    )


def _length_errors_between(
    before: Mapping[str, Mapping[str, int]], after: Mapping[str, Mapping[str, int]]
) -> dict[str, LengthErrors]:
    """Returns the growth of each class's sums, where an answer ended."""
    growth = {}
    for service_class, sums in after.items():
        old = before.get(service_class, {})
        more = {
            name: int(value) - int(old.get(name, 0)) for name, value in sums.items()
        }
        if more["num_requests"]:
            growth[service_class] = LengthErrors(**more)
    return growth
