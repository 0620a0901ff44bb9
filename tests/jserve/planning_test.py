import json
import math

import pytest

from jserve import planning
from jserve.config import EngineConfig
from jserve.planning import read_request_latency, serving_policy
from jserve_sched.annealing_kernel import PYTHON_KERNEL
from jserve_sched.clock import ManualClock
from jserve_sched.policies import PlannedAdmission


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


def test_without_a_budget_the_options_of_the_policy_count() -> None:
    policy = planner(policy="annealing+sliding:proposals=77:interval_s=0.2")
    assert (policy.proposals, policy.interval_s) == (77, 0.2)
    assert policy.limit is not None
    assert policy.limit.budget_s == math.inf
    every = planner(policy="annealing:interval_s=0.2", annealing_interval_s=0.7)
    assert every.interval_s == 0.7


def test_other_policies_search_nothing() -> None:
    config = EngineConfig(policy="edf", annealing_budget_ms=4.0)
    assert not isinstance(serving_policy(config), PlannedAdmission)


def test_the_latency_of_requests_is_read_from_a_file(tmp_path) -> None:
    part = {"both": 1e-5, "batch": 0.0, "length": 1e-4, "base": 0.01}
    path = tmp_path / "request_latency.json"
    path.write_text(json.dumps({"prefill": part, "decode": part}))
    found = read_request_latency(EngineConfig(request_latency=path))
    assert found is not None
    assert found.prefill.length == 1e-4
    assert read_request_latency(EngineConfig()) is None


def test_a_latency_file_that_is_none_is_refused_by_name(tmp_path) -> None:
    path = tmp_path / "request_latency.json"
    for text in ("", "[]", json.dumps({"prefill": 3})):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"request_latency=.*prefill"):
            read_request_latency(EngineConfig(request_latency=path))
    path.unlink()
    with pytest.raises(ValueError, match=r"request_latency=.*No such file"):
        read_request_latency(EngineConfig(request_latency=path))


@pytest.mark.parametrize("name", ["annealing_budget_ms", "annealing_interval_s"])
def test_limits_of_a_search_have_a_range(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=-1.0 is not in"):
        EngineConfig(**{name: -1.0})
