"""The table and the picture of `pad_share`.

The one idea: both are made from the entries that go to the JSON document alone.
"""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib.figure
import numpy as np

from jserve_tools.plots import COLOURS, style_axes

NO_PRIOR = ", no prior"  # what ends the name of a fit to nothing but what was seen


def tables(runs: Sequence[dict[str, Any]]) -> str:
    """Returns Markdown: for each set of traces and policy one table."""
    parts = []
    for traces, policy in dict.fromkeys((run["traces"], run["policy"]) for run in runs):
        here = [
            run for run in runs if (run["traces"], run["policy"]) == (traces, policy)
        ]
        counts = {run["bucket_strategy"]: run["num_edges"] for run in here}
        names = list(counts)
        lines = [
            f"**{policy}, {traces} traces**: padding's share of step time, steps with "
            "prefill (all steps); in bold where a target is met",
            "",
            "| trace | "
            + " | ".join(
                name if name.startswith("fitted") else f"{name} {counts[name]}"
                for name in names
            )
            + " | inside blocks |",
            "| --- |" + " ---: |" * (len(names) + 1),
        ]
        for trace in dict.fromkeys(run["trace"] for run in here):
            by_name = {
                run["bucket_strategy"]: run for run in here if run["trace"] == trace
            }
            cells = [_cell(by_name[name]) for name in names]
            inside = 100 * by_name["pow2"]["block_pad_share_time"]
            lines.append(f"| {trace} | {' | '.join(cells)} | {inside:.1f} % |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(run: dict[str, Any]) -> str:
    share, of_all = run["pad_share_time"], run["pad_share_time_all_steps"]
    text = f"{100 * share:.1f} % ({100 * of_all:.1f})"
    if run["bucket_strategy"].startswith("fitted"):
        text += f" = {run['share_of_pow2']:.2f} x"
    return f"**{text}**" if run.get("is_target_met") else text


def picture(runs: Sequence[dict[str, Any]]) -> bytes:
    """Returns a PNG: bars by trace and strategy, a panel for each table."""
    panels = list(dict.fromkeys((run["policy"], run["traces"]) for run in runs))
    names = [
        name
        for name in dict.fromkeys(run["bucket_strategy"] for run in runs)
        if not name.endswith(NO_PRIOR)
    ]
    figure = matplotlib.figure.Figure(
        figsize=(11, 3.2 * len(panels)), layout="constrained"
    )
    for place, (policy, kind) in enumerate(panels):
        here = [run for run in runs if (run["policy"], run["traces"]) == (policy, kind)]
        traces = list(dict.fromkeys(run["trace"] for run in here))
        axes = figure.add_subplot(len(panels), 1, place + 1)
        style_axes(axes, f"{policy}, {kind} traces", "", "padding, % of prefill steps")
        width = 0.8 / len(names)
        for index, name in enumerate(names):
            shares = [
                100 * run["pad_share_time"]
                for run in here
                if run["bucket_strategy"] == name
            ]
            left = np.arange(len(traces)) + (index - (len(names) - 1) / 2) * width
            axes.bar(left, shares, width, color=COLOURS[index], label=name)
        axes.set_xticks(range(len(traces)), [_short(trace) for trace in traces])
        axes.set_ylim(bottom=0)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside upper right",
        ncols=len(names),
        frameon=False,
        fontsize=9,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _short(trace: str) -> str:
    return "\n".join(trace.split("_")[:2])
