"""Flags that say what a simulation serves, and how fast it comes."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence

from absl import flags

from jserve_sched.slo import ServiceClass, parse_service_classes
from jserve_sched.workload import WORKLOADS
from jserve_tools.simulated_loads import Levels, Load, NamedLoad, TraceLoad
from jserve_tools.workload import DEFAULT_SERVICE_CLASSES
from jserve_tools.workload_trace import TRACE_FORM, mean_rate, read_trace

# absl gives a flag to the module that calls DEFINE_*; this one passes it on.
flags.disclaim_key_flags()

_DEFAULT_REQUESTS = 1000  # of a workload
_LEVEL_FLAGS = ("period_s", "duration_s")
_RATE_FLAGS = ("qps", "levels_qps", *_LEVEL_FLAGS, "poisson")
_MAX_SPANS = 5.0  # a run ends then, as a multiple of the time of arrivals


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Those flags, checked.

    Attributes:
      load: the requests.
      qps: rates to run at; the mean of the levels, under levels; a single infinite
        one if all come at once.
      levels: rates that take turns, if they do.
      trace: name of the trace; "" for a workload.
      workload: name of the workload; "" for a trace.
    """

    load: Load
    qps: Sequence[float]
    levels: Levels | None
    trace: str
    workload: str

    @property
    def is_one_shot(self) -> bool:
        """Whether all come at once."""
        return math.inf in self.qps

    @property
    def max_spans(self) -> float:
        """When a run ends, as a multiple of the time between first and last arrival."""
        return math.inf if self.is_one_shot else _MAX_SPANS


def define_one_shot_flag() -> flags.FlagHolder[bool]:
    """Defines the flag that lets all requests come at once."""
    return flags.DEFINE_bool(
        "one_shot", False, "All requests are due at time 0, so there is no rate."
    )


def define_load_flags() -> Callable[[], LoadOptions]:
    """Defines the flags; returns their reader, which raises for a bad value."""
    workload = flags.DEFINE_enum(
        "workload", "mixed_v1", sorted(WORKLOADS), "SlidingServe's workload to draw."
    )
    trace = flags.DEFINE_string(
        "trace",
        None,
        f"{TRACE_FORM}; in place of a workload.",
    )
    poisson = flags.DEFINE_bool(
        "poisson", False, "Give a trace's requests Poisson arrivals."
    )
    num_requests = flags.DEFINE_integer(
        "num_requests",
        None,
        "Requests of a run: of a trace the first ones. [default: 1000, a whole trace, "
        "or what comes under levels]",
        lower_bound=2,
    )
    service_classes = flags.DEFINE_string(
        "service_classes",
        None,
        "JSON file: a list of classes, each with name, share and ttft_s or "
        "ttft_slowdown, tbt_s or tbt_step_multiple, ttlt_s (seconds, or multiples of "
        "an idle machine's time). Classes named as the workload's parts replace "
        "theirs; those that a trace names need no share.",
    )
    read_rates = _define_rates()

    def read() -> LoadOptions:
        classes: Sequence[ServiceClass] = ()
        if service_classes.value is not None:
            path = pathlib.Path(service_classes.value).expanduser()
            classes = parse_service_classes(path.read_text())
        qps, levels = read_rates()
        if trace.value is not None:
            path = pathlib.Path(trace.value).expanduser()
            classes = classes or DEFAULT_SERVICE_CLASSES
            rows = read_trace(
                path, num_requests=num_requests.value or 0, classes=classes
            )
            if not poisson.value and math.inf not in qps:
                mean_rate(rows)  # a trace without a rate is refused
            return LoadOptions(
                load=TraceLoad(rows=rows, classes=classes, is_poisson=poisson.value),
                qps=qps or [mean_rate(rows)],
                levels=levels,
                trace=path.name,
                workload="",
            )
        count = num_requests.value or _DEFAULT_REQUESTS
        if levels is not None and num_requests.value is None:
            most = max(levels.levels_qps) * levels.duration_s
            count = int(most + 5 * most**0.5) + 10
        return LoadOptions(
            load=NamedLoad(
                components=WORKLOADS[workload.value],
                num_requests=count,
                classes=classes,
            ),
            qps=qps or [1.0],
            levels=levels,
            trace="",
            workload=workload.value,
        )

    return read


def _define_rates() -> Callable[[], tuple[list[float], Levels | None]]:
    """Defines the flags of rates; returns their reader."""
    one_shot = define_one_shot_flag()
    qps = flags.DEFINE_list(
        "qps",
        None,
        "Rates in requests per second. [default: the trace's own, or 1]",
    )
    levels_qps = flags.DEFINE_list(
        "levels_qps",
        None,
        "Rates that take turns, such as 1,2.5, instead of one rate.",
    )
    period_s = flags.DEFINE_float(
        "period_s", 120.0, "Seconds that each of the levels lasts.", lower_bound=1e-3
    )
    duration_s = flags.DEFINE_float(
        "duration_s", 1200.0, "Seconds of arrivals under levels.", lower_bound=1e-3
    )

    def read() -> tuple[list[float], Levels | None]:
        if one_shot.value:
            idle = [one for one in _RATE_FLAGS if flags.FLAGS[one].present]
            if idle:
                raise ValueError(f"one_shot has no rate: leave out {', '.join(idle)}")
            return [math.inf], None
        if levels_qps.value is None:
            idle = [one for one in _LEVEL_FLAGS if flags.FLAGS[one].present]
            if idle:
                raise ValueError(
                    f"{' and '.join(idle)} would do nothing without levels_qps"
                )
            return _rates("qps", qps.value or ()), None
        if qps.value is not None:
            raise ValueError("give one of qps and levels_qps, not both")
        levels = Levels(
            levels_qps=tuple(_rates("levels_qps", levels_qps.value)),
            period_s=period_s.value,
            duration_s=duration_s.value,
        )
        return [levels.mean_qps], levels

    return read


def _rates(name: str, texts: Sequence[str]) -> list[float]:
    try:
        rates = [float(text) for text in texts]
    except ValueError:
        raise ValueError(f"{name}={','.join(texts)} is not numbers") from None
    for rate in rates:
        if not 0 < rate < 1e6:
            raise ValueError(f"{name}: {rate} is not in 0..1000000")
    return rates
