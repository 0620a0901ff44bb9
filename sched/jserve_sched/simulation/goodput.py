"""Goodput: the highest rate at which enough requests attain their SLOs.

With common random numbers (a seed draws the requests, and the rate only scales their
times) a higher rate is harder for the same requests. So each seed has one highest rate
that passes, and bisection on a grid of rates finds it. Seeds differ by chance; the
interval of their mean says by how much.

A rate passes if at most `MAX_VIOLATION_SHARE` of the counted requests violate their SLO
(SlidingServe, arXiv 2606.05933, section 5.1: 1 %).
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence

from jserve_sched.outcomes import wilson_interval

MAX_VIOLATION_SHARE = 0.01
WARMUP_SHARE = 0.1  # of the requests: the first ones find an empty server

# (rate in requests per second, seed) -> (violations, requests counted)
Probe = Callable[[float, int], tuple[int, int]]


def num_warmup(num_requests: int) -> int:
    """Returns the number of requests at the start that are not counted."""
    return int(num_requests * WARMUP_SHARE)


def most_violations(num_counted: int, max_share: float = MAX_VIOLATION_SHARE) -> int:
    """Returns the most violations with which a rate passes."""
    return math.floor(num_counted * max_share + 1e-9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateGrid:
    """Rates to try: `lowest_qps` times powers of `1 + resolution`."""

    lowest_qps: float = 0.05
    highest_qps: float = 1000.0
    resolution: float = 0.02

    def qps(self, index: int) -> float:
        """Returns rate number `index`, requests per second."""
        return self.lowest_qps * (1 + self.resolution) ** index

    def nearest(self, qps: float) -> int:
        """Returns the index of the rate nearest to `qps`."""
        steps = math.log(qps / self.lowest_qps) / math.log1p(self.resolution)
        return min(max(round(steps), 0), self.last)

    @property
    def last(self) -> int:
        """Index of the highest rate."""
        ratio = math.log(self.highest_qps / self.lowest_qps)
        return int(ratio / math.log1p(self.resolution) + 1e-9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedGoodput:
    """Result of one seed's search.

    Attributes:
      qps: Highest rate that passed, requests per second; 0 if not even the lowest
        passed.
      num_violations: Number of violations at that rate, or at the lowest.
      num_requests: Number of requests counted at that rate.
      num_probes: Number of rates tried.
      is_unbounded: Whether even the highest rate passed.
    """

    seed: int
    qps: float
    num_violations: int
    num_requests: int
    num_probes: int
    is_unbounded: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goodput:
    """Result of a search over all seeds.

    Attributes:
      qps: Mean of the seeds' goodputs, requests per second.
      ci95_qps: 95 % interval of that mean (Student's t); None for one seed.
      violation_share: Share of violations at the rates found, over all seeds.
      violation_ci95: Wilson interval of that share.
    """

    qps: float
    ci95_qps: tuple[float, float] | None
    violation_share: float
    violation_ci95: tuple[float, float]
    seeds: tuple[SeedGoodput, ...]


_FIRST_STRIDE = 8  # grid steps, 17 % at the default resolution; doubled each time


def search_seed(
    probe: Probe,
    seed: int,
    *,
    grid: RateGrid,
    start_qps: float,
    max_share: float = MAX_VIOLATION_SHARE,
) -> SeedGoodput:
    """Finds one seed's goodput: brackets it from `start_qps` on, then bisects."""
    seen: dict[int, tuple[int, int]] = {}

    def passes(index: int) -> bool:
        if index not in seen:
            seen[index] = probe(grid.qps(index), seed)
        num_violations, num_requests = seen[index]
        return num_violations <= most_violations(num_requests, max_share)

    good, bad = -1, grid.last + 1
    index, stride = grid.nearest(start_qps), _FIRST_STRIDE
    while bad - good > 1:
        if passes(index):
            good = index
        else:
            bad = index
        if good < 0:
            index, stride = max(bad - stride, 0), stride * 2
        elif bad > grid.last:
            index, stride = min(good + stride, grid.last), stride * 2
        else:
            index = (good + bad) // 2
    num_violations, num_requests = seen[max(good, 0)]
    return SeedGoodput(
        seed=seed,
        qps=grid.qps(good) if good >= 0 else 0.0,
        num_violations=num_violations,
        num_requests=num_requests,
        num_probes=len(seen),
        is_unbounded=good == grid.last,
    )


def pool(seeds: Sequence[SeedGoodput]) -> Goodput:
    """Returns the mean over one or more seeds, with its intervals."""
    rates = [one.qps for one in seeds]
    mean = statistics.fmean(rates)
    interval = None
    if len(rates) > 1:
        from scipy.special import stdtrit  # takes half a second to import

        error = statistics.stdev(rates) / math.sqrt(len(rates))
        spread = float(stdtrit(len(rates) - 1, 0.975)) * error
        interval = (max(mean - spread, 0.0), mean + spread)
    num_violations = sum(one.num_violations for one in seeds)
    num_requests = sum(one.num_requests for one in seeds)
    return Goodput(
        qps=mean,
        ci95_qps=interval,
        violation_share=num_violations / num_requests,
        violation_ci95=wilson_interval(num_violations, num_requests),
        seeds=tuple(seeds),
    )
