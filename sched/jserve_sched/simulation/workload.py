"""Simulated load: arrivals, lengths and SLOs of requests.

Lengths, classes and arrivals at *one request a second* are drawn once from a seed, and
a rate only scales the times. So two rates, or two policies, get the same requests, and
their difference is not due to chance.

The named workloads have the mean and 90th percentile of SlidingServe's five (arXiv
2606.05933, section 5.1), which states nothing else about them. It does not state its
arrival process either; its baseline uses Poisson arrivals, and so do these.
"""

import bisect
import dataclasses
import hashlib
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jserve_sched.buckets.table import Bucket
from jserve_sched.outcomes import distribution
from jserve_sched.requests.service_class import ServiceClass
from jserve_sched.requests.slo import Slo
from jserve_sched.simulation.cost_model import CostModel
from jserve_sched.steps import features
from jserve_sched.steps.features import Span


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """One request of a simulation.

    Attributes:
      arrival_s: Time of arrival, seconds from the start.
      max_tokens: Number of output tokens that it takes.
      slo: Its objective, in seconds.
      guard: Whether its class is guarded when late.
      declared_max_tokens: Most output tokens that it declares; it then ends by a stop
        token. If this is 0, or less than `max_tokens`, it declares `max_tokens`.
    """

    request_id: str
    arrival_s: float
    num_prompt_tokens: int
    max_tokens: int
    service_class: str = "best_effort"
    slo: Slo = dataclasses.field(default_factory=Slo)
    guard: bool = False
    declared_max_tokens: int = 0


_NORMAL = statistics.NormalDist()
_Z_90 = _NORMAL.inv_cdf(0.9)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Log-normal lengths in tokens, in a mixture of usual and long requests.

    Attributes:
      medians: Medians of the usual and of the long requests' lengths.
      sigmas: Standard deviations of the logarithms of both.
      long_share: Share of long requests.
    """

    medians: tuple[float, float]
    sigmas: tuple[float, float]
    long_share: float = 0.0

    def draw(self, rng: np.random.Generator, num_requests: int) -> np.ndarray:
        """Returns lengths `[num_requests]`, int64, at least 1; consumes `rng`.

        Fewer requests get the first lengths of more.
        """
        point, normal = rng.random((num_requests, 2)).T
        kind = (point < self.long_share).astype(np.int64)
        scores = [_NORMAL.inv_cdf(max(one, 1e-12)) for one in normal.tolist()]
        spread = np.exp(np.array(self.sigmas)[kind] * np.array(scores, np.float64))
        lengths = np.array(self.medians)[kind] * spread
        whole: np.ndarray = np.maximum(np.rint(lengths), 1).astype(np.int64)
        return whole


def fit_log_normal(mean: float, p90: float) -> Lengths:
    """Returns log-normal lengths with this mean and 90th percentile.

    With m the mean, q the percentile and z = 1.2816 its standard score,
    `log(q / m) = z sigma - sigma^2 / 2`; the smaller root is taken. The ratio q / m is
    at most 2.27.
    """
    sigma = _Z_90 - math.sqrt(_Z_90**2 - 2 * math.log(p90 / mean))
    median = mean / math.exp(sigma**2 / 2)
    return Lengths((median, median), (sigma, sigma))


# Service classes of the paper's two kinds of request (Table 3).
DIALOGUE = ServiceClass(name="dialogue", ttft_slowdown=5.0, tbt_s=0.040)
SUMMARISATION = ServiceClass(name="summarisation", ttft_slowdown=10.0, tbt_s=0.080)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """One kind of request of a workload.

    Attributes:
      weight: Share of the requests, relative to the other components.
      prompt: Distribution of prompt lengths.
      output: Distribution of output lengths.
      paper: The paper's statistics that these are fitted to, in tokens.
    """

    service_class: ServiceClass
    weight: float = 1.0
    prompt: Lengths
    output: Lengths
    paper: Mapping[str, float]


_STATISTICS = ("prompt_mean", "prompt_p90", "output_mean", "output_p90")


def _component(
    service_class: ServiceClass, *tokens: int, prompt: Lengths | None = None
) -> Component:
    """Returns a kind of request with the four `_STATISTICS`, in `tokens`."""
    return Component(
        service_class=service_class,
        prompt=prompt or fit_log_normal(*tokens[:2]),
        output=fit_log_normal(*tokens[2:]),
        paper=dict(zip(_STATISTICS, tokens, strict=True)),
    )


# A tenth of ShareGPT's prompts is above 4.8 times the mean, which no log-normal can
# fit. So most are modelled as short questions, and an eighth as conversations cut at
# the usual 2,000 tokens. Shares and sigmas are chosen; medians follow from the mean
# and the 90th percentile.
_SHAREGPT_PROMPT = Lengths(
    medians=(80.10995051605758, 1983.9750774776921),
    sigmas=(1.0, 0.15),
    long_share=0.12,
)
_SHAREGPT = _component(DIALOGUE, 357, 1724, 89, 184, prompt=_SHAREGPT_PROMPT)
_ARXIV_V1 = _component(SUMMARISATION, 3253, 4382, 356, 542)
_ARXIV_V2 = _component(SUMMARISATION, 6267, 7567, 423, 623)
WORKLOADS: dict[str, tuple[Component, ...]] = {
    "sharegpt": (_SHAREGPT,),
    "arxiv_v1": (_ARXIV_V1,),
    "arxiv_v2": (_ARXIV_V2,),
    "mixed_v1": (dataclasses.replace(_SHAREGPT, weight=3.0), _ARXIV_V1),
    "mixed_v2": (dataclasses.replace(_SHAREGPT, weight=5.0), _ARXIV_V2),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yardstick:
    """Times of an idle server, of which relative objectives are multiples.

    They are determined once and used for every policy.

    Attributes:
      prompt_tokens: Prompt lengths measured, ascending.
      ttft_s: Time to first token at each of these lengths, seconds, ascending.
      step_s: Time between tokens of a lone request, seconds.
    """

    prompt_tokens: tuple[int, ...]
    ttft_s: tuple[float, ...]
    step_s: float

    def isolated_ttft_s(self, prompt_tokens: int) -> float:
        """Returns the interpolated TTFT of a prompt on an idle server, seconds."""
        return float(np.interp(prompt_tokens, self.prompt_tokens, self.ttft_s))


_LONE_CONTEXT_TOKENS = 1024  # of the lone request whose decode step is timed


def isolated_times(cost_model: CostModel, *, max_prompt_tokens: int) -> Yardstick:
    """Returns the times of a lone request on a simulated machine.

    Its prompt, of at most `max_prompt_tokens`, is computed in chunks of the machine's
    token limit, padded only to whole blocks, so that SLOs are the same for every bucket
    strategy.
    """
    page_size, block_tokens = cost_model.page_size, cost_model.block_tokens or 1
    limit = cost_model.max_num_batched_tokens // block_tokens * block_tokens

    def row(chunk: Span) -> np.ndarray:
        """Returns the features `[F]` of a step with one chunk."""
        bucket = Bucket(0, -(-chunk.num_tokens // block_tokens), block_tokens)
        return features.step_features((), (chunk,), bucket, page_size)

    # Time to first token.
    spread = np.geomspace(1, max(max_prompt_tokens, 2), 200)
    lengths = np.unique(np.rint(spread).astype(int)).tolist()
    times_s = []
    for length in lengths:
        starts = range(0, length, limit)
        chunks = [row(Span(start, min(limit, length - start))) for start in starts]
        times_s.append(float(cost_model.step_s(np.array(chunks), block_tokens).sum()))
    # Time between tokens.
    decode = Span(_LONE_CONTEXT_TOKENS, 1)
    step = features.step_features((decode,), (), Bucket(1, 0, block_tokens), page_size)
    return Yardstick(
        prompt_tokens=tuple(lengths),
        ttft_s=tuple(np.maximum.accumulate(times_s).tolist()),
        step_s=float(cost_model.step_s(step[None], block_tokens)[0]),
    )


def check_shares(classes: Sequence[ServiceClass]) -> None:
    """Raises ValueError unless the classes' shares add up to 1."""
    total = sum(one.share for one in classes)
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        raise ValueError(
            f"the shares of the service classes add up to {total:g}, not 1: "
            f"{ {one.name: one.share for one in classes} }"
        )


def draw_class(classes: Sequence[ServiceClass], seed: int, row: int) -> ServiceClass:
    """Returns a row's class, drawn by share with a hash of (seed, row)."""
    digest = hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=8).digest()
    point = int.from_bytes(digest) / 2**64
    for one in classes:
        point -= one.share
        if point < 0:
            return one
    return classes[-1]


def request_arrival(
    index: int,
    arrival_s: float,
    prompt_tokens: int,
    output_tokens: int,
    service_class: ServiceClass,
    yardstick: Yardstick,
) -> Arrival:
    """Returns request number `index`, with its class's objective in seconds."""
    return Arrival(
        request_id=str(index),
        arrival_s=arrival_s,
        num_prompt_tokens=prompt_tokens,
        max_tokens=output_tokens,
        service_class=service_class.name,
        slo=service_class.resolve(
            isolated_ttft_s=yardstick.isolated_ttft_s(prompt_tokens),
            step_s=yardstick.step_s,
        ),
        guard=service_class.guard,
    )


def unit_arrivals(
    components: Sequence[Component],
    *,
    num_requests: int,
    seed: int,
    yardstick: Yardstick,
    classes: Sequence[ServiceClass] = (),
) -> list[Arrival]:
    """Returns Poisson arrivals at a mean of one request a second.

    Args:
      num_requests: Number of requests; fewer are the first of more.
      classes: Classes that replace the components' own: by name, if every component's
        class is among them, else drawn by share.

    Raises:
      ValueError: If classes must be drawn and their shares do not add up to 1.
    """
    # Draw times, kinds and lengths, each from its own stream.
    streams = np.random.SeedSequence(seed).spawn(2 + 2 * len(components))
    gaps, kinds, *others = [np.random.default_rng(one) for one in streams]
    times_s = np.cumsum(gaps.exponential(1.0, num_requests))
    bounds = list(itertools.accumulate(one.weight for one in components))
    points = kinds.random(num_requests) * bounds[-1]
    prompts, outputs = (
        [
            getattr(one, name).draw(others[2 * k + offset], num_requests)
            for k, one in enumerate(components)
        ]
        for offset, name in enumerate(("prompt", "output"))
    )
    # Choose classes.
    by_name = {one.name: one for one in classes}
    is_named = all(one.service_class.name in by_name for one in components)
    if classes and not is_named:
        check_shares(classes)
    arrivals = []
    for index, time_s in enumerate((times_s - times_s[0]).tolist()):
        kind = bisect.bisect_right(bounds, points[index])
        service_class = components[kind].service_class
        if classes and is_named:
            service_class = by_name[service_class.name]
        elif classes:
            service_class = draw_class(classes, seed, index)
        lengths = int(prompts[kind][index]), int(outputs[kind][index])
        arrivals.append(
            request_arrival(index, time_s, *lengths, service_class, yardstick)
        )
    return arrivals


def at_rate(arrivals: Sequence[Arrival], qps: float) -> list[Arrival]:
    """Returns unit-rate arrivals at `qps` a second; infinite makes all due at once."""
    return [dataclasses.replace(one, arrival_s=one.arrival_s / qps) for one in arrivals]


def at_levels(
    arrivals: Sequence[Arrival],
    levels_qps: Sequence[float],
    *,
    period_s: float,
    duration_s: float,
) -> list[Arrival]:
    """Returns unit-rate arrivals at a rate that goes through levels, again and again.

    SlidingServe's Fig. 6 has levels 1.0 and 2.5, a period of 120 s and a duration of
    1,200 s.

    Args:
      period_s: Duration of each level, seconds.
      duration_s: End of the last level, seconds.

    Raises:
      ValueError: If there are too few `arrivals` for the duration.
    """
    edges_s = np.append(np.arange(0.0, duration_s, period_s), duration_s)
    rates = np.resize(np.array(levels_qps, np.float64), len(edges_s) - 1)
    expected = np.append(0.0, np.cumsum(rates * np.diff(edges_s)))
    if arrivals[-1].arrival_s < expected[-1]:
        raise ValueError(
            f"{len(arrivals)} requests do not last {duration_s:g} s at "
            f"{list(levels_qps)} a second: about {expected[-1]:.0f} come"
        )
    units = [one for one in arrivals if one.arrival_s < expected[-1]]
    times_s = np.interp([one.arrival_s for one in units], expected, edges_s).tolist()
    return [
        dataclasses.replace(one, arrival_s=time_s)
        for one, time_s in zip(units, times_s, strict=True)
    ]


def describe_lengths(arrivals: Sequence[Arrival]) -> dict[str, Any]:
    """Returns the number of requests and the statistics of their lengths, by class."""
    found: dict[str, Any] = {}
    for name in sorted({one.service_class for one in arrivals}):
        group = [one for one in arrivals if one.service_class == name]
        found[name] = {"num_requests": len(group)}
        for what, field in (("prompt", "num_prompt_tokens"), ("output", "max_tokens")):
            lengths = distribution(getattr(one, field) for one in group) or {}
            found[name] |= {f"{what}_{key}": value for key, value in lengths.items()}
    return found
