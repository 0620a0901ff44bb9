"""Draws weights for a model without a checkpoint.

On the host and by NumPy: nothing to compile, and the same seed gives the same
weights on every backend and, rounded, in every type. Each part of a leaf has its
own stream, so parts are drawn in parallel.
"""

import concurrent.futures
import os
from collections.abc import Generator, Iterable

import jax
import numpy as np

from jserve_models.decoder import Leaf
from jserve_models.layers import Draw

_PART_ROWS = 4096  # of a leaf without layers; changing it changes the weights


def draw_weights(
    leaves: Iterable[Leaf], seed: int, dtype: jax.typing.DTypeLike
) -> Generator[np.ndarray]:
    """Yields random weights in the order of `leaves`.

    Raises:
      ValueError: If the seed is negative.
    """
    if seed < 0:
        raise ValueError(f"seed={seed} is below 0")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for index, leaf in enumerate(leaves):
            host = np.full(leaf.shape, leaf.draw.mean, np.dtype(dtype))
            if leaf.draw.std:
                size = 1 if leaf.axes[0] == "layers" else _PART_ROWS
                jobs = [
                    pool.submit(
                        _fill, host[row : row + size], leaf.draw, (seed, index, row)
                    )
                    for row in range(0, len(host), size)
                ]
                for job in jobs:
                    job.result()
            yield host


def _fill(target: np.ndarray, draw: Draw, key: tuple[int, ...]) -> None:
    noise = np.random.default_rng(key).standard_normal(target.shape, np.float32)
    noise *= draw.std
    noise += draw.mean
    target[...] = noise
