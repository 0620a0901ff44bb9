"""The benchmark itself: open each server, measure the machine once, run the load.

The one idea: what is measured on the first server (idle times, capacity) is
frozen there, so every policy after it gets the same promises, the same arrivals
and the same lengths, and only prompts differ from run to run. It is kept with the
finished runs, so a sweep that goes on later goes on with the same.
"""

import dataclasses
import itertools
import math
import pathlib
import re
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from jserve.config import EngineConfig
from jserve_sched.workload import Yardstick
from jserve_tools.clients import Client
from jserve_tools.documents import plain
from jserve_tools.loads import ClosedLoop, Replay
from jserve_tools.plots import PlottedRun
from jserve_tools.replay import Flight, closed_loop, replay
from jserve_tools.run_store import RunStore, run_key
from jserve_tools.run_watch import watch_run
from jserve_tools.start_ups import compiled_edges, start_up_of
from jserve_tools.stored_runs import run_from_json, run_to_json
from jserve_tools.tables import duration, slo_table
from jserve_tools.targets import Servers, Target
from jserve_tools.workload import Workload, WorkloadRequest
from jserve_tools.workload_trace import scale_rate
from jserve_tools.yardstick import Capacity, measure_capacity, measure_yardstick

_FOREIGN_SLOTS = 32  # where a server does not say how many requests it runs
# What tells one jserve from another that had the same URL.
_SERVER_IDENTITY = (
    *("url", "model", "served_model_name", "engine", "device", "versions"),
)
# Prompts are drawn by these numbers, so that none is met twice.
_YARDSTICK_RUN, _CAPACITY_RUN, _FIRST_RUN = range(3)


@dataclasses.dataclass(kw_only=True)
class Findings:
    """What a benchmark has found so far.

    Attributes:
      facts: what the first server told of itself.
      yardstick: idle times of the first server, where they were needed.
      capacity: of the first server, where it was needed.
      runs: in the order they were made.
      num_resumed: how many of them an earlier call had finished.
    """

    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    yardstick: Yardstick | None = None
    capacity: Capacity | None = None
    runs: list[PlottedRun] = dataclasses.field(default_factory=list)
    num_resumed: int = 0


class Benchmark:
    """Runs one load against some servers, one after another."""

    def __init__(
        self,
        *,
        servers: Servers,
        load: Replay | ClosedLoop,
        workload: Workload,
        output: pathlib.Path,
        store: RunStore,
        say: Callable[[str], None],
    ):
        """Prepares; nothing is started.

        Args:
          servers: what to run against.
          load: when requests are sent.
          workload: which; a closed loop cycles through its rows.
          output: folder for the logs of servers.
          store: of finished runs.
          say: prints a line for people.
        """
        self.findings = Findings()
        self._servers = servers
        self._load = load
        self._workload = workload
        self._output = output
        self._store = store
        self._say = say
        self._machine_key = ""
        # By bucket strategy: `start_up` and `start_up_warm` of its engine.
        self._starts: dict[str, dict[str, Any]] = {}

    async def run(self) -> Findings:
        """Runs everything; returns what was found.

        Raises:
          ConnectionError, TimeoutError, RuntimeError: if a server fails; the
            message says which and how.
          ValueError: if the file of a finished run is damaged.
        """
        num_runs = self._load.num_runs
        with tempfile.TemporaryDirectory(prefix="jserve-cache-") as caches:
            for index, target in enumerate(self._servers.targets(self._output)):
                numbers = range(index * num_runs, (index + 1) * num_runs)
                await self._serve(target, numbers, pathlib.Path(caches))
        return self.findings

    async def _serve(
        self, target: Target, numbers: Sequence[int], caches: pathlib.Path
    ) -> None:
        """Does those runs of one server that are not finished yet."""
        identity: Any = None
        # A run that is not made again leaves no step log.
        if target.config is not None and target.config.step_log is None:
            identity = self._identity(target.config)
            stored = [self._stored(identity, number) for number in numbers]
            finished = [run for run in stored if run is not None]
            if len(finished) == len(stored):
                for run in finished:
                    self._keep(run)
                return
        cache_dir = await self._start_cold(target, caches)
        self._say(f"starting {target.name}")
        async with target.open(cache_dir=cache_dir) as client:
            facts = await client.facts()
            stats = await client.stats()
            if target.config is None and "engine" in facts:
                identity = [
                    {name: facts.get(name) for name in _SERVER_IDENTITY},
                    self._servers.form,
                ]
            starts = self._starts_of(target, stats)
            for number in numbers:
                earlier = None if identity is None else self._stored(identity, number)
                if earlier is not None:
                    self._keep(earlier)
                    continue
                await self._know_machine(client, facts)
                made = await self._run(client, facts, number)
                edges = compiled_edges(stats)
                summary = dict(made.summary) | starts
                if edges is not None:
                    summary["buckets"] = edges
                made = dataclasses.replace(made, summary=summary)
                if identity is not None:  # a foreign server may be another by now
                    self._store.put(self._machine_key, self._machine())
                    self._store.put(self._key(identity, number), run_to_json(made))
                self.findings.runs.append(made)

    def _identity(self, config: EngineConfig) -> list[Any]:
        """Returns what decides the numbers of an engine of our own."""
        lasting = dataclasses.replace(config, compile_cache_dir="")
        folders = [
            path
            for path in map(pathlib.Path, (config.model, config.predictor))
            if path.expanduser().is_dir()
        ]
        return [lasting, folders, self._servers.is_launched, self._servers.form]

    def _key(self, identity: Any, number: int) -> str:
        findings = self.findings
        return run_key(
            "run",
            *(identity, self._workload, self._load, number),
            *(findings.yardstick, findings.capacity),
            *(self._servers.profiles_host, self._servers.measures_warm_start),
        )

    def _stored(self, identity: Any, number: int) -> PlottedRun | None:
        """Returns a finished run, if there is one and the machine it was judged by."""
        if not self._machine_key:
            self._machine_key = run_key("machine", identity, self._workload, self._load)
        if not self.findings.facts:
            machine = self._store.get(self._machine_key)
            if machine is None:
                return None
            self._take_machine(machine)
        row = self._store.get(self._key(identity, number))
        return None if row is None else run_from_json(row)

    def _keep(self, run: PlottedRun) -> None:
        """Takes a run that was finished before."""
        self.findings.runs.append(run)
        self.findings.num_resumed += 1
        if "start_up_warm" in run.summary:
            self._starts[run.summary["bucket_strategy"]] = {
                name: run.summary[name] for name in ("start_up", "start_up_warm")
            }

    def _machine(self) -> dict[str, Any]:
        findings = self.findings
        return {
            "facts": plain(findings.facts),
            # As measured, not rounded: promises and rates are made of them.
            "yardstick": findings.yardstick and dataclasses.asdict(findings.yardstick),
            "capacity": findings.capacity and dataclasses.asdict(findings.capacity),
        }

    def _take_machine(self, machine: Mapping[str, Any]) -> None:
        findings = self.findings
        findings.facts = machine["facts"]
        if (row := machine["yardstick"]) is not None:
            findings.yardstick = Yardstick(
                prompt_tokens=tuple(row["prompt_tokens"]),
                ttft_s=tuple(row["ttft_s"]),
                step_s=row["step_s"],
            )
        if machine["capacity"] is not None:
            findings.capacity = Capacity(**machine["capacity"])
        if isinstance(self._load, Replay):
            self._say("measured before:")
            self._describe_machine()

    async def _start_cold(
        self, target: Target, caches: pathlib.Path
    ) -> pathlib.Path | None:
        """Starts an engine with an empty compile cache, if that is to be measured.

        Returns:
          The compile cache to use from now on; None for the engine's own.
        """
        if not self._servers.measures_warm_start or target.config is None:
            return None
        strategy = target.config.bucket_strategy
        cache = caches / re.sub(r"[^a-z0-9]+", "_", strategy)
        if strategy not in self._starts:
            self._say(f"cold start of {target.name}")
            async with target.open(cache_dir=cache) as client:
                cold = start_up_of(await client.stats())
            self._starts[strategy] = {"start_up": cold}
        return cache

    def _starts_of(
        self, target: Target, stats: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Returns what the report says of how a server was started."""
        start = start_up_of(stats)
        if not self._servers.measures_warm_start or target.config is None:
            return {} if start is None else {"start_up": start}
        starts = self._starts[target.config.bucket_strategy]
        starts.setdefault("start_up_warm", start)
        return {name: value for name, value in starts.items() if value is not None}

    async def _know_machine(self, client: Client, facts: Mapping[str, Any]) -> None:
        """Measures the machine, unless that is done."""
        findings = self.findings
        if findings.facts:
            return
        load = self._load
        if isinstance(load, Replay):
            if any(one.is_relative for one in self._workload.classes):
                findings.yardstick = await measure_yardstick(
                    client, self._workload, _YARDSTICK_RUN
                )
            if load.loads:
                engine = facts.get("engine") or {}
                slots = load.capacity_slots or engine.get(
                    "max_num_seqs", _FOREIGN_SLOTS
                )
                findings.capacity = await measure_capacity(
                    client,
                    self._workload,
                    _CAPACITY_RUN,
                    num_slots=int(slots),
                    duration_s=load.capacity_s,
                )
            self._describe_machine()
        findings.facts = facts

    def _describe_machine(self) -> None:
        yardstick, capacity = self.findings.yardstick, self.findings.capacity
        if yardstick is not None:
            curve = zip(yardstick.prompt_tokens, yardstick.ttft_s, strict=True)
            self._say(
                "idle server: "
                + ", ".join(
                    f"{duration(ttft_s)} to the first token of {length}"
                    for length, ttft_s in curve
                )
                + f"; {duration(yardstick.step_s)} a decode step"
            )
        if capacity is not None:
            self._say(
                f"capacity: {capacity.requests_per_s:.2f} requests/s of this workload "
                f"({capacity.num_clients} clients for {capacity.window_s:.0f} s: "
                f"{capacity.prompt_tokens_per_s:.0f} prompt and "
                f"{capacity.output_tokens_per_s:.0f} output tokens/s)"
            )
        self._say(slo_table(self._workload, yardstick))

    async def _run(
        self, client: Client, facts: Mapping[str, Any], number: int
    ) -> PlottedRun:
        """Does run `number`, counted over all servers."""
        load = self._load
        place = number % load.num_runs
        if isinstance(load, Replay):
            return await self._replay(client, facts, number, self._rate(load, place))
        return await self._closed_loop(client, facts, number, load.num_clients[place])

    def _rate(self, load: Replay, place: int) -> dict[str, float]:
        if load.is_one_shot:
            return {"is_one_shot": True}
        if load.qps:
            return {"qps": load.qps[place]}
        assert self.findings.capacity is not None
        share = load.loads[place]
        return {"load": share, "qps": share * self.findings.capacity.requests_per_s}

    async def _replay(
        self,
        client: Client,
        facts: Mapping[str, Any],
        number: int,
        rate: Mapping[str, float],
    ) -> PlottedRun:
        rows = scale_rate(list(self._workload.rows), rate.get("qps", math.inf))
        requests = dataclasses.replace(self._workload, rows=rows).requests(
            _FIRST_RUN + number, self.findings.yardstick
        )

        async def send(on_done: Callable[[], None]) -> list[Flight]:
            return await replay(client, requests, on_done=on_done)

        return await self._watch(client, facts, rate, len(requests), send)

    async def _closed_loop(
        self, client: Client, facts: Mapping[str, Any], number: int, num_clients: int
    ) -> PlottedRun:
        assert isinstance(self._load, ClosedLoop)
        num_requests = self._load.num_requests or 8 * num_clients

        async def send(
            on_done: Callable[[], None], run: int = 2 * number + 1
        ) -> list[Flight]:
            flights: list[Flight] = []
            await closed_loop(
                client,
                itertools.islice(self._cycle(run), num_requests),
                num_clients=num_clients,
                flights=flights,
                on_done=on_done,
            )
            return flights

        await closed_loop(
            client,
            itertools.islice(self._cycle(2 * number), num_clients),
            num_clients=num_clients,
            flights=[],
        )
        rate = {"num_clients": num_clients}
        return await self._watch(client, facts, rate, num_requests, send)

    def _cycle(self, run: int) -> Iterator[WorkloadRequest]:
        for index in itertools.count():
            row = self._workload.rows[index % len(self._workload.rows)]
            yield self._workload.request(
                run,
                index,
                prompt_tokens=row.prompt_tokens,
                max_tokens=row.output_tokens,
            )

    async def _watch(
        self,
        client: Client,
        facts: Mapping[str, Any],
        rate: Mapping[str, float],
        num_requests: int,
        send: Callable[[Callable[[], None]], Awaitable[list[Flight]]],
    ) -> PlottedRun:
        engine = facts.get("engine") or {}
        labels = {
            name: engine[name]
            for name in ("policy", "bucket_strategy")
            if name in engine
        }
        return await watch_run(
            client,
            send,
            engine=engine,
            labels={**labels, **rate, "seed": self._workload.seed},
            num_requests=num_requests,
            say=self._say,
            profiles_host=self._servers.profiles_host,
        )
