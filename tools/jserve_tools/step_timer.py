"""Times steps in shuffled rounds.

A machine drifts, and other programs disturb it in bursts. Each round visits every step
once, in an order of its own, so that a slow moment falls on steps at random and no step
has a drift that another lacks.
"""

import time
from collections.abc import Callable

import numpy as np


def time_rounds(
    time_step: Callable[[int], float],
    num_steps: int,
    *,
    rounds: int,
    warmup_rounds: int,
    rng: np.random.Generator,
    max_s: float = float("inf"),
    clock_s: Callable[[], float] = time.monotonic,
) -> np.ndarray:
    """Returns durations `[rounds, num_steps]` in seconds.

    Args:
      time_step: Runs the step of an index once; returns its seconds.
      num_steps: Number of steps.
      rounds: Rounds kept, unless time runs out.
      warmup_rounds: Rounds before these, which are discarded.
      rng: Shuffles each round.
      max_s: Seconds after which no further round begins; one is always kept.
      clock_s: Seconds from any start.
    """
    start_s = clock_s()
    kept: list[np.ndarray] = []
    for index in range(warmup_rounds + rounds):
        if kept and clock_s() - start_s >= max_s:
            break
        durations_s = np.empty(num_steps)
        for step in rng.permutation(num_steps).tolist():
            durations_s[step] = time_step(step)
        if index >= warmup_rounds:
            kept.append(durations_s)
    return np.stack(kept)
