import pytest

from jserve_sched.simulation.cost_model import CLOSED_FORMS
from jserve_tools.reporting.staircases import priced_staircase, run_staircase

A100 = CLOSED_FORMS["a100-llama3-8b"]


def test_a_cost_model_is_a_curve_from_rows_to_the_limit() -> None:
    curve = priced_staircase(A100, 32)
    assert curve["num_rows"] == 256
    assert curve["tokens"] == [256 + 32 * blocks for blocks in range(57)]
    assert curve["seconds"] == sorted(curve["seconds"])
    # b + k (P + D) + k C over 256 rows of 128 tokens, above the floor.
    decode_s = 7.51e-3 + 0.06551e-3 * 256 + 8.415e-8 * 256 * 128
    assert curve["seconds"][0] == pytest.approx(decode_s)
    assert len(priced_staircase(A100, 1)["tokens"]) == 257


def test_the_curve_reaches_the_largest_edge_of_any_table() -> None:
    tables = [
        {"block_edges": [0, 8], "block_tokens": 32},
        {"block_edges": [0, 40], "block_tokens": 64},
    ]
    runs = [{"buckets": one} for one in tables]
    curve = priced_staircase(A100, 32, [*runs, {}])
    assert curve["tokens"][-1] == 256 + 40 * 64
    assert priced_staircase(A100, 32, runs[:1])["tokens"][-1] == 2048


def program(num_rows: int, num_blocks: int, bucket_s: float, num_steps: int) -> dict:
    return {
        "num_rows": num_rows,
        "num_blocks": num_blocks,
        "bucket_s": bucket_s,
        "num_steps": num_steps,
    }


def test_runs_draw_the_curve_of_their_widest_buckets() -> None:
    runs = [
        {"steps_by_program": [program(4, 0, 0.01, 3), program(2, 9, 0.5, 1)]},
        {"steps_by_program": [program(4, 0, 0.03, 1), program(4, 2, 0.04, 5)]},
        {},
    ]
    curve = run_staircase(runs, 8)
    assert curve is not None
    assert (curve["num_rows"], curve["tokens"]) == (4, [4, 20])
    assert curve["is_discrete"] and not priced_staircase(A100, 32)["is_discrete"]
    assert curve["seconds"] == pytest.approx([0.015, 0.04])
    assert run_staircase(runs, None) is None
    assert run_staircase(runs[2:], 8) is None
    assert run_staircase(runs[:1], 8) is None


def test_a_largest_row_edge_without_prefill_is_no_curve() -> None:
    programs = [program(32, 0, 0.01, 3), program(31, 0, 0.01, 3), program(31, 4, 1, 1)]
    curve = run_staircase([{"steps_by_program": programs}], 8)
    assert curve is not None
    assert (curve["num_rows"], curve["tokens"]) == (31, [31, 63])
