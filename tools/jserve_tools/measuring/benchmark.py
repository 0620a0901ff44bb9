"""The benchmark itself: opens each server, measures the first one, runs the load.

The idle times and the capacity of the first server are used for all servers, so every
policy gets the same SLOs, arrivals and lengths; only prompts differ between runs. They
are stored with the finished runs, so that a continued sweep uses them too.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from jserve.config import EngineConfig
from jserve.progress import Progress
from jserve_sched.policies.registry import policy_file
from jserve_tools.load.clients import Client
from jserve_tools.load.replay import Flight, replay
from jserve_tools.load.workload import read_workload
from jserve_tools.measuring.baseline import (
    FIRST_RUN,
    Baseline,
    baseline_from_json,
    measure_baseline,
)
from jserve_tools.measuring.config import BenchConfig
from jserve_tools.measuring.measured_run import measure_run
from jserve_tools.measuring.targets import engine_name, open_server
from jserve_tools.reporting.documents import document, plain
from jserve_tools.reporting.finished_runs import FinishedRuns
from jserve_tools.reporting.staircases import run_staircase
from jserve_tools.reporting.tables import run_name

# Facts that differ between two jserve servers that had the same URL.
_SERVER_IDENTITY = ("model", "served_model_name", "engine", "device", "versions")

OpenServer = Callable[
    [BenchConfig, EngineConfig | None], AbstractAsyncContextManager[Client]
]


class Benchmark:
    """Runs one load against some servers, one after another.

    Attributes:
      config: Settings of the benchmark.
      finished: Finished runs, stored on disk.
      baseline: Idle times and capacity of the first server; None until measured.
      runs: Entries of the report's `runs`, in the order in which they were made.
      num_resumed: Number of runs that an earlier call had finished.
    """

    def __init__(
        self,
        config: BenchConfig,
        progress: Progress,
        *,
        opener: OpenServer = open_server,
    ):
        """Reads the workload; starts nothing.

        Raises:
          ValueError, OSError: If a file is invalid or cannot be read.
        """
        self.config = config
        self.finished = FinishedRuns(
            config.report.output / "runs.jsonl", resumes=config.report.resume
        )
        self.baseline: Baseline | None = None
        self.runs: list[dict[str, Any]] = []
        self.num_resumed = 0
        self._workload = read_workload(config.load)
        self._progress = progress
        self._opener = opener

    async def run(self) -> None:
        """Makes all runs that are not finished yet.

        Raises:
          ConnectionError, TimeoutError, RuntimeError: If a server fails; the message
            names it and the reason.
        """
        num_runs = self.config.load.num_runs
        for index, engine in enumerate(self.config.engines() or (None,)):
            async with contextlib.AsyncExitStack() as stack:
                client = None
                key = None if engine is None else self._key(engine, {})
                if engine is None:
                    client = await self._open(engine, stack)
                    key = self._key(engine, await client.facts())
                for number in range(index * num_runs, (index + 1) * num_runs):
                    run = self._find(key, number)
                    self.num_resumed += run is not None
                    if run is None:
                        client = client or await self._open(engine, stack)
                        run = await self._measure(client, key, number)
                    self.runs.append(run)

    def report(self, command: Sequence[str]) -> dict[str, Any]:
        """Returns the report; `command` is the program with its arguments."""
        assert self.baseline is not None
        replay = self.config.load.replay
        load = {
            "loads": replay.loads,
            "qps": replay.qps,
            "capacity_s": replay.capacity_s,
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

    async def _open(
        self, engine: EngineConfig | None, stack: contextlib.AsyncExitStack
    ) -> Client:
        """Returns the client of a warm server, which `stack` stops at its end."""
        name = self.config.servers.url
        if engine is not None:
            name = engine_name(engine)
        with self._progress.doing(f"waiting for {name} to be warm"):
            return await stack.enter_async_context(self._opener(self.config, engine))

    async def _measure(
        self, client: Client, key: dict[str, Any] | None, number: int
    ) -> dict[str, Any]:
        """Makes a run and stores it; before the first, measures the baseline."""
        if self.baseline is None:
            baseline = await measure_baseline(client, self._workload, self._progress)
            self._use_baseline(baseline)
            if key is not None:
                row = dataclasses.asdict(baseline) | {"facts": plain(baseline.facts)}
                self.finished.put(_baseline_key(key), row)
        run = await self._run(client, number)
        if key is not None:
            self.finished.put(self._run_key(key, number), plain(run))
        return run

    def _use_baseline(self, baseline: Baseline) -> None:
        self.baseline = baseline
        print(baseline.describe(self._workload), flush=True)

    # Finished runs.

    def _key(
        self, engine: EngineConfig | None, facts: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Returns the settings that results depend on; None to measure them again.

        It is None with a step log, which only a new run fills, and for a foreign
        server, which may have changed.
        """
        if engine is None and "engine" not in facts:
            return None
        server: dict[str, Any] = {name: facts.get(name) for name in _SERVER_IDENTITY}
        if engine is not None:
            if engine.step_log is not None:
                return None
            server = dataclasses.asdict(engine) | {"compile_cache_dir": ""}
            if (file := policy_file(engine.policy)) is not None:
                server["policy_ns"] = file.stat().st_mtime_ns
        config = dataclasses.asdict(self.config)
        del config["report"], config["engine"]
        del config["servers"]["policies"], config["servers"]["bucket_strategies"]
        sent = [self._workload.rows, self._workload.classes]
        return {"config": config, "sent": sent, "server": server}

    def _run_key(self, key: Mapping[str, Any], number: int) -> dict[str, Any]:
        judged = dataclasses.asdict(self.baseline) if self.baseline else {}
        return {**key, "number": number, "baseline": judged | {"facts": None}}

    def _find(self, key: dict[str, Any] | None, number: int) -> dict[str, Any] | None:
        """Returns a run that an earlier call finished with the same baseline, or None.

        If this call has measured no baseline yet, it takes the earlier call's.
        """
        if key is None:
            return None
        if self.baseline is None:
            row = self.finished.get(_baseline_key(key))
            if row is None:
                return None
            self._use_baseline(baseline_from_json(row))
        run: dict[str, Any] | None = self.finished.get(self._run_key(key, number))
        return run

    # Running.

    async def _run(self, client: Client, number: int) -> dict[str, Any]:
        """Makes run `number`, which counts over all servers."""
        # Prepare what is sent.
        config = self.config.load
        place = number % config.num_runs
        engine = (await client.facts()).get("engine") or {}
        names = ("policy", "bucket_strategy")
        labels = {name: engine[name] for name in names if name in engine}
        flights: list[Flight] = []
        assert self.baseline is not None
        labels |= self._rate(place)
        requests = self._workload.requests(
            FIRST_RUN + number, self.baseline.yardstick, qps=labels["qps"]
        )

        # Send it, and measure.
        total = config.num_runs * max(len(self.config.engines()), 1)
        stage = f"run {number + 1} of {total}, {run_name(labels)}, requests"
        run = await measure_run(
            client,
            functools.partial(replay, client, requests, flights),
            flights,
            labels=labels | {"seed": config.seed},
            showing=self._progress.doing(
                stage, len(requests), lambda: sum(one.is_over for one in flights)
            ),
        )

        # Say how it went.
        num_attained = run["num_requests"] - run["num_violations"]
        lines = [
            f"{run_name(run)}: {num_attained} of {run['num_requests']} requests "
            "attained their SLOs"
        ]
        for one in run.get("failures", ()):
            lines.append(f"  {one['count']} failed, {one['reason']}: {one['message']}")
        if (missing := run.get("num_steps_missing")) is not None:
            lines.append(
                f"  the engine dropped {missing} of {run['num_steps']} steps before "
                "they were read: padding is not reported"
            )
        print("\n".join(lines), flush=True)
        return run

    def _rate(self, place: int) -> dict[str, Any]:
        if qps := self.config.load.replay.qps:
            return {"qps": qps[place]}
        assert self.baseline is not None and self.baseline.capacity is not None
        share = self.config.load.replay.loads[place]
        return {"load": share, "qps": share * self.baseline.capacity.requests_per_s}


def _baseline_key(key: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a baseline's key, which is the same for all policies and buckets."""
    own = ("policy", "bucket_strategy", "buckets")
    server = {name: one for name, one in key["server"].items() if name not in own}
    return {**key, "server": server}
