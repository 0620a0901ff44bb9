"""Sends requests: at their own times (open loop) or one after another (closed).

In an open loop arrivals do not wait for the server. A request is due when the trace
says so, its latency counts from then, and what the server or this program made it wait
is part of the answer.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from jserve_sched.outcomes import Failure, Outcome
from jserve_tools.load.clients import Client, RequestFailedError
from jserve_tools.load.workload import WorkloadRequest

# A request still running this many spans after the last arrival is given up.
GRACE_SPANS = 5.0
MIN_GRACE_S = 60.0
_HEAD_START_S = 0.05  # so that the first request is not late already


@dataclasses.dataclass(kw_only=True)
class Flight:
    """A request on its way; the one thing here that changes.

    Attributes:
      arrival_s: When it was due, which need not be when it was sent; times are on the
        client's clock.
      message: What the server said of a failure.
      is_over: Whether nothing more will come.
    """

    request: WorkloadRequest
    arrival_s: float
    sent_s: float | None = None
    token_times_s: list[float] = dataclasses.field(default_factory=list)
    failure: Failure | None = None
    message: str = ""
    is_over: bool = False

    def outcome(self) -> Outcome:
        """Returns what became of it; unfinished, if it still flies."""
        message = self.message
        if not self.is_over:
            message = f"no end after {len(self.token_times_s)} tokens"
        return Outcome(
            service_class=self.request.service_class,
            slo=self.request.slo,
            arrival_s=self.arrival_s,
            num_prompt_tokens=len(self.request.prompt),
            max_tokens=self.request.max_tokens,
            token_times_s=tuple(self.token_times_s),
            failure=self.failure if self.is_over else Failure.UNFINISHED,
            message=message,
        )


async def fly(client: Client, flight: Flight) -> None:
    """Sends one request and records its tokens."""
    flight.sent_s = client.now_s()
    try:
        async with contextlib.aclosing(client.send(flight.request)) as times_s:
            async for time_s in times_s:
                flight.token_times_s.append(time_s)
        if not flight.token_times_s:
            raise RequestFailedError(Failure.ERROR, "the answer held no token")
    except RequestFailedError as error:
        flight.failure = error.failure
        flight.message = str(error)
    flight.is_over = True


async def replay(
    client: Client,
    requests: Sequence[WorkloadRequest],
    flights: list[Flight],
    *,
    min_grace_s: float = MIN_GRACE_S,
) -> None:
    """Sends each request at its own time.

    Args:
      requests: Sorted by `arrival_s`, which counts from now.
      flights: Gets all of them at once, in the same order.
      min_grace_s: Least wait after the last arrival before giving up.
    """
    start_s = client.now_s() + _HEAD_START_S
    flights += [
        Flight(request=request, arrival_s=start_s + request.arrival_s)
        for request in requests
    ]
    tasks: list[asyncio.Task[None]] = []
    try:
        for flight in flights:
            delay_s = flight.arrival_s - client.now_s()
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            tasks.append(asyncio.create_task(fly(client, flight)))
        span_s = requests[-1].arrival_s - requests[0].arrival_s
        await asyncio.wait(tasks, timeout=max(GRACE_SPANS * span_s, min_grace_s))
    finally:
        await _settle(tasks)


async def closed_loop(
    client: Client,
    requests: Iterator[WorkloadRequest],
    flights: list[Flight],
    *,
    num_clients: int,
) -> None:
    """Keeps `num_clients` requests in flight until there are none left to send.

    Each request is put into `flights` as it is sent; its latency counts from then.
    """

    async def work() -> None:
        for request in requests:
            flight = Flight(request=request, arrival_s=client.now_s())
            flights.append(flight)
            await fly(client, flight)

    workers = [asyncio.create_task(work()) for _ in range(num_clients)]
    try:
        await asyncio.gather(*workers)
    finally:
        await _settle(workers)


async def _settle(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancels what still runs, and raises what went wrong in the rest."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
