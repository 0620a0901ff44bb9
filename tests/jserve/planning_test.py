import json
import logging
import math
import pathlib

import pytest

from jserve import planning
from jserve.config import EngineConfig
from jserve.planning import read_request_latency, serving_policy
from jserve.predictor_checkpoint import PredictorFacts
from jserve_sched.annealing import PYTHON_KERNEL
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


def planner(**fields) -> PlannedAdmission:
    policy = serving_policy(EngineConfig(**fields), ManualClock())
    assert isinstance(policy, PlannedAdmission)
    return policy


def test_a_server_counts_milliseconds_too() -> None:
    for budget_ms, budget_s in ((None, 0.005), (9.0, 0.009), (0.0, math.inf)):
        fields = {} if budget_ms is None else {"annealing_budget_ms": budget_ms}
        policy = planner(policy="annealing:proposals=77", **fields)
        assert policy.limit is not None
        assert policy.limit.budget_s == pytest.approx(budget_s)
        assert (policy.proposals, policy.kernel) == (77, PYTHON_KERNEL)


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
    config = EngineConfig(policy="edf", annealing_budget_ms=4.0)
    with caplog.at_level(logging.WARNING):
        assert not isinstance(serving_policy(config), PlannedAdmission)
    (message,) = caplog.messages
    assert message.startswith("annealing_budget_ms=4 limits nothing: policy 'edf'")


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


def test_the_budget_of_a_search_has_a_range() -> None:
    with pytest.raises(ValueError, match=r"annealing_budget_ms=-1.0 is not in"):
        EngineConfig(annealing_budget_ms=-1.0)
