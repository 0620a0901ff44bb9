"""Marks on the figures have the sizes that the data says."""

import math
from typing import Any

import numpy as np
import pytest

from fake_report import fake_report
from jserve_tools.html_figures import draw
from jserve_tools.html_panels import digits, wrapped
from jserve_tools.html_plots import plots


def marks(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the artists with an id, by that id, and the data of a plot."""
    report = fake_report(policies=("fcfs", "sliding"), strategies=("pow2", "fitted"))
    (plot,) = [plot for plot in plots(report) if plot.name == name]
    found = {
        artist.get_gid(): artist
        for artist in draw(plot).findobj(lambda one: one.get_gid() is not None)
        if not artist.get_gid().startswith("legend")
    }
    return found, dict(plot.data)


def test_heat_map() -> None:
    drawn, data = marks("attainment")
    assert len(drawn) == len(data["cells"]) == 4
    for index, cell in enumerate(data["cells"]):
        text = drawn[f"mark-{index}"]
        x, y = text.get_position()
        assert data["policies"][int(x)] == cell["policy"]
        assert data["strategies"][int(y)] == cell["strategy"]
        assert text.get_text().startswith(f"{cell['value']:.1f}\n")


def test_classes() -> None:
    drawn, data = marks("classes")
    assert len(drawn) == len(data["points"]) == 8
    for index, point in enumerate(data["points"]):
        assert drawn[f"mark-{index}"].get_ydata() == [point["percent"]]
        low, high = drawn[f"mark-{index}"].axes.get_ylim()
        assert low < point["ci95"][0] and point["ci95"][1] < high


def test_padding() -> None:
    drawn, data = marks("padding")
    assert len(drawn) == 3 * len(data["bars"]) == 12
    for index, bar in enumerate(data["bars"]):
        for part in ("bucket", "block", "time"):
            assert drawn[f"mark-{index}-{part}"].get_height() == bar[part]
        assert drawn[f"mark-{index}-block"].get_y() == bar["bucket"]


def test_start_up() -> None:
    drawn, data = marks("start-up")
    assert len(drawn) == 4 * len(data["bars"]) == 8
    for index, bar in enumerate(data["bars"]):
        for part in ("cold_ready_s", "cold_warm_s", "cached_ready_s", "cached_warm_s"):
            name = part.replace("_", "-", 1)
            assert drawn[f"mark-{index}-{name}"].get_width() == bar[part]


def test_staircase() -> None:
    drawn, data = marks("staircase")
    assert len(drawn) == len(data["tables"]) == 2
    for index, table in enumerate(data["tables"]):
        mark = drawn[f"mark-{index}"]
        assert mark.get_xdata().tolist() == table["edges_tokens"]
        np.testing.assert_allclose(mark.get_ydata(), 1e3 * np.array(table["edges_s"]))
        stairs = mark.axes.lines[1].get_xydata()
        curve = np.interp(stairs[:, 0], data["tokens"], data["seconds"]) * 1e3
        assert np.all(stairs[:, 1] >= curve - 1e-9)
        assert set(np.round(stairs[:, 1], 9)) == set(np.round(mark.get_ydata(), 9))


def test_step_tokens() -> None:
    drawn, data = marks("step-tokens-sliding")
    for number, panel in enumerate(data["panels"]):
        total = sum(count for _, _, count in panel["bins"])
        bars = {name: one for name, one in drawn.items() if f"mark-{number}-" in name}
        assert len(bars) == sum(count > 0 for _, _, count in panel["bins"]) > 5
        for index, (low, high, count) in enumerate(panel["bins"]):
            if count:
                bar = bars[f"mark-{number}-{index}"]
                assert bar.get_height() == pytest.approx(100 * count / total)
                assert (bar.get_x(), bar.get_width()) == (low, high - low)
        (axes,) = {bar.axes for bar in bars.values()}
        edges = [line.get_xdata()[0] for line in axes.lines]
        assert edges == panel["edges_tokens"]


def test_programs() -> None:
    drawn, data = marks("programs-fcfs")
    depths = []
    for number, panel in enumerate(data["panels"]):
        for index, one in enumerate(panel["programs"]):
            mark = drawn.pop(f"mark-{number}-{index}", None)
            assert (mark is None) == (one["num_steps"] == 0)
            if mark is not None:
                column, row = math.ceil(mark.get_x()), math.ceil(mark.get_y())
                assert panel["block_edges"][column] == one["num_blocks"]
                assert panel["row_edges"][row] == one["num_rows"]
                depths.append((one["percent"], mark.get_alpha()))
    assert not drawn and len(depths) > 50
    ordered = [alpha for _, alpha in sorted(depths)]
    assert ordered == sorted(ordered) and ordered[0] < ordered[-1]


def test_long_names_are_broken_after_signs() -> None:
    assert wrapped("pow2") == "pow2"
    assert wrapped("pad_limit:relative=0.25", 12) == "pad_limit:\nrelative=\n0.25"
    assert wrapped("a" * 20, 8) == "aaaaaaaa\naaaaaaaa\naaaa"
    assert wrapped("a\x00b\n") == "a?b?"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.00"), (0.0042, "0.0042"), (2.5, "2.50"), (42.42, "42.4"), (1234, "1,234")],
)
def test_digits(value: float, text: str) -> None:
    assert digits(value) == text


def test_an_engines_staircase_has_marks_and_no_stairs() -> None:
    report = fake_report(policies=("fcfs",), strategies=("pow2",))
    report["staircase"] |= {"tokens": [32, 96], "seconds": [0.1, 0.2]}
    report["staircase"]["is_discrete"] = True
    (plot,) = [one for one in plots(report) if one.kind == "staircase"]
    (axes,) = draw(plot).axes
    curve, marks = axes.lines  # and nothing between two edges
    assert marks.get_xdata().tolist() == curve.get_xdata().tolist() == [32, 96]
    assert not axes.collections
    assert axes.get_title(loc="left").startswith("pow2: 8 edges")
