"""Sweeps from config to report, and the program in a process."""

import json
import pathlib
from typing import Any

import pytest

from jserve_tools.reporting.config import ReportConfig
from jserve_tools.simulating.config import (
    LoadConfig,
    MachineConfig,
    SimulateConfig,
    SweepConfig,
)
from jserve_tools.simulating.sweep import simulate_sweep
from tests.report_schema import undocumented


@pytest.fixture
def trace(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "trace.csv"
    path.write_text(
        "arrival_s,prompt_tokens,output_tokens,service_class\n"
        + "".join(
            f"{0.25 * k},{50 + 40 * (k % 9)},{3 + k % 5},{'ab'[k % 2]}\n"
            for k in range(40)
        )
    )
    (tmp_path / "classes.json").write_text(
        '[{"name": "a", "ttlt_s": 9}, {"name": "b", "ttft_slowdown": 20}]'
    )
    return path


@pytest.fixture
def sweep(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> Any:
    def run(
        load: LoadConfig,
        machine: MachineConfig | None = None,
        **settings: Any,
    ) -> tuple[str, dict[str, Any]]:
        config = SimulateConfig(
            load=load,
            machine=machine or MachineConfig(),
            sweep=SweepConfig(**settings),
            report=ReportConfig(output=tmp_path / "out", html=False),
        )
        simulate_sweep(config, ["test"])
        out = capsys.readouterr().out
        report = json.loads(out.splitlines()[-1])
        assert not undocumented(report)
        assert report == json.loads((tmp_path / "out" / "report.json").read_text())
        assert not (tmp_path / "out" / "runs.jsonl").exists()
        return out, report

    return run


def test_a_sweep_of_a_trace(sweep: Any, trace: pathlib.Path) -> None:
    load = LoadConfig(
        trace=trace, qps=(2.0, 8.0), service_classes=trace.with_name("classes.json")
    )
    _, report = sweep(
        load,
        policies=("edf", "fcfs"),
        bucket_strategies=("none", "pow2"),
    )
    assert report["device"] == "simulated a100-llama3-8b"
    assert report["staircase"]["num_rows"] == 256
    assert report["staircase"]["tokens"][-1] == 2048
    assert report["cost_model"]["max_num_batched_tokens"] == 2048
    assert report["cost_model"]["num_kv_tokens"] == 400_000
    assert set(report["workload"]["slos"]) == {"a", "b"}
    assert report["workload"]["trace"] == "trace.csv"
    found = [(r["qps"], r["bucket_strategy"], r["policy"]) for r in report["runs"]]
    assert found == [
        (qps, strategy, policy)
        for qps in (2.0, 8.0)
        for strategy in ("none", "pow2")
        for policy in ("edf", "fcfs")
    ]
    for run in report["runs"]:
        assert (run["num_requests"], run["num_warmup"]) == (36, 4)
        assert run["num_finished"] == 36
        assert run["simulation"]["steps_per_s"] > 0
        assert run["plan_ms"]["p99"] >= run["plan_ms"]["p50"] > 0
        is_padded = run["bucket_strategy"] == "pow2"
        assert (run["pad_share_tokens"] > 0.0) == is_padded
        assert (run["pad_share_time"] > 0.0) == is_padded
        assert ("buckets" in run) == ("steps_by_program" in run) == is_padded


def test_several_engines_at_once(sweep: Any, trace: pathlib.Path) -> None:
    load = LoadConfig(
        trace=trace, one_shot=True, service_classes=trace.with_name("classes.json")
    )
    machine = MachineConfig(
        num_instances=2,
        declared_max_tokens=40,
        length_estimator="quantile:q=0.9",
    )
    out, report = sweep(load, machine)
    assert report["workload"]["is_one_shot"] is True
    assert report["num_instances"] == 2
    assert report["length_estimator"] == "quantile:q=0.9"
    assert "fcfs / pow2 @ all at once #1" in out
    (one,) = report["runs"]
    assert one["is_one_shot"] and "qps" not in one
    assert (one["num_requests"], one["num_warmup"]) == (40, 0)
    assert set(one["by_class"]) == {"a", "b"}
    parts = one["instances"]
    assert len(parts) == 2 and all(0.0 < part["busy_share"] <= 1.0 for part in parts)
    for name in ("num_requests", "output_tokens", "num_steps"):
        assert sum(part[name] for part in parts) == one[name]
    num_met = sum(part["attainment"] * part["num_requests"] for part in parts)
    assert num_met == pytest.approx(one["attainment"] * one["num_requests"])


def test_buckets_are_fitted_to_a_load_that_is_not_judged(
    sweep: Any, tmp_path: pathlib.Path
) -> None:
    load = LoadConfig(num_requests=60, qps=(4.0,))
    limits: Any = {"max_num_seqs": 32, "max_num_batched_tokens": 544}
    strategies = ("pow2", "fitted", "linear:block_gap=4")
    out, report = sweep(
        load,
        MachineConfig(**limits),
        bucket_strategies=strategies,
        num_seeds=2,
    )
    by_strategy = {one["bucket_strategy"]: one for one in report["runs"][::-1]}
    fitted, most = by_strategy["fitted"], by_strategy["pow2"]["num_programs"]
    (fit,) = report["fits"]
    assert (fit["policy"], fit["seed"], fit["max_programs"]) == ("fcfs", 2, most)
    assert "fitted for" in out
    assert fitted["num_programs"] <= most
    assert fitted["buckets"]["row_edges"] == fit["iterations"][-1]["row_edges"]
    assert by_strategy[strategies[2]]["buckets"]["block_edges"][:4] == [0, 1, 4, 8]

    file, log = tmp_path / "buckets.json", tmp_path / "steps.jsonl"
    file.write_text(json.dumps(fitted["buckets"]))
    machine = MachineConfig(buckets=file, **limits)
    _, read = sweep(load, machine, bucket_strategies=("fitted",), step_log=log)
    assert "fits" not in read
    (one,) = read["runs"]
    assert one["by_class"] == fitted["by_class"]
    assert len(log.read_text().splitlines()) == 1 + one["num_steps"]


def test_mistakes_in_files_are_found_before_any_run(
    sweep: Any, trace: pathlib.Path
) -> None:
    folder = trace.parent
    with pytest.raises(ValueError, match="add up to 0, not 1"):
        sweep(LoadConfig(service_classes=folder / "classes.json"))
    with pytest.raises(ValueError, match=r"trace\.csv, line 2: service_class='a'"):
        sweep(LoadConfig(trace=trace))
    assert not (folder / "out").exists()
