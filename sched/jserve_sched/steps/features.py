"""What a step's duration depends on, as a row of `F` numbers.

The first seven columns are SlidingServe's x1 to x7 (arXiv 2606.05933, Table 1), of
the tokens that are real: a row i computes `c_i` tokens after `u_i` cached ones. A row
counts as a decode where it runs as one; that is Eq. 2's `c_i <= 1`, but for a
one-token prompt, which takes a block. The last four are what static shapes add: the
compiled rows and blocks, and the KV pages of the longest row of each kind, since all
rows of a kind loop to the longest. `N` is the number of steps described at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jserve_sched.buckets.table import Bucket
from jserve_sched.steps.plan import Row

# Columns of a feature matrix [N, F], float64.
PREFILL_WORK = 0  # x1: sum over chunks of c (u + c)
CHUNK_SQUARES = 1  # x2: sum over chunks of c^2
CACHED_TOKENS = 2  # x3: sum over all rows of u
NUM_DECODES = 3  # x4: decodes
DECODE_CONTEXT = 4  # x5: sum over decodes of u
PREFILL_TOKENS = 5  # x6: sum over chunks of c
LARGEST_CHUNK = 6  # x7: largest c of a chunk
NUM_ROWS = 7  # decode rows compiled, B
NUM_BLOCKS = 8  # prefill blocks compiled, NB
DECODE_PAGES = 9  # KV pages of the longest decode
BLOCK_PAGES = 10  # KV pages of the longest chunk
NUM_FEATURES = 11
PAPER_FEATURES = slice(0, 7)

# Scenarios of a batch (SlidingServe Eq. 3).
PURE_DECODE, PURE_PREFILL, MIXED = range(3)
SCENARIOS = ("decode", "prefill", "mixed")


class Span(NamedTuple):
    """The part of a `Row` that its cost depends on."""

    start: int
    num_tokens: int


def step_features(
    decodes: Sequence[Row | Span],
    chunks: Sequence[Row | Span],
    bucket: Bucket,
    page_size: int,
) -> np.ndarray:
    """Returns the features of one step, `[F]`."""
    context = longest_decode = 0
    for row in decodes:
        start = row.start
        context += start
        if start >= longest_decode:
            longest_decode = start + 1
    work = squares = cached = tokens = largest = longest_chunk = 0
    for row in chunks:
        start, count = row.start, row.num_tokens
        stop = start + count
        work += count * stop
        squares += count * count
        cached += start
        tokens += count
        largest = max(largest, count)
        longest_chunk = max(longest_chunk, stop)
    return np.array(
        (
            work,
            squares,
            cached + context,
            len(decodes),
            context,
            tokens,
            largest,
            bucket.num_rows,
            bucket.num_blocks,
            -(-longest_decode // page_size),
            -(-longest_chunk // page_size),
        ),
        np.float64,
    )


def uniform_features(
    bucket: Bucket, *, decode_pages: int, block_pages: int, page_size: int
) -> np.ndarray:
    """Returns the features `[F]` of a step of equal rows that fills a bucket.

    Every decode ends after `decode_pages` whole KV pages, and every block, each of
    another sequence, after `block_pages`; 0 pages leave the rows or the blocks empty.
    """
    size = bucket.block_tokens
    decodes = [Span(decode_pages * page_size - 1, 1)] * bucket.num_rows
    chunks = [Span(block_pages * page_size - size, size)] * bucket.num_blocks
    return step_features(
        decodes if decode_pages else [],
        chunks if block_pages else [],
        bucket,
        page_size,
    )


def without_padding(matrix: np.ndarray, used_blocks: int | Sequence[int]) -> np.ndarray:
    """Returns the features of the same steps in buckets that just hold them.

    Args:
      matrix: `[F]` or `[N, F]`; so is what is returned.
      used_blocks: Blocks that hold a real token, of each step.
    """
    bare = matrix.copy()
    bare[..., NUM_ROWS] = matrix[..., NUM_DECODES]
    bare[..., NUM_BLOCKS] = used_blocks
    return bare


def scenarios(matrix: np.ndarray) -> np.ndarray:
    """Returns the scenario of each step, `[N]` int, for features `[N, F]`."""
    return np.where(
        matrix[:, PREFILL_TOKENS] <= 0,
        PURE_DECODE,
        np.where(matrix[:, NUM_DECODES] <= 0, PURE_PREFILL, MIXED),
    )
