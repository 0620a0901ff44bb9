"""The annealing study: requests drawn, gains, claims, one tiny run."""

import pathlib
from typing import Any

import pytest

from benchmarks.annealing import reproduce, study
from benchmarks.annealing.task_classes import (
    AZURE,
    CHAT,
    CODE,
    LONG_CODE,
    draw_requests,
)
from benchmarks.marked_pages import fill_page
from jserve_tools.reporting.finished_runs import FinishedRuns
from tests import ROOT
from tests.fakes import make_outcome

FOLDER = ROOT / "benchmarks" / "annealing"


def draw(num_attained: int, total_e2e_s: float) -> dict[str, Any]:
    return {
        "num_requests": 10,
        "num_attained": num_attained,
        "num_attained_mean_tpot": num_attained,
        "total_e2e_s": total_e2e_s,
    }


def test_half_of_the_requests_are_of_either_kind() -> None:
    arrivals = draw_requests(AZURE, num_requests=20, seed=3)
    kinds = [one.service_class for one in arrivals]
    assert kinds.count("code") == kinds.count("chat") == 10
    assert kinds != sorted(kinds)
    assert {one.arrival_s for one in arrivals} == {0.0}
    assert {one.slo for one in arrivals} == {CODE.resolve(), CHAT.resolve()}
    assert arrivals == draw_requests(AZURE, num_requests=20, seed=3)
    assert arrivals != draw_requests(AZURE, num_requests=20, seed=4)
    slow = draw_requests(AZURE, num_requests=20, seed=3, qps=2.0)
    assert [one.max_tokens for one in arrivals] == [one.max_tokens for one in slow]
    times_s = [one.arrival_s for one in slow]
    assert times_s[0] == 0.0 and times_s == sorted(times_s)
    assert times_s[-1] == pytest.approx(10, rel=0.6)
    with pytest.raises(ValueError, match="num_requests=7 is not even"):
        draw_requests(LONG_CODE, num_requests=7, seed=0)


def test_a_draw_is_counted_by_both_rules() -> None:
    late_once = make_outcome(10.9, 11.6, 11.7)
    found = study.summarise([make_outcome(11.0, 11.5), late_once])
    assert (found["num_attained"], found["num_attained_mean_tpot"]) == (1, 2)
    assert found["total_e2e_s"] == pytest.approx(1.5 + 1.7)


def test_draws_are_pooled_and_gains_paired() -> None:
    base = [draw(2, 100.0), draw(4, 200.0)]
    found = study.pool([draw(4, 50.0), draw(8, 100.0)], base)
    assert found["attainment"] == pytest.approx(0.6)
    assert found["mean_e2e_s"] == pytest.approx(7.5)
    assert found["goal_per_s"] == pytest.approx(0.08)
    assert found["attainment_ratio"] == pytest.approx(2.0)
    assert found["attainment_ratio_ci95"] == pytest.approx([2.0, 2.0])
    assert found["latency_ratio"] == pytest.approx(0.5)
    assert study.pool([draw(4, 50.0)], [draw(0, 50.0)])["attainment_ratio"] is None


def test_claims_name_the_best_cell() -> None:
    entries = [
        {
            "study": "at once",
            "mix": "azure",
            "policy": policy,
            "num_requests": number,
            "max_num_seqs": 1,
            **study.pool([draw(num_attained, total_s)], [draw(2, 100.0)]),
        }
        for number, more in ((10, 0), (20, 2))
        for policy, num_attained, total_s in (
            ("fcfs", 2, 100.0),
            ("sjf", 3 + more, 60.0),
            ("annealing", 4 + more, 50.0 + 10 * more),
        )
    ]
    for one in entries[3:4]:
        one.update(study.pool([draw(2, 100.0)], [draw(2, 100.0)]))
    sjf, annealing = study.claims(entries)
    assert annealing["attainment_ratio"] == {
        "median": 2.5,
        "best": 3.0,
        "best_cell": [20, 1],
    }
    assert annealing["latency_ratio"]["best"] == pytest.approx(0.5)
    assert sjf["share"] == pytest.approx((1 / 2 + 3 / 4) / 2)


def test_a_tiny_study_end_to_end(tmp_path: pathlib.Path) -> None:
    config = reproduce.StudyConfig(num_processes=1, output=tmp_path)
    chosen = [
        cell
        for cell in study.cells(2, 1, ("fcfs", "sjf", "annealing"))
        if (cell.study, cell.mix, cell.num_requests) == ("at once", "azure", 10)
        and cell.max_num_seqs == 4
    ]
    runs = FinishedRuns(tmp_path / "runs.jsonl", resumes=True)
    entries = reproduce.run_cells(config, chosen, runs)
    again = FinishedRuns(tmp_path / "runs.jsonl", resumes=True)
    assert reproduce.run_cells(config, chosen, again) == entries
    assert again.num_found == len(chosen)
    found = study.claims(entries)
    tables = reproduce.tables_of(entries, found)
    assert "| reconstructed setting, over fcfs |" in tables["claims"]
    assert "| up to 5 | - | 0.68 |" in tables["claims"]
    places = "".join(
        f"<!-- table: {name} -->\n<!-- end of table -->\n" for name in tables
    )
    assert fill_page(places, tables).count("| --- |") == len(tables)
    page = (FOLDER / "README.md").read_text()
    assert all(f"<!-- table: {name} -->" in page for name in tables)
