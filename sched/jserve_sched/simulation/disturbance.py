"""How the steps of a machine differ from what its cost model says."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jserve_sched.steps import features

_NUM_DRAWN = 4096  # steps whose disturbance is drawn at once
_NUM_BIASES = 4093  # a prime: programs are spread over so many biases
_STALL_S = (0.05, 0.2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disturbance:
    """What a machine does to the durations of its steps.

    Attributes:
      noise: Standard deviation of the logarithm of a step's duration.
      bias: Largest logarithm of the factor that all steps of one program share.
      stall_share: Share of steps that take 50 to 200 ms longer.
    """

    noise: float = 0.0
    bias: float = 0.0
    stall_share: float = 0.0

    def drawn(self, seed: Sequence[int]) -> "Disturbed":
        """Returns the disturbance of one engine."""
        return Disturbed(self, seed)


class Disturbed:
    """The disturbance of one engine: a function of the number of the step."""

    def __init__(self, of: Disturbance, seed: Sequence[int]):
        self._of = of
        self._noises, self._stalls, biases = (
            np.random.default_rng((*seed, *place)) for place in ((), (1,), (2,))
        )
        self._biases = np.exp(of.bias * biases.uniform(-1.0, 1.0, _NUM_BIASES))
        self._factors = self._stall_s = np.ones(0)  # of all steps so far, and more

    def __call__(
        self, durations_s: np.ndarray, matrix: np.ndarray, first_step: int
    ) -> np.ndarray:
        """Returns durations `[N]` of consecutive steps with features `[N, F]`."""
        of, stop = self._of, first_step + len(matrix)
        if of == Disturbance():
            return durations_s
        while len(self._factors) < stop:
            factors = np.exp(of.noise * self._noises.standard_normal(_NUM_DRAWN))
            chances, lengths = self._stalls.random((2, _NUM_DRAWN))
            stall_s = _STALL_S[0] + lengths * (_STALL_S[1] - _STALL_S[0])
            stall_s = np.where(chances < of.stall_share, stall_s, 0.0)
            self._factors = np.concatenate((self._factors, factors))
            self._stall_s = np.concatenate((self._stall_s, stall_s))
        rows, blocks = matrix[:, [features.NUM_ROWS, features.NUM_BLOCKS]].T
        bias = self._biases[(131 * rows + blocks).astype(np.int64) % _NUM_BIASES]
        disturbed_s: np.ndarray = durations_s * bias * self._factors[first_step:stop]
        return disturbed_s + self._stall_s[first_step:stop]
