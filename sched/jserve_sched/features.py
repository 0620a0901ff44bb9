"""What a step's duration depends on, as a row of numbers.

`N` is the number of steps described at once.
"""

from collections.abc import Iterable

import numpy as np

from jserve_sched.plan import Row

# The columns of a feature matrix [N, 4], float64: decode rows computed, B; prefill
# blocks computed, NB; KV pages of the longest decode row, and of the longest block,
# since all rows of a kind loop to the longest.


def longest_pages(rows: Iterable[Row], page_size: int) -> int:
    """Returns the KV pages of the row that ends furthest; 0 for no row."""
    return -(-max((row.stop for row in rows), default=0) // page_size)


def step_features(
    num_rows: float, num_blocks: float, decode_pages: float, block_pages: float
) -> np.ndarray:
    """Returns one step's features, `[1, 4]`."""
    return np.array([[num_rows, num_blocks, decode_pages, block_pages]], np.float64)
