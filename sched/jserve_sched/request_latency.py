"""RequestLatency: how long would this request take in a batch of so many?

The one idea: a planner that tries thousands of batchings cannot price steps. So a
request's time is two bilinear functions, of the batch size and a length: one for the
prefill, one for a decode step; the decode steps of an answer have a closed sum.

    t_p(b, l)      time until b prompts of l tokens each are prefilled
    tau(b, L)      a decode step of b requests with L tokens of KV each
    t_d(b, l, o) = sum of tau(b, l + k) for k from 0 to o - 2

The prefill's last step yields the first token, so o output tokens take o - 1 decode
steps; the first of them reads the l tokens of the prompt.

What is known of the predictor of "SLO-Aware Scheduling for Large Language Model
Inferences" (arXiv 2504.14966) is that it has these two parts, and that its prefill time
grows linearly with the length and with the batch size. All else is ours: the product
term, the sum, the fit and its weights, and that a request in a ragged batch is priced
by its own length, not by the longest one.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jserve_sched.predictor import Predictor
from jserve_sched.request_grid import LatencyPoints, RequestGrid, request_grid

if TYPE_CHECKING:
    from jserve_sched.view import SchedulerView

_REFIT_EVERY = 512  # steps; a predictor is fitted anew at multiples of it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bilinear:
    """Seconds as `both * b * l + batch * b + length * l + base`.

    No coefficient is negative, so that more work never takes less time.

    Attributes:
      both: of a token in each of the batch's requests.
      batch: of a request.
      length: of a token of length, whatever the batch size.
      base: of anything at all.
    """

    both: float
    batch: float
    length: float
    base: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{field.name}={value} is not a time of 0 or more")
        if self.both + self.batch + self.length + self.base <= 0.0:
            raise ValueError("all coefficients are 0: a step takes some time")

    def of(self, batch: np.ndarray, length: np.ndarray) -> np.ndarray:
        """Returns seconds for batch sizes and lengths that broadcast together."""
        slope = self.both * length + self.batch
        found: np.ndarray = slope * batch
        found = found + (self.length * length + self.base)
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestLatency:
    """Times of whole requests; all arguments are arrays that broadcast together.

    Attributes:
      prefill: t_p over batch size and prompt tokens.
      decode: tau over batch size and tokens of KV before the step.
    """

    prefill: Bilinear
    decode: Bilinear

    def prefill_s(self, batch: np.ndarray, prompt_tokens: np.ndarray) -> np.ndarray:
        """Returns seconds until prompts of this length are prefilled, so many at once.

        Args:
          batch: requests in the batch, 1 or more.
          prompt_tokens: of each of them.
        """
        return self.prefill.of(batch, prompt_tokens)

    def decode_s(
        self, batch: np.ndarray, prompt_tokens: np.ndarray, output_tokens: np.ndarray
    ) -> np.ndarray:
        """Returns seconds from the first output token to the last.

        Args:
          batch: requests in the batch, 1 or more.
          prompt_tokens: of each of them.
          output_tokens: of each of them; with less than two there is no decode step.
        """
        num_steps = np.maximum(np.asarray(output_tokens) - 1.0, 0.0)
        # Tokens of KV that the steps read, summed: l, l + 1, .., l + num_steps - 1.
        context = num_steps * (prompt_tokens + (num_steps - 1.0) / 2)
        one = self.decode
        slope = one.both * context + one.batch * num_steps
        found: np.ndarray = slope * batch
        found = found + (one.length * context + one.base * num_steps)
        return found

    def exec_s(
        self, batch: np.ndarray, prompt_tokens: np.ndarray, output_tokens: np.ndarray
    ) -> np.ndarray:
        """Returns seconds from the start of the prefill to the last token."""
        found: np.ndarray = self.prefill_s(batch, prompt_tokens)
        found = found + self.decode_s(batch, prompt_tokens, output_tokens)
        return found

    def to_json(self) -> dict[str, Any]:
        """Returns the form that `request_latency_from_json` reads."""
        return dataclasses.asdict(self)


def request_latency_from_json(text: str) -> RequestLatency:
    """Reads the file that training on whole requests writes.

    It holds prefill and decode, each with both, batch, length and base in seconds.
    Other keys, such as what it was measured with, are not looked at.

    Raises:
      ValueError: if the text is not that, or a coefficient is no time of 0 or more.
    """
    try:
        row: Any = json.loads(text)
        return RequestLatency(
            prefill=_bilinear("prefill", row["prefill"]),
            decode=_bilinear("decode", row["decode"]),
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            "a request latency file is a JSON object with prefill and decode, each "
            f"with both, batch, length and base in seconds: {error!r}"
        ) from None


def _bilinear(part: str, row: Mapping[str, Any]) -> Bilinear:
    values = {}
    for field in dataclasses.fields(Bilinear):
        value = row[field.name]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(
                f"request latency: {part}.{field.name}={value!r} is no number"
            )
        values[field.name] = value
    try:
        return Bilinear(**{name: float(value) for name, value in values.items()})
    except (ValueError, OverflowError) as error:
        raise ValueError(f"request latency: {part}: {error}") from None


def fit_bilinear(points: LatencyPoints) -> Bilinear:
    """Fits the least sum of squared relative errors with no coefficient below 0.

    Relative, since attention makes long prefills quadratic, and those would otherwise
    decide what short ones cost. (Ours.) Over `request_grid`'s whole box the mean error
    is 4 to 9 % for prefills and at most 4 % for decode steps on six GPU models, the
    worst 31 and 12 %; with absolute errors the mean is up to about four times as large.
    What the points cannot tell apart is no slope: of a single batch size or length, all
    that it costs goes to the coefficients without it.

    Args:
      points: at least one.
    """
    batch, length = points.batch, points.length
    design = np.stack((batch * length, batch, length, np.ones(len(batch))), axis=1)
    weight = 1.0 / points.duration_s
    batch_varies, length_varies = bool(np.ptp(batch)), bool(np.ptp(length))
    known = np.array(
        [batch_varies and length_varies, batch_varies, length_varies, True]
    )
    from scipy.optimize import nnls  # takes half a second to import

    found = np.zeros(4)
    weighted = design[:, known] * weight[:, None]
    scale = np.linalg.norm(weighted, axis=0)
    found[known] = nnls(weighted / scale, np.ones(len(batch)))[0] / scale
    both, per_request, per_token, base = found.tolist()
    return Bilinear(both=both, batch=per_request, length=per_token, base=base)


def fit_request_latency(
    prefill: LatencyPoints, decode: LatencyPoints
) -> RequestLatency:
    """Fits both parts: to priced steps (`RequestGrid`) or to measured ones."""
    return RequestLatency(prefill=fit_bilinear(prefill), decode=fit_bilinear(decode))


class LatencySource:
    """Where a scheduler takes its request latency from.

    A fixed one is for ever. Without one it is fitted to the step predictor when it is
    first asked for, and from then on before every 512th step is planned, counted from
    the scheduler's first, whoever asks and when; also whenever the shapes or the
    predictor are others than before.
    """

    def __init__(self, fixed: RequestLatency | None = None):
        """Makes a source.

        Args:
          fixed: the answer; None fits one to the view's predictor.
        """
        self._fixed = fixed
        self._found: RequestLatency | None = None
        self._predictor: Predictor | None = None
        self._grid: RequestGrid | None = None
        self._due_step = 0

    def of(self, view: "SchedulerView") -> RequestLatency:
        """Returns the latency to plan with at this snapshot."""
        if self._fixed is not None:
            return self._fixed
        if (
            self._found is None
            or self._grid is None
            or view.predictor is not self._predictor
            or view.buckets is not self._grid.buckets
        ):
            self._found = self._fit(view)
        return self._found

    def keep_up(self, view: "SchedulerView") -> None:
        """Fits anew if that is due; called before each step is planned."""
        if self._found is not None and view.step_id >= self._due_step:
            self._found = self._fit(view)

    @staticmethod
    def num_steps_before(step_id: int) -> int:
        """Returns how many steps from this one on come before a fit may be due."""
        return -step_id % _REFIT_EVERY

    def _fit(self, view: "SchedulerView") -> RequestLatency:
        self._predictor = view.predictor
        self._due_step = (view.step_id // _REFIT_EVERY + 1) * _REFIT_EVERY
        if self._grid is None or self._grid.buckets is not view.buckets:
            self._grid = request_grid(
                view.buckets,
                page_size=view.ledger.page_size,
                num_kv_tokens=view.ledger.num_pages * view.ledger.page_size,
                max_num_batched_tokens=view.max_num_batched_tokens,
            )
        return fit_request_latency(*self._grid.priced_by(view.predictor))
