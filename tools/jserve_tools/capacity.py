"""Measures what a full server sustains: what rates are shares of.

Ten seconds hold few requests of uneven size, so requests are not counted; work is. In
a closed loop with every slot taken, wall time is split into slices with P prompt and D
output tokens each; `a * P + b * D` is fitted to their duration, scaled to the whole
window, and priced for the workload's mean request.
"""

import asyncio
import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from jserve_tools.clients import Client
from jserve_tools.replay import Flight, closed_loop
from jserve_tools.workload import Workload, WorkloadRequest

_START_PROMPT_TOKENS = 64  # prompts of the requests that first fill the slots
_RAMP_LIMIT_S = 30.0
_POLL_S = 0.05
_IDLE_LIMIT_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capacity:
    """What a full server sustains; keys of the report.

    Attributes:
      requests_per_s: Rate of the workload's mean request.
      window_s: Seconds measured, after the slots had filled.
      prompt_token_s: Fitted cost of one prompt token.
      output_token_s: Fitted cost of one output token.
    """

    requests_per_s: float
    num_clients: int
    window_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    prompt_token_s: float
    output_token_s: float


def _requests(
    workload: Workload, run: int, num_first: int
) -> Iterator[WorkloadRequest]:
    """Yields the workload's rows in random order, again and again.

    The first `num_first` are as a busy server holds them, part way through: their
    prompts are short, and any share of their output may be left. One that is found
    running is long with a probability proportional to its length.
    """
    rows = workload.rows
    random = np.random.default_rng((workload.config.seed, run))
    outputs = np.array([row.output_tokens for row in rows], np.float64)
    first = random.choice(len(rows), num_first, p=outputs / outputs.sum())
    orders = (random.permutation(len(rows)) for _ in itertools.count())
    picks = itertools.chain(first, itertools.chain.from_iterable(orders))
    for index, pick in enumerate(picks):
        prompt, output = rows[int(pick)].prompt_tokens, rows[int(pick)].output_tokens
        if index < num_first:
            prompt = min(prompt, _START_PROMPT_TOKENS)
            output = max(1, round(random.random() * output))
        yield workload.request(run, index, prompt_tokens=prompt, max_tokens=output)


def token_costs_s(work: np.ndarray, slice_s: float) -> np.ndarray:
    """Fits the cost of a token of each kind to equal slices of a busy time.

    Args:
      work: `[K, 2]` prompt and output tokens computed in each slice.
      slice_s: Duration of a slice.

    Returns:
      `[2]` seconds per prompt token and per output token.

    Raises:
      RuntimeError: If nothing was computed.
    """
    from scipy.optimize import nnls  # takes a third of a second to import

    if not work.any():
        raise RuntimeError("no token came while capacity was measured")
    costs_s, _ = nnls(work.astype(np.float64), np.full(len(work), slice_s))
    # Scaled to the whole time, so that none of it is left out.
    return np.asarray(costs_s * (len(work) * slice_s / (work.sum(axis=0) @ costs_s)))


def tokens_by_slice(
    flights: list[Flight], start_s: float, slice_s: float, num_slices: int
) -> np.ndarray:
    """Returns `[num_slices, 2]` prompt and output tokens of each slice of time.

    Prompts are taken to be computed one after another: each one's tokens are
    spread over the time from the first token before its own to its own.
    """
    edges = start_s + slice_s * np.arange(num_slices + 1)
    begun = [one for one in flights if one.token_times_s]
    if not begun:
        return np.zeros((num_slices, 2))
    begun.sort(key=lambda one: one.token_times_s[0])
    times_s = [one.token_times_s[0] for one in begun]
    done = np.cumsum([len(one.request.prompt) for one in begun])
    every = [time_s for one in begun for time_s in one.token_times_s]
    prompts = np.diff(np.interp(edges, times_s, done))
    return np.stack([prompts, np.histogram(every, edges)[0]], axis=1)


async def measure_capacity(
    client: Client,
    workload: Workload,
    run: int,
    *,
    num_slots: int,
    duration_s: float,
) -> Capacity:
    """Keeps the server full for a while and says what it sustains.

    Args:
      client: Of an idle server.
      workload: Its rows are sent, in random order, as long as it takes.
      run: A run number that no other requests have, so that no prompt repeats.
      num_slots: Requests the server runs at once; a quarter more are sent.
      duration_s: How long to measure after the slots have filled.

    Raises:
      RuntimeError: If the server cannot do any of it.
    """
    num_clients = num_slots + max(2, num_slots // 4)
    flights: list[Flight] = []

    source = _requests(workload, run, num_clients)
    load = asyncio.create_task(
        closed_loop(client, source, flights, num_clients=num_clients)
    )
    try:
        ramp_end_s = client.now_s() + _RAMP_LIMIT_S
        while client.now_s() < ramp_end_s and not load.done():
            await asyncio.sleep(_POLL_S)
            if sum(bool(one.token_times_s) for one in flights) >= num_slots:
                break
            _check_failures(flights, num_clients)
        start_s = client.now_s()
        await asyncio.wait([load], timeout=duration_s)
        window_s = client.now_s() - start_s
        _check_failures(flights, num_clients)
    finally:
        load.cancel()
        (ended,) = await asyncio.gather(load, return_exceptions=True)
    if isinstance(ended, Exception):
        raise ended
    num_slices = max(4, int(window_s))
    slice_s = window_s / num_slices
    work = tokens_by_slice(flights, start_s, slice_s, num_slices)
    costs_s = token_costs_s(work, slice_s)
    rows = [(row.prompt_tokens, row.output_tokens) for row in workload.rows]
    tokens_per_s = work.sum(axis=0) / window_s
    await _until_idle(client)
    return Capacity(
        requests_per_s=float(1.0 / (costs_s @ np.mean(rows, axis=0))),
        num_clients=num_clients,
        window_s=window_s,
        prompt_tokens_per_s=float(tokens_per_s[0]),
        output_tokens_per_s=float(tokens_per_s[1]),
        prompt_token_s=float(costs_s[0]),
        output_token_s=float(costs_s[1]),
    )


def _check_failures(flights: list[Flight], num_clients: int) -> None:
    """Raises RuntimeError if most of the requests sent so far have failed."""
    failed = [one.message for one in flights if one.failure is not None]
    if len(failed) >= num_clients and len(failed) > len(flights) / 2:
        raise RuntimeError(f"the server fails under full load: {failed[0]}")


async def _until_idle(client: Client) -> None:
    """Waits until the requests just cancelled have left the server."""
    end_s = client.now_s() + _IDLE_LIMIT_S
    while client.now_s() < end_s:
        stats = (await client.facts()).get("stats")
        if stats is None:
            await asyncio.sleep(1.0)  # a foreign server does not say
            return
        if not stats["num_running"] and not stats["num_waiting"]:
            return
        await asyncio.sleep(_POLL_S)
