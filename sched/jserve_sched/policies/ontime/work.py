"""What steps cost beside the decodes of a snapshot, and what prompts add to them."""

from typing import NamedTuple

import numpy as np

from jserve_sched.planning.step_prices import StepPrices
from jserve_sched.planning.view import SchedulerView
from jserve_sched.requests.facts import Facts


class StepScale(NamedTuple):
    """Durations of steps, seconds: without prefill, with one block, and full.

    `token_s` is what a token adds; `ratio` is the 95th percentile of the duration of a
    full step over its median. `edges_s` `[N]` are durations of steps that fill a
    bucket, ascending.
    """

    least_s: float
    first_s: float
    full_s: float
    token_s: float
    ratio: float
    edges_s: np.ndarray


def scale_of(view: SchedulerView, steps: StepPrices) -> StepScale:
    """Returns the durations of steps beside these decodes."""
    size, most = steps.block_tokens, max(steps.max_blocks, 1)
    blocks = np.concatenate(([0.0, 1.0, most], steps.edges))
    matrix = steps.matrix(steps.columns(np.zeros(len(blocks)), blocks * size))
    times_s = steps.predict(matrix)
    least_s, first_s, full_s = np.maximum.accumulate(times_s[:3]).tolist()
    upper_s = float(view.predictor.predict_upper(matrix[2:3])[0])
    return StepScale(
        least_s,
        first_s,
        full_s,
        token_s=(full_s - least_s) / (most * size),
        ratio=max(upper_s / full_s, 1.0),
        edges_s=np.maximum.accumulate(times_s[3:]),
    )


def added_s(
    steps: StepPrices, scale: StepScale, prompts: Facts, alone_s: np.ndarray
) -> np.ndarray:
    """Returns `[P]` seconds that prompts add to steps that run anyhow.

    A prompt of less than a step shares it with others: its blocks count, not the
    padding that it would have alone. `alone_s` `[P]` are the times of each alone.
    """
    size = steps.block_tokens
    most = max(steps.max_blocks, 1) * size
    own_s = alone_s - scale.least_s * np.maximum(np.ceil(prompts.tokens / most), 1.0)
    shared_s = np.minimum(own_s, np.ceil(prompts.tokens / size) * size * scale.token_s)
    added = np.where(prompts.tokens <= most, shared_s, own_s)
    found: np.ndarray = np.maximum(added, 0.0)
    return found
