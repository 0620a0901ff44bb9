"""The benchmark itself: open each server, measure the machine once, run the load.

The one idea: what is measured on the first server (idle times, capacity) is
frozen there, so every policy after it gets the same promises, the same arrivals
and the same lengths, and only prompts differ from run to run.
"""

import dataclasses
import itertools
import pathlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import tqdm

from jserve.events import StepRecord
from jserve_sched.report import distribution, summarise_run
from jserve_sched.workload import Yardstick
from jserve_tools.breakdown import break_down
from jserve_tools.clients import Client, counters_between
from jserve_tools.documents import outcome_rows
from jserve_tools.http_client import HttpClient
from jserve_tools.plots import PlottedRun
from jserve_tools.replay import Flight, closed_loop, replay
from jserve_tools.tables import duration, slo_table
from jserve_tools.targets import Servers
from jserve_tools.workload import Workload, WorkloadRequest
from jserve_tools.workload_trace import mean_rate, scale_rate
from jserve_tools.yardstick import Capacity, measure_capacity, measure_yardstick

_FOREIGN_SLOTS = 32  # where a server does not say how many requests it runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """An open loop at the trace's times, stretched to each of some rates.

    Attributes:
      loads: rates as shares of the measured capacity.
      qps: rates in requests per second.
      capacity_s: how long capacity is measured, if `loads` need it.
      capacity_slots: requests that fill the server; 0 asks the server.
    """

    loads: Sequence[float] = ()
    qps: Sequence[float] = ()
    capacity_s: float = 10.0
    capacity_slots: int = 0

    def __post_init__(self) -> None:
        if bool(self.loads) == bool(self.qps):
            raise ValueError(
                f"give load or qps, not both or none: load={list(self.loads)}, "
                f"qps={list(self.qps)}"
            )
        for name in ("loads", "qps"):
            for rate in getattr(self, name):
                if not 0 < rate < 1e6:
                    raise ValueError(f"{name}: {rate} is not in 0..1000000")
        if not 1 <= self.capacity_s <= 3600:
            raise ValueError(f"capacity_s={self.capacity_s} is not in 1..3600")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClosedLoop:
    """Some numbers of clients, each sending its next request when one ends.

    Attributes:
      num_clients: one run for each.
      num_requests: of one run; 0 for eight a client.
    """

    num_clients: Sequence[int]
    num_requests: int = 0

    def __post_init__(self) -> None:
        for clients in self.num_clients:
            if not 1 <= clients <= 4096:
                raise ValueError(f"clients={clients} is not in 1..4096")


@dataclasses.dataclass(kw_only=True)
class Findings:
    """What a benchmark has found so far.

    Attributes:
      facts: what the first server told of itself.
      yardstick: idle times of the first server, where they were needed.
      capacity: of the first server, where it was needed.
      runs: in the order they were made.
    """

    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    yardstick: Yardstick | None = None
    capacity: Capacity | None = None
    runs: list[PlottedRun] = dataclasses.field(default_factory=list)


class Benchmark:
    """Runs one load against some servers, one after another."""

    def __init__(
        self,
        *,
        servers: Servers,
        load: Replay | ClosedLoop,
        workload: Workload,
        output: pathlib.Path,
        say: Callable[[str], None],
        profiles_host: bool = False,
    ):
        """Prepares; nothing is started.

        Args:
          servers: what to run against.
          load: when requests are sent.
          workload: which; a closed loop cycles through its rows.
          output: folder for the logs of servers.
          say: prints a line for people.
          profiles_host: whether to break steps down into parts; against the
            device too, where the engine runs without overlap.
        """
        self.findings = Findings()
        self._servers = servers
        self._load = load
        self._workload = workload
        self._output = output
        self._say = say
        self._profiles_host = profiles_host
        self._run_numbers = itertools.count()

    async def run(self) -> Findings:
        """Runs everything; returns what was found.

        Raises:
          ConnectionError, TimeoutError, RuntimeError: if a server fails; the
            message says which and how.
        """
        for name, opening in self._servers.open_each(self._output):
            self._say(f"starting {name}")
            async with opening as client:
                facts = await client.facts()
                self.findings.facts = self.findings.facts or facts
                if isinstance(self._load, Replay):
                    await self._replays(client, facts, self._load)
                else:
                    await self._closed_loops(client, facts, self._load)
        return self.findings

    async def _replays(
        self, client: Client, facts: Mapping[str, Any], load: Replay
    ) -> None:
        if not self.findings.runs:
            await self._measure_machine(client, facts, load)
        capacity = self.findings.capacity
        rates: list[dict[str, float]] = [{"qps": qps} for qps in load.qps]
        if capacity is not None:
            rates += [
                {"load": share, "qps": share * capacity.requests_per_s}
                for share in load.loads
            ]
        for rate in rates:
            rows = scale_rate(list(self._workload.rows), rate["qps"])
            requests = dataclasses.replace(self._workload, rows=rows).requests(
                next(self._run_numbers), self.findings.yardstick
            )

            async def go(
                on_done: Callable[[], None],
                requests: list[WorkloadRequest] = requests,
            ) -> list[Flight]:
                return await replay(client, requests, on_done=on_done)

            await self._run(client, facts, rate, len(requests), go)

    async def _measure_machine(
        self, client: Client, facts: Mapping[str, Any], load: Replay
    ) -> None:
        findings = self.findings
        if any(one.is_relative for one in self._workload.classes):
            findings.yardstick = await measure_yardstick(
                client, self._workload, next(self._run_numbers)
            )
            self._say(
                "idle server: "
                + ", ".join(
                    f"{duration(ttft_s)} to the first token of {length}"
                    for length, ttft_s in zip(
                        findings.yardstick.prompt_tokens,
                        findings.yardstick.ttft_s,
                        strict=True,
                    )
                )
                + f"; {duration(findings.yardstick.step_s)} a decode step"
            )
        if load.loads:
            engine = facts.get("engine") or {}
            slots = load.capacity_slots or engine.get("max_num_seqs", _FOREIGN_SLOTS)
            findings.capacity = await measure_capacity(
                client,
                self._workload,
                next(self._run_numbers),
                num_slots=int(slots),
                duration_s=load.capacity_s,
            )
            capacity = findings.capacity
            self._say(
                f"capacity: {capacity.requests_per_s:.2f} requests/s of this workload "
                f"({capacity.num_clients} clients for {capacity.window_s:.0f} s: "
                f"{capacity.prompt_tokens_per_s:.0f} prompt and "
                f"{capacity.output_tokens_per_s:.0f} output tokens/s)"
            )
        self._say(slo_table(self._workload, findings.yardstick))

    async def _closed_loops(
        self, client: Client, facts: Mapping[str, Any], load: ClosedLoop
    ) -> None:
        for clients in load.num_clients:
            num_requests = load.num_requests or 8 * clients
            warm_up: list[Flight] = []
            await closed_loop(
                client,
                itertools.islice(self._cycle(), clients),
                num_clients=clients,
                flights=warm_up,
            )

            async def go(
                on_done: Callable[[], None],
                clients: int = clients,
                num_requests: int = num_requests,
            ) -> list[Flight]:
                flights: list[Flight] = []
                await closed_loop(
                    client,
                    itertools.islice(self._cycle(), num_requests),
                    num_clients=clients,
                    flights=flights,
                    on_done=on_done,
                )
                return flights

            await self._run(client, facts, {"num_clients": clients}, num_requests, go)

    def _cycle(self) -> Iterator[WorkloadRequest]:
        run = next(self._run_numbers)
        for index in itertools.count():
            row = self._workload.rows[index % len(self._workload.rows)]
            yield self._workload.request(
                run,
                index,
                prompt_tokens=row.prompt_tokens,
                max_tokens=row.output_tokens,
            )

    async def _run(
        self,
        client: Client,
        facts: Mapping[str, Any],
        rate: Mapping[str, float],
        num_requests: int,
        go: Callable[[Callable[[], None]], Any],
    ) -> None:
        """Does one run and keeps its entry."""
        engine = facts.get("engine") or {}
        labels: dict[str, Any] = {
            name: engine[name]
            for name in ("policy", "bucket_strategy")
            if name in engine
        }
        labels |= {**rate, "seed": self._workload.seed}
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
            flights = await go(lambda: _count_one(progress))
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
            self._say(
                f"the engine forgot {num_missing} of {summary['num_steps']} steps "
                "before they were read: padding is not reported"
            )
        if self._profiles_host and steps:
            summary["host_profile"] = break_down(
                steps,
                detokenise_s=await client.take_detokenise_s(),
                has_overlap=engine.get("enable_overlap") is not False,
            )
        summary["requests"] = outcome_rows(outcomes)
        self.findings.runs.append(
            PlottedRun(
                summary=summary,
                outcomes=outcomes,
                steps=steps,
                block_tokens=block_tokens,
            )
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
        and len(flight.token_times_s) < flight.request.max_tokens
        for flight in flights
    )
    health: dict[str, Any] = {"num_short_outputs": short}
    if (delay := distribution(delays_s)) is not None:
        health["send_delay_s"] = delay
    return health


def describe(workload: Workload, trace: str) -> dict[str, Any]:
    """Returns what was sent, for the report."""
    rows = workload.rows
    found: dict[str, Any] = {
        "trace": trace,
        "num_rows": len(rows),
        "seed": workload.seed,
        "prompt_tokens_mean": statistics.fmean(row.prompt_tokens for row in rows),
        "prompt_tokens_max": max(row.prompt_tokens for row in rows),
        "output_tokens_mean": statistics.fmean(row.output_tokens for row in rows),
        "output_tokens_max": max(row.output_tokens for row in rows),
        "service_classes": [
            {
                name: value
                for name, value in dataclasses.asdict(one).items()
                if value is not None
            }
            for one in workload.classes
        ],
    }
    if rows[-1].arrival_s > rows[0].arrival_s:
        found["trace_qps"] = mean_rate(list(rows))
    return found
