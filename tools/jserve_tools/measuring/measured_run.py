"""One run against one server: sends requests, reads the engine before and after.

A run reports only the growth of counters and the steps between both readings, so a
server may have been busy before.
"""

import collections
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from jserve_sched.outcomes import EngineCounters, Outcome, distribution, summarise_run
from jserve_tools.load.clients import Client
from jserve_tools.load.replay import Flight
from jserve_tools.reporting.documents import known, outcome_rows


async def measure_run(
    client: Client,
    send: Callable[[], Awaitable[None]],
    flights: Sequence[Flight],
    *,
    labels: Mapping[str, Any],
    showing: AbstractContextManager[None],
) -> dict[str, Any]:
    """Sends requests; returns the entry of this run in the report's `runs`.

    Args:
      send: Sends the requests, and adds them to `flights`.
      flights: Requests sent; empty at first.
      labels: Keys of the entry that identify the run.
      showing: Context that shows progress.
    """
    before = await client.facts()
    with showing:
        await send()
    after = await client.facts()
    stats, old_stats = after.get("stats"), before.get("stats")
    outcomes = [flight.outcome() for flight in flights]
    engine = after.get("engine") or {}
    steps, num_missing = None, 0
    if stats is not None and old_stats is not None:
        first_id, end_id = (int(one["num_steps"]) for one in (old_stats, stats))
        steps = await client.steps(first_id) or []
        known = sum(first_id <= step.step_id < end_id for step in steps)
        num_missing = end_id - first_id - known
    run = summarise_run(
        outcomes,
        # Shares of the steps that are known would be those of the end of the run.
        steps=None if num_missing else steps,
        block_tokens=engine.get("block_tokens"),
        counters=_counters_between(old_stats, stats),
        labels=labels,
    )
    run |= _failures(outcomes) | _client_health(flights)
    if steps is not None and num_missing:
        run["num_steps"] = len(steps) + num_missing
        run["num_steps_missing"] = num_missing
    if kinds := ((stats or {}).get("predictor") or {}).get("kinds"):
        run["predicted_steps"] = kinds
    return run | start_up_facts(stats) | {"requests": outcome_rows(outcomes)}


def start_up_facts(stats: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the report's `start_up` and `buckets`, as far as they are known.

    Args:
      stats: Fields of EngineStats of a warm engine; None from a foreign server.
    """
    start = (stats or {}).get("start_up")
    if not start or not start["programs"]:
        return {}
    assert stats is not None
    sizes = [one["executable_bytes"] for one in start["programs"]]
    found = {name: start[name] for name in ("ready_s", "warm_s", "covering_s")} | {
        "compile_s": stats["compile_s"],
        "executable_bytes": None if None in sizes else sum(sizes),
        "programs": [known(one) for one in start["programs"]],
    }
    buckets = stats.get("buckets")  # None from a server of an earlier version
    return {"start_up": known(found)} | ({"buckets": known(buckets)} if buckets else {})


def _counters_between(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> EngineCounters | None:
    """Returns the growth of an engine's counters, or None where they are unknown."""
    if before is None or after is None:
        return None
    names = ("num_compiles_after_warmup", "num_preemptions", "prefix_hit_tokens")
    compiles, preemptions, hits = (int(after[one]) - int(before[one]) for one in names)
    return EngineCounters(
        num_programs=int(after["num_programs"]),
        num_compiles_after_warmup=compiles,
        num_preemptions=preemptions,
        prefix_hit_tokens=hits,
    )


def _failures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns the number of failures and an example for each reason, most first."""
    messages = collections.defaultdict[str, list[str]](list)
    for one in outcomes:
        if one.failure is not None:
            messages[one.failure.value].append(one.message)
    rows = [
        {
            "reason": reason,
            "count": len(found),
            "message": collections.Counter(found).most_common(1)[0][0],
        }
        for reason, found in sorted(messages.items(), key=lambda row: -len(row[1]))
    ]
    return {"failures": rows} if rows else {}


def _client_health(flights: Sequence[Flight]) -> dict[str, Any]:
    """Returns the delays of sending, and the number of outputs that were too short."""
    delays_s = [one.sent_s - one.arrival_s for one in flights if one.sent_s is not None]
    num_short = sum(
        len(one.token_times_s) < one.request.max_tokens
        for one in flights
        if one.is_over and one.failure is None
    )
    delay = distribution(delays_s)
    return {"num_short_outputs": num_short} | ({"send_delay_s": delay} if delay else {})
