"""The table and the picture of `pad_share`, from the entries of its JSON document."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import vl_convert

from benchmarks.marked_pages import markdown

NO_PRIOR = ", no prior"  # end of the name of a fit without a prior


def tables(runs: Sequence[dict[str, Any]]) -> str:
    """Returns Markdown, with a table for each set of traces and policy."""
    parts = []
    for traces, policy in dict.fromkeys((run["traces"], run["policy"]) for run in runs):
        here = [
            run for run in runs if (run["traces"], run["policy"]) == (traces, policy)
        ]
        counts = {run["bucket_strategy"]: run["num_edges"] for run in here}
        header = [
            name if name.startswith("fitted") else f"{name} {count}"
            for name, count in counts.items()
        ]
        rows = []
        for trace in dict.fromkeys(run["trace"] for run in here):
            by_name = {
                run["bucket_strategy"]: run for run in here if run["trace"] == trace
            }
            inside = 100 * by_name["pow2"]["block_pad_share_time"]
            cells = [_cell(by_name[name]) for name in counts]
            rows.append([trace, *cells, f"{inside:.1f} %"])
        parts.append(
            f"**{policy}, {traces} traces**: padding's share of step time, steps with "
            "prefill (all steps); in bold where a target is reached\n\n"
            + markdown(["trace", *header, "inside blocks"], rows)
        )
    return "\n\n".join(parts) + "\n"


def _cell(run: dict[str, Any]) -> str:
    share, of_all = run["pad_share_time"], run["pad_share_time_all_steps"]
    text = f"{100 * share:.1f} % ({100 * of_all:.1f})"
    if run["bucket_strategy"].startswith("fitted"):
        text += f" = {run['share_of_pow2']:.2f} x"
    return f"**{text}**" if run.get("is_target_met") else text


def picture(runs: Sequence[dict[str, Any]]) -> bytes:
    """Returns a PNG: bars by trace and strategy, a panel for each table."""
    rows = [
        {
            "panel": f"{run['policy']}, {run['traces']} traces",
            "trace": "\n".join(run["trace"].split("_")[:2]),
            "strategy": run["bucket_strategy"],
            "percent": 100 * run["pad_share_time"],
        }
        for run in runs
        if not run["bucket_strategy"].endswith(NO_PRIOR)
    ]
    order = {name: list(dict.fromkeys(row[name] for row in rows)) for name in rows[0]}
    words = alt.Axis(labelExpr="split(datum.label, '\\n')", labelAngle=0)
    chart = (
        alt.Chart(alt.Data(values=rows), width=900, height=200)
        .mark_bar()
        .encode(
            x=alt.X("trace:N", sort=order["trace"], title=None, axis=words),
            xOffset=alt.XOffset("strategy:N", sort=order["strategy"]),
            y=alt.Y("percent:Q", title="padding, % of prefill steps"),
            color=alt.Color("strategy:N", sort=order["strategy"], title=None),
            row=alt.Row("panel:N", sort=order["panel"], title=None),
        )
        .resolve_scale(x="independent", xOffset="independent")
    )
    return vl_convert.vegalite_to_png(chart.to_dict(), scale=1)
