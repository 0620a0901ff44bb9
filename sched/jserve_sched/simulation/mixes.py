"""Named workloads: mixes of kinds of request, declared by lengths and objectives.

The five of SlidingServe (arXiv 2606.05933, section 5.1) have the mean and the 90th
percentile that it states; it states nothing else about them.

Six are ours, each to be hard in a way of its own: `chat` by a short TTFT, `documents`
by prompts that take half the work, `heavy_tail` by prompts of any length, `bursts` by
arrivals, `reasoning_code` by answers and completion bounds, `tight` by steps that must
be short beside long prompts.

Five are inference-perf's workload catalogue (kubernetes-sigs, Apache-2.0): its means,
standard deviations and limits of lengths, all taken as log-normal, prompts cut to
`_CONTEXT_TOKENS`. Turns of a conversation share the prefix that they have in common.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from jserve_sched.requests.service_class import ServiceClass

_CONTEXT_TOKENS = 32_000  # longest prompt of all but SlidingServe's; --max_model_len
_NORMAL = statistics.NormalDist()
_Z_90 = _NORMAL.inv_cdf(0.9)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Log-normal lengths in tokens, in a mixture of usual and long requests.

    Attributes:
      medians: Medians of the usual and of the long requests' lengths.
      sigmas: Standard deviations of the logarithms of both.
      long_share: Share of long requests.
      limits: Least and most tokens; lengths beyond are cut to them.
    """

    medians: tuple[float, float]
    sigmas: tuple[float, float]
    long_share: float = 0.0
    limits: tuple[int, int] = (1, _CONTEXT_TOKENS)

    def draw(self, rng: np.random.Generator, num_requests: int) -> np.ndarray:
        """Returns lengths `[num_requests]`, int64; consumes `rng`.

        Fewer requests get the first lengths of more.
        """
        point, normal = rng.random((num_requests, 2)).T
        kind = (point < self.long_share).astype(np.int64)
        scores = [_NORMAL.inv_cdf(max(one, 1e-12)) for one in normal.tolist()]
        spread = np.exp(np.array(self.sigmas)[kind] * np.array(scores, np.float64))
        lengths = np.array(self.medians)[kind] * spread
        whole: np.ndarray = np.clip(np.rint(lengths), *self.limits).astype(np.int64)
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


def log_normal(
    median: float, sigma: float, limits: tuple[int, int] = (1, _CONTEXT_TOKENS)
) -> Lengths:
    """Returns log-normal lengths, cut to limits."""
    return Lengths((median, median), (sigma, sigma), limits=limits)


def _of_moments(mean: float, deviation: float, *limits: int) -> Lengths:
    """Returns log-normal lengths of this mean and standard deviation before the cut."""
    variance = math.log1p((deviation / mean) ** 2)
    least, most = limits
    return log_normal(mean / math.exp(variance / 2), math.sqrt(variance), (least, most))


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
      gap_cv: Coefficient of variation of the time between two arrivals of the workload,
        gamma distributed; that of the first component counts. 1 is Poisson.
      turns: Mean number of turns of a conversation, each a request. Of two turns the
        shorter prompt is a prefix of the longer. 1 shares nothing.
    """

    service_class: ServiceClass
    weight: float = 1.0
    prompt: Lengths
    output: Lengths
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    gap_cv: float = 1.0
    turns: float = 1.0


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


def _kind(
    name: str,
    weight: float,
    prompt: Lengths,
    output: Lengths,
    *,
    gap_cv: float = 1.0,
    turns: float = 1.0,
    **bounds: Any,
) -> Component:
    """Returns a kind of request with a class of its own, of these bounds."""
    return Component(
        service_class=ServiceClass(name=name, **bounds),
        weight=weight,
        prompt=prompt,
        output=output,
        gap_cv=gap_cv,
        turns=turns,
    )


_QUESTION, _REPLY = log_normal(220, 0.8), log_normal(110, 0.7)
_LONG_DOCUMENT, _SUMMARY = log_normal(6500, 0.4), log_normal(200, 0.6)
_TALK, _TALK_REPLY = log_normal(900, 0.9), log_normal(150, 0.8)  # as Azure's
WORKLOADS: dict[str, tuple[Component, ...]] = {
    "sharegpt": (_SHAREGPT,),
    "arxiv_v1": (_ARXIV_V1,),
    "arxiv_v2": (_ARXIV_V2,),
    "mixed_v1": (dataclasses.replace(_SHAREGPT, weight=3.0), _ARXIV_V1),
    "mixed_v2": (dataclasses.replace(_SHAREGPT, weight=5.0), _ARXIV_V2),
    # Ours.
    "chat": (_kind("chat", 1, _QUESTION, _REPLY, ttft_s=0.2, tbt_s=0.05),),
    "documents": (
        _kind("chat", 95, _QUESTION, _REPLY, ttft_s=0.2, tbt_s=0.05),
        _kind("document", 5, _LONG_DOCUMENT, _SUMMARY, ttft_s=20.0, tbt_s=0.1),
    ),
    "heavy_tail": tuple(
        _kind(name, 1, log_normal(800, 1.4), log_normal(150, 0.7), **bounds)
        for name, bounds in (
            ("quick", {"ttft_slowdown": 8.0, "tbt_s": 0.1}),
            ("patient", {"ttft_s": 6.0, "tbt_s": 0.1}),
        )
    ),
    "bursts": tuple(
        _kind(name, 1, _TALK, _TALK_REPLY, gap_cv=4.0, ttft_s=ttft_s, tbt_s=0.1)
        for name, ttft_s in (("quick", 1.0), ("patient", 10.0))
    ),
    "reasoning_code": (
        # Lengths of ServeGen's reasoning service, and of Azure's code completion.
        _kind(
            *("reasoning", 3, log_normal(270, 1.8), log_normal(585, 1.1, (1, 8000))),
            ttft_s=2.0,
            tbt_s=0.04,
        ),
        _kind("completion", 7, log_normal(1450, 0.8), log_normal(15, 0.9), ttlt_s=3.0),
    ),
    "tight": (
        _kind("chat", 4, log_normal(160, 0.6), _REPLY, ttft_s=0.15, tbt_s=0.03),
        _kind("document", 1, _LONG_DOCUMENT, _SUMMARY, ttft_s=20.0, tbt_s=0.1),
    ),
}

# Prompt and answer (mean, deviation, least, most), turns, TTFT and TBT in seconds.
_CATALOGUE: dict[str, tuple[Any, ...]] = {
    "interactive_chat": ((4000, 2500, 500, 15_000), (300, 150, 10, 1000), 4, 1.0, 0.05),
    "code_generation": (
        *((160_000, 233_600, 10_000, _CONTEXT_TOKENS), (425, 825, 50, 10_000)),
        *(540, 30.0, 0.1),
    ),
    "deep_research": (
        *((45_000, 35_000, 2000, _CONTEXT_TOKENS), (300, 850, 50, 4000)),
        *(15, 10.0, 0.1),
    ),
    "reasoning": ((1000, 800, 100, 5000), (8000, 6500, 500, 32_000), 1, 2.0, 0.1),
    "rag": (
        *((15_000, 22_000, 1000, _CONTEXT_TOKENS), (500, 300, 50, 2000)),
        *(1, 15.0, 0.15),
    ),
}
for _name, (_prompt, _answer, _turns, _ttft_s, _tbt_s) in _CATALOGUE.items():
    _bounds = {"turns": _turns, "ttft_s": _ttft_s, "tbt_s": _tbt_s}
    _lengths = _of_moments(*_prompt), _of_moments(*_answer)
    WORKLOADS[_name] = (_kind(_name, 1, *_lengths, **_bounds),)
