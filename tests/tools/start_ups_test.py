import dataclasses

import pytest

from fake_server import STARTED
from jserve_tools.start_ups import compiled_edges, start_up_of


def stats(**fields: object) -> dict:
    start_up = dataclasses.asdict(dataclasses.replace(STARTED, **fields))
    return {"block_tokens": 32, "compile_s": 1.5, "start_up": start_up}


def test_a_start_is_reported_as_far_as_it_is_known() -> None:
    start = start_up_of(stats(warm_s=None))
    assert start is not None
    assert start["executable_bytes"] == 2000
    assert {name: start[name] for name in ("ready_s", "covering_s", "compile_s")} == {
        "ready_s": 0.5,
        "covering_s": 0.25,
        "compile_s": 1.5,
    }
    assert "warm_s" not in start
    assert start["programs"][1]["program"] == "B8xNB4"
    unsized = dataclasses.replace(STARTED.programs[0], executable_bytes=None)
    start = start_up_of(stats(programs=(unsized,)))
    assert start is not None and "executable_bytes" not in start
    assert "executable_bytes" not in start["programs"][0]


@pytest.mark.parametrize("stated", [None, {}, stats(programs=())])
def test_without_programs_there_is_no_start(stated: dict | None) -> None:
    assert start_up_of(stated) is None
    assert compiled_edges(stated) is None


def test_edges_are_those_of_the_programs() -> None:
    names = ("B32xNB16", "B32xNB0", "B2xNB0", "B2xNB16", "B8xNB0")
    one = STARTED.programs[0]
    programs = tuple(dataclasses.replace(one, program=name) for name in names)
    assert compiled_edges(stats(programs=programs)) == {
        "row_edges": [2, 8, 32],
        "block_edges": [0, 16],
        "block_tokens": 32,
    }
