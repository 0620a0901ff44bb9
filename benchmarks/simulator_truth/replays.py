"""Replays a trace over HTTP under one policy; keeps every token and every step.

  python -m benchmarks.simulator_truth.replays --policy=fcfs --trace=azure_conv

Idle times and capacity are measured by the first call for a trace and read by later
ones, so that all policies get the same requests.
"""

import asyncio
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from jserve.config import EngineConfig
from jserve.program import run_program
from jserve.progress import Progress, timed_lines
from jserve_tools.load.config import LoadConfig, ReplayConfig
from jserve_tools.load.replay import Flight, replay
from jserve_tools.load.workload import read_workload
from jserve_tools.measuring.baseline import (
    FIRST_RUN,
    Baseline,
    baseline_from_json,
    measure_baseline,
)
from jserve_tools.measuring.targets import launched_server
from jserve_tools.reporting.documents import commit, plain, write_whole

LOADS = (0.7, 0.9, 1.2)
_TRACES = pathlib.Path("tools/jserve_tools/traces")
_LENGTH_SCALE = 0.25  # lengths of the trace that a small model on a CPU can serve


def _request_row(flight: Flight) -> dict[str, Any]:
    """Returns when a request was due, sent and answered, seconds."""
    assert flight.sent_s is not None
    one = flight.outcome()
    return {
        **{"arrival_s": one.arrival_s, "sent_s": flight.sent_s},
        **{"service_class": one.service_class, "slo": dataclasses.asdict(one.slo)},
        "prompt_tokens": one.num_prompt_tokens,
        "max_tokens": one.max_tokens,
        "token_times_s": one.token_times_s,
        "failure": one.failure and one.failure.value,
    }


async def measure(policy: str, trace: str, folder: pathlib.Path) -> None:
    """Measures one policy at all loads; writes a file for each."""
    workload = read_workload(
        LoadConfig(
            num_requests=flags.FLAGS.num_requests,
            replay=ReplayConfig(
                trace=_TRACES / f"{trace}.csv", length_scale=_LENGTH_SCALE, load=LOADS
            ),
        )
    )
    engine = EngineConfig(policy=policy, enable_prefix_caching=False)
    log = folder / f"{trace}-{policy}.log"
    known = folder / f"{trace}-baseline.json"
    async with launched_server(engine, log=log) as client:
        if known.exists():
            baseline: Baseline = baseline_from_json(json.loads(known.read_text()))
        else:
            progress = Progress(timed_lines())
            baseline = await measure_baseline(client, workload, progress)
            write_whole(known, json.dumps(plain(baseline)).encode())
        assert baseline.capacity is not None
        for number, load in enumerate(LOADS, FIRST_RUN):
            qps = load * baseline.capacity.requests_per_s
            requests = workload.requests(number, baseline.yardstick, qps=qps)
            first = (await client.facts())["stats"]["num_steps"]
            flights: list[Flight] = []
            await replay(client, requests, flights)
            steps = await client.steps(first) or []
            run = {
                **{"trace": trace, "policy": policy, "load": load, "qps": qps},
                "commit": commit(),
                "requests": [_request_row(one) for one in flights],
                "steps": [one._asdict() for one in steps],
            }
            path = folder / f"{trace}-{policy}-{load}.json"
            write_whole(path, json.dumps(run).encode())
            num_attained = sum(one.outcome().is_attained for one in flights)
            print(f"{path}: {num_attained} of {len(flights)} attained", flush=True)


def main(argv: Sequence[str]) -> None:
    """Measures what the flags name."""
    del argv
    chosen = flags.FLAGS
    asyncio.run(measure(chosen.policy, chosen.trace, pathlib.Path(chosen.folder)))


if __name__ == "__main__":
    flags.DEFINE_string("folder", "out/simulator_truth", "Folder of all files.")
    flags.DEFINE_integer("num_requests", 500, "Requests at each load.")
    flags.DEFINE_string("policy", "fcfs", "Policy of the server.")
    flags.DEFINE_string("trace", "azure_conv", "Trace that comes with jserve.")
    run_program(sys.modules[__name__])
