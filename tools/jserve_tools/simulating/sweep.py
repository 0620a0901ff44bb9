"""Runs the sweep that a `SimulateConfig` describes, and publishes its report."""

import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jserve.progress import Progress, timed_lines
from jserve_sched.buckets.table import table_from_json
from jserve_sched.policies.registry import policy_file
from jserve_sched.simulation.cost_model import CLOSED_FORMS, ClosedForm
from jserve_sched.simulation.goodput import SeedGoodput, pool
from jserve_sched.simulation.mixes import WORKLOADS
from jserve_sched.simulation.workload import describe_lengths, isolated_times
from jserve_tools.gpu_profiles.machines import (
    load_machine,
    machine_files,
    simulated_table,
)
from jserve_tools.reporting.documents import document, known
from jserve_tools.reporting.finished_runs import FinishedRuns
from jserve_tools.reporting.metrics import run_tables
from jserve_tools.reporting.publishing import publish
from jserve_tools.reporting.staircases import priced_staircase
from jserve_tools.reporting.sweep import run_all
from jserve_tools.reporting.tables import fits_table, instances_table
from jserve_tools.simulating.bucket_fits import fit_to_simulation
from jserve_tools.simulating.config import DISTURBANCES, LIMITS, SimulateConfig
from jserve_tools.simulating.loads import SimulatedLoad, read_load
from jserve_tools.simulating.simulation import NO_ESTIMATES, Experiment

_NOT_IN_KEY = ("policies", "bucket_strategies", "num_processes", "step_log")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentTask:
    """Work on an experiment at a rate, with a seed.

    Attributes:
      work: `Experiment.run`, `Experiment.search`, `Experiment.bound` or `fit`.
      qps: Requests per second; infinite if all are due at once.
    """

    work: Callable[[Experiment, int, float], dict[str, Any]]
    experiment: Experiment
    seed: int
    qps: float

    def run(self) -> dict[str, Any]:
        """Returns the result of the work."""
        return self.work(self.experiment, self.seed, self.qps)


RunAll = Callable[[str, Sequence[ExperimentTask]], list[dict[str, Any]]]
"""Runs the tasks of a stage and returns their results, in order."""


def fit(experiment: Experiment, seed: int, qps: float) -> dict[str, Any]:
    """Fits buckets to one load under one policy.

    Returns:
      The bucket file `table`, and an entry of the report's `fits` as `fit`.
    """
    max_programs = experiment.buckets.num_programs
    table, fitted = fit_to_simulation(
        experiment,
        experiment.arrivals(seed, qps),
        seed=seed,
        max_programs=max_programs,
    )
    labels: dict[str, Any] = {
        "policy": experiment.policy,
        "seed": seed,
        **({"qps": qps} if math.isfinite(qps) else {}),
        "max_programs": max_programs,
    }
    return {"table": table.to_json(), "fit": labels | {"iterations": [fitted]}}


def search_goodputs(
    experiments: Sequence[Experiment], seeds: Sequence[int], run_tasks: RunAll
) -> list[dict[str, Any]]:
    """Searches the goodput of each experiment: the mean over the seeds.

    Returns:
      An entry of the report's `runs` for each experiment: the run of the first seed at
      the rate found for it, with the goodput.
    """
    searches = [
        ExperimentTask(work=Experiment.search, experiment=one, seed=seed, qps=start_qps)
        for one in experiments
        for start_qps in [one.start_qps(seeds[0])]
        for seed in seeds
    ]
    rows = [SeedGoodput(**row) for row in run_tasks("searching goodputs", searches)]
    found = [pool(rows[at : at + len(seeds)]) for at in range(0, len(rows), len(seeds))]
    tasks = [
        dataclasses.replace(  # at the lowest rate tried if none passed
            search, work=Experiment.run, qps=one.seeds[0].qps or search.qps / 100
        )
        for search, one in zip(searches[:: len(seeds)], found, strict=True)
    ]
    runs = run_tasks("simulating at the goodputs", tasks)
    return [
        run | {f"goodput_{name}": one for name, one in known(row).items()}
        for run, row in zip(runs, map(dataclasses.asdict, found), strict=True)
    ]


def _bounded(
    tasks: Sequence[ExperimentTask], runs: list[dict[str, Any]], run_tasks: RunAll
) -> list[dict[str, Any]]:
    """Returns the runs with the bound of their load, which no setting changes."""
    loads = {(task.seed, task.qps): task for task in tasks}
    bounds = [
        dataclasses.replace(task, work=Experiment.bound) for task in loads.values()
    ]
    found = run_tasks("bounding what can be attained", bounds)
    by_load = dict(zip(loads, found, strict=True))
    return [
        run | by_load[task.seed, task.qps]
        for task, run in zip(tasks, runs, strict=True)
    ]


def _experiments(config: SimulateConfig, load: SimulatedLoad) -> list[Experiment]:
    machine = config.machine
    file = None
    if machine.buckets is not None:
        file = table_from_json(machine.buckets.read_text())
    loaded = load_machine(machine.cost_model)
    if config.sweep.bound and not isinstance(loaded, ClosedForm):
        raise ValueError(
            f"bound needs a cost model with a formula, which {machine.cost_model} is "
            f"not: {', '.join(CLOSED_FORMS)}"
        )
    limits = {name: getattr(machine, name) or getattr(loaded, name) for name in LIMITS}
    cost_model = dataclasses.replace(loaded, **limits)
    # Without the flags' limits, so that SLOs do not depend on them.
    yardstick = isolated_times(loaded, max_prompt_tokens=machine.max_model_len)
    return [
        Experiment(
            policy=policy,
            bucket_strategy=strategy,
            buckets=simulated_table(strategy, cost_model, file, machine.block_tokens),
            cost_model=cost_model,
            load=load,
            yardstick=yardstick,
            machine=machine,
            sweep=config.sweep,
        )
        for strategy in config.sweep.bucket_strategies
        for policy in config.sweep.policies
    ]


def _fit_all(experiments: list[Experiment], run_tasks: RunAll) -> list[dict[str, Any]]:
    """Fits buckets for the strategy `fitted`; returns the report's `fits`."""
    sweep = experiments[0].sweep
    seed = sweep.seed + sweep.num_seeds  # no run is made with it
    tasks = {
        place: ExperimentTask(
            work=fit,
            experiment=one,
            seed=seed,
            qps=one.start_qps(seed)
            if sweep.goodput
            else statistics.fmean(one.load.qps),
        )
        for place, one in enumerate(experiments)
        if one.bucket_strategy == "fitted"
    }
    fits = run_tasks("fitting buckets", list(tasks.values()))
    for place, found in zip(tasks, fits, strict=True):
        table = table_from_json(json.dumps(found["table"]))
        experiments[place] = dataclasses.replace(experiments[place], buckets=table)
    return [found["fit"] for found in fits]


def _task_key(config: SimulateConfig, task: ExperimentTask) -> dict[str, Any]:
    """Returns what a task's result depends on: flags, times of files, labels."""
    load, machine = config.load, config.machine
    files = [load.trace, load.service_classes, machine.buckets]
    files += machine_files(machine.cost_model)
    files += [policy_file(task.experiment.policy)]
    sweep = dataclasses.asdict(config.sweep)
    return {
        "load": dataclasses.asdict(load),
        "machine": dataclasses.asdict(machine),
        "sweep": {name: sweep[name] for name in sweep if name not in _NOT_IN_KEY},
        "files_ns": [one.expanduser().stat().st_mtime_ns for one in files if one],
        "task": task.work.__name__,
        "task_policy": task.experiment.policy,
        "task_bucket_strategy": task.experiment.bucket_strategy,
        "task_seed": task.seed,
        "task_qps": str(task.qps),
    }


def _workload(experiment: Experiment) -> dict[str, Any]:
    """Returns the report's `workload`, of the requests that the first seed draws."""
    config = experiment.load.config
    sample = experiment.units(experiment.sweep.seed)
    bounds_s: dict[str, dict[str, float]] = {}  # means, by service class
    for name in sorted({one.service_class for one in sample}):
        slos = [one.slo for one in sample if one.service_class == name]
        bounds_s[name] = {
            bound: statistics.fmean(getattr(slo, bound) for slo in slos)
            for bound in ("ttft_s", "tbt_s", "ttlt_s")
            if getattr(slos[0], bound) is not None
        }
    workload: dict[str, Any] = {
        "num_requests": len(sample),
        "lengths": describe_lengths(sample),
        "slos": bounds_s,
    }
    if config.one_shot:
        workload["is_one_shot"] = True
    if config.trace is not None:
        return workload | {"trace": config.trace.name}
    name = experiment.load.workload
    paper = {one.service_class.name: one.paper for one in WORKLOADS[name]}
    return workload | {"name": name, "paper": paper}


def _settings(experiment: Experiment) -> dict[str, Any]:
    """Returns the report's keys for the settings of engines and policies."""
    machine = experiment.machine
    settings: dict[str, Any] = {
        "predictor": machine.predictor,
        "lag": machine.lag,
        **{name: getattr(machine, name) for name in DISTURBANCES},
        "yardstick": experiment.yardstick,
    }
    if machine.num_instances > 1:
        names = "num_instances", "router", "instance_speeds", "snapshot_age_s"
        settings |= {name: getattr(machine, name) for name in names}
    if machine.declared_max_tokens:
        settings["declared_max_tokens"] = machine.declared_max_tokens
        settings["length_estimator"] = machine.length_estimator or NO_ESTIMATES
    return settings


def _print_tables(config: SimulateConfig, report: Mapping[str, Any]) -> None:
    runs, fits = report["runs"], report.get("fits", ())
    if report["num_resumed"]:
        print(
            f"{report['num_resumed']} results are from an interrupted call; "
            "--noresume simulates all again"
        )
    if fits:
        print(f"{fits_table(fits)}\n")
    if fits and config.load.trace:
        print(
            f"fitted has seen the requests of {config.load.trace.name} that judge it; "
            "jserve-fit-buckets fits to another part of a trace\n"
        )
    print(run_tables(report), flush=True)
    causes = [one.get("violations_by_cause", {}) for one in runs]
    if num_long := max(one.get("too_long", 0) for one in causes):
        print(
            f"\n{num_long} requests of a run have more tokens than "
            f"max_model_len={config.machine.max_model_len}, and count as violations"
        )
    if config.machine.num_instances > 1:
        print(f"\n{instances_table(runs)}", flush=True)


def simulate_sweep(config: SimulateConfig, command: Sequence[str]) -> None:
    """Makes all runs that are not finished yet; prints tables, writes the report.

    Raises:
      ValueError: If a file is invalid, or a policy's limit leaves no room for buckets.
      OSError: If a file cannot be read or written.
    """
    # Read and check everything before any work.
    sweep = config.sweep
    load = read_load(config.load)
    experiments = _experiments(config, load)
    cost_model = experiments[0].cost_model
    is_shared = any(one.block_ids for one in experiments[0].units(sweep.seed))
    if sweep.bound and config.machine.enable_prefix_caching and is_shared:
        raise ValueError("bound takes no shared prefixes: --noenable_prefix_caching")
    workload = _workload(experiments[0])  # refuses invalid service classes
    old_report = config.report.probe()
    finished = FinishedRuns(
        config.report.output / "runs.jsonl",
        # A run taken from an earlier call would have no steps to log.
        resumes=config.report.resume and sweep.step_log is None,
    )

    # Run.
    progress = Progress(timed_lines())
    run_tasks = functools.partial(
        run_all,
        progress=progress,
        num_processes=sweep.num_processes,
        runs=finished,
        key=functools.partial(_task_key, config),
    )
    seeds = range(sweep.seed, sweep.seed + sweep.num_seeds)
    fits = None if config.machine.buckets else _fit_all(experiments, run_tasks)
    if sweep.goodput:
        runs = search_goodputs(experiments, seeds, run_tasks)
    else:
        tasks = [
            ExperimentTask(work=Experiment.run, experiment=one, seed=seed, qps=qps)
            for qps in load.qps
            for one in experiments
            for seed in seeds
        ]
        runs = run_tasks("simulating", tasks)
        if sweep.bound:
            runs = _bounded(tasks, runs, run_tasks)

    # Report.
    block_tokens = config.machine.block_tokens
    report = document(
        command=command,
        facts={"device": f"simulated {cost_model.name}"},
        workload=workload,
        runs=runs,
        extra={
            "cost_model": {
                name: getattr(cost_model, name) for name in ("name", *LIMITS)
            },
            "staircase": priced_staircase(cost_model, block_tokens, runs),
            **_settings(experiments[0]),
            "fits": fits or None,
            "num_resumed": finished.num_found,
        },
    )
    _print_tables(config, report)
    with progress.doing("writing the report"):
        text = publish(report, config.report, old_report, finished)
    print(text, flush=True)
