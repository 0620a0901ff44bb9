"""The annealing studies: requests drawn, gains, shares, tables, one tiny run."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks" / "annealing"
sys.path.insert(0, str(FOLDER))

import gains  # noqa: E402
import ranking  # noqa: E402
import revise_time  # noqa: E402
import served  # noqa: E402
import studies  # noqa: E402
import study_tables  # noqa: E402
from task_classes import AZURE, CHAT, CODE, LONG_CODE, draw_requests  # noqa: E402

from jserve_sched.annealing_kernel import PYTHON_KERNEL  # noqa: E402
from jserve_sched.report import Outcome  # noqa: E402
from jserve_sched.request import Request  # noqa: E402
from jserve_sched.slo import Slo  # noqa: E402
from jserve_tools.machines import gpu_cost_model  # noqa: E402
from jserve_tools.marked_pages import fill_page  # noqa: E402

PAGE_TABLES = {
    *(
        f"one-shot-{mix}-{measure}"
        for mix in ("azure", "long-code")
        for measure in ("attainment", "latency", "goal")
    ),
    *(f"arrivals-{measure}" for measure in ("attainment", "latency", "goal")),
    *(
        "claims",
        "shares",
        "search",
        "lengths",
        "lengths-latency",
        "plan-time",
        "served-plans",
        "engine",
    ),
}


def draw(num_met: int, total_e2e_s: float, num_met_chat: int = 0) -> dict[str, Any]:
    return {
        "num_requests": 10,
        "num_met": num_met,
        "num_met_mean_tpot": num_met + 1,
        "num_chat": 5,
        "num_met_chat": num_met_chat,
        "total_e2e_s": total_e2e_s,
        "max_e2e_s": total_e2e_s / 2,
    }


def outcome(slo: Slo, *times_s: float) -> Outcome:
    return Outcome(
        service_class="x",
        slo=slo,
        arrival_s=1.0,
        num_prompt_tokens=5,
        max_tokens=len(times_s),
        token_times_s=times_s,
    )


def test_half_of_the_requests_are_of_either_kind() -> None:
    arrivals = draw_requests(AZURE, num_requests=20, seed=3)
    kinds = [one.service_class for one in arrivals]
    assert kinds.count("code") == kinds.count("chat") == 10
    assert kinds != sorted(kinds)
    assert {one.arrival_s for one in arrivals} == {0.0}
    assert {one.slo for one in arrivals} == {CODE.resolve(), CHAT.resolve()}
    assert arrivals == draw_requests(AZURE, num_requests=20, seed=3)
    assert arrivals != draw_requests(AZURE, num_requests=20, seed=4)


def test_a_rate_spreads_the_same_requests() -> None:
    at_once = draw_requests(AZURE, num_requests=200, seed=1)
    slow = draw_requests(AZURE, num_requests=200, seed=1, qps=2.0)
    assert [one.max_tokens for one in at_once] == [one.max_tokens for one in slow]
    times_s = [one.arrival_s for one in slow]
    assert times_s[0] == 0.0 and times_s == sorted(times_s)
    assert times_s[-1] == pytest.approx(100, rel=0.3)


def test_long_code_answers_are_long() -> None:
    def code_tokens(mix: Any) -> float:
        arrivals = draw_requests(mix, num_requests=100, seed=0)
        return float(
            np.mean([one.max_tokens for one in arrivals if one.service_class == "code"])
        )

    assert code_tokens(LONG_CODE) > 10 * code_tokens(AZURE)


def test_requests_come_in_pairs_and_not_without_end() -> None:
    with pytest.raises(ValueError, match="num_requests=7 is not even"):
        draw_requests(AZURE, num_requests=7, seed=0)
    with pytest.raises(ValueError, match=r"azure_code\.csv, which has 1000"):
        draw_requests(AZURE, num_requests=2002, seed=0)


def test_a_draw_is_counted_by_both_rules() -> None:
    late_once = outcome(Slo(ttft_s=1.0, tbt_s=1.0), 1.9, 3.1, 3.2)
    found = gains.summarise([outcome(Slo(ttlt_s=3.0), 2.0, 3.0), late_once])
    assert found["num_met"] == 1 and found["num_met_chat"] == 0
    assert found["num_met_mean_tpot"] == 2
    assert found["total_e2e_s"] == pytest.approx(2.0 + 2.2)


def test_draws_are_pooled_and_goals_averaged() -> None:
    found = gains.pool([draw(5, 10.0, 2), draw(10, 40.0, 5)])
    assert found["attainment"] == pytest.approx(0.75)
    assert found["attainment_mean_tpot"] == pytest.approx(0.85)
    assert found["attainment_code"] == pytest.approx(0.8)
    assert found["mean_e2e_s"] == pytest.approx(2.5)
    assert found["goal_per_s"] == pytest.approx((0.5 + 0.25) / 2)


def test_gains_are_paired_by_draw() -> None:
    base = [draw(2, 100.0), draw(4, 200.0)]
    found = gains.compare([draw(4, 50.0), draw(8, 100.0)], base)
    assert found["attainment_ratio"] == pytest.approx(2.0)
    assert found["attainment_ratio_ci95"] == pytest.approx([2.0, 2.0])
    assert found["latency_change"] == pytest.approx(-0.5)
    nothing = gains.compare([draw(4, 50.0)], [draw(0, 50.0)])
    assert nothing["attainment_ratio"] is None
    assert nothing["latency_change"] == pytest.approx(0.0)


def test_a_share_needs_a_gain() -> None:
    fcfs = gains.pool([draw(2, 100.0)])
    found = gains.share_of_gain(
        gains.pool([draw(5, 60.0)]), fcfs, gains.pool([draw(6, 50.0)])
    )
    assert found["share_of_attainment"] == pytest.approx(0.75)
    assert found["share_of_latency"] == pytest.approx(0.8)
    assert gains.share_of_gain(fcfs, fcfs, fcfs) == {
        "share_of_attainment": None,
        "share_of_latency": None,
    }


def test_claims_name_the_best_cell() -> None:
    def entry(policy: str, number: int, num_met: int, total_s: float) -> dict[str, Any]:
        cell = {"mix": "azure", "num_requests": number, "max_num_seqs": 1}
        one = cell | {"policy": policy} | gains.pool([draw(num_met, total_s)])
        return one | gains.compare([draw(num_met, total_s)], [draw(2, 100.0)])

    entries = [
        entry(policy, number, num_met, total_s)
        for number, more in ((10, 0), (20, 2))
        for policy, num_met, total_s in (
            ("fcfs", 2, 100.0),
            ("sjf", 3 + more, 60.0),
            ("annealing", 4 + more, 50.0 + 10 * more),
        )
    ]
    sjf, annealing = studies.claims_found(entries)
    assert annealing["attainment_ratio"] == {
        "median": 2.5,
        "best": 3.0,
        "best_cell": {"num_requests": 20, "max_num_seqs": 1},
    }
    assert annealing["latency_change"]["best"] == pytest.approx(-0.5)
    assert sjf["share_of_attainment"] == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert "| up to 5 |" in study_tables.claims_table([sjf, annealing])


def test_a_machine_asked_twice_says_the_same() -> None:
    model = gpu_cost_model(served.MACHINE)
    machine = served.RememberingMachine(model, 4)
    assert machine.max_num_seqs == 4 and machine.num_kv_tokens == model.num_kv_tokens
    arrivals = draw_requests(AZURE, num_requests=2, seed=0)
    setup = served.Setup(policy="fcfs", max_num_seqs=2)
    assert served.serve(setup, arrivals, seed=0) == served.serve(
        setup, arrivals, seed=0
    )
    rows = np.ones((2, 16))
    first = machine.step_s(rows, 1)
    first += 1.0  # whoever was told may do with it as it likes
    np.testing.assert_array_equal(machine.step_s(rows, 1), model.step_s(rows, 1))


def test_planning_times_are_those_of_the_faster_kernel() -> None:
    def kernel(p50_ms: float) -> dict[str, Any]:
        found = {
            "p50_ms": p50_ms,
            "goal_to_sorted": 1.05,
            "goal_to_long": 0.98,
            "num_proposals": 7,
        }
        return {
            "proposals_per_s": 9,
            "start": found | {"p50_ms": 0.3, "num_proposals": 0},
            "default": found,
            "1_ms": found | {"p50_ms": 1.4, "num_proposals": 0},
            "2_ms": found | {"p50_ms": 2.1},
        }

    entry = {"num_requests": 20, "max_batch": 4}
    document = {
        "default_proposals": 10000,
        "entries": [entry | {"python": kernel(12.0), "compiled": kernel(0.5)}],
    }
    assert (
        "| N = 20, b_max = 4 | 12.0 | 0.5 | 1.05 | 0.98 | 0.3 "
        "| 0.98, 1.4, nothing tried | 0.98, 2.1 |"
    ) in study_tables.plan_time_table(document)


def test_a_servers_policy_searches_a_window_of_a_long_queue() -> None:
    requests = [
        Request(
            request_id=str(index),
            arrival_s=0.0,
            prompt_tokens=np.zeros(20 + index % 7, np.int32),
            max_tokens=10 + index % 50,
            slo=Slo(ttlt_s=1.0 + index % 5),
        )
        for index in range(300)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jserve.planning.best_kernel", lambda: PYTHON_KERNEL)
        patch.setattr("jserve.planning.proposals_per_s", lambda *_: 1e4)
        row = revise_time.time_revisions(
            requests, max_num_seqs=8, budget_ms=3.0, num_times=3
        )
    assert (row["num_waiting"], row["max_num_seqs"], row["window"]) == (300, 8, 256)
    assert 0 <= row["num_proposals"] <= 30
    assert 0.0 < row["p50_ms"] <= row["max_ms"]
    table = study_tables.served_plans_table({"served": [row]})
    assert "| 300 waiting, 8 slots | 256 | 3 |" in table


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--budgets_ms=soon", "budgets_ms=soon is not numbers"),
        ("--num_requests=1.5", "num_requests: 1.5 is not a whole number"),
    ],
)
def test_a_plan_to_time_that_makes_no_sense_is_refused(flag: str, message: str) -> None:
    program = subprocess.run(
        [sys.executable, str(FOLDER / "plan_time.py"), flag],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert program.returncode == 1
    assert message in program.stderr
    assert len(program.stderr.splitlines()) == 1


def test_turns_of_an_engine_are_pooled_and_ranked() -> None:
    def run(policy: str, num_violations: int) -> dict[str, Any]:
        return {
            "policy": policy,
            "num_requests": 10,
            "num_violations": num_violations,
            "attainment": 1 - num_violations / 10,
            "e2e_s": {"mean": float(num_violations)},
        }

    runs = [run("fcfs", 8), run("sjf", 2), run("fcfs", 6), run("sjf", 3)]
    first, second = ranking.pool_runs(runs)
    assert (first["policy"], second["policy"]) == ("sjf", "fcfs")
    assert first["attainment"] == pytest.approx(0.75)
    assert second["mean_e2e_s"] == pytest.approx(7.0)
    assert "| engine: sjf | 1 | 75.0 (" in ranking.ranking_table(
        {"engine": [first, second]}
    )


def test_the_page_has_a_place_for_every_table() -> None:
    page = (FOLDER / "README.md").read_text()
    filled = fill_page(page, {name: f"= {name} =" for name in PAGE_TABLES})
    assert {name for name in PAGE_TABLES if f"= {name} =" in filled} == PAGE_TABLES


def test_wrong_lengths_are_compared_with_the_same_requests() -> None:
    plan = studies.Plan(
        one_shot={"azure": (4,)},
        num_draws=1,
        num_arrivals=4,
        num_seeds=1,
        lengths_mixes=("azure",),
        lengths_requests=4,
    )
    tasks: list[Any] = []

    def run_all(some: Any) -> list[dict[str, Any]]:
        tasks.extend(some)
        return [
            {"qps": 2.0}
            if isinstance(one, served.CapacityTask)
            else {"draws": [draw(5 - (one.setup.policy == "sjf"), 50.0, 2)]}
            for one in some
        ]

    entries = studies.Studies(plan, run_all).lengths()
    told = [one for one in tasks if getattr(one, "qps", None)]
    assert {one.qps for one in told} == {2.0}
    assert {one.setup.declared_max_tokens for one in told} == {2048}
    assert {one.setup.lengths for one in told} >= {"oracle:factor=10", "quantile"}
    by_policy = {one["policy"]: one for one in entries}
    assert by_policy["sjf"]["attainment_ratio"] == pytest.approx(0.8)
    assert by_policy["sjf"]["is_far_below"]
    assert not by_policy["annealing"]["is_far_below"]
    table = study_tables.lengths_table(entries)
    assert "| fcfs | 50.0 | 50.0 |" in table
    assert "| quantile: sjf | - | 40.0 (0.80) **below** |" in table


def test_a_tiny_study_end_to_end(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("<!-- table: arrivals-latency -->\n<!-- end of table -->\n")
    done = subprocess.run(
        [
            sys.executable,
            str(FOLDER / "reproduce.py"),
            "--studies=arrivals",
            "--policies=fcfs,sjf,annealing",
            "--num_seeds=1",
            "--num_arrivals=20",
            "--num_processes=1",
            f"--cells={tmp_path / 'cells.jsonl'}",
            f"--output={tmp_path}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1])["num_cells_found"] == 0
    report = json.loads((tmp_path / "results.json").read_text())
    assert len(report["arrivals"]) == 2 * 5 * 3
    assert "| mean latency, s | fcfs | sjf | annealing |" in page.read_text()
    assert (tmp_path / "arrivals.png").exists()
    cells = (tmp_path / "cells.jsonl").read_text().splitlines()
    assert len(cells) == 2 + 2 * 5 * 3


def test_a_study_without_its_base_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "reproduce.py"), "--policies=sjf,annealing"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "--policies lacks fcfs" in done.stderr
