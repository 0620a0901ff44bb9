"""The benchmark itself: open each server, measure the first one, run the load.

What is measured on the first server (idle times, capacity) holds for all of them, so
every policy gets the same SLOs, the same arrivals and the same lengths, and only
prompts differ from run to run. It is kept with each finished run, so a sweep that is
continued later has the same.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from jserve.config import EngineConfig
from jserve_tools.baseline import (
    FIRST_RUN,
    Baseline,
    baseline_from_json,
    measure_baseline,
)
from jserve_tools.bench_config import BenchConfig
from jserve_tools.clients import Client
from jserve_tools.documents import document, plain
from jserve_tools.finished_runs import FinishedRuns
from jserve_tools.progress import Progress
from jserve_tools.replay import Flight, closed_loop, replay
from jserve_tools.run_watch import watch_run
from jserve_tools.staircases import run_staircase
from jserve_tools.start_ups import compiled_edges, start_up_of
from jserve_tools.tables import run_name
from jserve_tools.targets import engine_name, fill_compile_cache, open_server
from jserve_tools.workload import WorkloadRequest, read_workload
from jserve_tools.workload_trace import mean_rate

# What tells one jserve from another that had the same URL.
_SERVER_IDENTITY = ("model", "served_model_name", "engine", "device", "versions")

OpenServer = Callable[
    [BenchConfig, EngineConfig | None], AbstractAsyncContextManager[Client]
]


class Benchmark:
    """Runs one load against some servers, one after another.

    Attributes:
      config: What it was told.
      finished: Its runs that are finished, on disk.
      baseline: What the first server does; None before that is measured.
      runs: Entries of the report, in the order they were made.
      num_resumed: How many of them an earlier call had finished.
    """

    def __init__(
        self,
        config: BenchConfig,
        progress: Progress,
        *,
        opener: OpenServer = open_server,
    ):
        """Reads what will be sent; nothing is started.

        Raises:
          ValueError, OSError: If a file is wrong or cannot be read.
        """
        self.config = config
        self.finished = FinishedRuns(
            config.report.output / "runs.jsonl", resumes=config.report.resume
        )
        self.baseline: Baseline | None = None
        self.runs: list[dict[str, Any]] = []
        self.num_resumed = 0
        self._workload = read_workload(config)
        self._progress = progress
        self._opener = opener
        # By bucket strategy: `start_up` and `start_up_warm` of its engine.
        self._starts: dict[str, dict[str, Any]] = {}
        self._filled: list[EngineConfig] = []
        self._qps = config.replay.qps
        if config.replay.rate_scale is not None:
            self._qps = (config.replay.rate_scale * mean_rate(self._workload.rows),)

    async def run(self) -> None:
        """Runs everything.

        Raises:
          ConnectionError, TimeoutError, RuntimeError: If a server fails; the message
            says which and how.
        """
        num_runs = self.config.num_runs
        with tempfile.TemporaryDirectory(prefix="jserve-cache-") as folder:
            for index, engine in enumerate(self.config.engines() or (None,)):
                numbers = range(index * num_runs, (index + 1) * num_runs)
                if engine is not None:
                    if self._take_finished(engine, numbers, {}):
                        continue
                    engine = await self._prepare(engine, pathlib.Path(folder))
                await self._serve(engine, numbers)

    def report(self, command: Sequence[str]) -> dict[str, Any]:
        """Returns the report of what was found by `command`."""
        assert self.baseline is not None
        config, replay_config = self.config, self.config.replay
        load: dict[str, Any] = {
            "num_clients": config.closed.clients,
            "num_requests": config.num_requests,
        }
        if config.mode == "replay":
            load = {
                "is_one_shot": replay_config.one_shot,
                "loads": replay_config.loads,
                "qps": self._qps,
                "capacity_s": replay_config.capacity_s,
                "capacity_slots": replay_config.capacity_slots,
            }
        engine = self.baseline.facts.get("engine") or {}
        return document(
            command=command,
            facts=self.baseline.facts,
            workload=self._workload.describe(),
            runs=self.runs,
            extra={
                "load": {name: value for name, value in load.items() if value},
                "yardstick": self.baseline.yardstick,
                "capacity": self.baseline.capacity,
                "staircase": run_staircase(self.runs, engine.get("block_tokens")),
                "num_resumed": self.num_resumed,
            },
        )

    async def _prepare(
        self, engine: EngineConfig, folder: pathlib.Path
    ) -> EngineConfig:
        """Compiles what engines share, once; returns the engine to start.

        Servers of our own share the programs in their compile cache. To measure cold
        starts each bucket strategy has a cache in `folder`; its first start fills it.
        """
        strategy = engine.bucket_strategy
        if self.config.servers.measure_warm_start:
            cache = folder / re.sub(r"[^a-z0-9]+", "_", strategy)
            engine = dataclasses.replace(engine, compile_cache_dir=str(cache))
            if strategy not in self._starts:
                with self._progress.doing(f"cold start of {engine_name(engine)}"):
                    async with self._opener(self.config, engine) as client:
                        cold = start_up_of((await client.facts()).get("stats"))
                self._starts[strategy] = {"start_up": cold}
            return engine
        shared = dataclasses.replace(engine, policy=EngineConfig().policy)
        has_cache = self.config.servers.launch and engine.compile_cache_dir
        if has_cache and shared not in self._filled:
            self._filled.append(shared)
            self._progress.note(f"filling the compile cache for {strategy}")
            await fill_compile_cache(shared, self._progress)
        return engine

    async def _serve(self, engine: EngineConfig | None, numbers: Sequence[int]) -> None:
        """Does those runs of one server that are not finished yet."""
        name = self.config.servers.url if engine is None else engine_name(engine)
        async with contextlib.AsyncExitStack() as stack:
            with self._progress.doing(f"waiting for {name} to be warm"):
                server = self._opener(self.config, engine)
                client = await stack.enter_async_context(server)
            facts = await client.facts()
            for number in numbers:
                if self._take_finished(engine, [number], facts):
                    continue
                if self.baseline is None:
                    self.baseline = await measure_baseline(
                        client, self._workload, self._progress
                    )
                    self._describe(self.baseline)
                run = await self._run(client, facts, number, self.baseline)
                run |= self._start_up(engine, facts)
                self.runs.append(run)
                if (key := self._key(engine, number, facts)) is not None:
                    baseline = dataclasses.asdict(self.baseline)
                    baseline["facts"] = plain(self.baseline.facts)
                    self.finished.put(key, {"run": plain(run), "baseline": baseline})

    def _describe(self, baseline: Baseline) -> None:
        if self.config.mode == "replay":
            self._progress.say(baseline.describe(self._workload))

    def _start_up(
        self, engine: EngineConfig | None, facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Returns what the report says of how a server was started."""
        starts = {"start_up": start_up_of(facts.get("stats"))}
        if engine is not None and self.config.servers.measure_warm_start:
            cold_and_warm = self._starts[engine.bucket_strategy]
            cold_and_warm.setdefault("start_up_warm", starts["start_up"])
            starts = cold_and_warm
        starts = starts | {"buckets": compiled_edges(facts.get("stats"))}
        return {name: value for name, value in starts.items() if value is not None}

    # Finished runs.

    def _key(
        self, engine: EngineConfig | None, number: int, facts: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Returns what decides the numbers of a run; None if it must be made again.

        That is so for a step log, which only a run fills, and for a foreign server,
        which may be another by now.
        """
        server: Any = {name: facts.get(name) for name in _SERVER_IDENTITY}
        if engine is None and "engine" not in facts:
            return None
        if engine is not None:
            if engine.step_log is not None:
                return None
            server = dataclasses.replace(engine, compile_cache_dir="")
        config = dataclasses.asdict(self.config)
        del config["report"], config["engine"]
        del config["servers"]["policies"], config["servers"]["bucket_strategies"]
        sent = [self._workload.rows, self._workload.classes]
        return {"config": config, "sent": sent, "server": server, "number": number}

    def _take_finished(
        self,
        engine: EngineConfig | None,
        numbers: Sequence[int],
        facts: Mapping[str, Any],
    ) -> bool:
        """Takes runs that an earlier call finished, if all of them are there.

        And if they were judged by the baseline that holds for all runs of a report.
        """
        keys = [self._key(engine, number, facts) for number in numbers]
        rows = [None if key is None else self.finished.get(key) for key in keys]
        found: list[dict[str, Any]] = [row for row in rows if row is not None]
        if len(found) < len(numbers):
            return False
        baseline = self.baseline or baseline_from_json(found[0]["baseline"])
        judged = json.loads(json.dumps(dataclasses.asdict(baseline) | {"facts": None}))
        if any(row["baseline"] | {"facts": None} != judged for row in found):
            return False
        if self.baseline is None:
            self.baseline = baseline
            self._describe(baseline)
        for row in found:
            run = row["run"]
            self.runs.append(run)
            if "start_up_warm" in run:
                names = ("start_up", "start_up_warm")
                starts = {name: run[name] for name in names}
                self._starts[run["bucket_strategy"]] = starts
        self.num_resumed += len(found)
        return True

    # Running.

    async def _run(
        self, client: Client, facts: Mapping[str, Any], number: int, baseline: Baseline
    ) -> dict[str, Any]:
        """Does run `number`, counted over all servers."""
        config = self.config
        engine = facts.get("engine") or {}
        names = ("policy", "bucket_strategy")
        labels = {name: engine[name] for name in names if name in engine}
        place = number % config.num_runs
        if config.mode == "closed":
            num_clients = config.closed.clients[place]
            labels["num_clients"] = num_clients
            num_requests = config.num_requests or 8 * num_clients
            # A request of each client, after which nothing is new to the server.
            warm_up = itertools.islice(self._cycle(2 * number), num_clients)
            await closed_loop(client, warm_up, [], num_clients=num_clients)

            async def send(flights: list[Flight]) -> None:
                source = itertools.islice(self._cycle(2 * number + 1), num_requests)
                await closed_loop(client, source, flights, num_clients=num_clients)
        else:
            labels |= self._rate(place, baseline)
            requests = self._workload.requests(
                FIRST_RUN + number,
                baseline.yardstick,
                qps=labels.get("qps", math.inf),
            )
            num_requests = len(requests)

            async def send(flights: list[Flight]) -> None:
                await replay(client, requests, flights)

        total = config.num_runs * max(len(config.engines()), 1)
        run = await watch_run(
            client,
            send,
            name=f"run {number + 1} of {total}, {run_name(labels)}",
            labels=labels | {"seed": config.seed},
            num_requests=num_requests,
            progress=self._progress,
            profiles_host=config.servers.profile_host,
        )
        num_attained = run["num_requests"] - run["num_violations"]
        self._progress.say(
            f"{run_name(run)}: {num_attained} of {run['num_requests']} requests "
            + ("finished" if config.mode == "closed" else "attained their SLOs")
        )
        for one in run.get("failures", ()):
            self._progress.say(
                f"  {one['count']} failed, {one['reason']}: {one['message']}"
            )
        return run

    def _rate(self, place: int, baseline: Baseline) -> dict[str, Any]:
        if self.config.replay.one_shot:
            return {"is_one_shot": True}
        if self._qps:
            return {"qps": self._qps[place]}
        assert baseline.capacity is not None
        share = self.config.replay.loads[place]
        return {"load": share, "qps": share * baseline.capacity.requests_per_s}

    def _cycle(self, run: int) -> Iterator[WorkloadRequest]:
        """Yields requests of the fixed lengths without end."""
        (row,) = self._workload.rows
        lengths = {"prompt_tokens": row.prompt_tokens, "max_tokens": row.output_tokens}
        for index in itertools.count():
            yield self._workload.request(run, index, **lengths)
