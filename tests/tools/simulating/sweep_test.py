"""Experiments, searches and what they plan by."""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import numpy as np
import pytest

from jserve.progress import Progress
from jserve_sched.buckets.strategies import Continuous
from jserve_sched.policies.annealing.search import Kernel, anneal
from jserve_sched.requests.service_class import ServiceClass
from jserve_sched.simulation.cost_model import CLOSED_FORMS
from jserve_sched.simulation.workload import Yardstick, isolated_times
from jserve_sched.steps import features
from jserve_tools.load.workload_trace import TraceRow
from jserve_tools.reporting.finished_runs import FinishedRuns
from jserve_tools.reporting.sweep import run_all
from jserve_tools.simulating import simulation
from jserve_tools.simulating.config import LoadConfig, MachineConfig, SweepConfig
from jserve_tools.simulating.loads import SimulatedLoad
from jserve_tools.simulating.predictors import make_predictor, random_batches
from jserve_tools.simulating.simulation import Experiment, declare
from jserve_tools.simulating.sweep import ExperimentTask, search_goodputs

A100 = CLOSED_FORMS["a100-llama3-8b"]
EVERY_COUNT = Continuous().table(
    max_num_seqs=256, max_num_batched_tokens=2048, block_tokens=1
)
# Lax enough for a goodput near capacity, so that few requests show it.
SHAREGPT = SimulatedLoad(
    config=LoadConfig(workload="sharegpt", num_requests=120),
    classes=(ServiceClass(name="dialogue", ttft_s=1.0, tbt_s=0.2),),
)
ROWS = [
    TraceRow(0.5 * k, 40 + 30 * (k % 7), 4 + 9 * (k % 5), ("chat", "code")[k % 2])
    for k in range(40)
]
TRACE = SimulatedLoad(
    config=LoadConfig(),
    rows=ROWS,
    classes=(
        ServiceClass(name="chat", ttft_s=1.0, tbt_s=0.2),
        ServiceClass(name="code", ttlt_s=3.0),
    ),
)


run_silently = functools.partial(run_all, progress=Progress())


def experiment(
    policy: str = "fcfs", load: SimulatedLoad = SHAREGPT, **machine: Any
) -> Experiment:
    return Experiment(
        policy=policy,
        bucket_strategy="none",
        buckets=EVERY_COUNT,
        cost_model=A100,
        load=load,
        yardstick=isolated_times(A100, max_prompt_tokens=16_384),
        machine=MachineConfig(**machine),
        sweep=SweepConfig(goodput=True),
    )


def run(one: Experiment, qps: float) -> dict[str, Any]:
    found = one.run(0, qps)
    del found["simulation"], found["plan_ms"]  # of this machine's time
    return found


def test_goodput_is_between_a_rate_that_passes_and_one_that_does_not(
    tmp_path: pathlib.Path,
) -> None:
    one = experiment()
    # 31 ms of prompt and 0.96 s of decode for 89 tokens, shared by sixteen.
    assert one.start_qps(0) == pytest.approx(5.5, rel=0.3)

    def search(runs: FinishedRuns) -> dict[str, Any]:
        run_tasks = functools.partial(run_silently, runs=runs, key=key)
        (found,) = search_goodputs([one], (0, 1), run_tasks)
        return found

    def key(task: Any) -> dict[str, Any]:
        return {"task": task.work.__name__, "seed": task.seed}

    first = search(FinishedRuns(tmp_path / "runs.jsonl", resumes=True))
    seeds = first["goodput_seeds"]
    assert [one["seed"] for one in seeds] == [0, 1]
    assert first["goodput_qps"] == pytest.approx(np.mean([one["qps"] for one in seeds]))
    assert first["qps"] == seeds[0]["qps"]
    # 108 of 120 requests count, and 1 % of them is one.
    assert first["num_violations"] == seeds[0]["num_violations"] <= 1
    assert run(one, first["qps"] * 1.02)["num_violations"] > 1

    runs = FinishedRuns(tmp_path / "runs.jsonl", resumes=True)
    assert search(runs) == first
    assert runs.num_found == 3  # two seeds' searches, and the run at the edge


def test_processes_share_a_sweep_and_change_nothing() -> None:
    tasks = [
        ExperimentTask(
            work=Experiment.run,
            experiment=experiment(policy, TRACE),
            seed=seed,
            qps=5.0,
        )
        for policy in ("fcfs", "edf")
        for seed in (0, 1)
    ]
    alone, shared = (run_silently("", tasks, num_processes=n) for n in (1, 2))
    for one in (*alone, *shared):
        del one["simulation"], one["plan_ms"]  # of this machine's time
    assert alone == shared
    assert [one["seed"] for one in alone] == [0, 1, 0, 1]


@dataclasses.dataclass(frozen=True)
class Double:
    number: int

    def run(self) -> dict[str, Any]:
        return {"double": 2 * self.number}


def test_tasks_are_known_by_class_and_fields(tmp_path: pathlib.Path) -> None:
    runs = FinishedRuns(tmp_path / "runs.jsonl", resumes=True)
    lines: list[str] = []
    progress = Progress(lines.append)
    for _ in range(2):  # the second time nothing is left to do, or to show
        found = run_all("doubling", [Double(1)], progress=progress, runs=runs)
        assert found == [{"double": 2}]
    assert [line[:16] for line in lines] == ["doubling: 0 of 1", "doubling: 1 of 1"]
    assert runs.get({"task": "Double", "number": 1}) == {"double": 2}


def test_a_trace_keeps_its_times_and_classes_or_draws_them() -> None:
    yardstick = Yardstick(prompt_tokens=(1, 1000), ttft_s=(1.0, 2.0), step_s=0.1)
    units = TRACE.unit_arrivals(5, yardstick)
    # 39 gaps, stretched to one a second.
    assert [one.arrival_s for one in units] == pytest.approx(range(40))
    assert [one.service_class for one in units] == ["chat", "code"] * 20
    assert units[1].slo.ttlt_s == 3.0
    poisson = dataclasses.replace(TRACE, config=LoadConfig(poisson=True))
    drawn = poisson.unit_arrivals(0, yardstick)
    assert 0.0 == drawn[0].arrival_s < drawn[1].arrival_s != 1.0
    some = [dataclasses.replace(ROWS[0], service_class=""), *ROWS[1:]]
    with pytest.raises(ValueError, match="add up to 0, not 1"):
        dataclasses.replace(TRACE, rows=some)


def test_a_trace_without_a_rate_comes_at_once() -> None:
    rows = [dataclasses.replace(row, arrival_s=0.0) for row in ROWS]
    with pytest.raises(ValueError, match="have no rate"):
        dataclasses.replace(TRACE, rows=rows)
    at_once = dataclasses.replace(TRACE, rows=rows, config=LoadConfig(one_shot=True))
    found = experiment(load=at_once).arrivals(0, math.inf)
    assert found == experiment(load=TRACE).arrivals(0, math.inf)
    assert {one.arrival_s for one in found} == {0.0}


def test_a_right_length_changes_nothing_but_what_is_declared() -> None:
    plain = run(experiment("sjf", TRACE, max_model_len=512), 400.0)
    declared = {"max_model_len": 512, "declared_max_tokens": 280}
    right = run(experiment("sjf", TRACE, **declared, length_estimator="oracle"), 400.0)
    errors = right.pop("length_error")
    assert right == plain
    assert errors["chat"]["mean_abs_error_tokens"] == 0.0
    blind = run(experiment("sjf", TRACE, **declared), 400.0)
    assert blind["length_error"]["code"]["mean_predicted_tokens"] == 280.0
    assert blind["ttft_s"] != plain["ttft_s"]


def test_no_request_declares_more_than_there_is_room_for() -> None:
    arrivals = experiment(load=TRACE).units(0)
    declared = declare(arrivals, 300, max_model_len=320)
    assert [one.declared_max_tokens for one in declared[:3]] == [280, 250, 220]
    short = declare(arrivals, 5, max_model_len=320)
    assert [one.declared_max_tokens for one in short[:3]] == [5, 13, 22]


def test_a_search_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels: list[Kernel] = []

    def counted() -> Kernel:
        kernels.append(anneal)
        return anneal

    monkeypatch.setattr(simulation, "best_kernel", counted)
    for policy, num_kernels in (("edf", 0), ("annealing", 1)):
        found = run(experiment(policy, TRACE), 200.0)
        assert found["num_finished"] == found["num_requests"] == 36
        assert len(kernels) == num_kernels


@pytest.mark.parametrize(("name", "most"), [("oracle", 0.0), ("linear", 0.06)])
def test_predictors_are_near_the_machine(name: str, most: float) -> None:
    batches = random_batches(
        A100, EVERY_COUNT, max_model_len=16_384, num_batches=300, seed=99
    )
    assert np.bincount(features.scenarios(batches)).tolist() == [100, 100, 100]
    assert batches[:, features.NUM_BLOCKS].max() > 1000
    predictor = make_predictor(name, A100, EVERY_COUNT, max_model_len=16_384)
    wanted = A100.step_s(batches, 1)
    errors = np.abs(predictor.predict(batches) - wanted) / wanted
    assert errors.mean() <= most
