"""Worker of `in_process.py`: jserve's engine, without its server.

As many requests as the batch are kept running; when one ends, the next begins.
"""

import importlib.metadata
import os
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags
from worker_protocol import Answer, serve_lines

from jserve.build import build_loop
from jserve.config import EngineConfig
from jserve.events import Health, StepRecord, TokenEvent
from jserve.loop import EngineLoop
from jserve_sched.request import Request

_MODEL = flags.DEFINE_string("model", None, "Model folder.", required=True)

_START_TIMEOUT_S = 600.0
_RUN_TIMEOUT_S = 600.0
_TIMES = ("duration_s", "plan_s", "transfer_s", "launch_s", "wait_s", "apply_s")


class ClosedLoop:
    """Keeps a fixed number of requests in an engine until all are answered."""

    def __init__(self, loop: EngineLoop, prompts: Sequence[list[int]], max_tokens: int):
        self._loop = loop
        self._prompts = prompts
        self._max_tokens = max_tokens
        self._outputs: list[list[int]] = [[] for _ in prompts]
        self._num_begun = 0
        self._num_ended = 0
        self._failure: str | None = None
        self._done = threading.Event()

    def run(self, batch: int) -> Answer:
        """Returns the seconds it took, the outputs and the steps.

        Raises:
          RuntimeError: if a request failed or time ran out.
        """
        self._loop.set_listener(self._listen)
        first_step = self._loop.stats().num_steps
        start_s = time.perf_counter()
        self._num_begun = min(batch, len(self._prompts))
        for index in range(self._num_begun):
            self._submit(index)
        if not self._done.wait(_RUN_TIMEOUT_S) or self._failure:
            raise RuntimeError(self._failure or "the engine took too long")
        elapsed_s = time.perf_counter() - start_s
        steps = self._loop.steps(since=first_step)
        return Answer(elapsed_s, self._outputs, {"steps": summarise_steps(steps)})

    def _submit(self, index: int) -> None:
        self._loop.submit(
            Request(
                request_id=str(index),
                arrival_s=self._loop.clock.now_s(),
                prompt_tokens=np.asarray(self._prompts[index], np.int32),
                max_tokens=self._max_tokens,
            )
        )

    def _listen(self, events: Sequence[TokenEvent]) -> None:
        """Runs in the engine's thread, once a step."""
        for event in events:
            if event.token is not None:
                self._outputs[int(event.request_id)].append(event.token)
            if event.error is not None:
                self._failure = event.error
                self._done.set()
            elif event.finish_reason is not None:
                self._num_ended += 1
                if self._num_begun < len(self._prompts):
                    self._submit(self._num_begun)
                    self._num_begun += 1
        if self._num_ended == len(self._prompts):
            self._done.set()


def summarise_steps(steps: Sequence[StepRecord]) -> list[dict[str, Any]]:
    """Returns how often each bucket ran, and where its time went (medians)."""
    by_bucket: dict[tuple[int, int], list[StepRecord]] = defaultdict(list)
    for step in steps:
        by_bucket[step.num_rows, step.num_blocks].append(step)
    return [
        {
            "num_rows": rows,
            "num_blocks": blocks,
            "num_steps": len(some),
            "used_rows": statistics.fmean(step.used_rows for step in some),
            "used_blocks": statistics.fmean(step.used_blocks for step in some),
            "total_s": sum(step.duration_s for step in some),
            **{
                f"median_{name}": statistics.median(
                    getattr(step, name) for step in some
                )
                for name in _TIMES
            },
        }
        for (rows, blocks), some in sorted(by_bucket.items())
    ]


def main(argv: Sequence[str]) -> None:
    """Serves jobs until stdin ends."""
    del argv
    config = EngineConfig(
        model=_MODEL.value, max_num_seqs=32, enable_prefix_caching=False
    )
    loop = build_loop(config)

    def describe() -> dict[str, Any]:
        loop.start()
        if not loop.wait_until(Health.WARM, _START_TIMEOUT_S):
            raise RuntimeError(f"the engine is {loop.health.value}, not warm")
        return {
            "versions": {
                name: importlib.metadata.version(name)
                for name in ("jserve", "jax", "flax", "numpy")
            },
            "settings": {
                "max_num_seqs": config.max_num_seqs,
                "enable_prefix_caching": config.enable_prefix_caching,
                "policy": config.policy,
                "max_num_batched_tokens": config.max_num_batched_tokens,
                "dtype": config.dtype,
                "compile_s": loop.stats().compile_s,
            },
        }

    serve_lines(
        describe,
        lambda prompts, batch, max_tokens: ClosedLoop(loop, prompts, max_tokens).run(
            batch
        ),
    )
    loop.stop()


if __name__ == "__main__":
    # NumPy's threads would fight XLA's over the cores (as `jserve` sets it).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    app.run(main)
