import json
import math
import pathlib
from typing import Any

import pytest

from jserve import serving_policy as policy_module
from jserve.config import EngineConfig
from jserve.serving_policy import latency_fault, read_request_latency, serving_policy
from jserve_sched.policies.annealing.policy import PlannedAdmission
from jserve_sched.policies.annealing.search import anneal
from tests.engine_harness import FACTS

PART = {"both": 1e-5, "batch": 0.0, "length": 1e-4, "base": 0.01}


def test_a_server_counts_milliseconds_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fields: Any
    monkeypatch.setattr(policy_module, "best_kernel", lambda: anneal)
    for budget_ms, budget_s in ((None, 0.005), (9.0, 0.009), (0.0, math.inf)):
        fields = {} if budget_ms is None else {"annealing_budget_ms": budget_ms}
        config = EngineConfig(policy="annealing:proposals=77", **fields)
        policy = serving_policy(config, None)
        assert isinstance(policy, PlannedAdmission)
        assert policy.limit is not None
        assert policy.limit.budget_s == pytest.approx(budget_s)
        assert (policy.proposals, policy._kernel) == (77, anneal)


@pytest.mark.parametrize(
    ("facts", "fault"),
    [
        ({}, ""),
        ({"platform": "cpu", "page_size": 128}, ""),
        ({"device_kind": "other"}, "device"),
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
    path = tmp_path / "request_latency.json"
    content = {"prefill": PART, "decode": PART, "measured_with": facts}
    path.write_text(json.dumps(content))
    found = read_request_latency(EngineConfig(request_latency=path))
    assert found is not None and found.prefill.length == 1e-4
    assert latency_fault(found, FACTS) == fault
    assert len(caplog.messages) == bool(fault)
    if fault:
        assert f"was made for {next(iter(facts))}" in caplog.text


def test_without_a_file_there_is_no_fault() -> None:
    assert read_request_latency(EngineConfig()) is None
    assert latency_fault(None, FACTS) == ""


def test_a_latency_file_that_is_none_is_refused_by_name(tmp_path) -> None:
    path = tmp_path / "request_latency.json"
    with pytest.raises(ValueError, match=r"request_latency=.* is not a file"):
        read_request_latency(EngineConfig(request_latency=path))
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"request_latency=.*prefill"):
        read_request_latency(EngineConfig(request_latency=path))
