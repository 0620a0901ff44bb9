"""Lengths of prompts and outputs, drawn from distributions fitted to two numbers.

Papers give a mean and a 90th percentile. A log-normal has two parameters and fits both
exactly, where it can; a mixture of two fits the rest.
"""

import dataclasses
import math
import statistics

import numpy as np

_NORMAL = statistics.NormalDist()
_Z_90 = _NORMAL.inv_cdf(0.9)


@dataclasses.dataclass(frozen=True)
class LogNormal:
    """Lengths whose logarithm is normal; `sigma` is that normal's deviation."""

    median: float
    sigma: float

    def share_above(self, value: float) -> float:
        """Returns the share of lengths above `value`."""
        return 1.0 - _NORMAL.cdf(math.log(value / self.median) / self.sigma)

    @property
    def mean(self) -> float:
        """The mean length."""
        return self.median * math.exp(self.sigma**2 / 2)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Lengths in tokens: with `long_share` from `long`, else from `short`."""

    short: LogNormal
    long: LogNormal
    long_share: float

    def draw(self, rng: np.random.Generator, num_requests: int) -> np.ndarray:
        """Returns lengths `[num_requests]`, int64, at least 1; consumes `rng`.

        The first lengths are the same however many are drawn.
        """
        point, normal = rng.random((num_requests, 2)).T
        is_long = point < self.long_share
        median = np.where(is_long, self.long.median, self.short.median)
        sigma = np.where(is_long, self.long.sigma, self.short.sigma)
        scores = [_NORMAL.inv_cdf(max(one, 1e-12)) for one in normal.tolist()]
        lengths = median * np.exp(sigma * np.array(scores, np.float64))
        whole: np.ndarray = np.maximum(np.rint(lengths), 1).astype(np.int64)
        return whole


def fit_log_normal(mean: float, p90: float) -> Lengths:
    """Returns log-normal lengths of this mean and 90th percentile.

    With m the mean, q the percentile and z = 1.2816 its score,
    `log(q / m) = z sigma - sigma^2 / 2`; the smaller root is taken.

    Raises:
      ValueError: if no log-normal reaches the ratio; 2.27 is the largest.
    """
    root = _Z_90**2 - 2 * math.log(p90 / mean)
    if root < 0 or p90 <= mean:
        raise ValueError(
            f"p90 / mean = {p90 / mean:.3g} is not in 1..{math.exp(_Z_90**2 / 2):.3g}, "
            "where a log-normal can have it"
        )
    sigma = _Z_90 - math.sqrt(root)
    part = LogNormal(mean / math.exp(sigma**2 / 2), sigma)
    return Lengths(part, part, 0.0)


def fit_two_parts(
    mean: float,
    p90: float,
    *,
    long_share: float,
    short_sigma: float,
    long_sigma: float,
) -> Lengths:
    """Returns a mixture of two log-normals of this mean and 90th percentile, tokens.

    The long part, of more than a tenth, is placed so that a tenth of all lengths is
    above `p90`; the short part has what is left of the mean. The sigmas are the
    deviations of their logarithms.

    Raises:
      ValueError: if the long part alone exceeds the mean, or is too small.
    """
    if not 0.1 < long_share < 1:
        raise ValueError(f"long_share={long_share} is not in (0.1, 1)")
    tail = 0.1
    for _ in range(20):  # the short part's own tail is small: this settles at once
        score = _NORMAL.inv_cdf(1 - tail / long_share)
        long = LogNormal(p90 / math.exp(score * long_sigma), long_sigma)
        rest = (mean - long_share * long.mean) / (1 - long_share)
        if rest <= 0:
            raise ValueError(
                f"long_share={long_share}: the long part alone has "
                f"{long_share * long.mean:.0f} of the mean {mean:g}"
            )
        short = LogNormal(rest / math.exp(short_sigma**2 / 2), short_sigma)
        tail = 0.1 - (1 - long_share) * short.share_above(p90)
    return Lengths(short, long, long_share)
