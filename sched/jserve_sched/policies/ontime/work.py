"""What steps cost beside the decodes of a snapshot, and what prompts add to them."""

from typing import NamedTuple

import numpy as np

from jserve_sched.planning.step_prices import StepPrices
from jserve_sched.planning.view import SchedulerView
from jserve_sched.requests.facts import Facts

_Z_95 = 1.645


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


def room_s(
    scale: StepScale, left_s: np.ndarray, step_s: float, *, is_whole: bool = False
) -> np.ndarray:
    """Returns `[P]` seconds for prefill until due times, by steps of `step_s`.

    Decodes take a part of each step, and a margin is kept for the error of a sum of
    predictions. If `is_whole`, only whole steps count: a prompt that does not fit into
    those left is cut, and ends too late.
    """
    until_s = np.where(np.isfinite(left_s), np.maximum(left_s, 0.0), 0.0)
    num_steps, used_s = np.maximum(until_s / step_s, 1.0), until_s
    if is_whole:
        num_steps = np.floor(num_steps)
        used_s = np.minimum(until_s, num_steps * step_s)
    margin_s = (scale.ratio - 1.0) / _Z_95 * until_s / np.sqrt(num_steps)
    found: np.ndarray = used_s - num_steps * scale.least_s - margin_s
    return found
