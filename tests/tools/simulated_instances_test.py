"""Several engines, early ends and traces with classes, from experiment to report."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from jserve_sched.annealing import PYTHON_KERNEL
from jserve_sched.bucket_strategies import PowersOfTwo
from jserve_sched.cost_model import CLOSED_FORMS
from jserve_sched.slo import ServiceClass
from jserve_sched.workload import isolated_times
from jserve_tools import simulation
from jserve_tools.simulated_lengths import declare, make_lengths
from jserve_tools.simulated_loads import TraceLoad
from jserve_tools.simulation import Experiment
from jserve_tools.sweep import RateTask
from jserve_tools.workload_trace import TraceRow
from report_schema import undocumented

ROOT = pathlib.Path(__file__).parents[2]
PATH = os.pathsep.join(str(ROOT / part) for part in (".", "models", "sched", "tools"))
A100 = CLOSED_FORMS["a100-llama3-8b"]
CLASSES = (
    ServiceClass(name="chat", ttft_s=1.0, tbt_s=0.2),
    ServiceClass(name="code", ttlt_s=3.0),
)
ROWS = [
    TraceRow(0.5 * k, 40 + 30 * (k % 7), 4 + 9 * (k % 5), ("chat", "code")[k % 2])
    for k in range(40)
]
LOAD = TraceLoad(rows=ROWS, classes=CLASSES)


def experiment(**changes: object) -> Experiment:
    plain = Experiment(
        policy="fcfs",
        bucket_strategy="pow2",
        buckets=PowersOfTwo().table(
            max_num_seqs=256, max_num_batched_tokens=2048, block_tokens=32
        ),
        cost_model=A100,
        predictor="oracle",
        load=LOAD,
        yardstick=isolated_times(A100, max_prompt_tokens=512),
        max_model_len=512,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def run(one: Experiment, qps: float = 12.0) -> dict:
    found = RateTask(experiment=one, seed=0, qps=qps).run()
    del found["simulation"], found["plan_ms"]  # of this machine's time
    return found


def test_several_engines_add_up() -> None:
    found = run(experiment(num_instances=3, assignment="kv", noise=0.1))
    parts = found["instances"]
    assert len(parts) == 3
    for name in ("num_requests", "output_tokens"):
        assert sum(one[name] for one in parts) == found[name]
    assert sum(one["num_steps"] for one in parts) == found["num_steps"]
    num_met = sum(one["attainment"] * one["num_requests"] for one in parts)
    assert num_met == pytest.approx(found["attainment"] * found["num_requests"])
    assert all(0.0 < one["busy_share"] <= 1.0 for one in parts)
    alone = run(experiment(num_instances=1, assignment="kv", noise=0.1))
    assert alone == run(experiment(noise=0.1))
    assert "instances" not in alone


def test_a_guess_that_is_right_changes_nothing_but_what_is_declared() -> None:
    plain = run(experiment(policy="sjf"), qps=400.0)
    right = run(
        experiment(policy="sjf", declared_max_tokens=280, length_estimator="oracle"),
        qps=400.0,
    )
    errors = right.pop("length_error")
    assert right == plain
    assert errors["chat"]["mean_abs_error_tokens"] == 0.0
    blind = run(experiment(policy="sjf", declared_max_tokens=280), qps=400.0)
    assert blind["length_error"]["code"]["mean_predicted_tokens"] == 280.0
    assert blind["ttft_s"] != plain["ttft_s"]


def test_a_compiled_search_is_used_and_finds_plans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_runs = 0

    def count(*arguments: Any) -> Any:
        nonlocal num_runs
        num_runs += 1
        return PYTHON_KERNEL.run(*arguments)

    best = PYTHON_KERNEL._replace(run=count)
    monkeypatch.setattr(simulation, "best_kernel", lambda: best)
    found = run(experiment(policy="annealing", declared_max_tokens=64), qps=200.0)
    assert found["num_finished"] == found["num_requests"] == 36
    assert num_runs > 0
    num_runs = 0
    run(experiment(policy="edf"), qps=200.0)
    assert num_runs == 0


def test_nobody_declares_more_than_there_is_room_for() -> None:
    arrivals = LOAD.unit_arrivals(0, experiment().yardstick)
    declared = declare(arrivals, 300, max_model_len=320)
    assert [one.declared_max_tokens for one in declared[:3]] == [280, 250, 220]
    assert min(one.declared_max_tokens - one.max_tokens for one in declared) >= 0
    short = declare(arrivals, 5, max_model_len=320)
    assert [one.declared_max_tokens for one in short[:3]] == [5, 13, 22]


def test_length_estimators_are_told_by_name() -> None:
    with pytest.raises(ValueError, match=r"'tarot' is unknown.*'oracle'"):
        make_lengths("tarot", ())
    with pytest.raises(ValueError, match="'oracle' has no option 'x=1'"):
        make_lengths("oracle:x=1", ())
    with pytest.raises(ValueError, match="error=2"):
        make_lengths("oracle:error=2", ())


def test_a_trace_names_its_classes() -> None:
    arrivals = LOAD.unit_arrivals(5, experiment().yardstick)
    assert [one.service_class for one in arrivals] == ["chat", "code"] * 20
    assert arrivals[1].slo.ttlt_s == 3.0
    with pytest.raises(ValueError, match=r"'code' is not one of \['chat'\]"):
        TraceLoad(rows=ROWS, classes=CLASSES[:1])
    some = [dataclasses.replace(ROWS[0], service_class=""), *ROWS[1:]]
    with pytest.raises(ValueError, match="add up to 0, not 1"):
        TraceLoad(rows=some, classes=CLASSES)


def test_all_may_come_at_once() -> None:
    task = RateTask(experiment=experiment(max_spans=math.inf), seed=0, qps=math.inf)
    assert {one.arrival_s for one in task.arrivals()} == {0.0}
    at_once = [dataclasses.replace(row, arrival_s=0.0) for row in ROWS]
    load = TraceLoad(rows=at_once, classes=CLASSES)
    same = dataclasses.replace(task, experiment=experiment(load=load))
    assert same.arrivals() == task.arrivals()
    found = task.run()
    assert found["is_one_shot"] and "qps" not in found


def test_the_program_end_to_end(tmp_path: pathlib.Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "arrival_s,prompt_tokens,output_tokens,service_class\n"
        + "".join(f"{k},{50 + 7 * k},{3 + k % 5},{'ab'[k % 2]}\n" for k in range(30))
    )
    classes = tmp_path / "classes.json"
    classes.write_text('[{"name": "a", "ttlt_s": 9}, {"name": "b", "ttft_s": 2}]')
    program = subprocess.run(
        [
            *(sys.executable, "-m", "jserve_tools.simulate", f"--trace={trace}"),
            *(f"--service_classes={classes}", "--one_shot", "--num_instances=2"),
            *("--assignment=kv", "--declared_max_tokens=40"),
            *("--length_estimator=quantile:q=0.9", "--nohtml"),
            f"--output={tmp_path / 'out'}",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": PATH},
        timeout=60,
    )
    assert program.returncode == 0, program.stderr
    report = json.loads(program.stdout.splitlines()[-1])
    assert not undocumented(report)
    assert report["workload"]["is_one_shot"] is True
    assert (report["num_instances"], report["assignment"]) == (2, "kv")
    assert report["length_estimator"] == "quantile:q=0.9"
    assert "fcfs, all at once #1" in program.stdout
    (one,) = report["runs"]
    assert one["is_one_shot"] and "qps" not in one
    assert (one["num_requests"], one["num_warmup"]) == (30, 0)
    assert set(one["by_class"]) == {"a", "b"}
    assert sum(part["num_requests"] for part in one["instances"]) == 30
