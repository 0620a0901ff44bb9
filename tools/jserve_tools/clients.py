"""What the benchmark asks of a server, whether over HTTP or in this process.

A client turns a request into the times at which its tokens came, on the client's own
clock. Every latency is computed from these, so it means the same for every server.
"""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from jserve.events import StepRecord
from jserve_sched.report import Failure
from jserve_tools.workload import WorkloadRequest


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

    def send(self, request: WorkloadRequest) -> AsyncGenerator[float, None]:
        """Yields when each token came; closing the iterator cancels the request.

        Raises:
          RequestFailedError: While iterating, if the request is refused or fails.
        """
        ...

    async def facts(self) -> Mapping[str, Any]:
        """Returns what a server states at /jserve/info; of a foreign one, little."""
        ...

    async def steps(self, since: int) -> list[StepRecord] | None:
        """Returns the steps numbered from `since`; None from a foreign server."""
        ...
