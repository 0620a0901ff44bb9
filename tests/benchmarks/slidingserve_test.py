"""The reproduction of SlidingServe's tables: tuning, pooling, pages, one tiny run."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from benchmarks.marked_pages import fill_page
from benchmarks.slidingserve import cells, paper, pictures, rows, stages, tuning
from benchmarks.slidingserve.tuning import (
    Choice,
    Settings,
    TuneTask,
    read_settings,
    write_settings,
)
from jserve_sched.simulation.goodput import RateGrid
from tests import ROOT
from tests.programs import finish, start

FOLDER = ROOT / "benchmarks" / "slidingserve"


def choice(**changes: Any) -> Choice:
    values: dict[str, Any] = {
        "shape": cells.CONTINUOUS,
        "workload": "mixed_v1",
        "row": "qoserve",
        "limit_tokens": 384,
        "options": {"alpha_s_per_token": 0.001},
        "qps": 4.5,
        "num_tried": 3,
        "seed": 0,
        "num_requests": 100,
        "commit": None,
    }
    return Choice(**(values | changes))


def goodput_entry(row: str, *qps: float, shape: str = cells.CONTINUOUS) -> Any:
    return {
        "shape": shape,
        "workload": "mixed_v1",
        "row": row,
        "qps": sum(qps) / len(qps),
        "ci95_qps": None,
        "seeds": [{"seed": i + 1, "qps": one} for i, one in enumerate(qps)],
    }


def load_result(num_violations: int, late_s: list[float]) -> dict[str, Any]:
    return {
        "num_requests": 10,
        "num_violations": num_violations,
        "num_unserved": 0,
        "on_time_ttft_s": [1.0] * (10 - len(late_s)),
        "late_ttft_s": late_s,
    }


def test_settings_come_back_from_their_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "settings.json"
    assert read_settings(path).choices == ()
    settings = Settings([choice(), choice(limit_tokens=192)])
    write_settings(path, settings)
    read = read_settings(path)
    assert [one.limit_tokens for one in read.choices] == [192]
    server = read.server(cells.CONTINUOUS, "mixed_v1", rows.QOSERVE)
    assert server["policy"] == "qoserve:alpha_s_per_token=0.001"
    assert server["predictor"] == "oracle"
    server = read.server(cells.CONTINUOUS, "mixed_v1", rows.LINEAR)
    assert (server["policy"], server["predictor"]) == ("sliding", "linear")
    assert server["limit_tokens"] == cells.FULL_STEP_TOKENS
    with pytest.raises(ValueError, match="no settings for 'edf' on mixed_v1"):
        read.server(cells.CONTINUOUS, "mixed_v1", rows.EDF)


class Landscape:
    """Goodputs by formula, in place of simulations."""

    def __init__(self) -> None:
        self.grid = RateGrid(resolution=0.02)
        self.num_searches = 0

    def qps(self, cell: cells.Cell) -> float:
        height = 10.0 - abs(cell.limit_tokens - 310) / 100
        height += 2.0 * ("alpha=0.2" in cell.policy)
        return self.grid.qps(self.grid.nearest(max(height, 1.0)))

    def run(self, cell: cells.Cell) -> dict[str, Any]:
        if cell.kind == "pass":
            return {"passes": cell.qps <= self.qps(cell) + 1e-9}
        self.num_searches += 1
        return {"qps": self.qps(cell)}


def test_tuning_finds_the_top_of_a_smooth_landscape() -> None:
    landscape = Landscape()
    task = TuneTask(
        row=rows.PUBLISHED,
        workload="mixed_v1",
        shape=cells.CONTINUOUS,
        seed=0,
        num_requests=100,
        resolution=0.02,
    )
    found = tuning.Choice(**task.run(landscape.run))
    assert found.limit_tokens == 320
    assert found.options == {"alpha": 0.2}
    assert found.qps == pytest.approx(12.0, rel=0.02)
    assert found.row == rows.PUBLISHED.name
    # What is no better costs one probe, not a search.
    assert landscape.num_searches < found.num_tried


def test_pooling_adds_the_seeds_up() -> None:
    found = stages.pooled([load_result(2, [5.0, 7.0]), load_result(4, [9.0])])
    assert found["percent"] == pytest.approx(30.0)
    assert found["seeds_percent"] == pytest.approx([20.0, 40.0])
    low, high = found["percent_ci95"]
    assert 10 < low < 30 < high < 55
    assert found["num_served_late"] == 3
    assert found["late_ttft_s"]["p50"] == pytest.approx(7.0)
    assert found["ttft_s"]["p50"] == pytest.approx(1.0)


def test_ratios_are_paired_by_seed() -> None:
    entries = [goodput_entry("qoserve", 2.0, 4.0), goodput_entry("sliding", 3.0, 4.0)]
    (found,) = stages.ratios(entries)
    assert (found["row"], found["base"]) == ("sliding", "qoserve")
    assert found["ratio"] == pytest.approx(1.25)
    assert (found["lowest"], found["highest"]) == (1.0, 1.5)
    assert found["paper"][paper.QWEN] == pytest.approx(1.95 / 1.70)
    entries[0] = goodput_entry("qoserve", 2.0, 0.0)
    assert stages.ratios(entries) == []


def test_the_page_has_a_place_for_every_table() -> None:
    page = (FOLDER / "README.md").read_text()
    names = {"settings", "seeds", "transient"} | {
        f"{table}-{shape}"
        for table in ("goodput", "ratios", "ablation", "overload", "ttft")
        for shape in (cells.CONTINUOUS, cells.BUCKETS)
    }
    filled = fill_page(page, {name: f"= {name} =" for name in names})
    assert {name for name in names if f"= {name} =" in filled} == names


def test_a_tiny_reproduction_end_to_end(tmp_path: pathlib.Path) -> None:
    names = [row.name for row in (*rows.MAIN_ROWS, *rows.ABLATION_ROWS)]
    settings = tmp_path / "settings.json"
    write_settings(settings, Settings([choice(row=name, options={}) for name in names]))
    output = tmp_path / "results"
    output.mkdir()
    (output / "README.md").write_text(
        "<!-- table: transient -->\n<!-- end of table -->\n"
    )
    _, last = finish(
        start(
            *("-m", "benchmarks.slidingserve.reproduce", "--workloads=mixed_v1"),
            *("--shapes=continuous", "--num_requests=20", "--num_seeds=1"),
            *("--resolution=0.5", "--transient_s=6", "--num_processes=1"),
            *(f"--settings={settings}", f"--output={output}"),
        )
    )
    report = json.loads((output / "results.json").read_text())
    assert last["output"] == str(output)
    assert {one["row"] for one in report["goodput"]} == {
        "edf",
        "qoserve",
        "sliding, as published",
        "sliding",
        "sliding, linear predictor",
    }
    assert [one["row"] for one in report["ablation"]][1:3] == [
        "+ SlidingChunker",
        "+ MLPS",
    ]
    assert len(report["overload"]) == 12
    assert "| continuous, edf |" in (output / "README.md").read_text()
    assert set(pictures.draw_all(report)) == {
        name.name for name in output.glob("*.png")
    }


def test_levels_take_turns() -> None:
    arrivals = cells.at_levels(
        cells._unit_arrivals("mixed_v1", 0, 3000),
        (1.0, 2.5),
        period_s=120.0,
        duration_s=1200.0,
    )
    times_s = np.array([one.arrival_s for one in arrivals])
    assert np.all(np.diff(times_s) >= 0) and times_s[-1] <= 1200.0
    counts = np.histogram(times_s, np.arange(0, 1201, 120))[0]
    assert counts[::2].sum() == pytest.approx(600, rel=0.1)
    assert counts[1::2].sum() == pytest.approx(1500, rel=0.1)
    with pytest.raises(ValueError, match="about 2100 come"):
        cells.at_levels(
            cells._unit_arrivals("mixed_v1", 0, 1000),
            (1.0, 2.5),
            period_s=120.0,
            duration_s=1200.0,
        )
