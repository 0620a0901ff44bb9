"""Measures the machine before any policy is judged: idle times and capacity.

The one idea: objectives and load are multiples of what this server does on this
machine, so a slow machine shows the same picture as a fast one. Both are
measured once and then frozen.

Capacity is the request rate that a full server sustains. Ten seconds hold few
requests of uneven size, so requests are not counted; work is. In a closed loop
with every slot taken, wall time is split into slices with P prompt and D output
tokens each; `a * P + b * D` is fitted to their duration, scaled to the whole
window, and priced for the workload's mean request.
"""

import asyncio
import dataclasses
import statistics
from collections.abc import Iterator, Sequence

import numpy as np

from jserve_sched.workload import Yardstick
from jserve_tools.clients import Client
from jserve_tools.replay import Flight, closed_loop, fly
from jserve_tools.workload import Workload, WorkloadRequest

_NUM_LENGTHS = 6  # prompt lengths on the isolated curve
_NUM_REPEATS = 3
_STEP_PROMPT_TOKENS = 32
_STEP_OUTPUT_TOKENS = 48
_START_PROMPT_TOKENS = 64  # prompts of the requests that first fill the slots
_RAMP_LIMIT_S = 30.0
_POLL_S = 0.05
_IDLE_LIMIT_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capacity:
    """What a full server sustains.

    Attributes:
      requests_per_s: of the workload's mean request.
      num_clients: requests kept in flight.
      window_s: how long was measured, after the slots had filled.
      prompt_tokens_per_s: prompt tokens computed in the window.
      output_tokens_per_s: output tokens in the window.
      prompt_token_s: fitted cost of one prompt token.
      output_token_s: fitted cost of one output token.
    """

    requests_per_s: float
    num_clients: int
    window_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    prompt_token_s: float
    output_token_s: float


async def _alone(client: Client, request: WorkloadRequest) -> Flight:
    flight = Flight(request=request, arrival_s=client.now_s())
    await fly(client, flight)
    if flight.failure is not None:
        raise RuntimeError(
            f"a lone request of {len(request.prompt)} prompt tokens failed: "
            f"{flight.message}"
        )
    return flight


async def measure_yardstick(client: Client, workload: Workload, run: int) -> Yardstick:
    """Measures the isolated TTFT curve and the isolated decode step.

    Args:
      client: an idle server.
      workload: its shortest and longest prompts bound the curve.
      run: a run number of its own, so that no prompt repeats.

    Raises:
      RuntimeError: if a lone request fails.
    """
    lengths = [row.prompt_tokens for row in workload.rows]
    grid = np.geomspace(min(lengths), max(lengths), _NUM_LENGTHS)
    points = [int(length) for length in np.unique(np.rint(grid).astype(int))]
    numbers = iter(range(10**9))

    async def flight(prompt_tokens: int, max_tokens: int) -> Flight:
        return await _alone(
            client,
            workload.request(
                run, next(numbers), prompt_tokens=prompt_tokens, max_tokens=max_tokens
            ),
        )

    await flight(_STEP_PROMPT_TOKENS, 2)
    lone = [
        await flight(_STEP_PROMPT_TOKENS, _STEP_OUTPUT_TOKENS)
        for _ in range(_NUM_REPEATS)
    ]
    step_s = mean_step_s([one.token_times_s for one in lone])
    ttft_s = []
    for length in points:
        repeats = [await flight(length, 1) for _ in range(_NUM_REPEATS)]
        ttft_s.append(
            statistics.median(one.token_times_s[0] - one.arrival_s for one in repeats)
        )
    return Yardstick(
        prompt_tokens=tuple(points),
        ttft_s=tuple(np.maximum.accumulate(ttft_s).tolist()),
        step_s=step_s,
    )


def mean_step_s(token_times_s: Sequence[Sequence[float]]) -> float:
    """Returns the time between tokens of lone requests: each one's mean, the median.

    Tokens may be read several at once where an engine is quicker than its client, so
    that most gaps are 0; from the first token to the last is the same.

    Args:
      token_times_s: of each request, when its tokens came, ascending.

    Raises:
      RuntimeError: if that is no time: too few tokens, or all at once.
    """
    found = [
        (times_s[-1] - times_s[0]) / (len(times_s) - 1)
        for times_s in token_times_s
        if len(times_s) > 1
    ]
    step_s = statistics.median(found) if found else 0.0
    if step_s <= 0:
        counts = [len(times_s) for times_s in token_times_s]
        raise RuntimeError(
            f"lone requests gave {counts} tokens, each one's all at the same time: a "
            "decode step cannot be measured"
        )
    return step_s


def _start_requests(
    workload: Workload, run: int, num_clients: int
) -> Iterator[WorkloadRequest]:
    """Yields requests as a busy server would hold them: part way through.

    One that is found running is long with a probability proportional to its
    length, and any share of it may be left.
    """
    random = np.random.default_rng((workload.seed, run))
    outputs = np.array([row.output_tokens for row in workload.rows], np.float64)
    picks = random.choice(len(outputs), num_clients, p=outputs / outputs.sum())
    for index, (pick, left) in enumerate(
        zip(picks, random.random(num_clients), strict=True)
    ):
        row = workload.rows[int(pick)]
        yield workload.request(
            run,
            index,
            prompt_tokens=min(row.prompt_tokens, _START_PROMPT_TOKENS),
            max_tokens=max(1, round(left * row.output_tokens)),
        )


def _endless_requests(
    workload: Workload, run: int, first_index: int
) -> Iterator[WorkloadRequest]:
    """Yields the workload's rows in random order, again and again."""
    random = np.random.default_rng((workload.seed, run, 1))
    index = first_index
    while True:
        for pick in random.permutation(len(workload.rows)):
            row = workload.rows[int(pick)]
            yield workload.request(
                run,
                index,
                prompt_tokens=row.prompt_tokens,
                max_tokens=row.output_tokens,
            )
            index += 1


def price_request(
    slice_s: float,
    prompt_tokens: np.ndarray,
    output_tokens: np.ndarray,
    mean_prompt_tokens: float,
    mean_output_tokens: float,
) -> tuple[float, float, float]:
    """Fits the cost of a token of each kind to equal slices of a busy time.

    Args:
      slice_s: duration of a slice.
      prompt_tokens: `[K]` prompt tokens computed in each slice.
      output_tokens: `[K]` output tokens in each slice.
      mean_prompt_tokens: of the workload.
      mean_output_tokens: of the workload.

    Returns:
      Seconds per prompt token, per output token, and per mean request.

    Raises:
      RuntimeError: if nothing was computed.
    """
    work = np.stack([prompt_tokens, output_tokens], axis=1).astype(np.float64)
    if not work.any():
        raise RuntimeError("no token came while capacity was measured")
    target = np.full(len(work), slice_s)
    costs = np.linalg.lstsq(work, target, rcond=None)[0]
    if (costs < 0).any():  # a cost cannot be negative: the other kind bears it all
        alone = [
            float(work[:, kind] @ target / max(work[:, kind] @ work[:, kind], 1e-12))
            for kind in range(2)
        ]
        fits = [np.array([alone[0], 0.0]), np.array([0.0, alone[1]])]
        costs = min(fits, key=lambda fit: float(((work @ fit - target) ** 2).sum()))
    costs = costs * (target.sum() / (work.sum(axis=0) @ costs))
    request_s = float(costs @ [mean_prompt_tokens, mean_output_tokens])
    return float(costs[0]), float(costs[1]), request_s


def tokens_by_slice(
    flights: list[Flight], start_s: float, slice_s: float, num_slices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the prompt and the output tokens of each slice, `[num_slices]` each.

    Prompts are taken to be computed one after another: each one's tokens are
    spread over the time from the first token before its own to its own.
    """
    edges = start_s + slice_s * np.arange(num_slices + 1)
    begun = sorted(
        (flight.token_times_s[0], len(flight.request.prompt))
        for flight in flights
        if flight.token_times_s
    )
    times_s = np.array([time_s for time_s, _ in begun])
    done = np.cumsum([length for _, length in begun])
    prompts = (
        np.diff(np.interp(edges, times_s, done)) if begun else np.zeros(num_slices)
    )
    every = [time_s for flight in flights for time_s in flight.token_times_s]
    outputs, _ = np.histogram(every, edges)
    return prompts, outputs


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
      client: an idle server.
      workload: whose rows are sent, in random order, as long as it takes.
      run: a run number of its own, so that no prompt repeats.
      num_slots: requests the server runs at once; a quarter more are sent.
      duration_s: how long to measure after the slots have filled.

    Raises:
      RuntimeError: if the server cannot do any of it.
    """
    num_clients = num_slots + max(2, num_slots // 4)
    flights: list[Flight] = []

    def source() -> Iterator[WorkloadRequest]:
        yield from _start_requests(workload, run, num_clients)
        yield from _endless_requests(workload, run, num_clients)

    load = asyncio.create_task(
        closed_loop(client, source(), num_clients=num_clients, flights=flights)
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
    prompts, outputs = tokens_by_slice(flights, start_s, slice_s, num_slices)
    prompt_token_s, output_token_s, request_s = price_request(
        slice_s,
        prompts,
        outputs,
        statistics.fmean(row.prompt_tokens for row in workload.rows),
        statistics.fmean(row.output_tokens for row in workload.rows),
    )
    await _until_idle(client)
    return Capacity(
        requests_per_s=1.0 / request_s,
        num_clients=num_clients,
        window_s=window_s,
        prompt_tokens_per_s=float(prompts.sum() / window_s),
        output_tokens_per_s=float(outputs.sum() / window_s),
        prompt_token_s=prompt_token_s,
        output_token_s=output_token_s,
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
        stats = await client.stats()
        if stats is None:
            await asyncio.sleep(1.0)  # a foreign server does not say
            return
        if not stats["num_running"] and not stats["num_waiting"]:
            return
        await asyncio.sleep(_POLL_S)
