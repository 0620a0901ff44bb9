"""Sends requests: when they are due (open loop) or one after another (closed loop).

In an open loop arrivals do not wait for the server. A request is due at the time in the
trace, and its latency counts from then, so it includes every wait that the server or
this program causes.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from jserve_sched.outcomes import Failure, Outcome
from jserve_sched.requests.forecast import ttft_of
from jserve_tools.load.clients import Client, RequestFailedError
from jserve_tools.load.workload import WorkloadRequest

# Requests still running this many times the span of arrivals after the last one are
# cancelled.
GRACE_SPANS = 5.0
MIN_GRACE_S = 60.0
_HEAD_START_S = 0.05  # without it the first request would be sent late


@dataclasses.dataclass(kw_only=True)
class Flight:
    """A request in flight, and the tokens that its client has received.

    Attributes:
      arrival_s: Time when the request was due, which may be before it was sent. All
        times are in seconds on the client's clock.
      message: The server's message about a failure.
      forecast_ttft_s: P50 and P90 of the TTFT, as the server forecast them; or None.
      is_degraded: Whether the server took it as best effort instead.
      is_over: Whether no further token will come.
    """

    request: WorkloadRequest
    arrival_s: float
    sent_s: float | None = None
    token_times_s: list[float] = dataclasses.field(default_factory=list)
    failure: Failure | None = None
    message: str = ""
    forecast_ttft_s: tuple[float, float] | None = None
    is_degraded: bool = False
    is_over: bool = False

    def outcome(self) -> Outcome:
        """Returns the request's outcome; unfinished if it is still in flight."""
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
            is_degraded=self.is_degraded,
            forecast_ttft_s=self.forecast_ttft_s,
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
    headers = client.answered.pop(flight.request.request_id, {})
    flight.is_degraded = headers.get("x-jserve-admission") == "degraded"
    if text := headers.get("x-jserve-forecast"):
        flight.forecast_ttft_s = ttft_of(text)
    flight.is_over = True


async def replay(
    client: Client,
    requests: Sequence[WorkloadRequest],
    flights: list[Flight],
    *,
    min_grace_s: float = MIN_GRACE_S,
) -> None:
    """Sends each request when it is due.

    Args:
      requests: Requests sorted by `arrival_s`, which counts from now.
      flights: List to which a flight for each request is added at once, in order.
      min_grace_s: Least time to wait for answers after the last arrival.
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

    Each request is added to `flights` when it is sent; its latency counts from then.
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
    """Cancels unfinished tasks, and raises the first error of the others."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
