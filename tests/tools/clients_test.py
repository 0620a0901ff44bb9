from typing import Any

from jserve_sched.output_lengths import LengthErrors
from jserve_tools.clients import counters_between


def stats(**fields: Any) -> dict[str, Any]:
    return {
        "num_programs": 4,
        "num_compiles_after_warmup": 1,
        "num_preemptions": 2,
        "prefix_hit_tokens": 30,
        "length_errors": {},
    } | fields


def sums(scale: int) -> dict[str, int]:
    return {
        "num_requests": scale,
        "sum_tokens": 10 * scale,
        "sum_predicted_tokens": 12 * scale,
        "sum_abs_error_tokens": 3 * scale,
    }


def test_counters_are_the_runs_own() -> None:
    found = counters_between(
        stats(length_errors={"chat": sums(5), "idle": sums(2)}),
        stats(
            num_programs=6,
            num_preemptions=7,
            length_errors={"chat": sums(8), "idle": sums(2), "new": sums(1)},
        ),
    )
    assert found is not None
    assert (found.num_programs, found.num_preemptions) == (6, 5)
    assert (found.num_compiles_after_warmup, found.prefix_hit_tokens) == (0, 0)
    assert found.length_errors == {
        "chat": LengthErrors(**sums(3)),
        "new": LengthErrors(**sums(1)),
    }


def test_a_foreign_server_has_no_counters() -> None:
    assert counters_between(None, stats()) is None
    assert counters_between(stats(), None) is None
