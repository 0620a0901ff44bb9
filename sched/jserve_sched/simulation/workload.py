"""Simulated load: arrivals, lengths and SLOs of requests.

Lengths, classes and arrivals at *one request a second* are drawn once from a seed, and
a rate only scales the times. So two rates, or two policies, get the same requests, and
their difference is not due to chance.
"""

import bisect
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jserve_sched.buckets.table import Bucket
from jserve_sched.outcomes import distribution
from jserve_sched.requests.service_class import AdmissionRule, ServiceClass
from jserve_sched.requests.slo import Slo
from jserve_sched.simulation.cost_model import CostModel
from jserve_sched.simulation.mixes import Component
from jserve_sched.steps import features
from jserve_sched.steps.features import Span

PREFIX_BLOCK_TOKENS = 512  # as in Mooncake's traces
_OPEN_CONVERSATIONS = 16  # that a turn may continue
_MAX_BLOCKS = 1024  # of one conversation


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Arrival:
    """One request of a simulation.

    Attributes:
      arrival_s: Time of arrival, seconds from the start.
      max_tokens: Number of output tokens that it takes.
      slo: Its objective, in seconds.
      guard: Whether its class is guarded when late.
      weight: What a violation counts, above 0.
      admission: Rule of its class for requests that cannot be attained.
      max_queue_wait_s: Longest wait once it can no longer be attained, seconds.
      block_ids: Content of each `PREFIX_BLOCK_TOKENS` of the prompt, 0 to 2**31 - 1:
        equal ids are equal tokens. If it is empty, no content is known.
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
    weight: float = 1.0
    admission: AdmissionRule = "queue"
    max_queue_wait_s: float = math.inf
    block_ids: Sequence[int] = ()
    declared_max_tokens: int = 0

    def prompt(self) -> np.ndarray:
        """Returns token ids `[num_prompt_tokens]` int32: their block's id, or zeros."""
        if not self.block_ids:
            return np.zeros(self.num_prompt_tokens, np.int32)
        ids = np.array(self.block_ids, np.int32)
        return np.repeat(ids, PREFIX_BLOCK_TOKENS)[: self.num_prompt_tokens]


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
        weight=service_class.weight,
        admission=service_class.admission,
        max_queue_wait_s=service_class.max_queue_wait_s or math.inf,
    )


def unit_arrivals(
    components: Sequence[Component],
    *,
    num_requests: int,
    seed: int,
    yardstick: Yardstick,
    classes: Sequence[ServiceClass] = (),
) -> list[Arrival]:
    """Returns arrivals at a mean of one a second, Poisson if nothing else is declared.

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
    shape = components[0].gap_cv ** -2.0  # of a gamma distribution; 1 is exponential
    times_s = np.cumsum(gaps.gamma(shape, 1.0 / shape, num_requests))
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
        one = request_arrival(index, time_s, *lengths, service_class, yardstick)
        arrivals.append(one)
    turns = max(one.turns for one in components)
    return arrivals if turns == 1 else _as_turns(arrivals, turns, seed)


def _as_turns(arrivals: Sequence[Arrival], turns: float, seed: int) -> list[Arrival]:
    """Returns requests as turns of conversations, with the content of their blocks.

    One in `turns` starts a conversation; the others continue one of the last few.
    """
    points = np.random.default_rng((seed, 1)).random((len(arrivals), 2))
    starts = points[:, 0] < 1 / turns
    newest: np.ndarray = np.cumsum(starts)
    back = np.floor(points[:, 1] * np.minimum(newest, _OPEN_CONVERSATIONS))
    firsts: np.ndarray = (
        newest - np.where(starts, 0, back).astype(np.int64)
    ) * _MAX_BLOCKS
    return [
        dataclasses.replace(
            one,
            block_ids=range(
                first, first - -one.num_prompt_tokens // PREFIX_BLOCK_TOKENS
            ),
        )
        for one, first in zip(arrivals, firsts.tolist(), strict=True)
    ]


def at_rate(arrivals: Sequence[Arrival], qps: float) -> list[Arrival]:
    """Returns unit-rate arrivals at `qps` a second; infinite makes all due at once."""
    return [dataclasses.replace(one, arrival_s=one.arrival_s / qps) for one in arrivals]


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
