"""Metrics for Prometheus, named as vLLM names its own where the meaning is equal.

The one idea: nothing here is a metrics library's object until someone scrapes.
Per token there is one bisection into a list; engine counters are read from its
snapshot, and step times from its step log, when a scrape asks for them.

Everything is touched by the server's event loop alone, so there are no locks.
"""

import bisect
import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from jserve.events import EngineStats, Health, QueueFullError, StepRecord

_TTFT_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
)
_GAP_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
)
_E2E_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0)
_STEP_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_HOST_S = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
_ERROR_SHARE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_TOKENS = tuple(2.0**power for power in range(15))


class Distribution:
    """Counts of values between ascending bounds."""

    def __init__(self, bounds: Sequence[float]):
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Counts one value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Returns (upper bound, values up to it), as Prometheus has them."""
        rows: list[tuple[str, float]] = []
        total = 0
        names = [*map(str, self._bounds), "+Inf"]
        for name, count in zip(names, self._counts, strict=True):
            total += count
            rows.append((name, total))
        return rows

    @property
    def sum(self) -> float:
        """Sum of the values."""
        return self._sum


class EngineView(Protocol):
    """What is read of an engine loop."""

    def stats(self) -> EngineStats:
        """Returns a snapshot."""
        ...

    def steps(self, since: int = 0) -> list[StepRecord]:
        """Returns the records of steps from number `since`."""
        ...


class ServerMetrics(Collector):
    """Counts what the server sees and, on a scrape, adds what the engine counts.

    Attributes:
      ttft_s: from arrival to the first token.
      gap_s: between two tokens of one request.
      e2e_s: from arrival to the last token.
      prompt_tokens: tokens of a finished request's prompt.
      output_tokens: tokens of a finished request's output.
      publish_s: detokenising and encoding all tokens of one engine step.
    """

    def __init__(self, engine: EngineView, model_name: str):
        self._engine = engine
        self._model_name = model_name
        self.ttft_s = Distribution(_TTFT_S)
        self.gap_s = Distribution(_GAP_S)
        self.e2e_s = Distribution(_E2E_S)
        self.prompt_tokens = Distribution(_TOKENS)
        self.output_tokens = Distribution(_TOKENS)
        self.publish_s = Distribution(_HOST_S)
        self._step_s = Distribution(_STEP_S)
        self._plan_s = Distribution(_HOST_S)
        self._prediction_error = Distribution(_ERROR_SHARE)
        self._finished: collections.Counter[str] = collections.Counter()
        self._rejected: collections.Counter[str] = collections.Counter()
        self._slo: collections.Counter[tuple[str, str]] = collections.Counter()
        self._next_step = 0
        self._step_tokens = 0
        self._pad_tokens = 0

    def count_finished(self, reason: str) -> None:
        """Counts one request that ended."""
        self._finished[reason] += 1

    def count_rejected(self, error: Exception) -> None:
        """Counts one request that was refused for the server's own reasons."""
        is_full = isinstance(error, QueueFullError)
        self._rejected["queue_full" if is_full else "not_serving"] += 1

    def count_slo(self, service_class: str, is_met: bool) -> None:
        """Counts one request whose objective was kept or broken."""
        self._slo[service_class, "true" if is_met else "false"] += 1

    def absorb_steps(self) -> None:
        """Reads the engine's step log on from where the last call ended.

        The log is bounded: call this more often than it wraps around.
        """
        block_tokens = self._engine.stats().block_tokens
        for step in self._engine.steps(self._next_step):
            self._next_step = step.step_id + 1
            size = step.num_rows + step.num_blocks * block_tokens
            self._step_tokens += size
            self._pad_tokens += size - step.used_rows - step.prefill_tokens
            self._step_s.add(step.duration_s)
            self._plan_s.add(step.plan_s)
            if step.duration_s > 0:
                error_s = abs(step.predicted_s - step.duration_s)
                self._prediction_error.add(error_s / step.duration_s)

    def describe(self) -> Iterable[Metric]:
        """Returns nothing: names are not needed before the first scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yields everything, for one scrape."""
        self.absorb_steps()
        yield from self._gauges()
        yield from self._counters()
        yield from self._labelled_counters()
        yield from self._distributions()

    def _gauges(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        is_serving = stats.health in (Health.READY, Health.WARM)
        used_pages = stats.num_pages - stats.num_free_pages
        for name, text, value in (
            ("num_requests_running", "Requests that hold KV pages.", stats.num_running),
            ("num_requests_waiting", "Requests that wait.", stats.num_waiting),
            (
                "kv_cache_usage_perc",
                "Share of KV pages that running requests hold, 0 to 1.",
                used_pages / max(stats.num_pages, 1),
            ),
            ("ready", "1 if requests are served.", is_serving),
            ("warm", "1 if no shape is left to compile.", stats.health is Health.WARM),
            ("num_programs", "Programs compiled.", stats.num_programs),
            (
                "num_programs_total",
                "Programs there will be, unless a limit ends warm-up first.",
                stats.num_programs_total,
            ),
            ("compile_seconds", "Spent compiling at start-up.", stats.compile_s),
            ("ready_seconds", "Until requests were served.", stats.start_up.ready_s),
            (
                "warm_seconds",
                "Until nothing was left to compile or to time.",
                stats.start_up.warm_s,
            ),
        ):
            if value is None:  # not yet
                continue
            gauge = GaugeMetricFamily(f"jserve:{name}", text, labels=["model_name"])
            gauge.add_metric([self._model_name], float(value))
            yield gauge
        info = GaugeMetricFamily(
            "jserve:predictor_info",
            "1 for the predictor that prices the steps.",
            labels=["model_name", "predictor"],
        )
        info.add_metric([self._model_name, stats.predictor.name], 1.0)
        yield info

    def _counters(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        for name, text, value in (
            ("prompt_tokens", "Prompt tokens admitted.", stats.prompt_tokens),
            ("generation_tokens", "Output tokens.", stats.generated_tokens),
            ("num_preemptions", "Requests preempted.", stats.num_preemptions),
            (
                "prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache.",
                stats.prompt_tokens,
            ),
            (
                "prefix_cache_hits",
                "Prompt tokens found in the prefix cache.",
                stats.prefix_hit_tokens,
            ),
            ("engine_steps", "Engine steps.", stats.num_steps),
            (
                "compiles_after_warmup",
                "Compilations while warm; anything but 0 is a bug.",
                stats.num_compiles_after_warmup,
            ),
            ("step_tokens", "Token positions computed.", self._step_tokens),
            ("pad_tokens", "Of those, padding.", self._pad_tokens),
            (
                "predictor_refits",
                "Step-time models fitted while serving.",
                stats.predictor.num_refits,
            ),
            (
                "predictor_replaced",
                "Predictions that were no durations; the table's were taken.",
                stats.predictor.num_replaced,
            ),
            (
                "plan_searches",
                "Searches for the order of the queue (policies annealing).",
                stats.searches.num_searches,
            ),
            (
                "plan_search_proposals",
                "Changes of an order that they tried.",
                stats.searches.num_proposals,
            ),
            ("plan_search_seconds", "Spent on them.", stats.searches.search_s),
            (
                "plan_search_gain",
                "Sum of how much better each order was than its start, relative.",
                stats.searches.gain,
            ),
        ):
            counter = CounterMetricFamily(f"jserve:{name}", text, labels=["model_name"])
            counter.add_metric([self._model_name], value)
            yield counter

    def _labelled_counters(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        fallback = stats.predictor.fallback
        latency_fallback = stats.request_latency_fallback
        for name, text, label, counts in (
            (
                "request_success",
                "Requests that ended, by reason.",
                "finished_reason",
                self._finished,
            ),
            (
                "requests_rejected",
                "Requests refused for the server's own reasons.",
                "reason",
                self._rejected,
            ),
            (
                "predictor_fallback",
                "Predictor checkpoints of no use; the table stands in.",
                "reason",
                {fallback: 1} if fallback else {},
            ),
            (
                "request_latency_fallback",
                "Request latency files of no use; a fitted one stands in.",
                "reason",
                {latency_fallback: 1} if latency_fallback else {},
            ),
        ):
            family = CounterMetricFamily(
                f"jserve:{name}", text, labels=["model_name", label]
            )
            for key, count in sorted(counts.items()):
                family.add_metric([self._model_name, key], count)
            yield family
        yield from self._length_errors()
        slo = CounterMetricFamily(
            "jserve:slo_requests",
            "Requests by class, and whether each of their objectives was met.",
            labels=["model_name", "service_class", "met"],
        )
        for (service_class, met), count in sorted(self._slo.items()):
            slo.add_metric([self._model_name, service_class, met], count)
        yield slo

    def _length_errors(self) -> Iterator[Metric]:
        errors = sorted(self._engine.stats().length_errors.items())
        for name, text, field in (
            (
                "length_predictions",
                "Answers ended that had stop tokens; the next three are of these.",
                "num_requests",
            ),
            ("length_actual_tokens", "Tokens they had.", "sum_tokens"),
            (
                "length_predicted_tokens",
                "Tokens predicted for them on arrival.",
                "sum_predicted_tokens",
            ),
            (
                "length_abs_error_tokens",
                "Differences between the two, without their signs.",
                "sum_abs_error_tokens",
            ),
        ):
            family = CounterMetricFamily(
                f"jserve:{name}", text, labels=["model_name", "service_class"]
            )
            for service_class, one in errors:
                family.add_metric(
                    [self._model_name, service_class], getattr(one, field)
                )
            yield family

    def _distributions(self) -> Iterator[Metric]:
        for name, text, values in (
            ("time_to_first_token_seconds", "From arrival.", self.ttft_s),
            ("inter_token_latency_seconds", "Between two tokens.", self.gap_s),
            ("e2e_request_latency_seconds", "Arrival to last token.", self.e2e_s),
            ("request_prompt_tokens", "Tokens of a prompt.", self.prompt_tokens),
            ("request_generation_tokens", "Tokens of an output.", self.output_tokens),
            ("step_duration_seconds", "One step on its device.", self._step_s),
            ("step_plan_seconds", "Planning one step.", self._plan_s),
            (
                "step_publish_seconds",
                "Detokenising and encoding one step's tokens.",
                self.publish_s,
            ),
            (
                "predictor_error_ratio",
                "Predicted less measured step time, over measured; absolute.",
                self._prediction_error,
            ),
        ):
            family = HistogramMetricFamily(
                f"jserve:{name}", text, labels=["model_name"]
            )
            family.add_metric([self._model_name], values.buckets(), values.sum)
            yield family
