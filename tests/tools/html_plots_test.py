"""What plots show is what the report says."""

import json
from typing import Any

import numpy as np
import pytest

from fake_report import BLOCK_EDGES, POLICIES, fake_report
from jserve_tools.html_plots import Plot, plots


def by_name(report: dict[str, Any]) -> dict[str, Plot]:
    found = plots(report)
    names = [plot.name for plot in found]
    assert len(set(names)) == len(names)
    return {plot.name: plot for plot in found}


def test_a_full_report_has_every_plot_and_its_data_is_json() -> None:
    found = by_name(fake_report())
    steps = [f"{kind}-{policy}" for policy in POLICIES for kind in ("step-tokens",)]
    programs = [f"programs-{policy}" for policy in POLICIES]
    assert set(found) == {
        *("attainment", "classes", "padding", "start-up", "staircase"),
        *steps,
        *programs,
    }
    for plot in found.values():
        assert json.loads(json.dumps(plot.data, allow_nan=False)) == plot.data


def test_numbers_are_the_reports() -> None:
    report = fake_report()
    found = by_name(report)
    for index, run in enumerate(report["runs"]):
        cell = found["attainment"].data["cells"][index]
        assert cell["value"] == pytest.approx(100 * run["attainment"])
        assert cell["ci95"][0] < cell["value"] < cell["ci95"][1]
        bar = found["padding"].data["bars"][index]
        assert bar["time"] == pytest.approx(100 * run["pad_share_time"])
        assert bar["bucket"] + bar["block"] == pytest.approx(bar["tokens"])
    points = found["classes"].data["points"]
    assert len(points) == 2 * len(report["runs"])
    first = report["runs"][0]["by_class"]["batch"]
    assert points[0] | {"ci95": None} == {
        "class": "batch",
        "policy": "fcfs",
        "strategy": "pow2",
        "percent": 100 * (1 - first["num_violations"] / first["num_requests"]),
        "ci95": None,
    }
    bar = found["start-up"].data["bars"][1]
    assert bar["strategy"] == "two_bit"
    cold = report["runs"][4]["start_up"]
    assert bar["cold_warm_s"] == pytest.approx(cold["warm_s"])
    assert bar["cached_ready_s"] < bar["cold_ready_s"] < bar["cold_warm_s"]


def test_stairs_stand_on_the_curve() -> None:
    report = fake_report()
    staircase = by_name(report)["staircase"].data
    assert [table["label"] for table in staircase["tables"]] == list(BLOCK_EDGES)
    seconds = dict(zip(staircase["tokens"], staircase["seconds"], strict=True))
    for table, edges in zip(staircase["tables"], BLOCK_EDGES.values(), strict=True):
        assert table["edges_tokens"] == [32 + 32 * edge for edge in edges]
        for edge, edge_s in zip(table["edges_tokens"], table["edges_s"], strict=True):
            assert edge_s == pytest.approx(seconds[edge])


def test_tables_that_differ_by_policy_are_told_apart() -> None:
    report = fake_report(policies=("fcfs", "sliding"), strategies=("fitted",))
    report["runs"][1]["buckets"]["block_edges"] = [0, 2, 128]
    fcfs, sliding = by_name(report)["staircase"].data["tables"]
    assert (fcfs["label"], sliding["label"]) == (
        "fitted for fcfs",
        "fitted for sliding",
    )
    assert sliding["edges_tokens"] == [32, 96]  # the curve ends at 64 blocks
    assert sliding["num_edges"] == 3


def test_a_table_beyond_the_curve_has_no_stairs() -> None:
    report = fake_report(policies=("fcfs",), strategies=("pow2", "fitted"))
    report["staircase"]["num_rows"] = 4096
    assert "staircase" not in by_name(report)


def test_only_edges_that_ran_have_a_time_in_an_engines_staircase() -> None:
    report = fake_report(policies=("fcfs",), strategies=("pow2",))
    report["staircase"] = {
        "num_rows": 32,
        "tokens": [32, 96, 160],
        "seconds": [0.01, 0.02, 0.03],
        "is_discrete": True,
    }
    plot = by_name(report)["staircase"]
    (table,) = plot.data["tables"]
    assert table["edges_tokens"] == [32, 96, 160]
    assert table["edges_s"] == [0.01, 0.02, 0.03]
    assert table["num_edges"] == len(BLOCK_EDGES["pow2"]) == 8
    assert "no time and no mark" in plot.caption


def test_turns_with_bins_of_different_widths_meet_in_the_widest() -> None:
    report = fake_report(policies=("edf",), strategies=("pow2",))
    (run,) = report["runs"]
    report["runs"] = [
        run | {"step_tokens": one}
        for one in (
            {"edges": [0, 4, 8, 12], "counts": [10, 20, 5]},
            {"edges": [0, 8, 16, 24], "counts": [40, 0, 2]},
            {"edges": [0, 1, 2], "counts": [0, 0]},
        )
    ]
    (panel,) = by_name(report)["step-tokens-edf"].data["panels"]
    assert panel["bins"] == [[0, 8, 70], [8, 16, 5], [16, 24, 2]]


def test_steps_of_turns_add_up() -> None:
    one = fake_report(policies=("edf",), strategies=("pow2",))
    two = fake_report(policies=("edf",), strategies=("pow2",))
    two["runs"] *= 2
    for name, sizes in (("step-tokens-edf", "bins"), ("programs-edf", "programs")):
        (single,) = by_name(one)[name].data["panels"]
        (double,) = by_name(two)[name].data["panels"]
        for before, after in zip(single[sizes], double[sizes], strict=True):
            if sizes == "bins":
                assert after == [*before[:2], 2 * before[2]]
            else:
                assert after == before | {"num_steps": 2 * before["num_steps"]}
    (panel,) = by_name(one)["programs-edf"].data["panels"]
    assert sum(one["percent"] for one in panel["programs"]) == pytest.approx(100)
    (panel,) = by_name(one)["step-tokens-edf"].data["panels"]
    programs = one["runs"][0]["steps_by_program"]
    steps = {p["num_rows"]: p["num_steps"] for p in programs if p["num_blocks"] == 4}
    mean_rows = np.average(list(steps), weights=list(steps.values()))
    assert panel["edges_tokens"][3] == pytest.approx(4 * 32 + mean_rows)


def test_loads_have_plots_of_their_own_and_goodput_has_no_attainment() -> None:
    report = fake_report(policies=("edf",), strategies=("pow2",), loads=(0.9, 1.2))
    names = by_name(report)
    assert {"attainment-at-0-9x", "attainment-at-1-2x", "padding-at-1-2x"} <= set(names)
    for run in report["runs"]:
        run |= {"goodput_qps": run["load"], "goodput_ci95_qps": [0.5, 1.5]}
    names = by_name(report)
    assert {"goodput", "padding"} <= set(names)
    assert not {"attainment", "classes"} & set(names)
    assert names["goodput"].data["cells"] == [
        {"policy": "edf", "strategy": "pow2", "value": 1.05, "ci95": [0.5, 1.5]}
    ]


def test_names_that_read_alike_stay_apart() -> None:
    report = fake_report(policies=("a:b", "a;b"), strategies=("pow2",))
    assert {"programs-a-b", "programs-a-b-2"} <= set(by_name(report))


def test_a_bare_report_has_no_plots() -> None:
    assert plots({"schema_version": 1, "runs": [{"policy": "x", "by_class": {}}]}) == []


@pytest.mark.parametrize(
    ("missing", "plot"),
    [
        ("staircase", "staircase"),
        ("start_up", "start-up"),
        ("step_tokens", "step-tokens-fcfs"),
        ("steps_by_program", "programs-fcfs"),
        ("buckets", "staircase"),
        ("num_requests", "attainment"),
        ("by_class", "classes"),
    ],
)
def test_what_was_not_measured_is_left_out(missing: str, plot: str) -> None:
    report = fake_report(policies=("fcfs",), strategies=("pow2",))
    report.pop(missing, None)
    for run in report["runs"]:
        run.pop(missing, None)
        if missing == "start_up":
            del run["start_up_warm"]
    names = {found.name for found in plots(report)}
    assert plot not in names
    assert "padding" in names
