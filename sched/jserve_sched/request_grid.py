"""RequestGrid: steps to price, so that whole requests have a price.

The one idea: step times are staircases over compiled shapes, and a long prompt takes
several steps. So uniform batches of all sizes are cut into the very steps a scheduler
would run, one compiled shape each, and what they cost is added up again. Any step
predictor can price them.

A prefill of b prompts of l tokens fills steps in order, up to the step's limit; a
prompt that is cut goes on in the next step. It is over when the last one is. A decode
step has b rows with L tokens of KV each. No batch is larger than the KV pool.

`N` is the number of batches, `S` of steps, `F` the features of a step.
"""

import dataclasses

import numpy as np

from jserve_sched import features
from jserve_sched.buckets import BucketTable
from jserve_sched.predictor import Predictor

_MAX_PROMPT_STEPS = 4  # the longest prompt takes so many steps if it is alone
_MAX_BATCH_STEPS = 16  # the largest batch takes so many to prefill
_LEAST_LENGTH = 16
_LEAST_STEP_S = 1e-6  # a predictor's answer of nothing counts as this much


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LatencyPoints:
    """How long uniform batches took.

    Attributes:
      batch: `[N]` float64, requests, 1 or more.
      length: `[N]` float64, tokens of each: of its prompt, or of its KV.
      duration_s: `[N]` float64, seconds, above 0.

    Raises:
      ValueError: if there is no point, or one is no such thing.
    """

    batch: np.ndarray
    length: np.ndarray
    duration_s: np.ndarray

    def __post_init__(self) -> None:
        if not self.batch.shape == self.length.shape == self.duration_s.shape:
            raise ValueError(
                f"batch, length and duration_s have shapes {self.batch.shape}, "
                f"{self.length.shape} and {self.duration_s.shape}"
            )
        if not self.batch.size:
            raise ValueError("there is no point to fit")
        if not np.isfinite(self.duration_s).all() or np.min(self.duration_s) <= 0:
            raise ValueError(f"a duration is no time above 0: {self.duration_s}")


def prefill_points(matrix: np.ndarray, duration_s: np.ndarray) -> LatencyPoints:
    """Returns the measured steps that are a whole prefill of equal prompts.

    That is those without decodes and cached tokens, whose chunks are one as long as
    the other: others go on with a prompt, or have no one length.

    Args:
      matrix: features `[S, F]`.
      duration_s: `[S]` seconds.

    Raises:
      ValueError: if there is no such step.
    """
    tokens = matrix[:, features.PREFILL_TOKENS]
    is_whole = (
        (features.scenarios(matrix) == features.PURE_PREFILL)
        & (matrix[:, features.CACHED_TOKENS] == 0)
        & (
            matrix[:, features.CHUNK_SQUARES]
            == tokens * matrix[:, features.LARGEST_CHUNK]
        )
    )
    if not is_whole.any():
        raise ValueError("no step is a whole prefill of equal prompts")
    length = matrix[is_whole, features.LARGEST_CHUNK]
    return LatencyPoints(
        batch=tokens[is_whole] / length, length=length, duration_s=duration_s[is_whole]
    )


def decode_points(matrix: np.ndarray, duration_s: np.ndarray) -> LatencyPoints:
    """Returns the measured decode steps, each by its rows and their mean context.

    Args:
      matrix: features `[S, F]`.
      duration_s: `[S]` seconds.

    Raises:
      ValueError: if there is no such step.
    """
    is_decode = features.scenarios(matrix) == features.PURE_DECODE
    if not is_decode.any():
        raise ValueError("no step has decodes only")
    batch = matrix[is_decode, features.NUM_DECODES]
    return LatencyPoints(
        batch=batch,
        length=matrix[is_decode, features.DECODE_CONTEXT] / batch,
        duration_s=duration_s[is_decode],
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RequestGrid:
    """Uniform batches, and the steps they take.

    Attributes:
      buckets: the shapes of the steps.
      matrix: features of the steps, `[S, F]`: of the prefills in order, then decodes.
      prefill_batch: `[N]` prompts of each prefill.
      prefill_length: `[N]` tokens of each of its prompts.
      first_step: `[N]` where each prefill's steps begin in `matrix`.
      num_prefill_steps: steps of all prefills together.
    """

    buckets: BucketTable
    matrix: np.ndarray
    prefill_batch: np.ndarray
    prefill_length: np.ndarray
    first_step: np.ndarray
    num_prefill_steps: int

    def priced_by(self, model: Predictor) -> tuple[LatencyPoints, LatencyPoints]:
        """Returns what prefills and decode steps take, by a model of steps."""
        step_s = np.maximum(model.predict(self.matrix), _LEAST_STEP_S)
        end = self.num_prefill_steps
        prefill = LatencyPoints(
            batch=self.prefill_batch,
            length=self.prefill_length,
            duration_s=np.add.reduceat(step_s[:end], self.first_step),
        )
        return prefill, decode_points(self.matrix[end:], step_s[end:])


def request_grid(
    buckets: BucketTable,
    *,
    page_size: int,
    num_kv_tokens: int,
    max_num_batched_tokens: int,
) -> RequestGrid:
    """Returns the batches that a server could run, in octaves of size and length.

    Lengths go up to four full steps of prefill, batches to what sixteen such steps
    compute and the KV pool holds: beyond that the fit goes straight on. There are at
    least two lengths and two batch sizes, where the pool and the rows allow two.

    Args:
      buckets: the compiled shapes; the steps have no other.
      page_size: tokens in one KV page.
      num_kv_tokens: tokens in the KV pool.
      max_num_batched_tokens: most token positions in a step.
    """
    size = buckets.block_tokens
    max_blocks = buckets.block_edge_beside(0, max_num_batched_tokens)
    most = min(_MAX_PROMPT_STEPS * max_blocks * size, num_kv_tokens)
    lengths = _octaves(min(_LEAST_LENGTH, max(most // 2, 1)), most)
    batches = _octaves(1, max(buckets.max_rows, 1))
    pairs = [
        (batch, length)
        for batch in batches
        for length in lengths
        if batch * length <= num_kv_tokens
    ]
    prefills = [
        (batch, length)
        for batch, length in pairs
        if batch * -(-length // size) <= _MAX_BATCH_STEPS * max_blocks
    ]
    steps = [
        _prefill_steps(buckets, batch, length, max_blocks, page_size)
        for batch, length in prefills
    ]
    counts = np.array([len(one) for one in steps])
    decodes = _decode_steps(buckets, np.array(pairs, np.float64), page_size)
    batch, length = np.array(prefills, np.float64).T
    return RequestGrid(
        buckets=buckets,
        matrix=np.concatenate((*steps, decodes)),
        prefill_batch=batch,
        prefill_length=length,
        first_step=np.cumsum(counts) - counts,
        num_prefill_steps=int(np.sum(counts)),
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

    Args:
      buckets: the compiled shapes.
      batch: prompts.
      length: tokens of each.
      max_blocks: most prefill blocks in a step.
      page_size: tokens in one KV page.
    """
    size = buckets.block_tokens
    blocks_each = -(-length // size)
    total = batch * blocks_each
    num_steps = -(-total // max_blocks)
    # Blocks are numbered through; a chunk ends with its prompt or with its step.
    begin = np.union1d(
        np.arange(0, total, blocks_each), np.arange(0, total, max_blocks)
    )
    end = np.append(begin[1:], total)
    step = begin // max_blocks
    start = begin % blocks_each * size
    stop = np.minimum(start + (end - begin) * size, length)
    chunk = stop - start

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(step, weights=values, minlength=num_steps)

    rows = np.zeros((num_steps, features.NUM_FEATURES))
    rows[:, features.PREFILL_WORK] = summed(chunk * stop)
    rows[:, features.CHUNK_SQUARES] = summed(chunk * chunk)
    rows[:, features.CACHED_TOKENS] = summed(start)
    rows[:, features.PREFILL_TOKENS] = summed(chunk)
    np.maximum.at(rows[:, features.LARGEST_CHUNK], step, chunk)
    np.maximum.at(rows[:, features.BLOCK_PAGES], step, -(-stop // page_size))
    rows[:, features.NUM_ROWS] = buckets.fit(0, 0).num_rows
    rows[:, features.NUM_BLOCKS] = [
        buckets.fit(0, min(total - first, max_blocks)).num_blocks
        for first in range(0, total, max_blocks)
    ]
    return rows


def _decode_steps(
    buckets: BucketTable, pairs: np.ndarray, page_size: int
) -> np.ndarray:
    """Returns the features of decode steps of (rows, context) pairs `[N, 2]`."""
    batch, context = pairs.T
    rows = np.zeros((len(pairs), features.NUM_FEATURES))
    rows[:, features.CACHED_TOKENS] = batch * context
    rows[:, features.NUM_DECODES] = batch
    rows[:, features.DECODE_CONTEXT] = batch * context
    rows[:, features.NUM_ROWS] = [
        buckets.fit(num_rows, 0).num_rows for num_rows in batch.astype(int).tolist()
    ]
    rows[:, features.DECODE_PAGES] = np.ceil((context + 1) / page_size)
    return rows
