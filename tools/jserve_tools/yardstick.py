"""Measures an idle server: what relative objectives are multiples of.

A slow machine shows the same picture as a fast one then. The times are measured once,
on the first server, and hold for all of them.
"""

import itertools
import statistics
from collections.abc import Sequence

import numpy as np

from jserve_sched.workload import Yardstick
from jserve_tools.clients import Client
from jserve_tools.replay import Flight, fly
from jserve_tools.workload import Workload

_NUM_LENGTHS = 6  # prompt lengths on the isolated curve
_NUM_REPEATS = 3
_STEP_PROMPT_TOKENS = 32
_STEP_OUTPUT_TOKENS = 48


async def measure_yardstick(client: Client, workload: Workload, run: int) -> Yardstick:
    """Measures the isolated TTFT curve and the isolated decode step.

    Args:
      client: Of an idle server.
      workload: Its shortest and longest prompts bound the curve.
      run: A run number that no other requests have, so that no prompt repeats.

    Raises:
      RuntimeError: If a lone request fails.
    """
    lengths = [row.prompt_tokens for row in workload.rows]
    grid = np.geomspace(min(lengths), max(lengths), _NUM_LENGTHS)
    points = [int(length) for length in np.unique(np.rint(grid).astype(int))]
    numbers = itertools.count()

    async def flight(prompt_tokens: int, max_tokens: int) -> Flight:
        request = workload.request(
            run, next(numbers), prompt_tokens=prompt_tokens, max_tokens=max_tokens
        )
        one = Flight(request=request, arrival_s=client.now_s())
        await fly(client, one)
        if one.failure is not None:
            raise RuntimeError(
                f"a lone request of {prompt_tokens} prompt tokens failed: {one.message}"
            )
        return one

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
    """Returns the time between tokens of lone requests: the median of their means.

    Tokens may be read several at once where an engine is quicker than its client, so
    that most gaps are 0; from the first token to the last is the same.

    Args:
      token_times_s: Of each request, when its tokens came, ascending.

    Raises:
      RuntimeError: If no time can be told: too few tokens, or all at once.
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
