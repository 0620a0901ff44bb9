"""The figures: requests at once, Poisson arrivals, wrong lengths, planning time.

The one idea: a policy has one colour and one mark everywhere. What searches is drawn
thicker than what sorts, and the combination dashed, since it often lies on the search.
"""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib.figure
import numpy as np
from studies import BASE, MOST_BELOW, SEARCHED, SORTED
from study_tables import Entries, limit_name, values_of

from jserve_tools.plots import style_axes

# Okabe and Ito's palette: told apart by colour-blind readers too.
_STYLES = {
    "fcfs": ("#999999", "o"),
    "sjf": ("#56B4E9", "v"),
    "edf": ("#0072B2", "s"),
    "laxity": ("#E69F00", "^"),
    "qoserve": ("#D55E00", "P"),
    "sliding": ("#009E73", "X"),
    "annealing": ("#000000", "D"),
    "annealing+sliding": ("#CC79A7", "d"),
}
_DARK = "#222222"
# Of an entry, what the rows of a figure show: a value, its unit, what a table calls it.
_MEASURES = (
    ("attainment", 100.0, "attainment, %"),
    ("mean_e2e_s", 1.0, "mean latency, s"),
    ("goal_per_s", 1000.0, "G, 1/1000 s"),
)


def _figure(width: float, height: float) -> Any:
    return matplotlib.figure.Figure(
        figsize=(width, height), layout="constrained", dpi=110
    )


def _png(figure: Any) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _line(policy: str) -> dict[str, Any]:
    colour, mark = _STYLES[policy]
    return {
        "color": colour,
        "marker": mark,
        "markersize": 5,
        "linewidth": 2.4 if policy == SEARCHED else 1.3,
        "linestyle": (0, (3, 2)) if policy.startswith(f"{SEARCHED}+") else "-",
        "label": policy,
    }


def _legend(figure: Any) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        fontsize=9,
        loc="outside lower center",
        ncols=len(labels) if figure.get_figwidth() > 11 else 4,
    )


def _draw_panels(
    panels: Mapping[str, Entries], key: str, x_label: str, width: float
) -> bytes:
    """Returns a figure: a column for each panel, a row for each measure.

    Args:
      panels: title and entries of each column.
      key: of an entry, what goes along the horizontal axis.
      x_label: what that is called.
      width: of a column, inches.
    """
    figure = _figure(width * max(len(panels), 2), 9.0)
    for row, (value, factor, label) in enumerate(_MEASURES):
        for column, (title, entries) in enumerate(panels.items()):
            places = values_of(entries, key)
            axes = figure.add_subplot(
                len(_MEASURES), len(panels), row * len(panels) + column + 1
            )
            for policy in values_of(entries, "policy"):
                own = {one[key]: one for one in entries if one["policy"] == policy}
                heights = [factor * own[place][value] for place in places]
                axes.plot(range(len(places)), heights, **_line(policy))
            axes.set_ylim(bottom=0)
            if value == "attainment":
                axes.set_ylim(-2, 102)
            axes.set_xticks(range(len(places)), [f"{one:g}" for one in places])
            is_last = row == len(_MEASURES) - 1
            style_axes(
                axes,
                "" if row else title,
                x_label if is_last else "",
                "" if column else label,
            )
    _legend(figure)
    return _png(figure)


def draw_one_shot(entries: Entries, mix: str) -> bytes:
    """Returns each measure over b_max, one column for each N."""
    own = [one for one in entries if one["mix"] == mix]
    panels = {
        f"{mix}: {number} requests at once": [
            one for one in own if one["num_requests"] == number
        ]
        for number in values_of(own, "num_requests")
    }
    return _draw_panels(panels, "max_num_seqs", "b_max", 3.9)


def draw_arrivals(entries: Entries) -> bytes:
    """Returns each measure over the load, one column for each b_max."""
    panels = {
        f"{entries[0]['mix']}, b_max = {limit_name(limit)}": [
            one for one in entries if one["max_num_seqs"] == limit
        ]
        for limit in values_of(entries, "max_num_seqs")
    }
    return _draw_panels(panels, "load", "load, in capacities", 5.2)


def draw_lengths(entries: Entries) -> bytes:
    """Returns attainment in units of `fcfs`'s over what is known of lengths."""
    places = list(dict.fromkeys((one["mix"], one["come"]) for one in entries))
    figure = _figure(4.6 * max(len(places), 2), 4.4)
    for column, (mix, come) in enumerate(places):
        axes = figure.add_subplot(1, len(places), column + 1)
        own = [
            one
            for one in entries
            if (one["mix"], one["come"]) == (mix, come) and one["policy"] != BASE
        ]
        names = values_of(own, "lengths")
        for policy in (SORTED, SEARCHED):
            known = [
                one
                for one in own
                if one["policy"] == policy and one["attainment_ratio"] is not None
            ]
            at = np.array([names.index(one["lengths"]) for one in known])
            ratios = np.array([one["attainment_ratio"] for one in known])
            bounds = np.array([one["attainment_ratio_ci95"] for one in known]).T
            line = _line(policy) | {"linestyle": "none"}
            shift = 0.12 if policy == SEARCHED else -0.12
            axes.errorbar(
                at + shift, ratios, yerr=np.abs(bounds - ratios), capsize=2, **line
            )
        axes.axhline(1.0, color=_DARK, linewidth=0.8)
        axes.axhline(1 - MOST_BELOW, color=_DARK, linewidth=0.8, linestyle=(0, (4, 2)))
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
        label = "" if column else f"attainment, in units of {BASE}'s"
        style_axes(axes, f"{mix}, {come}", "", label)
    _legend(figure)
    return _png(figure)


def draw_all(report: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns every figure that the report's studies allow, by its file name."""
    pictures = {}
    for mix in values_of(report.get("one_shot", []), "mix"):
        pictures[f"one_shot_{mix}.png"] = draw_one_shot(report["one_shot"], mix)
    if report.get("arrivals"):
        pictures["arrivals.png"] = draw_arrivals(report["arrivals"])
    if report.get("lengths"):
        pictures["lengths.png"] = draw_lengths(report["lengths"])
    return pictures
