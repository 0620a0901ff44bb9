"""Idle times and capacity of the first server: the units of objectives and rates.

Relative objectives are multiples of an idle server's times, so slow and fast machines
give similar results. Rates are shares of what a full server sustains. Both
are measured once, on the first server, and used for all servers.
"""

import asyncio
import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jserve.progress import Progress
from jserve_sched.simulation.workload import Yardstick
from jserve_tools.load.clients import Client
from jserve_tools.load.replay import Flight, closed_loop, fly
from jserve_tools.load.workload import Workload, WorkloadRequest
from jserve_tools.reporting.tables import duration, render

# Prompts are drawn by run number; reported runs begin with the third number.
_YARDSTICK_RUN, _CAPACITY_RUN, FIRST_RUN = range(3)

# Idle.
_NUM_LENGTHS = 6  # prompt lengths on the isolated curve
_NUM_REPEATS = 3
_STEP_PROMPT_TOKENS = 32
_STEP_OUTPUT_TOKENS = 48

# Full.
_FOREIGN_SLOTS = 32  # of a server that does not state its `max_num_seqs`
_START_PROMPT_TOKENS = 64  # prompts of the requests that first fill the slots
_RAMP_LIMIT_S = 30.0
_POLL_S = 0.05
_IDLE_LIMIT_S = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Capacity:
    """What a full server sustains; the report's `capacity`.

    Attributes:
      requests_per_s: Sustained rate of requests with the workload's mean lengths.
      num_clients: Number of requests in flight while it was measured.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline:
    """A server's facts, its idle times and its capacity.

    Attributes:
      facts: What the server states at /jserve/info.
      yardstick: Idle times; None if no objective is a multiple of them.
      capacity: Capacity; None if no rate is a share of it.
    """

    facts: Mapping[str, Any]
    yardstick: Yardstick | None = None
    capacity: Capacity | None = None

    def describe(self, workload: Workload) -> str:
        """Returns idle times, capacity and the objectives in seconds, as text."""
        lines = []
        if (idle := self.yardstick) is not None:
            points = [
                f"{duration(ttft_s)} to the first token of {length}"
                for length, ttft_s in zip(idle.prompt_tokens, idle.ttft_s, strict=True)
            ]
            step = f"{duration(idle.step_s)} a decode step"
            lines.append(f"idle server: {', '.join(points)}; {step}")
        if (full := self.capacity) is not None:
            lines.append(
                f"capacity: {full.requests_per_s:.2f} requests/s of this workload "
                f"({full.num_clients} clients for {full.window_s:.0f} s: "
                f"{full.prompt_tokens_per_s:.0f} prompt and "
                f"{full.output_tokens_per_s:.0f} output tokens/s)"
            )
        return "\n".join([*lines, slo_table(workload, self.yardstick)])


def baseline_from_json(row: Mapping[str, Any]) -> Baseline:
    """Returns a baseline from its JSON form."""
    idle, full = row["yardstick"], row["capacity"]
    return Baseline(
        facts=row["facts"],
        yardstick=idle and Yardstick(**idle),
        capacity=full and Capacity(**full),
    )


async def measure_baseline(
    client: Client, workload: Workload, progress: Progress
) -> Baseline:
    """Measures the units of the workload's objectives and rates.

    Raises:
      RuntimeError: If a request fails, or no time can be measured.
    """
    facts = await client.facts()
    replay = workload.config.replay
    yardstick = capacity = None
    if any(one.is_relative for one in workload.classes):
        with progress.doing("measuring an idle server"):
            yardstick = await measure_yardstick(client, workload)
    if replay.loads:
        engine = facts.get("engine") or {}
        slots = int(engine.get("max_num_seqs") or _FOREIGN_SLOTS)
        with progress.doing("measuring the capacity of a full server"):
            capacity = await measure_capacity(
                client, workload, num_slots=slots, duration_s=replay.capacity_s
            )
    return Baseline(facts=facts, yardstick=yardstick, capacity=capacity)


# An idle server.


async def measure_yardstick(client: Client, workload: Workload) -> Yardstick:
    """Measures the isolated TTFT curve and the isolated decode step.

    The workload's shortest and longest prompts bound the curve.

    Raises:
      RuntimeError: If a lone request fails.
    """
    lengths = [row.prompt_tokens for row in workload.rows]
    grid = np.geomspace(min(lengths), max(lengths), _NUM_LENGTHS)
    points = np.unique(np.rint(grid).astype(int)).tolist()
    numbers = itertools.count()

    async def lone_flight(prompt_tokens: int, max_tokens: int) -> Flight:
        flight = Flight(
            request=workload.request(
                _YARDSTICK_RUN,
                next(numbers),
                prompt_tokens=prompt_tokens,
                max_tokens=max_tokens,
            ),
            arrival_s=client.now_s(),
        )
        await fly(client, flight)
        if flight.failure is not None:
            raise RuntimeError(
                f"a lone request of {prompt_tokens} prompt tokens failed: "
                f"{flight.message}"
            )
        return flight

    await lone_flight(_STEP_PROMPT_TOKENS, 2)
    lone = [
        await lone_flight(_STEP_PROMPT_TOKENS, _STEP_OUTPUT_TOKENS)
        for _ in range(_NUM_REPEATS)
    ]
    step_s = mean_step_s([one.token_times_s for one in lone])
    ttft_s = []
    for length in points:
        repeats = [await lone_flight(length, 1) for _ in range(_NUM_REPEATS)]
        ttft_s.append(
            statistics.median(one.token_times_s[0] - one.arrival_s for one in repeats)
        )
    return Yardstick(
        prompt_tokens=tuple(points),
        ttft_s=tuple(np.maximum.accumulate(ttft_s).tolist()),
        step_s=step_s,
    )


def mean_step_s(token_times_s: Sequence[Sequence[float]]) -> float:
    """Returns the time between tokens of lone requests: the median of their means.

    If an engine is quicker than its client, several tokens are read at once and most
    gaps are 0. The time from the first token to the last is not affected.

    Raises:
      RuntimeError: If there are too few tokens, or all came at the same time.
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
            f"lone requests gave {counts} tokens, those of each at one time: a "
            "decode step cannot be measured"
        )
    return step_s


# A full server. Ten seconds complete only a few requests, of uneven size, so tokens are
# counted instead of requests. In a closed loop with every slot taken, wall time is
# split into slices with P prompt and D output tokens each; `a * P + b * D` is fitted to
# their duration and scaled to the whole window. Capacity is the inverse of the
# workload's mean cost.


async def measure_capacity(
    client: Client, workload: Workload, *, num_slots: int, duration_s: float
) -> Capacity:
    """Keeps a server full for a while; returns the rates that it sustains.

    Args:
      num_slots: Most requests that the server runs at once; a quarter more are sent.
      duration_s: Seconds to measure after the slots have filled.

    Raises:
      RuntimeError: If most requests fail, or no token is computed.
    """
    num_clients = num_slots + max(2, num_slots // 4)
    flights: list[Flight] = []
    source = _endless_requests(workload, num_clients)
    load = asyncio.create_task(
        closed_loop(client, source, flights, num_clients=num_clients)
    )
    try:
        # Fill the slots.
        ramp_end_s = client.now_s() + _RAMP_LIMIT_S
        while client.now_s() < ramp_end_s and not load.done():
            await asyncio.sleep(_POLL_S)
            if sum(bool(one.token_times_s) for one in flights) >= num_slots:
                break
            _check_failures(flights, num_clients)
        # Measure.
        start_s = client.now_s()
        await asyncio.wait([load], timeout=duration_s)
        window_s = client.now_s() - start_s
        _check_failures(flights, num_clients)
    finally:
        load.cancel()
        (ended,) = await asyncio.gather(load, return_exceptions=True)
    if isinstance(ended, Exception):
        raise ended
    # Fit the cost of a token, and price the mean request.
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


def _endless_requests(workload: Workload, num_first: int) -> Iterator[WorkloadRequest]:
    """Yields the workload's rows in random order, again and again.

    The first `num_first` are like those that a busy server holds, part way through:
    their prompts are short, and a random share of their output is left. A request is
    drawn with a probability proportional to its output length, since long requests are
    more often found running.
    """
    rows = workload.rows
    random = np.random.default_rng((workload.config.seed, _CAPACITY_RUN))
    outputs = np.array([row.output_tokens for row in rows], np.float64)
    first = random.choice(len(rows), num_first, p=outputs / outputs.sum())
    orders = (random.permutation(len(rows)) for _ in itertools.count())
    picks = itertools.chain(first, itertools.chain.from_iterable(orders))
    for index, pick in enumerate(picks):
        prompt, output = rows[int(pick)].prompt_tokens, rows[int(pick)].output_tokens
        if index < num_first:
            prompt = min(prompt, _START_PROMPT_TOKENS)
            output = max(1, round(random.random() * output))
        yield workload.request(
            _CAPACITY_RUN, index, prompt_tokens=prompt, max_tokens=output
        )


def tokens_by_slice(
    flights: list[Flight], start_s: float, slice_s: float, num_slices: int
) -> np.ndarray:
    """Returns `[num_slices, 2]` prompt and output tokens of each slice of time.

    Prompts are taken to be computed one after another: each prompt's tokens are spread
    over the time from the previous prompt's first output token to its own.
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


def token_costs_s(work: np.ndarray, slice_s: float) -> np.ndarray:
    """Fits the cost of a prompt token and an output token to equal slices of time.

    Args:
      work: `[K, 2]` prompt and output tokens computed in each slice.

    Returns:
      `[2]` seconds per prompt token and per output token.

    Raises:
      RuntimeError: If nothing was computed.
    """
    from scipy.optimize import nnls  # takes a third of a second to import

    if not work.any():
        raise RuntimeError("no token came while capacity was measured")
    costs_s, _ = nnls(work.astype(np.float64), np.full(len(work), slice_s))
    # Scale the costs so that they add up to the whole time.
    return np.asarray(costs_s * (len(work) * slice_s / (work.sum(axis=0) @ costs_s)))


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
            await asyncio.sleep(1.0)  # a foreign server does not say when it is idle
            return
        if not stats["num_running"] and not stats["num_waiting"]:
            return
        await asyncio.sleep(_POLL_S)


def slo_table(workload: Workload, yardstick: Yardstick | None) -> str:
    """Returns one row for each class: its share and its SLO in seconds."""
    rows = [["class", "share", "requests", "TTFT bound", "TBT bound", "TTLT bound"]]
    resolved = [workload.slo(row, yardstick) for row in range(len(workload.rows))]
    for one in workload.classes:
        slos = [slo for name, slo in resolved if name == one.name]
        rows.append([one.name, f"{one.share:g}", str(len(slos))])
        for field in ("ttft_s", "tbt_s", "ttlt_s"):
            bounds_s = {getattr(slo, field) for slo in slos} - {None}
            ends = {duration(end(bounds_s)): None for end in (min, max) if bounds_s}
            rows[-1].append(" to ".join(ends) or "none")
    return render(rows)
