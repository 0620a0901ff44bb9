"""The program as people run it, in processes of its own, and its parts by hand.

The program defines flags, so no test imports it.
"""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jserve_sched.bucket_strategies import Continuous, PowersOfTwo
from jserve_sched.cost_model import CLOSED_FORMS
from jserve_sched.slo import ServiceClass
from jserve_sched.workload import WORKLOADS, Yardstick, isolated_times
from jserve_tools.run_store import RunStore
from jserve_tools.simulated_loads import Levels, NamedLoad, TraceLoad
from jserve_tools.simulation import Experiment, split_limit
from jserve_tools.sweep import RateTask, guess_qps, run_all, search_goodputs
from jserve_tools.workload_trace import TraceRow
from report_schema import undocumented

ROOT = pathlib.Path(__file__).parents[2]
PATH = os.pathsep.join(str(ROOT / part) for part in (".", "models", "sched", "tools"))
A100 = CLOSED_FORMS["a100-llama3-8b"]
YARDSTICK = isolated_times(A100, max_prompt_tokens=16_384)
# Lax enough for a goodput near capacity, so that few requests show it.
CLASSES = (
    ServiceClass(name="dialogue", ttft_s=1.0, tbt_s=0.2),
    ServiceClass(name="summarisation", ttft_s=3.0, tbt_s=0.2),
)


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jserve_tools.simulate", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": PATH},
        timeout=60,
    )


def test_a_sweep_end_to_end(tmp_path: pathlib.Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "arrival_s,prompt_tokens,output_tokens\n"
        + "".join(f"{0.25 * k},{50 + 40 * (k % 9)},{3 + k % 5}\n" for k in range(40))
    )
    program = simulate(
        "--policies=edf@512,fcfs",
        "--bucket_strategies=none,pow2",
        f"--trace={trace}",
        "--qps=2,8",
        "--num_processes=2",
        f"--output={tmp_path / 'out'}",
    )
    assert program.returncode == 0, program.stderr
    line = json.loads(program.stdout.splitlines()[-1])
    assert line == json.loads((tmp_path / "out" / "report.json").read_text())
    assert not undocumented(line)
    assert (tmp_path / "out" / "report.html").exists()
    assert line["device"] == "simulated a100-llama3-8b"
    # The machine's, though the first policy has a limit of its own.
    assert line["staircase"]["num_rows"] == 256
    assert line["staircase"]["tokens"][-1] == 2048
    assert line["cost_model"]["max_num_batched_tokens"] == 2048
    assert set(line["workload"]["promises"]) == {"batch", "interactive"}
    assert line["cost_model"]["num_kv_tokens"] == 400_000
    assert line["workload"]["trace"] == "trace.csv"
    found = [(r["qps"], r["bucket_strategy"], r["policy"]) for r in line["runs"]]
    assert found == [
        (qps, strategy, policy)
        for qps in (2.0, 8.0)
        for strategy in ("none", "pow2")
        for policy in ("edf@512", "fcfs")
    ]
    for run in line["runs"]:
        assert (run["num_requests"], run["num_warmup"]) == (36, 4)
        assert run["num_finished"] == 36
        assert run["simulation"]["steps_per_s"] > 0
        assert run["plan_ms"]["p99"] >= run["plan_ms"]["p50"] > 0
        is_padded = run["bucket_strategy"] == "pow2"
        assert (run["pad_share_tokens"] > 0.0) == is_padded
        assert (run["pad_share_time"] > 0.0) == is_padded
        assert ("buckets" in run) == ("steps_by_program" in run) == is_padded
        limit = 512 if run["policy"] == "edf@512" else 2048
        assert run["max_num_batched_tokens"] == limit


def test_an_interrupted_sweep_goes_on(tmp_path: pathlib.Path) -> None:
    arguments = [
        *("--policies=fcfs,edf,sjf", "--qps=1,2,3,4", "--num_requests=150"),
        *("--nohtml", f"--output={tmp_path / 'out'}"),
    ]
    program = subprocess.Popen(
        [sys.executable, "-m", "jserve_tools.simulate", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": PATH},
    )
    runs = tmp_path / "out" / "runs"
    while not list(runs.glob("*.json.gz")) and program.poll() is None:
        time.sleep(0.01)
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=60)
    assert program.returncode in (1, 130)
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "out" / "report.json").exists()
    whole = simulate(*arguments)
    assert whole.returncode == 0, whole.stderr
    report = json.loads(whole.stdout.splitlines()[-1])
    assert 1 <= report["num_resumed"] < 12
    assert not runs.exists()
    assert [(run["qps"], run["policy"]) for run in report["runs"]] == [
        (qps, policy)
        for qps in (1.0, 2.0, 3.0, 4.0)
        for policy in ("fcfs", "edf", "sjf")
    ]


def test_buckets_are_fitted_to_a_load_that_is_not_judged(
    tmp_path: pathlib.Path,
) -> None:
    def run(*arguments: str) -> tuple[str, dict]:
        program = simulate(
            *("--num_requests=60", "--qps=4", "--max_num_seqs=32", "--num_seeds=2"),
            *("--max_num_batched_tokens=544", "--nohtml"),
            f"--output={tmp_path}",
            *arguments,
        )
        assert program.returncode == 0, program.stderr
        return program.stdout, json.loads(program.stdout.splitlines()[-1])

    strategies = "--bucket_strategies=pow2,fitted,linear:block_gap=4"
    out, report = run(strategies, "--max_programs=12")
    (fit,) = report["fits"]
    assert (fit["policy"], fit["seed"], fit["max_programs"]) == ("fcfs", 2, 12)
    assert "fitted for" in out
    assert not undocumented(report)
    by_strategy = {one["bucket_strategy"]: one for one in report["runs"]}
    fitted = by_strategy["fitted"]
    assert fitted["num_programs"] <= 12 < by_strategy["pow2"]["num_programs"]
    assert fitted["buckets"]["row_edges"] == fit["iterations"][-1]["row_edges"]
    assert by_strategy["linear:block_gap=4"]["buckets"]["block_edges"][:4] == [
        *(0, 1, 4, 8)
    ]

    file = tmp_path / "buckets.json"
    file.write_text(json.dumps(fitted["buckets"]))
    log = tmp_path / "steps.jsonl"
    _, read = run(
        *("--bucket_strategies=fitted", f"--buckets={file}", "--num_seeds=1"),
        f"--step_log={log}",
    )
    assert "fits" not in read
    (one,) = read["runs"]
    same = next(run for run in report["runs"] if run["bucket_strategy"] == "fitted")
    assert one["by_class"] == same["by_class"]
    assert len(log.read_text().splitlines()) == 1 + one["num_steps"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policies=nobody"], "'nobody' is unknown"),
        (["--bucket_strategies=explicit"], "explicit needs buckets, a file"),
        (["--compare=/none.json"], "/none.json"),
        (["--num_seeds=2", "--step_log=s.jsonl"], "is of a single run"),
        (["--qps=1", "--goodput"], "goodput searches the rate: leave out qps"),
        (["--one_shot", "--goodput"], "searches the rate: leave out one_shot"),
        (["--noone_shot", "--goodput", "--policies=nobody"], "'nobody' is unknown"),
        (["--start_qps=1"], "start_qps would do nothing without goodput"),
        (["--max_programs=9"], "max_programs=9 is for bucket strategy fitted"),
        (["--qps=1", "--levels_qps=1,2"], "give one of qps and levels_qps, not both"),
        (["--period_s=9"], "period_s would do nothing without levels_qps"),
        (["--one_shot", "--qps=3", "--poisson"], "no rate: leave out qps, poisson"),
        (["--assignment=kv"], "assignment=kv would do nothing with num_instances=1"),
        (["--length_estimator=mean"], "would do nothing without declared_max_tokens"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments: list[str], message: str, tmp_path: pathlib.Path
) -> None:
    program = simulate(*arguments, f"--output={tmp_path / 'out'}")
    assert program.returncode == 1
    assert message in program.stderr
    assert len(program.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def experiment(
    policy: str = "fcfs", *, strategy: str = "none", num_requests: int = 120
) -> Experiment:
    shapes = Continuous() if strategy == "none" else PowersOfTwo()
    return Experiment(
        policy=policy,
        bucket_strategy=strategy,
        buckets=shapes.table(
            max_num_seqs=256, max_num_batched_tokens=2048, block_tokens=32
        ),
        cost_model=A100,
        predictor="oracle",
        load=NamedLoad(
            components=WORKLOADS["sharegpt"],
            num_requests=num_requests,
            classes=CLASSES,
        ),
        yardstick=YARDSTICK,
        max_model_len=16_384,
    )


def test_goodput_is_between_a_rate_that_passes_and_one_that_does_not() -> None:
    (run,) = search_goodputs([experiment()], (0, 1), resolution=0.05)
    seeds = run["goodput_seeds"]
    assert [one["seed"] for one in seeds] == [0, 1]
    assert run["goodput_qps"] == pytest.approx(np.mean([one["qps"] for one in seeds]))
    assert run["qps"] == seeds[0]["qps"]
    # 108 of 120 requests count, and 1 % of them is one.
    assert run["num_violations"] == seeds[0]["num_violations"] <= 1
    above = RateTask(experiment=experiment(), seed=0, qps=run["qps"] * 1.05).run()
    assert above["num_violations"] > 1


def test_a_search_goes_on_where_it_stopped(tmp_path: pathlib.Path) -> None:
    one = experiment(num_requests=60)
    store = RunStore(tmp_path, resumes=True)
    first = search_goodputs([one], (0, 1), resolution=0.2, store=store)
    assert store.num_found == 0
    again = search_goodputs([one], (0, 1), resolution=0.2, store=store)
    assert store.num_found == 3  # two seeds' searches, and the run at the edge
    assert again == json.loads(json.dumps(first))


def test_processes_share_a_sweep_and_change_nothing() -> None:
    tasks = [
        RateTask(experiment=experiment(policy, num_requests=40), seed=seed, qps=5.0)
        for policy in ("fcfs", "edf")
        for seed in (0, 1)
    ]
    alone, shared = run_all(tasks, 1), run_all(tasks, 2)
    for run in (*alone, *shared):
        del run["simulation"], run["plan_ms"]  # of this machine's time
    assert alone == shared
    assert [run["seed"] for run in alone] == [0, 1, 0, 1]


def test_levels_run_for_their_time() -> None:
    levels = Levels(levels_qps=(1.0, 4.0), period_s=10.0, duration_s=40.0)
    task = RateTask(experiment=experiment(), seed=3, qps=2.5, levels=levels)
    run = task.run()
    assert run["levels_qps"] == [1.0, 4.0]
    assert run["qps"] == 2.5
    assert 60 <= run["num_requests"] + run["num_warmup"] <= 120


def test_a_trace_keeps_its_times_or_gets_poisson_ones() -> None:
    rows = [TraceRow(float(k // 10), 10 + k, 5) for k in range(100)]
    classes = (ServiceClass(name="all", share=1.0, ttft_slowdown=2.0),)
    yardstick = Yardstick(prompt_tokens=(1, 1000), ttft_s=(1.0, 2.0), step_s=0.1)
    load = TraceLoad(rows=rows, classes=classes)
    units = load.unit_arrivals(0, yardstick)
    # 99 gaps within 9 s, stretched to one a second.
    assert units[-1].arrival_s == pytest.approx(99.0)
    assert [one.num_prompt_tokens for one in units] == [10 + k for k in range(100)]
    assert units[0].arrival_s == units[9].arrival_s == 0.0
    assert units[0].slo.ttft_s == pytest.approx(2 * yardstick.isolated_ttft_s(10))
    drawn = dataclasses.replace(load, is_poisson=True).unit_arrivals(0, yardstick)
    assert 0.0 == drawn[0].arrival_s < drawn[1].arrival_s
    with pytest.raises(ValueError, match="add up to"):
        TraceLoad(rows=rows, classes=CLASSES)


def test_a_guess_is_in_the_right_decade() -> None:
    units = experiment().load.unit_arrivals(0, YARDSTICK)
    # 31 ms of prompt and 0.96 s of decode for 89 tokens, shared by sixteen.
    assert guess_qps(units, YARDSTICK) == pytest.approx(5.5, rel=0.3)


def test_a_policy_may_have_a_limit_of_its_own() -> None:
    assert split_limit("fcfs") == ("fcfs", None)
    assert split_limit("sliding:fill=off@512") == ("sliding:fill=off", 512)
    for bad in ("fcfs@", "fcfs@x", "fcfs@0", "fcfs@-1"):
        with pytest.raises(ValueError, match="is not a number of tokens"):
            split_limit(bad)
