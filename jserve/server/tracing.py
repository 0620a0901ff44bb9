"""Traces of requests by OpenTelemetry, whose packages are the extra `otel`."""

import dataclasses
import importlib
import itertools
import time
from collections.abc import Mapping
from typing import Any

from jserve.server.generation import Generation
from jserve.server.logs import current_id
from jserve.server.replies import Reply

_TIMEOUT_S = 3  # of a collector, for which the end of the server waits
_PHASES = ("queue", "prefill", "decode")


def _attributes(one: Generation) -> dict[str, Any]:
    """Returns what a span says of an output, in OpenTelemetry's words where it can."""
    request, slo, forecast = one.request, one.request.slo, one.request.forecast
    found: dict[str, Any] = {
        "gen_ai.usage.input_tokens": one.num_prompt_tokens,
        "gen_ai.usage.output_tokens": len(one.tokens),
        "gen_ai.response.finish_reasons": [one.shown_reason or "none"],
        "jserve.cached_tokens": one.num_cached_tokens,
        "jserve.service_class": request.service_class,
        **{f"jserve.slo.{key}": s for key, s in dataclasses.asdict(slo).items()},
        "jserve.slo.attained": one.is_attained,
        "jserve.forecast.ttft_p50_s": forecast and forecast.ttft_s[0],
        "jserve.forecast.chance": forecast and forecast.chance,
    }
    return {name: value for name, value in found.items() if value is not None}


def check_tracing(endpoint: str) -> None:
    """Raises ValueError if traces are wanted, and packages are missing."""
    try:
        if endpoint:
            importlib.import_module("opentelemetry.exporter.otlp.proto.http")
    except ImportError as error:
        message = f"otlp_endpoint={endpoint!r} needs the extra `otel`: {error}"
        raise ValueError(message) from None


class Tracer:
    """Sends a span of each reply, and below it the phases of its outputs."""

    def __init__(self, endpoint: str, model_name: str):
        """Begins to send to the URL of a collector."""
        from opentelemetry.exporter.otlp.proto.http import trace_exporter as otlp
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": "jserve"})
        # Not the global provider, with which other libraries would send spans, too.
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = otlp.OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_S)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = provider.get_tracer("jserve")
        self._model_name = model_name
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self.close = provider.shutdown  # sends what is left

    def record(self, reply: Reply, headers: Mapping[str, str]) -> None:
        """Sends the spans of a reply that has ended, below the client's `traceparent`.

        Args:
          headers: Those of the request that this task serves.
        """
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation import tracecontext

        parent = tracecontext.TraceContextTextMapPropagator().extract(headers)
        start, first = self._tracer.start_span, reply.generations[0]
        ids = {
            "gen_ai.request.model": self._model_name,
            "gen_ai.response.id": reply.form.response_id,
            "jserve.request_id": current_id(),
        }
        name, begun_ns = (
            f"generate {self._model_name}",
            self._ns(first.request.arrival_s),
        )
        what = ids | _attributes(first)
        root = start(name, parent, SpanKind.SERVER, what, start_time=begun_ns)
        if reply.error is not None:
            root.set_status(StatusCode.ERROR, str(reply.error))
        below = set_span_in_context(root, parent)
        for one in reply.generations:
            marks_s = [one.request.arrival_s]
            if (begun_s := one.request.first_scheduled_s) is not None:
                marks_s += [begun_s, *one.times_s[:1], *one.times_s[1:][-1:]]
            spans, what = itertools.pairwise(map(self._ns, marks_s)), _attributes(one)
            for name, (start_ns, end_ns) in zip(_PHASES, spans, strict=False):
                span = start(name, below, attributes=what, start_time=start_ns)
                span.end(end_ns)
        root.end(self._ns(time.monotonic()))

    def _ns(self, time_s: float) -> int:
        return self._epoch_ns + int(time_s * 1e9)
