"""Forecast: when a request's tokens should come, and whether its SLO is attained."""

from collections.abc import Mapping
from typing import NamedTuple

PAIRS = ("ttft_s", "worst_gap_s", "ttlt_s")


class Forecast(NamedTuple):
    """What is expected of one request, as of one moment; pairs are P50 and P90.

    Attributes:
      worst_gap_s: Longest time between two tokens, seconds.
      chances: Probability of attaining each bound of its SLO, by the bound's name.
      attainable_in_s: Seconds after which a request like it, sent then, would attain
        its SLO with even odds if nothing else came: 0 is now, None is never.
      made_s: When it was made, clock seconds.
      points: First token, worst gap and last token as the pass gives them, seconds
        from `made_s`.
    """

    ttft_s: tuple[float, float]
    worst_gap_s: tuple[float, float]
    ttlt_s: tuple[float, float]
    chances: Mapping[str, float]
    attainable_in_s: float | None
    made_s: float
    points: tuple[float, float, float]

    @property
    def chance(self) -> float:
        """Probability of attaining the whole SLO: that of its least likely bound."""
        return min(self.chances.values(), default=1.0)

    @property
    def header(self) -> str:
        """The value of `x-jserve-forecast`: a dictionary of structured fields.

        As of RFC 9651: `ttft_s=(P50 P90), worst_gap_s=(...), ttlt_s=(...), chance=...`,
        cut to what such a decimal holds.
        """
        pairs = {name: getattr(self, name) for name in PAIRS}
        texts = [
            f"{name}=({min(p50, 1e11):.3f} {min(p90, 1e11):.3f})"
            for name, (p50, p90) in pairs.items()
        ]
        return ", ".join([*texts, f"chance={self.chance:.3f}"])


def ttft_of(header: str) -> tuple[float, float]:
    """Returns P50 and P90 of the TTFT that a header states, seconds."""
    p50, p90 = header.partition("ttft_s=(")[2].partition(")")[0].split()
    return float(p50), float(p90)
