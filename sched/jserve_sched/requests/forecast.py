"""Forecast: when a request's tokens should come, and whether its SLO is attained."""

from collections.abc import Mapping
from typing import NamedTuple


class Forecast(NamedTuple):
    """What is expected of one request, as of one moment; pairs are P50 and P90.

    Attributes:
      ttft_s: Time to first token, seconds from arrival.
      worst_gap_s: Longest time between two tokens, seconds.
      ttlt_s: Time to last token, seconds from arrival.
      chances: Probability of attaining each bound of its SLO, by the bound's name.
      attainable_in_s: Seconds after which a request like it, sent then, would attain
        its SLO with even odds if nothing else came: 0 is now, None is never.
      made_s: When it was made, clock seconds.
      points: First token, worst gap and last token as the pass gives them, seconds
        from `made_s`.
      pairs: Ratios to these of P50 and P90.
      key: Class of requests whose ratios it was made with.
    """

    ttft_s: tuple[float, float]
    worst_gap_s: tuple[float, float]
    ttlt_s: tuple[float, float]
    chances: Mapping[str, float]
    attainable_in_s: float | None
    made_s: float
    points: tuple[float, float, float]
    pairs: tuple[tuple[float, float], ...]
    key: tuple[object, ...]

    @property
    def chance(self) -> float:
        """Probability of attaining the whole SLO: that of its least likely bound."""
        return min(self.chances.values(), default=1.0)
