"""Serves a load in virtual time, with the scheduler that serves, on a simulated GPU.

The machine is a cost model, so minutes of serving take seconds, and every policy
meets the same requests. A rate can be given, or the highest one searched at which at
most 1 % of the requests break a promise (goodput).

  jserve-simulate --policies=fcfs,sliding --workload=mixed_v1 --qps=2,3
  jserve-simulate --policies=edf,sliding --goodput --num_seeds=3 --num_processes=2
  jserve-simulate --policies=fcfs,sliding --bucket_strategies=pow2,two_bit,fitted
  jserve-simulate --policies=sliding,sliding:constructor=off --bucket_strategies=none
  jserve-simulate --cost_model=mlp:samples.npz:checkpoint --trace=my.csv

Prints tables for people; the last line of stdout is one JSON document. The same goes
to report.json in --output, with a page in report.html. A sweep that was interrupted
goes on where it stopped.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags, logging

from jserve.program import ProgramError, run_program
from jserve_sched.buckets import DEFAULT_BLOCK_TOKENS, table_from_json
from jserve_sched.cost_model import CostModel
from jserve_sched.goodput import MAX_VIOLATION_SHARE, WARMUP_SHARE, RateGrid
from jserve_sched.policies import make_policy
from jserve_sched.workload import isolated_times
from jserve_tools.comparison_flags import (
    ComparisonOptions,
    define_comparison_flags,
)
from jserve_tools.documents import one_line
from jserve_tools.load_flags import LoadOptions, define_load_flags
from jserve_tools.machines import load_machine
from jserve_tools.publishing import publish
from jserve_tools.run_store import RunStore
from jserve_tools.simulated_fits import fit_experiments
from jserve_tools.simulated_predictors import PREDICTORS
from jserve_tools.simulated_shapes import Shapes
from jserve_tools.simulation import Experiment, split_limit
from jserve_tools.simulation_report import simulation_report
from jserve_tools.simulation_tables import fits_table, goodput_table, speed_table
from jserve_tools.sweep import RateTask, run_all, search_goodputs
from jserve_tools.tables import runs_table, shapes_table

_read_load = define_load_flags()
_read_comparison = define_comparison_flags(
    output="out/simulate", output_help="Folder for report.json and report.html."
)
_POLICIES = flags.DEFINE_list(
    "policies",
    ["fcfs"],
    "Scheduling policies, with options as in sliding:constructor=off, and with a token "
    "limit of their own in place of max_num_batched_tokens as in fcfs@512.",
)
_BUCKET_STRATEGIES = flags.DEFINE_list(
    "bucket_strategies",
    ["pow2"],
    "Bucket strategies, each with every policy, with options as in "
    "linear:block_gap=4: none has no padding at all; explicit is the file in buckets; "
    "fitted is that file too, or without one fitted for each policy to this load, "
    "drawn with a seed that is not judged. Of a trace a seed draws the classes only: "
    "such a fit has seen the requests it is judged by. To judge by others, fit to "
    "another part of the trace with jserve-fit-buckets and give its file.",
)
_BUCKETS = flags.DEFINE_string(
    "buckets", None, "Bucket file (JSON) of bucket strategies explicit and fitted."
)
_MAX_PROGRAMS = flags.DEFINE_integer(
    "max_programs",
    None,
    "Most programs of a strategy that is fitted here. [default: as many as pow2 has]",
    lower_bound=2,
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
_GOODPUT = flags.DEFINE_bool("goodput", False, "Search the goodput instead.")
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
_GOODPUT_FLAGS = ("start_qps", "resolution", "max_violation_share")
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
_STEP_LOG = flags.DEFINE_string(
    "step_log",
    None,
    "File that gets the steps of a single run, as a server records them, for "
    "jserve-fit-buckets.",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
    """The flags, checked; the cost model is that without a policy's own limit."""

    load: LoadOptions
    shapes: Shapes
    cost_model: CostModel
    experiments: Sequence[Experiment]
    seeds: Sequence[int]
    comparison: ComparisonOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Findings:
    """What was found.

    Attributes:
      fits: one for each policy whose buckets were fitted.
      runs: entries of the report's `runs`.
      store: where these are as long as there is no report; None if nowhere.
    """

    fits: Sequence[Mapping[str, Any]]
    runs: Sequence[dict[str, Any]]
    store: RunStore | None

    @property
    def num_resumed(self) -> int:
        """Searches, fits and runs that an earlier call had finished."""
        return 0 if self.store is None else self.store.num_found


def _changed(cost_model: CostModel, **limits: int | None) -> CostModel:
    """Returns the cost model with those of its limits that are given."""
    model: Any = cost_model
    given = {name: value for name, value in limits.items() if value is not None}
    changed: CostModel = dataclasses.replace(model, **given)
    return changed


def _shapes() -> Shapes:
    file = None
    if _BUCKETS.value is not None:
        text = pathlib.Path(_BUCKETS.value).expanduser().read_text()
        file = table_from_json(text)
    return Shapes(file=file, block_tokens=_BLOCK_TOKENS.value)


def _options() -> _Options:
    """Reads the flags.

    Raises:
      ValueError: for a value that is wrong, naming it and the limit.
      OSError: for a file that cannot be read.
    """
    if _GOODPUT.value:
        given = [one for one in ("qps", "levels_qps") if flags.FLAGS[one].present]
        if given:
            raise ValueError(f"goodput searches the rate: leave out {given[0]}")
    else:
        given = [one for one in _GOODPUT_FLAGS if flags.FLAGS[one].present]
        if given:
            raise ValueError(f"{' and '.join(given)} would do nothing without goodput")
    comparison = _read_comparison()
    shapes = _shapes()
    shapes.check_used(_BUCKET_STRATEGIES.value, _MAX_PROGRAMS.value)
    machine = load_machine(_COST_MODEL.value)
    cost_model = _changed(
        machine.cost_model,
        max_num_seqs=_MAX_NUM_SEQS.value,
        max_num_batched_tokens=_MAX_TOKENS.value,
        num_kv_tokens=_NUM_KV_TOKENS.value,
        page_size=_PAGE_SIZE.value,
    )
    load = _read_load()
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
                    buckets=shapes.table(strategy, own),
                    cost_model=own,
                    predictor=_PREDICTOR.value,
                    load=load.load,
                    yardstick=yardstick,
                    max_model_len=_MAX_MODEL_LEN.value,
                    lag=_LAG.value,
                    noise=_NOISE.value,
                    warmup_share=_WARMUP_SHARE.value,
                    records_steps=_RECORD_STEPS.value,
                )
            )
    num_runs = len(experiments) * len(load.qps) * _NUM_SEEDS.value
    if _STEP_LOG.value is not None and (num_runs > 1 or _GOODPUT.value):
        raise ValueError(
            f"step_log={_STEP_LOG.value} is of a single run: one policy, bucket "
            "strategy, rate and seed, without goodput"
        )
    return _Options(
        load=load,
        shapes=shapes,
        cost_model=cost_model,
        experiments=experiments,
        seeds=range(_SEED.value, _SEED.value + _NUM_SEEDS.value),
        comparison=comparison,
    )


def _find(options: _Options) -> _Findings:
    """Runs everything that no earlier call has finished."""
    comparison = options.comparison
    store: RunStore | None = RunStore(
        comparison.runs_folder, resumes=comparison.resumes
    )
    if _STEP_LOG.value is not None:
        store = None  # a run that is not made again has no steps to write
    qps: Sequence[float] | None = options.load.qps
    if _GOODPUT.value:
        qps = None if _START_QPS.value is None else [_START_QPS.value]
    experiments, fits = fit_experiments(
        options.experiments,
        needs_fit=options.shapes.needs_fit,
        seed=options.seeds[-1] + 1,
        qps=qps,
        levels=options.load.levels,
        max_programs=_MAX_PROGRAMS.value,
        num_processes=_NUM_PROCESSES.value,
        store=store,
    )
    if _GOODPUT.value:
        runs = search_goodputs(
            experiments,
            options.seeds,
            start_qps=_START_QPS.value,
            resolution=_RESOLUTION.value,
            max_share=_MAX_VIOLATIONS.value,
            num_processes=_NUM_PROCESSES.value,
            store=store,
        )
    else:
        tasks = [
            RateTask(
                experiment=one,
                seed=seed,
                qps=qps,
                levels=options.load.levels,
                step_log=_STEP_LOG.value or "",
            )
            for qps in options.load.qps
            for one in experiments
            for seed in options.seeds
        ]
        runs = run_all(tasks, _NUM_PROCESSES.value, store)
    return _Findings(fits=fits, runs=runs, store=store)


def _say(line: str) -> None:
    print(line, flush=True)


def _publish(options: _Options, found: _Findings, command: Sequence[str]) -> None:
    """Writes the report, and prints the tables and the JSON line."""
    experiment = options.experiments[0]
    load = options.load
    report = simulation_report(
        command=command,
        experiment=experiment,
        cost_model=options.cost_model,
        block_tokens=_BLOCK_TOKENS.value,
        sample=load.load.unit_arrivals(options.seeds[0], experiment.yardstick),
        trace=load.trace,
        workload=load.workload,
        runs=found.runs,
        fits=found.fits,
        num_resumed=found.num_resumed,
    )
    if found.num_resumed:
        _say(
            f"{found.num_resumed} results are those of an interrupted call; "
            "--noresume starts anew"
        )
    if found.fits:
        _say(f"{fits_table(found.fits)}\n")
        if load.trace:
            _say(
                f"fitted has seen the requests of {load.trace} that it is judged by; "
                "jserve-fit-buckets fits to another part of a trace\n"
            )
    _say(f"{runs_table(found.runs)}\n\n{shapes_table(found.runs)}")
    if _GOODPUT.value:
        _say(f"\n{goodput_table(found.runs)}")
    _say(f"\n{speed_table(found.runs)}")
    publish(report, options.comparison, found.store, say=_say)
    _say(one_line(report))


def main(argv: Sequence[str]) -> None:
    """Runs the simulations that the flags describe."""
    del argv  # the flags say it all
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file it opens
    try:
        options = _options()
        found = _find(options)
        _publish(options, found, ["jserve-simulate", *sys.argv[1:]])
    except (ValueError, OSError, RuntimeError) as error:
        raise ProgramError(str(error)) from error


def run() -> None:
    """The console script."""
    run_program(sys.modules[__name__])


if __name__ == "__main__":
    run()
