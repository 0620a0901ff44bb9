import dataclasses
from typing import Any

import pytest

from jserve_sched.buckets.table import BucketTable
from jserve_tools.measuring.measured_run import start_up_facts
from tests.fake_loop import STARTED

TABLE = dataclasses.asdict(BucketTable((8,), (0, 4)))
ONE = STARTED.programs[0]


def stats(**fields: Any) -> dict:
    start_up = dataclasses.asdict(dataclasses.replace(STARTED, **fields))
    return {"buckets": TABLE, "compile_s": 1.5, "start_up": start_up}


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


def test_the_buckets_are_those_that_the_server_states() -> None:
    found = start_up_facts(stats())["buckets"]
    assert found == {"row_edges": (8,), "block_edges": (0, 4), "block_tokens": 32}
