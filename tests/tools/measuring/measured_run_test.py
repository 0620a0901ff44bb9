import dataclasses
from typing import Any

import pytest

from jserve_tools.measuring.measured_run import start_up_facts
from tests.fake_server import STARTED

ONE = STARTED.programs[0]


def stats(**fields: Any) -> dict:
    start_up = dataclasses.asdict(dataclasses.replace(STARTED, **fields))
    return {"block_tokens": 32, "compile_s": 1.5, "start_up": start_up}


def test_a_start_is_reported_as_far_as_it_is_known() -> None:
    start = start_up_facts(stats(warm_s=None))["start_up"]
    assert start["executable_bytes"] == 2000
    assert (start["ready_s"], start["covering_s"], start["compile_s"]) == (
        0.5,
        0.25,
        1.5,
    )
    assert "warm_s" not in start
    assert start["programs"][1]["program"] == "B8xNB4"
    unsized = dataclasses.replace(ONE, executable_bytes=None)
    start = start_up_facts(stats(programs=(unsized,)))["start_up"]
    assert "executable_bytes" not in start
    assert "executable_bytes" not in start["programs"][0]


@pytest.mark.parametrize("stated", [None, {}, stats(programs=())])
def test_without_programs_there_is_no_start(stated: dict | None) -> None:
    assert start_up_facts(stated) == {}


def test_edges_are_those_of_the_programs() -> None:
    names = ("B32xNB16", "B32xNB0", "B2xNB0", "B2xNB16", "B8xNB0")
    programs = tuple(dataclasses.replace(ONE, program=name) for name in names)
    assert start_up_facts(stats(programs=programs))["buckets"] == {
        "row_edges": [2, 8, 32],
        "block_edges": [0, 16],
        "block_tokens": 32,
    }
