"""Metrics for Prometheus, with vLLM's names where the meaning is the same.

The server counts in Prometheus's objects, on its event loop. The engine's counts are
read from its statistics and its record of steps on each scrape.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jserve.engine.interface import ServingEngine
from jserve.records.events import Health
from jserve_sched.requests.forecast import Forecast

_TTFT_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
)
_GAP_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
)
_E2E_S = (
    *(0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0),
    *(40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 600.0),
)
_STEP_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_HOST_S = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
_ERROR_SHARE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_TOKENS = tuple(2.0**power for power in range(15))

# What vLLM has too keeps its name, which dashboards and routers know, prefix included.
_VLLM = frozenset(
    """
    cache_config_info e2e_request_latency_seconds generation_tokens
    inter_token_latency_seconds iteration_tokens_total kv_cache_usage_perc
    num_preemptions num_requests_running num_requests_waiting prefix_cache_hits
    prefix_cache_queries prompt_tokens request_decode_time_seconds
    request_generation_tokens request_prefill_time_seconds request_prompt_tokens
    request_queue_time_seconds request_success request_time_per_output_token_seconds
    time_to_first_token_seconds
    """.split()  # noqa: SIM905
)

# Name, attribute of the engine's statistics, and help.
_GAUGES = (
    ("num_requests_running", "num_running", "Requests that hold KV pages."),
    ("num_requests_waiting", "num_waiting", "Requests that wait for a slot."),
    ("num_programs", "num_programs", "Compiled programs."),
    ("num_programs_total", "num_programs_total", "Compiled programs once warm."),
    ("step_log_records", "is_recording", "Whether the step log goes on, 0 or 1."),
    ("compile_seconds", "compile_s", "Seconds of compiling, by the clock."),
    ("ready_seconds", "start_up.ready_s", "Seconds from program start to ready."),
    ("warm_seconds", "start_up.warm_s", "Seconds from program start to warm."),
)
_COUNTERS = (
    ("prompt_tokens", "prompt_tokens", "Prompt tokens admitted."),
    ("generation_tokens", "generated_tokens", "Output tokens generated."),
    ("num_preemptions", "num_preemptions", "Preemptions of requests."),
    ("prefix_cache_queries", "prompt_tokens", "Tokens looked up in the prefix cache."),
    ("prefix_cache_hits", "prefix_hit_tokens", "Tokens found in the prefix cache."),
    ("engine_steps", "num_steps", "Steps of the engine."),
    ("compiles_after_warmup", "num_compiles_after_warmup", "Compilations while warm."),
    ("predictor_refits", "predictor.num_refits", "Refits of the step predictor."),
    ("predictor_replaced", "predictor.num_replaced", "Invalid predictions replaced."),
    ("plan_searches", "searches.num_searches", "Searches of the policy."),
    ("plan_search_seconds", "searches.search_s", "Seconds in the policy's searches."),
)
# Name, field of a kind of step's `KindErrors`, and help.
_STEP_ERRORS = (
    ("predictor_median_error", "median_error", "Median error of predicted steps."),
    ("predictor_p95_coverage", "p95_coverage", "Share of steps within their p95."),
    ("predictor_bias", "bias", "Median of measured over predicted time, less 1."),
)
# Name, attribute of a service class's errors, and help.
_LENGTHS = (
    ("length_predictions", "num_requests", "Outputs with a predicted length."),
    ("length_actual_tokens", "sum_tokens", "Tokens of outputs with a prediction."),
    ("length_predicted_tokens", "sum_predicted_tokens", "Tokens predicted on arrival."),
    ("length_abs_error_tokens", "sum_abs_error_tokens", "Absolute prediction errors."),
)


def _full_name(name: str) -> str:
    return f"{'vllm' if name in _VLLM else 'jserve'}:{name}"


class ServerMetrics(Collector):
    """Counts requests and, on a scrape, adds the engine's counts.

    The texts of its histograms say what each observes.
    """

    def __init__(self, engine: ServingEngine, model_name: str):
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._engine = engine
        self._model_name = model_name
        self._next_step = 0
        self.registry = prometheus_client.CollectorRegistry()
        self.registry.register(self)  # first, so that a scrape first reads new steps
        make = self._histogram
        self.ttft_s = make("time_to_first_token_seconds", _TTFT_S, "To first token.")
        self.gap_s = make("inter_token_latency_seconds", _GAP_S, "Time between tokens.")
        self.e2e_s = make("e2e_request_latency_seconds", _E2E_S, "Time to last token.")
        self.queue_s = make("request_queue_time_seconds", _E2E_S, "Time in the queue.")
        text = "From first step to first token."
        self.prefill_s = make("request_prefill_time_seconds", _E2E_S, text)
        text = "From first token to last token."
        self.decode_s = make("request_decode_time_seconds", _E2E_S, text)
        text = "Mean time per token."
        self.tpot_s = make("request_time_per_output_token_seconds", _GAP_S, text)
        text = "Tokens computed by a step."
        self._iteration_tokens = make("iteration_tokens_total", _TOKENS, text)
        self.prompt_tokens = make("request_prompt_tokens", _TOKENS, "Prompt lengths.")
        name = "request_generation_tokens"
        self.output_tokens = make(name, _TOKENS, "Output lengths.")
        self.publish_s = make("step_publish_seconds", _HOST_S, "Time to encode a step.")
        self._step_s = make("step_duration_seconds", _STEP_S, "Duration of a step.")
        self._plan_s = make("step_plan_seconds", _HOST_S, "Time to plan a step.")
        text = "Relative error of a predicted step."
        self._error = make("predictor_error_ratio", _ERROR_SHARE, text)
        count = self._counter
        self._step_tokens = count("step_tokens", "Token positions, padding included.")
        self._pad_tokens = count("pad_tokens", "Token positions that were padding.")
        self._finished = count("request_success", "Ended requests.", "finished_reason")
        text = "Requests refused with 429 or 503."
        self._rejected = count("requests_rejected", text, "reason")
        text = "Times to first token, by where their forecast put them"
        self._forecasts = count("ttft_forecasts", text, "service_class", "at_most")
        name = "ttft_forecast_error_ratio"
        text = "Relative error of the median of a forecast time to first token."
        self._forecast_error = make(name, _ERROR_SHARE, text, "service_class")
        name, text = "requests_not_admitted", "Requests refused or degraded."
        self._not_admitted = count(name, text, "reason", "service_class")
        text = "HTTP requests of an API key."
        self._key_requests = count("key_requests", text, "api_key", "outcome")
        text = "Tokens of an API key."
        self._key_tokens = count("key_tokens", text, "api_key", "kind")
        self._slo = count("slo_requests", "Outcomes of SLOs.", "service_class", "met")

    def _histogram(
        self, name: str, bounds: Sequence[float], text: str, *labels: str
    ) -> prometheus_client.Histogram:
        names = ["model_name", *labels]
        found = prometheus_client.Histogram(
            _full_name(name), text, names, registry=self.registry, buckets=bounds
        )
        return found if labels else found.labels(self._model_name)

    def _counter(self, name: str, text: str, *labels: str) -> prometheus_client.Counter:
        counter = prometheus_client.Counter(
            _full_name(name), text, ["model_name", *labels], registry=self.registry
        )
        return counter if labels else counter.labels(self._model_name)

    def count_finished(self, reason: str) -> None:
        """Counts one request that ended."""
        self._finished.labels(self._model_name, reason).inc()

    def count_rejected(
        self, reason: str, service_class: str, *, is_attained: bool = False
    ) -> None:
        """Counts one request that was refused because of the server's state."""
        self._rejected.labels(self._model_name, reason).inc()
        self.count_not_admitted(reason, service_class)
        self.count_slo(service_class, is_attained)

    def count_forecast(
        self, forecast: Forecast, service_class: str, ttft_s: float
    ) -> None:
        """Counts one request's time to first token beside its forecast."""
        p50_s, p90_s = forecast.ttft_s
        at_most = "p50" if ttft_s <= p50_s else "p90" if ttft_s <= p90_s else "inf"
        self._forecasts.labels(self._model_name, service_class, at_most).inc()
        error = abs(p50_s - ttft_s) / max(ttft_s, 1e-9)
        self._forecast_error.labels(self._model_name, service_class).observe(error)

    def count_not_admitted(self, reason: str, service_class: str) -> None:
        """Counts one request that was refused or degraded."""
        self._not_admitted.labels(self._model_name, reason, service_class).inc()

    def count_key(self, name: str, outcome: str) -> None:
        """Counts one HTTP request of an API key, accepted or refused by a limit."""
        if name:
            self._key_requests.labels(self._model_name, name, outcome).inc()

    def count_key_tokens(self, name: str, kind: str, num_tokens: int) -> None:
        """Counts tokens of an API key."""
        if name:
            self._key_tokens.labels(self._model_name, name, kind).inc(num_tokens)

    def count_slo(self, service_class: str, is_attained: bool) -> None:
        """Counts one request whose SLO was attained or violated."""
        met = "true" if is_attained else "false"
        self._slo.labels(self._model_name, service_class, met).inc()

    def absorb_steps(self) -> None:
        """Counts the engine's steps since the last call.

        The engine's record of steps is bounded: this must be called before it drops
        steps.
        """
        block_tokens = self._engine.stats().block_tokens
        for step in self._engine.steps(self._next_step):
            self._next_step = step.step_id + 1
            size = step.num_rows + step.num_blocks * block_tokens
            self._step_tokens.inc(size)
            self._pad_tokens.inc(size - step.used_rows - step.prefill_tokens)
            self._iteration_tokens.observe(step.used_rows + step.prefill_tokens)
            self._step_s.observe(step.duration_s)
            self._plan_s.observe(step.plan_s)
            if step.duration_s > 0:
                error_s = abs(step.predicted_s - step.duration_s)
                self._error.observe(error_s / step.duration_s)

    def collect(self) -> Iterator[Metric]:
        """Yields the engine's counts, for one scrape."""
        self.absorb_steps()
        stats = self._engine.stats()
        is_warm = stats.health is Health.WARM
        is_serving = is_warm or stats.health is Health.READY
        usage = 1 - stats.num_free_pages / max(stats.num_pages, 1)
        gauge, counter, family = GaugeMetricFamily, CounterMetricFamily, self._family
        for name, text, value in (
            ("ready", "Whether requests are served, 0 or 1.", is_serving),
            ("warm", "Whether all is compiled, 0 or 1.", is_warm),
            ("kv_cache_usage_perc", "Share of KV pages in use, 0 to 1.", usage),
        ):
            yield family(gauge, name, text, {(): value})
        pool = {(str(self._engine.config.page_size), str(stats.num_pages)): 1}
        labels = "block_size", "num_gpu_blocks"
        yield family(gauge, "cache_config_info", "The KV pool.", pool, *labels)
        for kind, rows in ((gauge, _GAUGES), (counter, _COUNTERS)):
            for name, path, text in rows:
                value = operator.attrgetter(path)(stats)
                if value is not None:  # None is not known yet
                    yield family(kind, name, text, {(): value})
        predictor = stats.predictor
        text, serving = "The predictor that prices the steps.", {predictor.name: 1}
        yield family(gauge, "predictor_info", text, serving, "predictor")
        reasons = {predictor.fallback: 1} if predictor.fallback else {}
        text = "Predictor checkpoints not used."
        yield family(counter, "predictor_fallback", text, reasons, "reason")
        kinds, labels = predictor.kinds, ("step_kind", "predictor")
        serves = {(kind, errors["predictor"]): 1 for kind, errors in kinds.items()}
        text = "The predictor of each kind of step."
        yield family(gauge, "predictor_serves", text, serves, *labels)
        for name, field, text in _STEP_ERRORS:
            values = {(kind,): errors[field] for kind, errors in kinds.items()}
            yield family(gauge, name, text, values, "step_kind")
        for name, field, text in _LENGTHS:
            found = sorted(stats.length_errors.items())
            sums = {key: getattr(errors, field) for key, errors in found}
            yield family(counter, name, text, sums, "service_class")

    def _family(
        self,
        kind: Any,
        name: str,
        text: str,
        values: Mapping[Any, float],
        *labels: str,
    ) -> Metric:
        """Returns a metric, with a value for each of the values of its labels."""
        family = kind(_full_name(name), text, labels=["model_name", *labels])
        for key, value in values.items():
            keys = (key,) if isinstance(key, str) else key
            family.add_metric([self._model_name, *keys], float(value))
        return cast(Metric, family)
