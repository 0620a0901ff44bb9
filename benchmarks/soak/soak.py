"""A server under mixed traffic for half an hour: does anything grow, or change?

  python -m benchmarks.soak.soak --minutes=30

The server is a process of its own, with the default model. Capacity is measured by 16
clients, then requests come at random at --load of it: chats and completions, streamed
and not, greedy and drawn, with and without an SLO, and one in twenty leaves early.
Every 30 s the same seeded probes are asked; their texts must be those of the start.
Memory, descriptors, threads and KV pages of the process are noted every 5 s. Memory is
judged after a sixth of the time, once the ring of step records is full. The last line
says what held; the report and a chart are written to --output.
"""

import asyncio
import contextlib
import json
import pathlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import altair as alt
from absl import flags

from jserve.program import run_program
from jserve_tools.reporting.documents import commit, write_whole

_MINUTES = flags.DEFINE_float("minutes", 30.0, "Minutes of traffic.")
_LOAD = flags.DEFINE_float("load", 0.7, "Share of the capacity.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the traffic.")
_OUTPUT = flags.DEFINE_string("output", "out/soak", "Folder of report and chart.")
_NUM_CLIENTS = 16
_CAPACITY_S = 20.0
_IDLE_S = 6.0
_SAMPLE_S, _PROBE_S, _PRINT_S = 5.0, 30.0, 10.0
_RING_STEPS = 65_536  # records that a server keeps
_GROWTH = 0.03  # of memory, that is allowed
_COUNTS = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv_usage": "vllm:kv_cache_usage_perc",
    "compiles": "jserve:compiles_after_warmup_total",
    "steps": "jserve:step_duration_seconds_count",
}
_PROBES = [
    {"prompt": text, "max_tokens": 40, "seed": 7, "temperature": temperature}
    for text in ("import os\n", "def mean(values):\n", "The server " * 60)
    for temperature in (0.0, 0.8)
]
Sample = dict[str, float]


@contextlib.contextmanager
def server() -> Iterator[tuple[int, str]]:
    """Runs a server; yields its process id and URL."""
    command = [sys.executable, "-m", "jserve", "--model=tiny", "--port=0"]
    log = (pathlib.Path(_OUTPUT.value) / "server.log").open("w")
    with log, subprocess.Popen(command, stdout=-1, stderr=log, text=True) as one:
        try:
            assert one.stdout is not None
            yield one.pid, one.stdout.readline().split()[1]
        finally:
            one.terminate()


def some_request(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Returns the path and body of a request."""
    text = "".join(rng.choices("abcdef ()=\n", k=int(rng.lognormvariate(5.0, 1.0)) + 1))
    fields: dict[str, Any] = {
        "max_tokens": min(int(rng.lognormvariate(3.5, 0.8)) + 1, 400),
        "temperature": rng.choice((0.0, 1.0)),
        "stream": rng.random() < 0.7,
    }
    if rng.random() < 0.6:
        fields["slo"] = {"ttft_s": 1.0, "tbt_s": 0.2}
    if rng.random() < 0.1:
        fields |= {"frequency_penalty": 0.5, "top_p": 0.9, "logprobs": 1}
    if "logprobs" not in fields and rng.random() < 0.5:
        return "/v1/chat/completions", fields | {
            "messages": [{"role": "user", "content": text[:4000]}]
        }
    return "/v1/completions", fields | {"prompt": text[:4000]}


class Traffic:
    """What is asked of a server, and what was counted."""

    def __init__(self, session: aiohttp.ClientSession, pid: int):
        self._session = session
        self._folder = pathlib.Path(f"/proc/{pid}")
        self._rng = random.Random(_SEED.value)
        self._tasks: set[asyncio.Task[None]] = set()
        self._texts: list[str] = []
        self.num_done = self.num_left = self.num_probes = 0
        self.faults: list[str] = []
        self.samples: list[Sample] = []

    async def one(self, *, may_leave: bool = True) -> None:
        """Asks one request, and counts how it ended."""
        path, body = some_request(self._rng)
        leaves = may_leave and self._rng.random() < 0.05
        async with self._session.post(path, json=body) as answer:
            if leaves:
                await answer.content.readany()
                answer.close()
                self.num_left += 1
                return
            text = await answer.text()
        if answer.status != 200 or '"error"' in text:
            self.faults.append(f"{answer.status}: {text[:200]}")
        self.num_done += 1

    async def capacity(self) -> float:
        """Returns how many requests a second 16 clients get."""
        end_s, before = time.monotonic() + _CAPACITY_S, self.num_done

        async def client() -> None:
            while time.monotonic() < end_s:
                await self.one(may_leave=False)

        await asyncio.gather(*(client() for _ in range(_NUM_CLIENTS)))
        return (self.num_done - before) / _CAPACITY_S

    async def come(self, rate: float, seconds: float) -> None:
        """Sends requests at random times, and waits for the last answer."""
        start_s, due_s = time.monotonic(), 0.0
        while (due_s := due_s + self._rng.expovariate(rate)) < seconds:
            await asyncio.sleep(start_s + due_s - time.monotonic())
            task = asyncio.create_task(self.one())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.gather(*self._tasks)

    async def probe(self) -> None:
        """Asks the probes; the first time their texts are noted."""
        texts = []
        for body in _PROBES:
            async with self._session.post("/v1/completions", json=body) as answer:
                texts.append((await answer.json())["choices"][0]["text"])
        self._texts = self._texts or texts
        self.num_probes += len(texts)
        if texts != self._texts:
            self.faults.append(f"probes changed: {texts} were {self._texts}")

    async def sample(self, start_s: float) -> Sample:
        """Notes what the process holds now."""
        async with self._session.get("/metrics") as answer:
            rows = [one.rsplit(" ", 1) for one in (await answer.text()).splitlines()]
        found = {
            name: sum(float(value) for key, value in rows if key.startswith(metric))
            for name, metric in _COUNTS.items()
        }
        status = (self._folder / "status").read_text().split()
        found["rss_mib"] = int(status[status.index("VmRSS:") + 1]) / 1024
        found["threads"] = len([*(self._folder / "task").iterdir()])
        found["descriptors"] = len([*(self._folder / "fd").iterdir()])
        found["at_s"] = time.monotonic() - start_s
        self.samples.append(found)
        return found


async def every(seconds: float, work: Any) -> None:
    """Does some work again and again, until it is cancelled."""
    while True:
        await work()
        await asyncio.sleep(seconds)


async def soak(pid: int, url: str) -> dict[str, Any]:
    """Returns the report of a server under traffic."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S / 2)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(
        url, connector=connector, timeout=timeout
    ) as session:
        traffic = Traffic(session, pid)
        is_warm = False
        while not is_warm:
            await asyncio.sleep(1.0)
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with session.get("/health") as answer:
                    is_warm = (await answer.json())["warm"]
        rate = await traffic.capacity() * _LOAD.value
        await traffic.probe()
        start_s = time.monotonic()
        before = await traffic.sample(start_s)
        print(f"soak: {rate:.2f} requests/s for {_MINUTES.value:g} minutes", flush=True)

        async def tell() -> None:
            now = traffic.samples[-1]
            print(
                f"soak: {now['at_s']:.0f} s, {traffic.num_done} answers, "
                f"{now['running']:.0f} running, {now['waiting']:.0f} waiting, "
                f"{now['rss_mib']:.0f} MiB, {len(traffic.faults)} faults",
                flush=True,
            )

        beside = [
            asyncio.create_task(every(seconds, work))
            for seconds, work in (
                (_SAMPLE_S, lambda: traffic.sample(start_s)),
                (_PROBE_S, traffic.probe),
                (_PRINT_S, tell),
            )
        ]
        await traffic.come(rate, 60 * _MINUTES.value)
        for task in beside:
            task.cancel()
        await traffic.probe()
        await asyncio.sleep(_IDLE_S)  # unused connections end
        after = await traffic.sample(start_s)
    return report(traffic, before, after, rate)


def report(
    traffic: Traffic, before: Sample, after: Sample, rate: float
) -> dict[str, Any]:
    """Returns what held, and the numbers behind it."""
    settled = [
        one["rss_mib"]
        for one in traffic.samples
        if one["at_s"] > 10 * _MINUTES.value and one["steps"] >= _RING_STEPS
    ]
    growth = max(settled) / min(settled) - 1 if settled else None
    held = ("kv_usage", "running", "waiting", "descriptors", "threads")
    leaked = {name: (before[name], after[name]) for name in held}
    return {
        "commit": commit(),
        "requests_per_s": rate,
        "minutes": _MINUTES.value,
        "num_answers": traffic.num_done,
        "num_left": traffic.num_left,
        "num_probes": traffic.num_probes,
        "faults": traffic.faults[:20],
        "memory_growth": growth,
        "before_and_after": leaked,
        "num_compiles": after["compiles"],
        "held": {
            "no fault, all probes equal": not traffic.faults,
            "memory within 3 %": growth is not None and growth <= _GROWTH,
            "nothing is left": all(old >= new for old, new in leaked.values()),
            "no compilation": after["compiles"] == 0,
        },
        "samples": traffic.samples,
    }


def draw(samples: list[Sample]) -> alt.FacetChart:
    """Returns a chart of what the process held over time."""
    names = ("rss_mib", "descriptors", "threads", "kv_usage", "running", "waiting")
    rows = [
        {"minute": one["at_s"] / 60, "of": name, "value": one[name]}
        for one in samples
        for name in names
    ]
    lines = alt.Chart(alt.Data(values=rows), width=300, height=110).mark_line(
        strokeWidth=1
    )
    encoded = lines.encode(
        alt.X("minute:Q"), alt.Y("value:Q", title=None).scale(zero=False)
    )
    facet = alt.Facet("of:N", title=None, sort=list(names))
    chart: alt.FacetChart = encoded.facet(facet, columns=2)
    chart.resolve = alt.Resolve(scale={"y": "independent"})
    return chart


def main(argv: list[str]) -> int:
    """Soaks a server; returns 1 if something did not hold."""
    del argv
    output = pathlib.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    with server() as (pid, url):
        found = asyncio.run(soak(pid, url))
    write_whole(output / "report.json", (json.dumps(found) + "\n").encode())
    draw(found["samples"]).save(str(output / "soak.png"), scale_factor=1)
    print(json.dumps({name: found[name] for name in found if name != "samples"}))
    return 0 if all(found["held"].values()) else 1


if __name__ == "__main__":
    run_program(sys.modules[__name__])
