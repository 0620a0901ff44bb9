"""What a step's duration depends on, as a row of `F` numbers.

The first seven columns are SlidingServe's x1 to x7 (arXiv 2606.05933, Table 1), of
the tokens that are real: a row i computes `c_i` tokens after `u_i` cached ones. A row
counts as a decode where it runs as one; that is Eq. 2's `c_i <= 1`, but for a
one-token prompt, which takes a block. The others are what static shapes and KV pages
add: the compiled rows and blocks, and the pages that attention reads, which it reads
whole and once for each row and block. `N` is the number of steps described at once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

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
DECODE_PAGES = 9  # sum over decodes of the KV pages up to their token
BLOCK_PAGES = 10  # sum over blocks of the KV pages up to their last token
LONGEST_DECODE = 11  # KV pages of the longest decode
NUM_FEATURES = 12
PAPER_FEATURES = slice(0, 7)

# Scenarios of a batch (SlidingServe Eq. 3).
PURE_DECODE, PURE_PREFILL, MIXED = range(3)
SCENARIOS = ("decode", "prefill", "mixed")


class Span(NamedTuple):
    """The part of a `Row` that its cost depends on."""

    start: int
    num_tokens: int


def pages_of_blocks(start: Any, tokens: Any, block_tokens: int, page_size: int) -> Any:
    """Returns the sum over a chunk's blocks of the KV pages up to their last token.

    It is exact where a chunk starts with a block of its sequence and one of page and
    block is a multiple of the other.

    Args:
      start: Position of the chunk's first token, or `[N]`; `tokens` are its tokens.
    """
    first = start // block_tokens
    stop = first - -tokens // block_tokens
    return _pages_before(stop, block_tokens, page_size) - _pages_before(
        first, block_tokens, page_size
    )


def _pages_before(blocks: Any, block_tokens: int, page_size: int) -> Any:
    """Returns the sum for the first blocks of a sequence."""
    if block_tokens > page_size:
        return blocks * (blocks + 1) // 2 * (block_tokens // page_size)
    per_page = page_size // block_tokens
    pages = blocks // per_page  # that are full of blocks
    return per_page * pages * (pages + 1) // 2 + blocks % per_page * (pages + 1)


def step_features(
    decodes: Sequence[Row | Span],
    chunks: Sequence[Row | Span],
    bucket: Bucket,
    page_size: int,
) -> np.ndarray:
    """Returns the features of one step, `[F]`."""
    context = longest = decode_pages = 0
    for row in decodes:
        start = row.start
        context += start
        pages = start // page_size + 1
        decode_pages += pages
        if pages > longest:
            longest = pages
    work = squares = cached = tokens = largest = block_pages = 0
    block_tokens = bucket.block_tokens
    for row in chunks:
        start, count = row.start, row.num_tokens
        stop = start + count
        work += count * stop
        squares += count * count
        cached += start
        tokens += count
        largest = max(largest, count)
        block_pages += pages_of_blocks(start, count, block_tokens, page_size)
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
            decode_pages,
            block_pages,
            longest,
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
