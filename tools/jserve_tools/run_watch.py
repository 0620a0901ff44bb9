"""One run against one server: requests sent, and the engine looked at around them.

Counters and steps are read before the first request and after the last, so that a run
has its own even on a server that has long been busy.
"""

import collections
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from jserve_sched.output_lengths import LengthErrors
from jserve_sched.report import EngineCounters, Outcome, distribution, summarise_run
from jserve_tools.breakdown import break_down
from jserve_tools.clients import Client
from jserve_tools.documents import outcome_rows
from jserve_tools.progress import Progress
from jserve_tools.replay import Flight


async def watch_run(
    client: Client,
    send: Callable[[list[Flight]], Awaitable[None]],
    *,
    name: str,
    labels: Mapping[str, Any],
    num_requests: int,
    progress: Progress,
    profiles_host: bool = False,
) -> dict[str, Any]:
    """Sends requests; returns what they and the engine's steps came to.

    Args:
      client: Of a warm server.
      send: Sends the requests, and puts them into the list that it is given.
      name: The run's, for people.
      labels: Keys of the report that tell this run from others.
      num_requests: Requests that `send` will send.
      progress: Gets lines for people.
      profiles_host: Whether to break steps down into parts.
    """
    before = await client.facts()
    flights: list[Flight] = []

    def count() -> str:
        num_over = sum(one.is_over for one in flights)
        num_failed = sum(one.failure is not None for one in flights)
        failed = f", {num_failed} failed" if num_failed else ""
        return f"{num_over} of {num_requests} requests{failed}"

    with progress.doing(name, count):
        await send(flights)
    after = await client.facts()
    outcomes = [flight.outcome() for flight in flights]
    engine = after.get("engine") or {}
    steps, num_missing = None, 0
    if "stats" in before and "stats" in after:
        first_id, end_id = (int(one["stats"]["num_steps"]) for one in (before, after))
        steps = await client.steps(first_id)
        known = sum(first_id <= step.step_id < end_id for step in steps or ())
        num_missing = end_id - first_id - known
    summary = summarise_run(
        outcomes,
        steps=None if num_missing else steps,
        block_tokens=engine.get("block_tokens"),
        counters=_counters_between(before.get("stats"), after.get("stats")),
        labels=labels,
    )
    if failures := _failures(outcomes):
        summary["failures"] = failures
    summary |= _client_health(flights)
    if "num_uneven_streams" in after:
        growth = after["num_uneven_streams"] - before["num_uneven_streams"]
        summary["num_uneven_streams"] = growth
    if steps is not None and num_missing:
        # The shares of the rest would be those of the end of the run alone.
        summary["num_steps"] = len(steps) + num_missing
        summary["num_steps_missing"] = num_missing
        progress.say(
            f"{name}: the engine forgot {num_missing} of {summary['num_steps']} steps "
            "before they were read: padding is not reported"
        )
    if profiles_host and steps:
        summary["host_profile"] = break_down(
            steps,
            detokenise_s=(after.get("publish_s") or {}).get("p50"),
            has_overlap=engine.get("enable_overlap") is not False,
        )
    summary["requests"] = outcome_rows(outcomes)
    return summary


def _counters_between(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> EngineCounters | None:
    """Returns the growth of an engine's counters, or None where they are unknown."""
    if before is None or after is None:
        return None
    names = ("num_compiles_after_warmup", "num_preemptions", "prefix_hit_tokens")
    growth = {name: int(after[name]) - int(before[name]) for name in names}
    length_errors = {}
    for service_class, sums in after.get("length_errors", {}).items():
        old = before.get("length_errors", {}).get(service_class, {})
        more = {name: int(one) - int(old.get(name, 0)) for name, one in sums.items()}
        if more["num_requests"]:
            length_errors[service_class] = LengthErrors(**more)
    return EngineCounters(
        num_programs=int(after["num_programs"]), length_errors=length_errors, **growth
    )


def _failures(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Returns how many requests failed for each reason, and an example, most first."""
    failed = [one for one in outcomes if one.failure is not None]
    reasons = collections.Counter(one.failure for one in failed if one.failure)
    found = []
    for reason, count in reasons.most_common():
        messages = collections.Counter(
            one.message for one in failed if one.failure is reason
        )
        ((message, _),) = messages.most_common(1)
        found.append({"reason": reason.value, "count": count, "message": message})
    return found


def _client_health(flights: Sequence[Flight]) -> dict[str, Any]:
    """Returns whether this program sent on time, and got what it asked for."""
    delays_s = [
        None if flight.sent_s is None else flight.sent_s - flight.arrival_s
        for flight in flights
    ]
    # An answer that may end when the model likes is never short.
    finished = [one for one in flights if one.is_over and one.failure is None]
    num_short = sum(
        one.request.ignore_eos and len(one.token_times_s) < one.request.max_tokens
        for one in finished
    )
    delay = distribution(delays_s)
    return {"num_short_outputs": num_short} | ({"send_delay_s": delay} if delay else {})
