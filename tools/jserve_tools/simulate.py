"""Serves a load in virtual time, with the scheduler that serves, on a simulated GPU.

The machine is a cost model, so minutes of serving take seconds, and every policy
meets the same requests. A rate can be given, or the highest one searched at which at
most 1 % of the requests break a promise (goodput).

  jserve-simulate --policies=fcfs,sliding --workload=mixed_v1 --qps=2,3
  jserve-simulate --policies=edf,sliding --goodput --num_seeds=3 --num_processes=2
  jserve-simulate --policies=sliding,sliding:constructor=off --bucket_strategies=none
  jserve-simulate --cost_model=mlp:samples.npz:checkpoint --trace=my.csv

Prints a table for people; the last line of stdout is one JSON document. The same
goes to report.json in --output.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from jserve.program import ProgramError, run_program
from jserve_sched.buckets import (
    DEFAULT_BLOCK_TOKENS,
    STRATEGIES,
    BucketStrategy,
    BucketTable,
    Continuous,
    Explicit,
    table_from_json,
)
from jserve_sched.cost_model import CostModel
from jserve_sched.goodput import (
    MAX_VIOLATION_SHARE,
    WARMUP_SHARE,
    RateGrid,
)
from jserve_sched.policies import make_policy
from jserve_sched.slo import ServiceClass, parse_service_classes
from jserve_sched.workload import WORKLOADS, Arrival, isolated_times
from jserve_tools.documents import one_line, write_report
from jserve_tools.machines import load_machine
from jserve_tools.simulated_loads import Levels, Load, NamedLoad, TraceLoad
from jserve_tools.simulated_predictors import PREDICTORS
from jserve_tools.simulation import Experiment, split_limit
from jserve_tools.simulation_report import simulation_report
from jserve_tools.simulation_tables import goodput_table, speed_table
from jserve_tools.sweep import RateTask, run_all, search_goodputs
from jserve_tools.tables import runs_table
from jserve_tools.workload import DEFAULT_SERVICE_CLASSES
from jserve_tools.workload_trace import mean_rate, read_trace

_POLICIES = flags.DEFINE_list(
    "policies",
    ["fcfs"],
    "Scheduling policies, with options as in sliding:constructor=off, and with a token "
    "limit of their own in place of max_num_batched_tokens as in fcfs@512.",
)
_BUCKET_STRATEGIES = flags.DEFINE_list(
    "bucket_strategies",
    ["pow2"],
    "Bucket strategies, each with every policy: none has no padding at all; explicit "
    "is the file in buckets; others as jserve has them.",
)
_BUCKETS = flags.DEFINE_string(
    "buckets", None, "Bucket file (JSON) of bucket strategy explicit."
)
_COST_MODEL = flags.DEFINE_string(
    "cost_model",
    "a100-llama3-8b",
    "The machine: a GPU by name, or a profile of jserve-profile as linear:SAMPLES, "
    "table:SAMPLES or mlp:SAMPLES:CHECKPOINT.",
)
_PREDICTOR = flags.DEFINE_enum(
    "predictor",
    "oracle",
    PREDICTORS,
    "What policies plan by: oracle is never wrong; linear and table are fitted to "
    "steps of the cost model.",
)
_WORKLOAD = flags.DEFINE_enum(
    "workload", "mixed_v1", sorted(WORKLOADS), "SlidingServe's workload to draw."
)
_TRACE = flags.DEFINE_string(
    "trace",
    None,
    "CSV of arrival_s (seconds), prompt_tokens, output_tokens, in place of a workload.",
)
_POISSON = flags.DEFINE_bool(
    "poisson", False, "Give a trace's requests Poisson arrivals."
)
_QPS = flags.DEFINE_list(
    "qps", None, "Rates in requests per second. [default: the trace's own, or 1]"
)
_GOODPUT = flags.DEFINE_bool("goodput", False, "Search the goodput instead.")
_LEVELS_QPS = flags.DEFINE_list(
    "levels_qps", None, "Rates that take turns, such as 1,2.5, instead of one rate."
)
_PERIOD_S = flags.DEFINE_float(
    "period_s", 120.0, "Seconds that each of the levels lasts.", lower_bound=1e-3
)
_DURATION_S = flags.DEFINE_float(
    "duration_s", 1200.0, "Seconds of arrivals under levels.", lower_bound=1e-3
)
_MAX_VIOLATIONS = flags.DEFINE_float(
    "max_violation_share",
    MAX_VIOLATION_SHARE,
    "Share of requests that may break a promise at the goodput.",
    lower_bound=0.0,
    upper_bound=1.0,
)
_START_QPS = flags.DEFINE_float(
    "start_qps",
    None,
    "Rate that a goodput search starts from; by default a guess from the lengths.",
    lower_bound=1e-6,
)
_RESOLUTION = flags.DEFINE_float(
    "resolution",
    RateGrid.resolution,
    "Relative distance of the rates that a goodput search tries.",
    lower_bound=1e-4,
    upper_bound=1.0,
)
_NUM_REQUESTS = flags.DEFINE_integer(
    "num_requests",
    None,
    "Requests of a run: of a trace the first ones. [default: 1000, a whole trace, or "
    "what comes under levels]",
    lower_bound=2,
)
_WARMUP_SHARE = flags.DEFINE_float(
    "warmup_share",
    WARMUP_SHARE,
    "Share of the requests, the first ones, that are not counted.",
    lower_bound=0.0,
    upper_bound=0.9,
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Draws lengths, arrivals, classes and noise.", lower_bound=0
)
_NUM_SEEDS = flags.DEFINE_integer(
    "num_seeds", 1, "Seeds: seed, seed + 1, and so on.", lower_bound=1
)
_SERVICE_CLASSES = flags.DEFINE_string(
    "service_classes",
    None,
    "JSON file: a list of classes, each with name, share and ttft_s or ttft_slowdown, "
    "tbt_s or tbt_step_multiple, ttlt_s (seconds, or multiples of an idle machine's "
    "time). Classes named as the workload's parts replace theirs.",
)
_MAX_NUM_SEQS = flags.DEFINE_integer(
    "max_num_seqs",
    None,
    "Most requests that run at once. [default: the cost model's]",
    lower_bound=1,
)
_MAX_TOKENS = flags.DEFINE_integer(
    "max_num_batched_tokens",
    None,
    "Most token positions in a step. [default: the cost model's]",
    lower_bound=1,
)
_NUM_KV_TOKENS = flags.DEFINE_integer(
    "num_kv_tokens",
    None,
    "Tokens that the KV pool holds. [default: the cost model's]",
    lower_bound=1,
)
_PAGE_SIZE = flags.DEFINE_integer(
    "page_size", None, "Tokens in one KV page. [default: the cost model's]"
)
_BLOCK_TOKENS = flags.DEFINE_integer(
    "block_tokens",
    DEFAULT_BLOCK_TOKENS,
    "Tokens in one prefill block; must divide the page size.",
    lower_bound=1,
)
_MAX_MODEL_LEN = flags.DEFINE_integer(
    "max_model_len", 16_384, "Tokens of the longest request.", lower_bound=2
)
_LAG = flags.DEFINE_integer(
    "lag",
    0,
    "1 plans a step while the one before runs, as jserve does; 0 after it has ended.",
    lower_bound=0,
    upper_bound=1,
)
_NOISE = flags.DEFINE_float(
    "noise",
    0.0,
    "Deviation of the logarithm of a step's time about the cost model's.",
    lower_bound=0.0,
    upper_bound=1.0,
)
_RECORD_STEPS = flags.DEFINE_bool(
    "record_steps", True, "Report padding, step times and planning times too."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", 1, "Processes that share the runs.", lower_bound=1
)
_OUTPUT = flags.DEFINE_string("output", "out/simulate", "Folder for report.json.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
    """The flags, checked."""

    experiments: Sequence[Experiment]
    seeds: Sequence[int]
    qps: Sequence[float]
    levels: Levels | None
    sample: Sequence[Arrival]
    output: pathlib.Path


def _rates(name: str, texts: Sequence[str]) -> list[float]:
    try:
        rates = [float(text) for text in texts]
    except ValueError:
        raise ValueError(f"{name}={','.join(texts)} is not numbers") from None
    for rate in rates:
        if not 0 < rate < 1e6:
            raise ValueError(f"{name}: {rate} is not in 0..1000000")
    return rates


def _changed(cost_model: CostModel, **limits: int | None) -> CostModel:
    """Returns the cost model with those of its limits that are given."""
    model: Any = cost_model
    given = {name: value for name, value in limits.items() if value is not None}
    changed: CostModel = dataclasses.replace(model, **given)
    return changed


def _buckets(name: str, cost_model: CostModel) -> BucketTable:
    strategy: BucketStrategy
    block_tokens = _BLOCK_TOKENS.value
    if name == "none":
        strategy = Continuous()
    elif name == "explicit":
        if _BUCKETS.value is None:
            raise ValueError("bucket strategy explicit needs buckets, a file")
        file = table_from_json(pathlib.Path(_BUCKETS.value).expanduser().read_text())
        strategy = Explicit(row_edges=file.row_edges, block_edges=file.block_edges)
        block_tokens = file.block_tokens
    elif name in STRATEGIES:
        strategy = STRATEGIES[name]
    else:
        known = ["none", "explicit", *sorted(STRATEGIES)]
        raise ValueError(f"bucket strategy {name!r} is unknown; known: {known}")
    return strategy.table(
        max_num_seqs=cost_model.max_num_seqs,
        max_num_batched_tokens=cost_model.max_num_batched_tokens,
        block_tokens=block_tokens,
    )


def _levels() -> Levels | None:
    if _LEVELS_QPS.value is None:
        return None
    return Levels(
        levels_qps=tuple(_rates("levels_qps", _LEVELS_QPS.value)),
        period_s=_PERIOD_S.value,
        duration_s=_DURATION_S.value,
    )


def _load(levels: Levels | None) -> tuple[Load, list[float]]:
    """Returns the requests, and the rate they come at if none is asked for."""
    classes: Sequence[ServiceClass] = ()
    if _SERVICE_CLASSES.value is not None:
        path = pathlib.Path(_SERVICE_CLASSES.value).expanduser()
        classes = parse_service_classes(path.read_text())
    if _TRACE.value is None:
        num_requests = _NUM_REQUESTS.value or 1000
        if levels is not None and _NUM_REQUESTS.value is None:
            most = max(levels.levels_qps) * levels.duration_s
            num_requests = int(most + 5 * most**0.5) + 10
        load = NamedLoad(
            components=WORKLOADS[_WORKLOAD.value],
            num_requests=num_requests,
            classes=classes,
        )
        return load, [1.0]
    trace = pathlib.Path(_TRACE.value).expanduser()
    rows = read_trace(trace, num_requests=_NUM_REQUESTS.value or 0)
    return TraceLoad(
        rows=rows,
        classes=classes or DEFAULT_SERVICE_CLASSES,
        is_poisson=_POISSON.value,
    ), [mean_rate(rows)]


def _options() -> _Options:
    """Reads the flags.

    Raises:
      ValueError: for a value that is wrong, naming it and the limit.
      OSError: for a file that cannot be read.
    """
    asked = {
        "qps": _QPS.value is not None,
        "goodput": _GOODPUT.value,
        "levels_qps": _LEVELS_QPS.value is not None,
    }
    if sum(asked.values()) > 1:
        raise ValueError(
            f"give one of qps, goodput and levels_qps, not "
            f"{[name for name, is_given in asked.items() if is_given]}"
        )
    machine = load_machine(_COST_MODEL.value)
    cost_model = _changed(
        machine.cost_model,
        max_num_seqs=_MAX_NUM_SEQS.value,
        max_num_batched_tokens=_MAX_TOKENS.value,
        num_kv_tokens=_NUM_KV_TOKENS.value,
        page_size=_PAGE_SIZE.value,
    )
    levels = _levels()
    load, qps = _load(levels)
    if _QPS.value is not None:
        qps = _rates("qps", _QPS.value)
    # The machine's own limits: promises do not change with a step's token limit.
    yardstick = isolated_times(
        machine.cost_model,
        max_prompt_tokens=_MAX_MODEL_LEN.value,
        block_tokens=machine.block_tokens or 1,
    )
    experiments = []
    for strategy in _BUCKET_STRATEGIES.value:
        for policy in _POLICIES.value:
            spec, limit = split_limit(policy)
            make_policy(spec)  # a wrong name or option is refused now
            own = _changed(cost_model, max_num_batched_tokens=limit)
            experiments.append(
                Experiment(
                    policy=policy,
                    bucket_strategy=strategy,
                    buckets=_buckets(strategy, own),
                    cost_model=own,
                    predictor=_PREDICTOR.value,
                    load=load,
                    yardstick=yardstick,
                    max_model_len=_MAX_MODEL_LEN.value,
                    lag=_LAG.value,
                    noise=_NOISE.value,
                    warmup_share=_WARMUP_SHARE.value,
                    records_steps=_RECORD_STEPS.value,
                )
            )
    return _Options(
        experiments=experiments,
        seeds=range(_SEED.value, _SEED.value + _NUM_SEEDS.value),
        qps=[levels.mean_qps] if levels is not None else qps,
        levels=levels,
        sample=load.unit_arrivals(_SEED.value, yardstick),
        output=pathlib.Path(_OUTPUT.value).expanduser(),
    )


def _find(options: _Options) -> list[dict[str, Any]]:
    """Runs everything; returns the entries of the report's `runs`."""
    if _GOODPUT.value:
        return search_goodputs(
            options.experiments,
            options.seeds,
            start_qps=_START_QPS.value,
            resolution=_RESOLUTION.value,
            max_share=_MAX_VIOLATIONS.value,
            num_processes=_NUM_PROCESSES.value,
        )
    tasks = [
        RateTask(experiment=one, seed=seed, qps=qps, levels=options.levels)
        for qps in options.qps
        for one in options.experiments
        for seed in options.seeds
    ]
    return run_all(tasks, _NUM_PROCESSES.value)


def _say(line: str) -> None:
    print(line, flush=True)


def _publish(
    options: _Options, runs: Sequence[dict[str, Any]], command: Sequence[str]
) -> None:
    """Writes the report, and prints the tables and the JSON line."""
    trace = pathlib.Path(_TRACE.value).name if _TRACE.value is not None else ""
    report = simulation_report(
        command=command,
        experiment=options.experiments[0],
        sample=options.sample,
        trace=trace,
        workload="" if trace else _WORKLOAD.value,
        runs=runs,
    )
    _say(runs_table(runs))
    if _GOODPUT.value:
        _say("")
        _say(goodput_table(runs))
    _say("")
    _say(speed_table(runs))
    _say(f"\nreport: {write_report(options.output, report)}")
    _say(one_line(report))


def main(argv: Sequence[str]) -> None:
    """Runs the simulations that the flags describe."""
    del argv  # the flags say it all
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file it opens
    try:
        options = _options()
        runs = _find(options)
        _publish(options, runs, ["jserve-simulate", *sys.argv[1:]])
    except (ValueError, OSError, RuntimeError) as error:
        raise ProgramError(str(error)) from error


def run() -> None:
    """The console script."""
    run_program(sys.modules[__name__])


if __name__ == "__main__":
    run()
