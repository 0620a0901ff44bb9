"""How the steps of a machine differ from what its cost model says."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from jserve_sched.steps import features

_NUM_BIASES = 4093  # a prime: programs are spread over so many biases
_STALL_S = (0.05, 0.2)
# Seconds by the cost model, features `[F]`, the time, and the number of requests that
# came since the step before -> the step's seconds.
Disturb = Callable[[float, np.ndarray, float, int], float]
_DRIFT_S, _NUM_DRIFTS = 30.0, 4096  # between two drawn speeds; then they repeat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disturbance:
    """What a machine does to the durations of its steps.

    Attributes:
      noise: Standard deviation of the logarithm of a step's duration.
      bias: Largest logarithm of the factor that all steps of one program share.
      drift: Standard deviation of the logarithm of a factor that changes slowly, in
        lines between values 30 s apart, as that of a clock which is throttled.
      stall_share: Share of steps that take 50 to 200 ms longer.
      send_s: Seconds by which each decode lengthens a step, where sending tokens takes
        time from the processor that computes them.
      receive_s: Seconds by which each request that came lengthens the next step, where
        reading it takes time from that processor.
    """

    noise: float = 0.0
    bias: float = 0.0
    drift: float = 0.0
    stall_share: float = 0.0
    send_s: float = 0.0
    receive_s: float = 0.0

    def drawn(self, seed: Sequence[int]) -> Disturb:
        """Returns the disturbance of one engine."""
        return Disturbed(self, seed)


class Disturbed:
    """The disturbance of one engine, for its steps in their order."""

    def __init__(self, of: Disturbance, seed: Sequence[int]):
        self._of = of
        self._is_none = of == Disturbance()
        self._noises, self._stalls, biases, drifts = (
            np.random.default_rng((*seed, *place)) for place in ((), (1,), (2,), (3,))
        )
        self._biases = of.bias * biases.uniform(-1.0, 1.0, _NUM_BIASES)
        self._drifts = of.drift * drifts.standard_normal(_NUM_DRIFTS)

    def __call__(
        self, duration_s: float, row: np.ndarray, now_s: float, num_received: int
    ) -> float:
        """Returns the duration of the next step, as `Disturb` says."""
        if self._is_none:
            return duration_s
        # The factors, as logarithms.
        program = 131 * row[features.NUM_ROWS] + row[features.NUM_BLOCKS]
        places = (now_s / _DRIFT_S + np.arange(2)).astype(np.int64) % _NUM_DRIFTS
        before, after = self._drifts[places].tolist()
        factor = (
            self._of.noise * self._noises.standard_normal()
            + self._biases[int(program) % _NUM_BIASES]
            + before
            + (after - before) * (now_s / _DRIFT_S % 1.0)
        )
        # What is added.
        chance, length = self._stalls.random(2)
        stall_s = _STALL_S[0] + length * (_STALL_S[1] - _STALL_S[0])
        sent_s = self._of.send_s * row[features.NUM_DECODES]
        return float(
            duration_s * math.exp(factor)
            + stall_s * (chance < self._of.stall_share)
            + sent_s
            + self._of.receive_s * num_received
        )
