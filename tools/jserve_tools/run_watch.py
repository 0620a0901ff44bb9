"""One run against one server: requests sent, and the engine looked at around them.

The one idea: counters and steps are read before the first request and after the last,
so that a run has its own even on a server that has long been busy.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NoReturn

import tqdm

from jserve.events import StepRecord
from jserve_sched.report import distribution, summarise_run
from jserve_tools.breakdown import break_down
from jserve_tools.clients import Client, counters_between
from jserve_tools.documents import outcome_rows
from jserve_tools.http_client import HttpClient
from jserve_tools.plots import PlottedRun
from jserve_tools.replay import Flight


async def watch_run(
    client: Client,
    send: Callable[[Callable[[], None]], Awaitable[list[Flight]]],
    *,
    engine: Mapping[str, Any],
    labels: Mapping[str, Any],
    num_requests: int,
    say: Callable[[str], None],
    profiles_host: bool = False,
) -> PlottedRun:
    """Sends requests; returns what they and the engine's steps came to.

    Args:
      client: a server that is warm.
      send: sends the requests, and calls what it is given after each.
      engine: the server's settings, as far as it tells them.
      labels: what tells this run from others.
      num_requests: how many there will be, for the progress bar.
      say: prints a line for people.
      profiles_host: whether to break steps down into parts.
    """
    before = await client.stats()
    uneven_before = _num_uneven(client)
    await client.take_detokenise_s()
    progress = tqdm.tqdm(
        total=num_requests,
        desc=str(labels.get("policy", "server")),
        unit="req",
        disable=None,
        leave=False,
    )
    with progress:
        flights = await send(lambda: _count_one(progress))
    after = await client.stats()
    steps = None
    num_missing = 0
    if before is not None:
        first_id = int(before["num_steps"])
        steps = await client.steps(first_id)
        if steps is not None and after is not None:
            num_missing = _num_missing(steps, first_id, int(after["num_steps"]))
    block_tokens = engine.get("block_tokens")
    outcomes = [flight.outcome() for flight in flights]
    summary = summarise_run(
        outcomes,
        steps=None if num_missing else steps,
        block_tokens=block_tokens,
        counters=counters_between(before, after),
        labels=labels,
    )
    summary |= _client_health(flights)
    if (uneven := _num_uneven(client)) is not None:
        summary["num_uneven_streams"] = uneven - (uneven_before or 0)
    if steps is not None and num_missing:
        # The shares of the rest would be those of the end of the run alone.
        summary["num_steps"] = len(steps) + num_missing
        summary["num_steps_missing"] = num_missing
        say(
            f"the engine forgot {num_missing} of {summary['num_steps']} steps "
            "before they were read: padding is not reported"
        )
    if profiles_host and steps:
        summary["host_profile"] = break_down(
            steps,
            detokenise_s=await client.take_detokenise_s(),
            has_overlap=engine.get("enable_overlap") is not False,
        )
    summary["requests"] = outcome_rows(outcomes)
    return PlottedRun(
        summary=summary, outcomes=outcomes, steps=steps, block_tokens=block_tokens
    )


def _count_one(progress: "tqdm.tqdm[NoReturn]") -> None:
    progress.update()


def _num_missing(steps: Sequence[StepRecord], first_id: int, end_id: int) -> int:
    """Returns how many steps from `first_id` to before `end_id` were not read."""
    known = sum(first_id <= step.step_id < end_id for step in steps)
    return end_id - first_id - known


def _num_uneven(client: Client) -> int | None:
    return client.num_uneven_streams if isinstance(client, HttpClient) else None


def _client_health(flights: Sequence[Flight]) -> dict[str, Any]:
    """Returns what tells whether this program kept its own appointments."""
    delays_s = [
        flight.sent_s - flight.arrival_s
        for flight in flights
        if flight.sent_s is not None
    ]
    short = sum(
        flight.failure is None
        and flight.is_over
        and flight.request.ignore_eos  # else it may end when the model likes
        and len(flight.token_times_s) < flight.request.max_tokens
        for flight in flights
    )
    health: dict[str, Any] = {"num_short_outputs": short}
    if (delay := distribution(delays_s)) is not None:
        health["send_delay_s"] = delay
    return health
