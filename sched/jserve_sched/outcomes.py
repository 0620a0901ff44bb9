"""The numbers of a run: latencies, attainment, padding.

A report is a pure function of what each request experienced and of what each step
computed, so a replay over HTTP, an engine in process and a simulation give the same
numbers by the same definitions. A number that was not measured is absent.
"""

import collections
import dataclasses
import enum
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jserve_sched.buckets.table import Bucket
from jserve_sched.requests.output_lengths import LengthErrors
from jserve_sched.requests.slo import Slo
from jserve_sched.steps.record import StepRecord

SCHEMA_VERSION = 2  # what the keys mean: jserve_tools/REPORT.md
_Z_95 = 1.959964  # two-sided 95 % quantile of the normal distribution


class Failure(enum.Enum):
    """Why a request did not run to its end."""

    REJECTED = "rejected"  # the server was full
    TOO_LONG = "too_long"  # prompt and output exceed what the server can hold
    ERROR = "error"  # anything else that the server or the connection did
    UNFINISHED = "unfinished"  # cut off when the run ended


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one request experienced, on one clock.

    Attributes:
      arrival_s: Time at which it was *due* to be sent; all latencies count from here.
      token_times_s: Time at which each output token arrived, ascending.
      failure: Reason for which it did not run to its end; None if it did.
      is_degraded: Whether it was served as best effort instead: not attained.
      num_returns: How often its client came back after a refusal; times are of the last
        time.
      forecast_ttft_s: P50 and P90 of its TTFT, as forecast when it came; or None.
    """

    service_class: str
    slo: Slo
    arrival_s: float
    num_prompt_tokens: int
    max_tokens: int
    token_times_s: Sequence[float]
    failure: Failure | None = None
    message: str = ""
    is_degraded: bool = False
    num_returns: int = 0
    forecast_ttft_s: tuple[float, float] | None = dataclasses.field(
        default=None, compare=False
    )

    @property
    def is_attained(self) -> bool:
        """Whether it ran to its end and attained every objective."""
        return self.violation is None

    @property
    def is_committed(self) -> bool:
        """Whether it was taken with its SLO: not refused or degraded."""
        refused = (Failure.REJECTED, Failure.TOO_LONG)
        return self.failure not in refused and not self.is_degraded

    @property
    def is_attained_mean_tpot(self) -> bool:
        """The same by the rule of other benchmarks: TTFT, *mean* TPOT and TTLT."""
        slo, times_s = dataclasses.replace(self.slo, tbt_s=None), self.token_times_s
        if dataclasses.replace(self, slo=slo).violation:
            return False
        if self.slo.tbt_s is None or len(times_s) < 2:
            return True
        return (times_s[-1] - times_s[0]) / (len(times_s) - 1) <= self.slo.tbt_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, seconds."""
        if not self.token_times_s:
            return None
        return self.token_times_s[0] - self.arrival_s

    @property
    def e2e_s(self) -> float | None:
        """Time to the last token of a request that ended well, seconds."""
        if self.failure is not None or not self.token_times_s:
            return None
        return self.token_times_s[-1] - self.arrival_s

    @property
    def violation(self) -> str | None:
        """The first objective violated, in the order of a request's life; or None."""
        if self.failure is not None:
            return self.failure.value
        if self.is_degraded:
            return "degraded"
        if self._attains(self.slo):
            return None
        slo = dataclasses.replace(self.slo, ttlt_s=None)
        if not self._attains(dataclasses.replace(slo, tbt_s=None)):
            return "late_first_token"
        return "late_last_token" if self._attains(slo) else "late_token"

    def _attains(self, slo: Slo) -> bool:
        return slo.is_attained(self.arrival_s, self.token_times_s, is_complete=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineCounters:
    """The engine's counters over a run: their growth, but for `num_programs`.

    `length_errors` is by service class; all others are documented in REPORT.md.
    """

    num_programs: int
    num_compiles_after_warmup: int
    num_preemptions: int
    prefix_hit_tokens: int
    length_errors: Mapping[str, LengthErrors] = dataclasses.field(default_factory=dict)


def wilson_interval(num_attained: int, num_requests: int) -> tuple[float, float]:
    """Returns the 95 % Wilson interval of a share."""
    if num_requests < 1:
        raise ValueError(f"num_requests={num_requests}: a share needs at least 1")
    share, z2 = num_attained / num_requests, _Z_95**2
    centre = share + z2 / (2 * num_requests)
    variance = share * (1 - share) / num_requests + z2 / (4 * num_requests**2)
    spread, scale = _Z_95 * math.sqrt(variance), 1.0 / (1.0 + z2 / num_requests)
    return max(0.0, scale * (centre - spread)), min(1.0, scale * (centre + spread))


def distribution(values: Iterable[float | None]) -> dict[str, float] | None:
    """Returns mean, p50, p90 and p99 of the values there are; None if none."""
    known = np.array([value for value in values if value is not None], np.float64)
    if not known.size:
        return None
    p50, p90, p99 = np.percentile(known, (50, 90, 99)).tolist()
    return {"mean": float(known.mean()), "p50": p50, "p90": p90, "p99": p99}


def token_gaps_s(outcomes: Sequence[Outcome]) -> list[float]:
    """Returns every time between two tokens of one request, pooled."""
    return [
        later - earlier
        for outcome in outcomes
        for earlier, later in itertools.pairwise(outcome.token_times_s)
    ]


def _latencies(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    times: dict[str, Sequence[float | None]] = {
        "ttft_s": [outcome.ttft_s for outcome in outcomes],
        "tbt_s": token_gaps_s(outcomes),
        "e2e_s": [outcome.e2e_s for outcome in outcomes],
    }
    return {
        name: found for name, some in times.items() if (found := distribution(some))
    }


def _forecasts(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns how far forecast times to first token were from those that came.

    A time that equals a percentile counts as half below it.
    """
    pairs = [
        (one.ttft_s, *one.forecast_ttft_s)
        for one in outcomes
        if one.ttft_s is not None and one.forecast_ttft_s is not None
    ]
    if not pairs:
        return {}
    ttft_s, p50_s, p90_s = np.array(pairs).T
    error = np.abs(p50_s - ttft_s) / np.maximum(ttft_s, 1e-9)
    found = {"num_requests": len(pairs), "median_error": float(np.median(error))}
    for name, bound_s in (("p50", p50_s), ("p90", p90_s)):
        below = np.sign(np.round(bound_s - ttft_s, 9)) / 2 + 0.5
        found[f"share_under_{name}"] = float(below.mean())
    return {"ttft_forecast": found}


def _attainment(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    num_requests = len(outcomes)
    num_attained = sum(outcome.is_attained for outcome in outcomes)
    num_attained_mean = sum(outcome.is_attained_mean_tpot for outcome in outcomes)
    causes = collections.Counter(one.violation for one in outcomes if one.violation)
    return {
        "num_requests": num_requests,
        "num_finished": sum(one.failure is None for one in outcomes),
        "num_violations": num_requests - num_attained,
        "violations_by_cause": dict(sorted(causes.items())),
        "attainment": num_attained / num_requests,
        "attainment_ci95": list(wilson_interval(num_attained, num_requests)),
        "attainment_mean_tpot": num_attained_mean / num_requests,
        **_admission(outcomes),
    }


def _admission(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns what became of requests of which some were refused or degraded."""
    committed = [one for one in outcomes if one.is_committed]
    num_degraded = sum(one.is_degraded for one in outcomes)
    is_rejected = any(one.failure is Failure.REJECTED for one in outcomes)
    if not (num_degraded or is_rejected):
        return {}
    num_attained = sum(one.is_attained for one in committed)
    found = {
        "num_committed": len(committed),
        "num_degraded": num_degraded,
        "attainment_committed": num_attained / max(len(committed), 1),
    }
    if returned := [one.is_committed for one in outcomes if one.num_returns]:
        found["num_returned"] = len(returned)
        found["returned_committed_share"] = sum(returned) / len(returned)
    return found


def summarise_outcomes(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Returns what the requests of one run experienced, for JSON.

    Raises:
      ValueError: If there are no requests.
    """
    if not outcomes:
        raise ValueError("a report needs at least one request")
    by_class: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_class.setdefault(outcome.service_class, []).append(outcome)
    run = _attainment(outcomes)
    run["num_rejected"] = sum(one.failure is Failure.REJECTED for one in outcomes)
    num_failed = run["num_requests"] - run["num_finished"]
    run["num_errors"] = num_failed - run["num_rejected"]
    run["by_class"] = {
        name: _attainment(by_class[name])
        | _latencies(by_class[name])
        | _forecasts(by_class[name])
        for name in sorted(by_class)
    }
    run |= _latencies(outcomes)

    first_s = min(outcome.arrival_s for outcome in outcomes)
    last_s = max((o.token_times_s[-1] for o in outcomes if o.token_times_s), default=0)
    if (span_s := last_s - first_s) > 0:
        num_tokens = sum(len(outcome.token_times_s) for outcome in outcomes)
        run |= {"span_s": span_s, "output_tokens": num_tokens}
        run["output_tokens_per_s"] = num_tokens / span_s
        run["finished_per_s"] = run["num_finished"] / span_s
        run["met_per_s"] = (run["num_requests"] - run["num_violations"]) / span_s
    return run


def _by_program(
    groups: Mapping[Bucket, Sequence[StepRecord]],
) -> list[dict[str, float]]:
    """Returns what ran in each bucket, by rows and blocks."""
    return [
        {
            "num_rows": bucket.num_rows,
            "num_blocks": bucket.num_blocks,
            "num_steps": len(group),
            "used_tokens_mean": float(np.mean([step.used_tokens for step in group])),
            "bucket_s": float(np.mean([step.bucket_s for step in group])),
            "step_s_p50": float(np.median([step.duration_s for step in group])),
            "total_s": float(np.sum([step.duration_s for step in group])),
        }
        for bucket, group in sorted(groups.items(), key=lambda one: one[0])
    ]


def summarise_steps(
    steps: Sequence[StepRecord], *, block_tokens: int
) -> dict[str, Any]:
    """Returns what the steps of one run computed and wasted, for JSON.

    `pad_share_tokens` is the share of computed positions that held no token; it
    is the sum of `pad_share_bucket`, unused rows and blocks, and of
    `pad_share_block`, the empty ends of used blocks. `pad_share_time` is the
    share of predicted time that the same steps would save without padding.
    `steps_per_s` counts busy time only. `block_tokens` is the size of a block, Q.
    """
    if not steps:
        return {"num_steps": 0}
    run: dict[str, Any] = {"num_steps": len(steps)}
    groups = collections.defaultdict[Bucket, list[StepRecord]](list)
    for step in steps:
        groups[step.bucket(block_tokens)].append(step)
    computed = sum(bucket.num_tokens * len(group) for bucket, group in groups.items())
    opened = sum(step.used_rows + step.used_blocks * block_tokens for step in steps)
    used = sum(step.used_tokens for step in steps)
    run["pad_share_tokens"] = 1.0 - used / computed
    run["pad_share_bucket"] = 1.0 - opened / computed
    run["pad_share_block"] = (opened - used) / computed
    bucket_s = sum(step.bucket_s for step in steps)
    if bucket_s > 0:
        run["pad_share_time"] = 1.0 - sum(step.used_s for step in steps) / bucket_s
    busy_s = sum(step.duration_s for step in steps)
    if busy_s > 0:
        run["steps_per_s"] = len(steps) / busy_s
    plan_ms = np.percentile([step.plan_s * 1e3 for step in steps], (50, 99)).tolist()
    run["plan_ms"] = dict(zip(("p50", "p99"), plan_ms, strict=True))
    run["step_s"] = distribution(step.duration_s for step in steps)
    run["steps_by_program"] = _by_program(groups)
    return run


def summarise_run(
    outcomes: Sequence[Outcome],
    *,
    steps: Sequence[StepRecord] | None = None,
    block_tokens: int | None = None,
    counters: EngineCounters | None = None,
    labels: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns one entry of a report's `runs`, ready for JSON.

    `outcomes` are those of every request of the run; `steps` need `block_tokens`, and
    `labels` distinguish this run from others: policy, load, seed.
    """
    run = dict(labels or {}) | summarise_outcomes(outcomes)
    if steps is not None and block_tokens is not None:
        run |= summarise_steps(steps, block_tokens=block_tokens)
    if counters is not None:
        run |= dataclasses.asdict(counters)
        del run["length_errors"]
        if counters.length_errors:
            by_class = sorted(counters.length_errors.items())
            run["length_error"] = {name: one.means() for name, one in by_class}
    return run
