"""The study of policies: its cells, paired intervals and tables."""

from typing import Any

import numpy as np
import pytest

from benchmarks.policies.cells import GOODPUT_LOADS, Cell
from benchmarks.policies.study import Config, stages
from benchmarks.policies.tables import Found, all_tables, goodput, paired


def cell(**changes: Any) -> Cell:
    values: dict[str, Any] = {"policy": "ProServe", "kind": "chat", "load": 3.0}
    return Cell(**(values | {"condition": "exact", "num_requests": 60} | changes))


def run(bits: str) -> dict[str, Any]:
    share = bits.count("1") / len(bits)
    return {"attained": bits, "attainment": share, "by_class": {}}


def test_a_cell_says_which_requests_attained_their_slo() -> None:
    found = cell().run()
    assert len(found["attained"]) == found["num_requests"] == 54
    assert found["attained"].count("0") == found["num_violations"]
    assert 0 < found["num_violations"] < cell(policy="fcfs").run()["num_violations"]
    assert "length_error" not in found  # they are known


def test_lengths_are_learned_in_real_conditions() -> None:
    errors = [
        cell(condition="real", lengths=lengths, num_requests=30).run()["length_error"]
        for lengths in ("mean", "oracle")
    ]
    mean, oracle = (one["chat"]["mean_abs_error_tokens"] for one in errors)
    assert mean > oracle == 0.0


def test_a_difference_is_paired_by_request() -> None:
    ours, other = run("1" * 50 + "0" * 50), run("1" * 25 + "0" * 75)
    mean, low, high = paired([ours], [other])
    assert (mean, paired([ours], [ours])) == (-25.0, (0.0, 0.0, 0.0))
    assert low < mean < high


def test_goodput_is_where_the_pooled_violations_cross() -> None:
    late = [1, 0, 2, *range(10, 10 * len(GOODPUT_LOADS) - 20, 10)]
    done = [
        (cell(load=load, seed=seed), run("0" * most + "1" * (1000 - most)))
        for load, most in zip(GOODPUT_LOADS, late, strict=True)
        for seed in (1, 2)
    ]
    where = "ProServe", "chat"
    # 5 violations lie between 2 and 10, at 0.4 and 0.55.
    assert goodput(Found(done), *where, 0.005) == pytest.approx(0.4 + 0.15 * 3 / 8)
    assert np.isnan(goodput(Found(done[1:]), *where, 0.005))


def test_tables_leave_out_what_is_not_finished() -> None:
    made = stages(Config())
    assert all(len(set(cells)) == len(cells) for cells in made.values())
    every = {one for cells in made.values() for one in cells}
    done = [
        (one, run("1" * 225))
        for one in every
        if (one.condition, one.kind, one.load) == ("exact", "chat", 1.3)
        and one.policy != "fcfs"
    ]
    table = all_tables(Found(done), ["chat"])["exact"]
    assert "| chat 0.85 | - |" in table
    assert "| **0.0** | - | +0.0 (+0.0 to +0.0) |" in table
