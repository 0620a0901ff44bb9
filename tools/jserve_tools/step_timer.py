"""Times steps in shuffled rounds.

The one idea: a machine drifts, and other programs disturb it in bursts. Each round
visits every step once, in an order of its own, so that a slow moment falls on steps at
random and no step has a drift that another lacks.

`N` is the number of steps, `R` the number of rounds kept.
"""

import time
from collections.abc import Callable

import numpy as np

TimeStep = Callable[[int], float]
"""Runs the step of this index once; returns its seconds."""


def time_rounds(
    time_step: TimeStep,
    num_steps: int,
    *,
    rounds: int,
    warmup_rounds: int,
    rng: np.random.Generator,
    max_s: float = float("inf"),
    on_step: Callable[[], object] = lambda: None,
    clock_s: Callable[[], float] = time.monotonic,
) -> np.ndarray:
    """Returns durations `[R, N]` in seconds.

    Args:
      time_step: measures one step.
      num_steps: how many there are.
      rounds: rounds kept, unless time runs out.
      warmup_rounds: rounds before these, thrown away.
      rng: shuffles each round.
      max_s: after so many seconds no further round is begun; one is always kept.
      on_step: told of each step measured.
      clock_s: seconds from any start.
    """
    start_s = clock_s()
    kept: list[np.ndarray] = []
    for index in range(warmup_rounds + rounds):
        if kept and clock_s() - start_s >= max_s:
            break
        durations_s = np.empty(num_steps)
        for step in rng.permutation(num_steps).tolist():
            durations_s[step] = time_step(step)
            on_step()
        if index >= warmup_rounds:
            kept.append(durations_s)
    return np.stack(kept)


def repeat_spread(duration_s: np.ndarray) -> np.ndarray:
    """Returns each step's spread between rounds `[N]`, relative to its median.

    The spread is the median absolute deviation: the error, typically, of one who
    knows a step's median and is judged by a single measurement of it.

    Args:
      duration_s: `[R, N]` seconds.
    """
    median_s = np.median(duration_s, axis=0)
    spread: np.ndarray = np.median(np.abs(duration_s - median_s), axis=0) / median_s
    return spread
