"""Serves a load in virtual time, with the scheduler that serves, on a simulated GPU.

The machine is a cost model, so minutes of serving take seconds, and every policy
meets the same requests. A rate can be given, or the highest one searched at which at
most 1 % of the requests break a promise (goodput).

  jserve-simulate --policies=fcfs,sliding --workload=mixed_v1 --qps=2,3
  jserve-simulate --policies=edf,sliding --goodput --num_seeds=3 --num_processes=2
  jserve-simulate --policies=fcfs,sliding --bucket_strategies=pow2,two_bit,fitted
  jserve-simulate --policies=sliding,sliding:constructor=off --bucket_strategies=none
  jserve-simulate --cost_model=mlp:samples.npz:checkpoint --trace=my.csv
  jserve-simulate --policies=sjf --declared_max_tokens=2000 --length_estimator=mean
  jserve-simulate --policies=annealing --num_instances=4 --assignment=kv --qps=20

Prints tables for people; the last line of stdout is one JSON document. The same goes
to report.json in --output, with a page in report.html. A sweep that was interrupted
goes on where it stopped.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags, logging

from jserve.config_flags import define_config_flags
from jserve.program import ProgramError, run_program
from jserve_sched.goodput import MAX_VIOLATION_SHARE, WARMUP_SHARE, RateGrid
from jserve_tools.documents import one_line
from jserve_tools.load_flags import LoadOptions, define_load_flags
from jserve_tools.machine_flags import MachineOptions, define_machine_flags
from jserve_tools.publishing import publish
from jserve_tools.report_config import ReportConfig
from jserve_tools.run_store import RunStore
from jserve_tools.simulated_fits import fit_experiments
from jserve_tools.simulation import Experiment
from jserve_tools.simulation_report import simulation_report
from jserve_tools.sweep import RateTask, run_all, search_goodputs
from jserve_tools.tables import (
    fits_table,
    instances_table,
    run_tables,
)

_read_load = define_load_flags()
_read_machine = define_machine_flags()
_read_report_config = define_config_flags(ReportConfig, group="Report")
flags.FLAGS.set_default("output", "out/simulate")
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
_MAX_PROGRAMS = flags.DEFINE_integer(
    "max_programs",
    None,
    "Most programs of a strategy that is fitted here. [default: as many as pow2 has]",
    lower_bound=2,
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
    None,
    "Share of the requests, the first ones, that are not counted. [default: "
    f"{WARMUP_SHARE}, and 0 if all come at once]",
    lower_bound=0.0,
    upper_bound=0.9,
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Draws lengths, arrivals, classes and noise.", lower_bound=0
)
_NUM_SEEDS = flags.DEFINE_integer(
    "num_seeds", 1, "Seeds: seed, seed + 1, and so on.", lower_bound=1
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
    """The flags, checked."""

    load: LoadOptions
    machine: MachineOptions
    experiments: Sequence[Experiment]
    seeds: Sequence[int]
    report: ReportConfig
    old_report: dict[str, Any] | None


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


def _options() -> _Options:
    """Reads the flags.

    Raises:
      ValueError: for a value that is wrong, naming it and the limit.
      OSError: for a file that cannot be read.
    """
    if _GOODPUT.value:
        given = [one for one in ("qps", "levels_qps") if flags.FLAGS[one].present]
        if flags.FLAGS.one_shot:
            given.append("one_shot")
        if given:
            raise ValueError(f"goodput searches the rate: leave out {given[0]}")
    else:
        given = [one for one in _GOODPUT_FLAGS if flags.FLAGS[one].present]
        if given:
            raise ValueError(f"{' and '.join(given)} would do nothing without goodput")
    report = _read_report_config()
    machine = _read_machine()
    machine.shapes.check_used(_BUCKET_STRATEGIES.value, _MAX_PROGRAMS.value)
    load = _read_load()
    warmup_share = _WARMUP_SHARE.value
    if warmup_share is None:
        warmup_share = 0.0 if load.is_one_shot else WARMUP_SHARE
    experiments = [
        machine.experiment(
            policy,
            strategy,
            load.load,
            max_spans=load.max_spans,
            warmup_share=warmup_share,
            records_steps=_RECORD_STEPS.value,
        )
        for strategy in _BUCKET_STRATEGIES.value
        for policy in _POLICIES.value
    ]
    num_runs = len(experiments) * len(load.qps) * _NUM_SEEDS.value
    if _STEP_LOG.value is not None and (num_runs > 1 or _GOODPUT.value):
        raise ValueError(
            f"step_log={_STEP_LOG.value} is of a single run: one policy, bucket "
            "strategy, rate and seed, without goodput"
        )
    if _STEP_LOG.value is not None and machine.num_instances > 1:
        raise ValueError(
            f"step_log={_STEP_LOG.value} is of a single engine, not of "
            f"num_instances={machine.num_instances}"
        )
    return _Options(
        load=load,
        machine=machine,
        experiments=experiments,
        seeds=range(_SEED.value, _SEED.value + _NUM_SEEDS.value),
        report=report,
        old_report=report.probe(),
    )


def _find(options: _Options) -> _Findings:
    """Runs everything that no earlier call has finished."""
    store: RunStore | None = RunStore(
        options.report.output / "runs", resumes=options.report.resume
    )
    if _STEP_LOG.value is not None:
        store = None  # a run that is not made again has no steps to write
    qps: Sequence[float] | None = options.load.qps
    if _GOODPUT.value:
        qps = None if _START_QPS.value is None else [_START_QPS.value]
    experiments, fits = fit_experiments(
        options.experiments,
        needs_fit=options.machine.shapes.needs_fit,
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
        cost_model=options.machine.cost_model,
        block_tokens=options.machine.shapes.block_tokens,
        sample=load.load.unit_arrivals(options.seeds[0], experiment.yardstick),
        trace=load.trace,
        workload=load.workload,
        runs=found.runs,
        fits=found.fits,
        is_one_shot=load.is_one_shot,
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
    _say(run_tables(found.runs))
    if options.machine.num_instances > 1:
        _say(f"\n{instances_table(found.runs)}")
    publish(report, options.report, options.old_report, None, say=_say)
    if found.store is not None:
        found.store.remove_used()
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
