"""Prints the host's time for a decode step of many rows, part by part.

    python benchmarks/host_breakdown/step_parts.py [policy ...]

The loop serves the toy model, which takes next to no time of its own, without HTTP.
Each part is the lower decile over the steps in which all rows run, since other
processes only add time. `launch` includes the step itself on a CPU, so it is left out
of the sum.
"""

import json
import pathlib
import sys
import tempfile
import threading
from collections.abc import Sequence

import numpy as np

from jserve.build import build_loop
from jserve.config import EngineConfig
from jserve.records.events import Health, TokenEvent
from jserve_sched.requests.request import Request

NUM_ROWS = (32, 128)
OUTPUT_TOKENS = 400
PARTS = ("plan_s", "transfer_s", "launch_s", "apply_s", "host_s")


def main(policies: Sequence[str]) -> None:
    """Measures each policy at each number of rows."""
    print("us a step   rows    plan  pack  launch  apply  rest   sum  us a row")
    for policy in policies:
        for num_rows in NUM_ROWS:
            plan, pack, launch, apply, host = measure(policy, num_rows)
            rest = host - plan - pack - launch - apply
            total = host - launch
            print(
                f"{policy:10} {num_rows:5} {plan:7.0f} {pack:5.0f} {launch:7.0f} "
                f"{apply:6.0f} {rest:5.0f} {total:5.0f} {total / num_rows:9.1f}"
            )


def measure(policy: str, num_rows: int) -> list[float]:
    """Returns the lower decile of each of `PARTS`, microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        buckets = pathlib.Path(folder) / "buckets.json"
        table = {"row_edges": [num_rows], "block_edges": [0, 4]}
        buckets.write_text(json.dumps(table))
        config = EngineConfig(
            model="toy",
            policy=policy,
            buckets=buckets,
            max_num_seqs=num_rows,
            max_num_batched_tokens=num_rows + 128,
            kv_cache_bytes=2**24,
            compile_cache_dir="out/host_breakdown/cache",
        )
        loop = build_loop(config)
        num_left = num_rows
        done = threading.Event()

        def listen(events: Sequence[TokenEvent]) -> None:
            nonlocal num_left
            num_left -= sum(one.finish_reason is not None for one in events)
            if not num_left:
                done.set()

        loop.set_listener(listen)
        loop.start()
        assert loop.wait_until(Health.WARM, 600.0)
        for index in range(num_rows):
            prompt = np.arange(32, dtype=np.int32)
            request = Request(
                request_id=str(index),
                arrival_s=loop.clock.now_s(),
                prompt_tokens=prompt,
                max_tokens=OUTPUT_TOKENS,
            )
            loop.submit(request)
        assert done.wait(600.0)
        steps = [
            one
            for one in loop.steps()
            if one.used_rows == num_rows and not one.prefill_tokens
        ]
        loop.stop()
    times_s = [[getattr(one, part) for part in PARTS] for one in steps]
    deciles_us: list[float] = (1e6 * np.percentile(times_s, 10, axis=0)).tolist()
    return deciles_us


if __name__ == "__main__":
    main(sys.argv[1:] or ("fcfs", "sliding"))
