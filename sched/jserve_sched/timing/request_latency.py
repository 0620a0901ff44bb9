"""RequestLatency: how long a whole request takes in a batch of a given size.

A planner that tries thousands of batchings cannot price steps. So a request's time is
two bilinear functions, of the batch size and a length: one for the prefill, one for a
decode step; the decode steps of an answer have a closed sum.

    t_p(b, l)      time until b prompts of l tokens each are prefilled
    tau(b, L)      a decode step of b requests with L tokens of KV each
    t_d(b, l, o) = sum of tau(b, l + k) for k from 0 to o - 2

The prefill's last step yields the first token, so o output tokens take o - 1 decode
steps; the first of them reads the l tokens of the prompt.

What is known of the predictor of "SLO-Aware Scheduling for Large Language Model
Inferences" (arXiv 2504.14966) is that it has these two parts, and that its prefill time
grows linearly with the length and with the batch size. All else is ours: the product
term, the sum, the fit and its weights, and that a request in a ragged batch is priced
by its own length, not by the longest one.

`N` is the number of batches, `S` of steps, `F` the features of a step.
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import numpy as np

from jserve_sched.buckets.table import BucketTable
from jserve_sched.steps.features import Span, step_features
from jserve_sched.timing.predictor import Predictor

_MAX_PROMPT_STEPS = 4  # of the longest prompt, if it is alone
_MAX_BATCH_STEPS = 16  # of the prefill of the largest batch
_LEAST_LENGTH = 16
_LEAST_STEP_S = 1e-6  # a predictor's answer of nothing counts as this much


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bilinear:
    """Seconds as `both * b * l + batch * b + length * l + base`.

    Lengths are tokens. No coefficient is negative, so more work never takes less time.
    """

    both: float
    batch: float
    length: float
    base: float

    def of(self, batch: np.ndarray, length: np.ndarray) -> np.ndarray:
        """Returns seconds for batch sizes and lengths that broadcast together."""
        slope = self.both * length + self.batch
        return np.asarray(slope * batch + (self.length * length + self.base))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestLatency:
    """Times of whole requests, by t_p and tau; all arguments broadcast together."""

    prefill: Bilinear
    decode: Bilinear

    def decode_s(
        self, batch: np.ndarray, prompt_tokens: np.ndarray, output_tokens: np.ndarray
    ) -> np.ndarray:
        """Returns seconds from the first output token to the last, if there are two."""
        num_steps = np.maximum(np.asarray(output_tokens) - 1.0, 0.0)
        # Tokens of KV that the steps read, summed: l, l + 1, .., l + num_steps - 1.
        context = num_steps * (prompt_tokens + (num_steps - 1.0) / 2)
        one = self.decode
        slope = one.both * context + one.batch * num_steps
        return np.asarray(slope * batch + (one.length * context + one.base * num_steps))

    def exec_s(
        self, batch: np.ndarray, prompt_tokens: np.ndarray, output_tokens: np.ndarray
    ) -> np.ndarray:
        """Returns seconds from the start of the prefill to the last token."""
        decode_s = self.decode_s(batch, prompt_tokens, output_tokens)
        return np.asarray(self.prefill.of(batch, prompt_tokens) + decode_s)


class LatencyPoints(NamedTuple):
    """How long `[N]` uniform batches took: requests, tokens of each, and seconds."""

    batch: np.ndarray
    length: np.ndarray
    duration_s: np.ndarray


def fit_bilinear(points: LatencyPoints) -> Bilinear:
    """Fits the least sum of squared relative errors with no coefficient below 0.

    Relative, since attention makes long prefills quadratic, and those would otherwise
    decide what short ones cost. (Ours.) Over the whole grid the mean error is 4 to 9 %
    for prefills and at most 4 % for decode steps on six GPU models, the worst 31 and
    12 %; with absolute errors the mean is up to about four times as large.
    """
    from scipy.optimize import nnls

    batch, length, duration_s = points
    design = np.stack((batch * length, batch, length, np.ones(len(batch))), axis=1)
    design /= duration_s[:, None]
    scale = np.linalg.norm(design, axis=0)
    found = nnls(design / scale, np.ones(len(batch)))[0] / scale
    names = [field.name for field in dataclasses.fields(Bilinear)]
    return Bilinear(**dict(zip(names, found.tolist(), strict=True)))


def priced_points(
    model: Predictor,
    buckets: BucketTable,
    *,
    page_size: int,
    num_kv_tokens: int,
    max_num_batched_tokens: int,
) -> tuple[LatencyPoints, LatencyPoints]:
    """Returns what prefills and decode steps of uniform batches take, by a model.

    They are cut into the very steps that a scheduler would run, since step times are
    staircases over compiled buckets. Batches and lengths double. Lengths go up to four
    full steps of prefill, batches to what sixteen such steps compute and the KV pool
    holds: beyond that the fit is extrapolated.
    """
    size = buckets.block_tokens
    max_blocks = buckets.block_edge_beside(0, max_num_batched_tokens)
    most = min(_MAX_PROMPT_STEPS * max_blocks * size, num_kv_tokens)
    lengths = _octaves(min(_LEAST_LENGTH, max(most // 2, 1)), most)
    batches = _octaves(1, max(buckets.max_rows, 1))
    pairs = [
        pair
        for pair in itertools.product(batches, lengths)
        if math.prod(pair) <= num_kv_tokens
    ]
    prefills = [
        (batch, length)
        for batch, length in pairs
        if batch * -(-length // size) <= _MAX_BATCH_STEPS * max_blocks
    ]
    steps = [_prefill_steps(buckets, *pair, max_blocks, page_size) for pair in prefills]
    ends = np.cumsum([len(one) for one in steps])
    decodes = [
        step_features([Span(known, 1)] * count, (), buckets.fit(count, 0), page_size)
        for count, known in pairs
    ]
    step_s = model.predict(np.concatenate((*steps, decodes)))
    step_s = np.maximum(step_s, _LEAST_STEP_S)
    prefill_s = np.add.reduceat(step_s[: ends[-1]], np.append(0, ends[:-1]))
    batch, length = np.array(prefills, np.float64).T
    rows, context = np.array(pairs, np.float64).T
    return (
        LatencyPoints(batch, length, prefill_s),
        LatencyPoints(rows, context, step_s[ends[-1] :]),
    )


def _octaves(least: int, most: int) -> list[int]:
    """Returns numbers that double from `least`, and `most`."""
    found = []
    while least < most:
        found.append(least)
        least *= 2
    return [*found, most]


def _prefill_steps(
    buckets: BucketTable, batch: int, length: int, max_blocks: int, page_size: int
) -> np.ndarray:
    """Returns the features of the steps that prefill equal prompts in order, `[S, F]`.

    They are full; a prompt that is cut continues in the next one.
    """
    size = buckets.block_tokens
    steps: list[list[Span]] = []
    room = 0  # blocks of the last step
    for _ in range(batch):
        start = 0
        while start < length:
            if not room:
                steps.append([])
                room = max_blocks
            tokens = min(length - start, room * size)
            steps[-1].append(Span(start, tokens))
            start += tokens
            room -= -(-tokens // size)
    blocks = [max_blocks] * (len(steps) - 1) + [max_blocks - room]
    return np.array(
        [
            step_features((), chunks, buckets.fit(0, count), page_size)
            for chunks, count in zip(steps, blocks, strict=True)
        ]
    )
