import pytest

from jserve_tools.start_ups import compiled_edges, start_up_of


def stats(*programs: str, executable_bytes: int | None = 500) -> dict:
    return {
        "block_tokens": 32,
        "compile_s": 1.5,
        "start_up": {
            "ready_s": 0.5,
            "warm_s": None,
            "covering_s": 0.25,
            "programs": [
                {
                    "program": program,
                    "trace_s": 0.1,
                    "compile_s": 0.4,
                    "executable_bytes": executable_bytes,
                    "source": "compiled",
                }
                for program in programs
            ],
        },
    }


def test_a_start_is_told_as_far_as_it_is_known() -> None:
    start = start_up_of(stats("B4xNB0", "B4xNB2"))
    assert start is not None
    assert start["executable_bytes"] == 1000
    assert (start["ready_s"], start["covering_s"], start["compile_s"]) == (
        *(0.5, 0.25, 1.5),
    )
    assert "warm_s" not in start
    assert start["programs"][1]["program"] == "B4xNB2"
    unsized = start_up_of(stats("B4xNB0", executable_bytes=None))
    assert unsized is not None and "executable_bytes" not in unsized
    assert "executable_bytes" not in unsized["programs"][0]


@pytest.mark.parametrize("told", [None, {}, stats()])
def test_who_tells_nothing_has_no_start(told: dict | None) -> None:
    assert start_up_of(told) is None
    assert compiled_edges(told) is None


def test_edges_are_those_of_the_programs() -> None:
    told = stats("B32xNB16", "B32xNB0", "B2xNB0", "B2xNB16", "B8xNB0")
    assert compiled_edges(told) == {
        "row_edges": [2, 8, 32],
        "block_edges": [0, 16],
        "block_tokens": 32,
    }
    with pytest.raises(ValueError, match="'big' is not such as"):
        compiled_edges(stats("big"))
