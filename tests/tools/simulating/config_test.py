"""What jserve-simulate refuses before any work, and what it imports for that."""

import typing
from typing import Any

import pytest

from jserve_sched.simulation.mixes import WORKLOADS
from jserve_tools.reporting.config import ReportConfig
from jserve_tools.simulating.config import (
    LoadConfig,
    MachineConfig,
    SimulateConfig,
    SweepConfig,
)
from tests import TESTS

FILE = TESTS / "four_programs.json"


def make(
    load: dict[str, Any] | None = None,
    machine: dict[str, Any] | None = None,
    **sweep: Any,
) -> SimulateConfig:
    return SimulateConfig(
        load=LoadConfig(**(load or {})),
        machine=MachineConfig(**(machine or {})),
        sweep=SweepConfig(**sweep),
        report=ReportConfig(),
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"policies": ("nobody",)}, "'nobody' is unknown; known: .*'sliding'"),
        ({"policies": ()}, "policies is empty"),
        ({"bucket_strategies": ("cubes",)}, "'cubes' is unknown; known: .*'pow2'"),
        ({"bucket_strategies": ("explicit",)}, "explicit needs a file"),
        ({"num_processes": 0}, r"num_processes=0 is not in 1\.\."),
        ({"max_violation_share": 0.1}, "leave out --max_violation_share=0.1"),
        ({"num_seeds": 2, "step_log": FILE}, "is of a single run"),
        ({"bound": True, "goodput": True}, "bound is of exact .* leave out goodput"),
        ({"bound": True, "machine": {"noise": 0.1}}, "leave out noise"),
        ({"bound": True, "machine": {"num_instances": 2}}, "not num_instances=2"),
        ({"goodput": True, "load": {"qps": (1.0,)}}, "leave out qps"),
        ({"machine": {"buckets": FILE}}, "explicit and fitted, not pow2"),
        ({"load": {"qps": (0.0,)}}, r"qps=0.0 is not in 1e-06\.\."),
        ({"load": {"one_shot": True, "qps": (3.0,)}}, "no rate: leave out qps"),
        ({"load": {"workload": "sharegpt", "trace": FILE}}, "workload=sharegpt and"),
        ({"machine": {"page_size": 0}}, r"page_size=0 is not in 1\.\."),
        ({"machine": {"length_estimator": "oracle"}}, "needs declared_max_tokens: lea"),
        (
            {"machine": {"length_estimator": "tarot", "declared_max_tokens": 9}},
            "'tarot' is unknown",
        ),
    ],
)
def test_a_wrong_combination_is_refused_with_its_limit(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**config)


def test_what_is_right_is_taken() -> None:
    make(step_log=FILE)
    make(machine={"buckets": FILE}, bucket_strategies=("explicit", "fitted"))


def test_the_flag_offers_every_workload() -> None:
    literal, _ = typing.get_args(typing.get_type_hints(LoadConfig)["workload"])
    assert set(typing.get_args(literal)) == set(WORKLOADS)
