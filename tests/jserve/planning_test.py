import json
import logging
import math
import pathlib

import pytest
from jserve_sched.annealing_kernel import PYTHON_KERNEL

from jserve import planning
from jserve.config import EngineConfig
from jserve.planning import read_request_latency, serving_policy
from jserve.predictor_checkpoint import PredictorFacts
from jserve_sched.annealing import DEFAULT_PROPOSALS
from jserve_sched.clock import ManualClock
from jserve_sched.policies import PlannedAdmission

HERE = PredictorFacts(
    platform="cpu",
    device_kind="cpu",
    model="0123",
    dtype="float32",
    page_size=128,
    block_tokens=32,
)


@pytest.fixture(autouse=True)
def _nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "best_kernel", lambda: PYTHON_KERNEL)
    monkeypatch.setattr(planning, "proposals_per_s", lambda *_: 1e5)


def planner(**fields) -> PlannedAdmission:
    policy = serving_policy(EngineConfig(**fields), ManualClock())
    assert isinstance(policy, PlannedAdmission)
    return policy


def test_milliseconds_become_proposals() -> None:
    policy = planner(policy="annealing", annealing_budget_ms=4.0)
    assert policy.proposals == 400
    assert policy.limit is not None
    assert policy.limit.budget_s == pytest.approx(0.004)
    assert planner(policy="annealing", annealing_budget_ms=1e-4).proposals == 1
    long = planner(policy="annealing", annealing_budget_ms=1000.0)
    assert long.proposals == 50_000, "no more than can be drawn in good time"


def test_a_server_counts_milliseconds_unless_told_not_to() -> None:
    policy = planner(policy="annealing")
    assert (policy.proposals, policy.interval_s) == (500, 0.05)
    assert policy.limit is not None
    assert policy.limit.budget_s == pytest.approx(0.005)
    counted = planner(policy="annealing", annealing_budget_ms=0.0)
    assert counted.proposals == DEFAULT_PROPOSALS
    assert counted.limit is not None
    assert counted.limit.budget_s == math.inf
    assert planner(policy="annealing", annealing_interval_s=0.7).interval_s == 0.7


def test_the_options_of_the_policy_go_first() -> None:
    policy = planner(
        policy="annealing+sliding:proposals=77:interval_s=0.2",
        annealing_budget_ms=9.0,
        annealing_interval_s=0.7,
    )
    assert (policy.proposals, policy.interval_s) == (77, 0.2)
    assert policy.limit is not None
    assert policy.limit.budget_s == math.inf


def test_a_batch_cannot_exceed_what_may_run_at_once() -> None:
    assert planner(policy="annealing:max_batch=32", max_num_seqs=32).max_batch == 32
    with pytest.raises(ValueError, match=r"max_batch=33 is above max_num_seqs=32$"):
        planner(policy="annealing:max_batch=33", max_num_seqs=32)


def test_other_policies_search_nothing_and_say_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        serving_policy(EngineConfig(policy="edf"))
    assert caplog.messages == []
    config = EngineConfig(
        policy="edf", annealing_budget_ms=4.0, annealing_interval_s=0.5
    )
    with caplog.at_level(logging.WARNING):
        assert not isinstance(serving_policy(config), PlannedAdmission)
    (message,) = caplog.messages
    assert message.startswith("annealing_budget_ms=4, annealing_interval_s=0.5: ")


def test_the_latency_of_requests_is_read_from_a_file(tmp_path) -> None:
    part = {"both": 1e-5, "batch": 0.0, "length": 1e-4, "base": 0.01}
    path = tmp_path / "request_latency.json"
    path.write_text(json.dumps({"prefill": part, "decode": part}))
    found = read_request_latency(EngineConfig(request_latency=path))
    assert found is not None
    assert found.latency.prefill.length == 1e-4
    assert found.fault(HERE) == "", "it says of nothing else what it was made for"
    assert read_request_latency(EngineConfig()) is None


@pytest.mark.parametrize(
    ("facts", "fault"),
    [
        ({"platform": "cpu", "page_size": 128}, ""),
        ({"platform": "gpu"}, "device"),
        ({"device_kind": "other"}, "device"),
        ({"model": "other"}, "model"),
        ({"dtype": "bfloat16"}, "model"),
        ({"page_size": 64}, "layout"),
    ],
)
def test_a_latency_of_something_else_is_told_by_its_facts(
    facts: dict[str, object],
    fault: str,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    part = {"both": 1e-5, "batch": 0.0, "length": 1e-4, "base": 0.01}
    path = tmp_path / "request_latency.json"
    content = {"prefill": part, "decode": part, "measured_with": facts}
    path.write_text(json.dumps(content))
    found = read_request_latency(EngineConfig(request_latency=path))
    assert found is not None
    with caplog.at_level(logging.WARNING):
        assert found.fault(HERE) == fault
    assert len(caplog.messages) == bool(fault)
    if fault:
        assert f"was made for {next(iter(facts))}" in caplog.text


def test_a_latency_file_that_is_none_is_refused_by_name(tmp_path) -> None:
    path = tmp_path / "request_latency.json"
    for text in ("", "[]", json.dumps({"prefill": 3})):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"request_latency=.*prefill"):
            read_request_latency(EngineConfig(request_latency=path))
    part = {"both": 1e-5, "batch": 0.0, "length": 1e-4, "base": 0.01}
    content = {"prefill": part, "decode": part, "measured_with": 3}
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"request_latency=.*measured_with=3"):
        read_request_latency(EngineConfig(request_latency=path))
    path.unlink()
    with pytest.raises(ValueError, match=r"request_latency=.*No such file"):
        read_request_latency(EngineConfig(request_latency=path))


@pytest.mark.parametrize("name", ["annealing_budget_ms", "annealing_interval_s"])
def test_limits_of_a_search_have_a_range(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=-1.0 is not in"):
        EngineConfig(**{name: -1.0})
