"""Cost models: the step times of a simulated machine.

A cost model reads the same features of a step as a predictor. So a predictor fitted to
a profile can be the machine, and a machine can be a perfect predictor. A cost model
also has the limits of the server that it stands for, which decide how many requests
fit.

Padding costs what it costs on real backends: padded rows and blocks go through the
matrix products, but attention reads the KV of real rows only.

`N` is the number of steps priced together, `F` the features of a step.
"""

import abc
import dataclasses
import functools
from dataclasses import fields

import numpy as np

from jserve_sched.steps import features
from jserve_sched.timing.predictor import Predictor, StepSample


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostModel(abc.ABC):
    """The machine of a simulation.

    Attributes:
      num_kv_tokens: Number of tokens that the KV pool holds.
      page_size: Tokens in one KV page.
      max_num_seqs: Most requests that run at once.
      max_num_batched_tokens: Most token positions in a step.
      block_tokens: Tokens in one prefill block of the profile; 0 if costs are per
        token.
    """

    name: str
    num_kv_tokens: int
    page_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_tokens: int = 0

    @abc.abstractmethod
    def step_s(self, matrix: np.ndarray, block_tokens: int) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Formula:
    """The time of one kind of batch, in milliseconds.

    It is `max(floor, base + prefill_token P + decode D) + prefill_work A + context C`,
    with P the prefill positions and D the decode rows, padding included; A the sum
    over chunks of `chunk (cached + chunk / 2)`; and C the KV tokens that decodes read.
    The floor is the time of reading the weights.
    """

    base_ms: float
    prefill_token_ms: float = 0.0
    prefill_work_ms: float = 0.0
    decode_ms: float = 0.0
    context_token_ms: float = 0.0
    floor_ms: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClosedForm(CostModel):
    """A machine with one formula for each kind of batch.

    Padded rows of a step without decodes cost nothing.
    """

    decode: Formula
    prefill: Formula
    mixed: Formula

    @functools.cached_property
    def _coefficients(self) -> np.ndarray:
        """Coefficients `[6, 3]` in seconds, in the order of Formula's fields.

        The columns are the scenarios; there is only one if all formulas are equal.
        """
        # The order of `features.SCENARIOS`.
        formulas = (self.decode, self.prefill, self.mixed)
        rows = [dataclasses.astuple(one) for one in formulas]
        is_one = rows[0] == rows[1] == rows[2]
        return np.array(rows[:1] if is_one else rows, np.float64).T * 1e-3

    def step_s(self, matrix: np.ndarray, block_tokens: int) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`.

        They are summed column by column, so that a step's cost is bit for bit the same
        whichever steps are priced with it.
        """
        coefficients = self._coefficients
        if coefficients.shape[1] > 1:
            coefficients = coefficients[:, features.scenarios(matrix)]
        base, prefill_token, prefill_work, decode, context_token, floor = coefficients
        decodes = matrix[:, features.NUM_DECODES]
        work = matrix[:, features.PREFILL_WORK] - matrix[:, features.CHUNK_SQUARES] / 2
        # A decode reads its cached tokens and the one it adds.
        context = matrix[:, features.DECODE_CONTEXT] + decodes
        rows = matrix[:, features.NUM_ROWS] * (decodes > 0)
        positions = block_tokens * matrix[:, features.NUM_BLOCKS]
        total: np.ndarray = (
            np.maximum(floor, base + prefill_token * positions + decode * rows)
            + prefill_work * work
            + context_token * context
        )
        return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorCost(CostModel):
    """A machine whose step times are those of a predictor, fitted to a profile.

    The predictor does not learn from simulated steps, so the machine does not change.
    """

    predictor: Predictor

    def step_s(self, matrix: np.ndarray, block_tokens: int) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`.

        Blocks of another size count as fractions of the profile's blocks.
        """
        if block_tokens != self.block_tokens:
            matrix = matrix.copy()
            matrix[:, features.NUM_BLOCKS] *= block_tokens / self.block_tokens
        return self.predictor.predict(matrix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ScaledCost(CostModel):
    inner: CostModel
    speed: float

    def step_s(self, matrix: np.ndarray, block_tokens: int) -> np.ndarray:
        return self.inner.step_s(matrix, block_tokens) / self.speed


def scaled(cost_model: CostModel, speed: float) -> CostModel:
    """Returns a machine that is `speed` times as fast, with the same limits."""
    if speed == 1.0:
        return cost_model
    limits = {one.name: getattr(cost_model, one.name) for one in fields(CostModel)}
    return _ScaledCost(inner=cost_model, speed=speed, **limits)


class OraclePredictor:
    """A predictor that is never wrong, since it asks the simulated machine."""

    def __init__(self, cost_model: CostModel, block_tokens: int):
        self._cost_model = cost_model
        self._block_tokens = block_tokens

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """Returns durations `[N]` in seconds for features `[N, F]`."""
        return self._cost_model.step_s(matrix, self._block_tokens)

    def predict_upper(self, matrix: np.ndarray) -> np.ndarray:
        """Returns the same as `predict`, since simulated times have no spread."""
        return self.predict(matrix)

    def update(self, sample: StepSample) -> None:
        """Learns nothing."""


# One formula for all batches: b + k (P + D) above a floor of m, fitted to random
# batches composed from Vidur's kernel tables (Agrawal et al., MLSys 2024; MIT), whose
# attention was modelled from a sample; mean error of the fit 4.6 %.
_A100 = Formula(
    base_ms=7.51,
    prefill_token_ms=0.06551,
    prefill_work_ms=4.396e-6,
    decode_ms=0.06551,
    context_token_ms=8.415e-5,
    floor_ms=10.73,
)
# The same composition scaled by the H100/A100 ratios of another model's operators
# and by assumed ratios for attention: an estimate, not a measurement.
_H100 = Formula(
    base_ms=6.537,
    prefill_token_ms=0.01981,
    prefill_work_ms=2.156e-6,
    decode_ms=0.01655,
    context_token_ms=5.095e-5,
)
# A token of Llama-3-8B takes 128 KiB of KV (32 layers, 8 heads of 128, K and V, two
# bytes). Nine tenths of 80 GB, less 16 GB of weights and a few of activations, hold
# about 430,000; 400,000 stays inside the batches that the A100 formula was fitted to.
_A100_80_GB = ClosedForm(
    name="a100-llama3-8b",
    decode=_A100,
    prefill=_A100,
    mixed=_A100,
    num_kv_tokens=400_000,
    page_size=128,
    max_num_seqs=256,
    max_num_batched_tokens=2048,
)

# The RTX formulas are fitted to LLMServingSim's profiles of vLLM (Cho et al., ISPASS
# 2026; MIT). Limits are those of the vLLM runs published beside them; the KV pool of
# the PRO 6000 is not recorded there: 96 GB at nine tenths hold about 550,000 tokens.
_RTX_4090 = ClosedForm(
    name="rtx4090-llama3.1-8b",
    decode=Formula(base_ms=16.88, decode_ms=0.04197, context_token_ms=1.493e-4),
    prefill=Formula(base_ms=15.51, prefill_token_ms=0.06330, prefill_work_ms=4.839e-6),
    mixed=Formula(
        base_ms=15.80,
        prefill_token_ms=0.06724,
        prefill_work_ms=5.322e-6,
        decode_ms=0.07569,
        context_token_ms=3.251e-4,
    ),
    num_kv_tokens=41_408,
    page_size=16,
    max_num_seqs=256,
    max_num_batched_tokens=2048,
)
_RTX_PRO_6000 = ClosedForm(
    name="rtxpro6000-llama3.1-8b",
    decode=Formula(base_ms=11.15, decode_ms=0.01911, context_token_ms=8.860e-5),
    prefill=Formula(base_ms=11.28, prefill_token_ms=0.02583, prefill_work_ms=2.731e-6),
    mixed=Formula(
        base_ms=11.34,
        prefill_token_ms=0.02676,
        prefill_work_ms=2.631e-6,
        decode_ms=0.03396,
        context_token_ms=1.520e-4,
    ),
    num_kv_tokens=550_000,
    page_size=16,
    max_num_seqs=128,
    max_num_batched_tokens=2048,
)
CLOSED_FORMS: dict[str, ClosedForm] = {
    one.name: one
    for one in (
        _A100_80_GB,
        dataclasses.replace(
            _A100_80_GB, name="h100-llama3-8b", decode=_H100, prefill=_H100, mixed=_H100
        ),
        _RTX_4090,
        _RTX_PRO_6000,
    )
}
