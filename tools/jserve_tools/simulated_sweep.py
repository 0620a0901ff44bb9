"""Runs the sweep that a `SimulateConfig` describes, and publishes its report."""

import dataclasses
import functools
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jserve_sched.buckets import table_from_json
from jserve_sched.cost_model import CostModel
from jserve_sched.workload import isolated_times
from jserve_tools.documents import one_line
from jserve_tools.finished_runs import FinishedRuns
from jserve_tools.machines import load_machine, simulated_table, with_limits
from jserve_tools.publishing import publish
from jserve_tools.report_metrics import run_tables
from jserve_tools.simulate_config import LIMITS, SimulateConfig, split_limit
from jserve_tools.simulated_loads import SimulatedLoad, read_load
from jserve_tools.simulation import Experiment
from jserve_tools.simulation_report import simulation_report
from jserve_tools.sweep import FitTask, RateTask, RunAll, run_all, search_goodputs
from jserve_tools.tables import fits_table, instances_table

# Fields of MachineConfig that are fields of Experiment.
_SHARED = (
    *("predictor", "max_model_len", "lag", "noise", "num_instances", "assignment"),
    *("declared_max_tokens", "length_estimator"),
)
_NOT_IN_KEY = ("policies", "bucket_strategies", "num_processes", "step_log")


def _experiments(
    config: SimulateConfig, load: SimulatedLoad
) -> tuple[CostModel, list[Experiment]]:
    """Returns the machine, without a policy's own limit, and what is run on it."""
    machine, sweep = config.machine, config.sweep
    file = None
    if machine.buckets is not None:
        file = table_from_json(machine.buckets.read_text())
    loaded = load_machine(machine.cost_model)
    limits = {name: getattr(machine, name) for name in LIMITS}
    cost_model = with_limits(loaded.cost_model, **limits)
    # The machine's own limits: SLOs do not change with a step's token limit.
    yardstick = isolated_times(
        loaded.cost_model,
        max_prompt_tokens=machine.max_model_len,
        block_tokens=loaded.block_tokens or 1,
    )
    shared: dict[str, Any] = {
        name: getattr(machine, name)
        for name in _SHARED
        if getattr(machine, name) is not None
    }
    experiments = []
    for strategy in sweep.bucket_strategies:
        for policy in sweep.policies:
            limit = split_limit(policy)[1]
            model = with_limits(cost_model, max_num_batched_tokens=limit)
            buckets = simulated_table(strategy, model, file, machine.block_tokens)
            experiments.append(
                Experiment(
                    policy=policy,
                    bucket_strategy=strategy,
                    buckets=buckets,
                    cost_model=model,
                    load=load,
                    yardstick=yardstick,
                    warmup_share=sweep.warmup_share,
                    records_steps=sweep.record_steps,
                    **shared,
                )
            )
    return cost_model, experiments


def _fit(
    config: SimulateConfig, experiments: list[Experiment], run_all: RunAll
) -> list[Mapping[str, Any]]:
    """Fits buckets where the strategy says so; returns the report's `fits`."""
    sweep = config.sweep
    tasks = {
        place: FitTask(
            experiment=one,
            seed=sweep.seed + sweep.num_seeds,
            qps=sweep.start_qps if sweep.goodput else statistics.fmean(one.load.qps),
            max_programs=sweep.max_programs or one.buckets.num_programs,
        )
        for place, one in enumerate(experiments)
        if one.bucket_strategy == "fitted"
    }
    fits = run_all(list(tasks.values()))
    for place, fit in zip(tasks, fits, strict=True):
        table = table_from_json(json.dumps(fit["table"]))
        experiments[place] = dataclasses.replace(experiments[place], buckets=table)
    return [fit["fit"] for fit in fits]


def _task_key(config: SimulateConfig, task: Any) -> dict[str, Any]:
    """Returns what a finished task is known by: the flags, files, and its labels."""
    load, machine = config.load, config.machine
    files = [load.trace, load.service_classes, machine.buckets]
    files += [pathlib.Path(one) for one in machine.cost_model.split(":")[1:]]
    settings: dict[str, Any] = {}
    for part in (load, machine, config.sweep):
        settings |= dataclasses.asdict(part)
    return {
        **{name: one for name, one in settings.items() if name not in _NOT_IN_KEY},
        "files_ns": [one.expanduser().stat().st_mtime_ns for one in files if one],
        "task": type(task).__name__,
        "task_policy": task.experiment.policy,
        "task_bucket_strategy": task.experiment.bucket_strategy,
        "task_seed": task.seed,
        "task_qps": str(getattr(task, "qps", None)),
    }


def _print_tables(config: SimulateConfig, report: Mapping[str, Any]) -> None:
    runs, fits = report["runs"], report.get("fits", ())
    if report["num_resumed"]:
        print(
            f"{report['num_resumed']} results are those of an interrupted call; "
            "--noresume simulates all of them again"
        )
    if fits:
        print(f"{fits_table(fits)}\n")
    if fits and config.load.trace:
        print(
            f"fitted has seen the requests of {config.load.trace.name} that judge it; "
            "jserve-fit-buckets fits to another part of a trace\n"
        )
    print(run_tables(report), flush=True)
    if config.machine.num_instances > 1:
        print(f"\n{instances_table(runs)}", flush=True)


def simulate_sweep(config: SimulateConfig, command: Sequence[str]) -> None:
    """Runs what no earlier call has finished; prints tables and writes the report.

    Raises:
      ValueError: if a file is invalid, or a policy's limit leaves no room for buckets.
      OSError: if a file cannot be read or written.
    """
    sweep = config.sweep
    load = read_load(config.load)
    cost_model, experiments = _experiments(config, load)
    experiments[0].units(sweep.seed)  # wrong service classes are refused now
    old_report = config.report.probe()
    finished = None
    if sweep.step_log is None:
        path = config.report.output / "runs.jsonl"
        finished = FinishedRuns(path, resumes=config.report.resume)
    else:  # a run that is not made again would have no steps to write
        sweep.step_log.parent.mkdir(parents=True, exist_ok=True)
        sweep.step_log.touch()
    run_tasks = functools.partial(
        run_all,
        num_processes=sweep.num_processes,
        runs=finished,
        key=functools.partial(_task_key, config),
    )
    seeds = range(sweep.seed, sweep.seed + sweep.num_seeds)
    fits: Sequence[Mapping[str, Any]] = ()
    if config.needs_fit:
        fits = _fit(config, experiments, run_tasks)
    if sweep.goodput:
        runs = search_goodputs(experiments, seeds, sweep, run_all=run_tasks)
    else:
        runs = run_tasks(
            [
                RateTask(experiment=one, seed=seed, qps=qps, step_log=sweep.step_log)
                for qps in load.qps
                for one in experiments
                for seed in seeds
            ]
        )
    report = simulation_report(
        experiments[0],
        cost_model,
        block_tokens=config.machine.block_tokens,
        seed=sweep.seed,
        command=command,
        runs=runs,
        fits=fits or None,
        num_resumed=0 if finished is None else finished.num_found,
    )
    _print_tables(config, report)
    publish(report, config.report, old_report, finished, say=print)
    print(one_line(report), flush=True)
