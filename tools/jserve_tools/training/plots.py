"""Charts of a predictor's training, declared with Altair (extra `report`).

They show the `N` held-out steps: each step's prediction over its
measured median, the network's error in each program, and the share of measurements
below its quantiles.
"""

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import vl_convert

from jserve_sched.steps.features import NUM_BLOCKS, NUM_ROWS, SCENARIOS, scenarios

# Okabe and Ito's palette, which colour-blind readers can distinguish too.
_COLOURS = alt.Scale(domain=SCENARIOS, range=["#0072B2", "#D55E00", "#009E73"])


def predictor_png(predictions: Mapping[str, Any], *, title: str) -> bytes:
    """Returns all charts as one PNG, from the arguments of `report.judge`."""
    predicted_s, matrix = predictions["predicted_s"], predictions["matrix"]
    median_s = np.median(predictions["duration_s"], axis=0)
    all_ms = 1e3 * np.concatenate((median_s, *predicted_s.values()))
    ends_ms = [float(np.min(all_ms)) * 0.8, float(np.max(all_ms)) * 1.25]
    scenario = [SCENARIOS[index] for index in scenarios(matrix).tolist()]
    panels = (
        _predicted_over_measured(name, values_s, median_s, scenario, ends_ms)
        for name, values_s in predicted_s.items()
    )
    charts = alt.vconcat(
        alt.hconcat(*panels),
        alt.hconcat(
            _error_by_program(matrix, np.abs(predicted_s["mlp"] / median_s - 1.0)),
            _calibration(predictions, np.array(scenario)),
        ),
        title=title,
    ).resolve_scale(color="independent")
    return vl_convert.vegalite_to_png(charts.to_dict())


def _predicted_over_measured(
    name: str,
    values_s: np.ndarray,
    median_s: np.ndarray,
    scenario: list[str],
    ends_ms: list[float],
) -> Any:
    error_s = np.abs(values_s - median_s)
    heading = f"{name}: MAE {1e3 * error_s.mean():.2f} ms, median error "
    heading += f"{np.median(error_s / median_s):.1%} (lines: 0.8, 1, 1.25 times)"
    pairs = zip(1e3 * median_s, 1e3 * values_s, scenario, strict=True)
    points = [{"x": x, "y": y, "scenario": one} for x, y, one in pairs]
    ends = [
        {"x": end, "y": factor * end, "factor": factor}
        for factor in (0.8, 1.0, 1.25)
        for end in ends_ms
    ]
    scale = alt.Scale(type="log", domain=ends_ms, nice=False)
    x = alt.X("x:Q", title="measured, median, ms", scale=scale)
    y = alt.Y("y:Q", title="predicted, ms", scale=scale)
    lines = alt.Chart(alt.InlineData(values=ends)).mark_line(
        color="#666666", strokeWidth=0.8, clip=True
    )
    dots = alt.Chart(alt.InlineData(values=points)).mark_circle(size=14, opacity=0.6)
    return alt.layer(
        lines.encode(x, y, detail="factor:N"),
        dots.encode(x, y, alt.Color("scenario:N", scale=_COLOURS)),
    ).properties(title=heading, width=330, height=300)


def _error_by_program(matrix: np.ndarray, error: np.ndarray) -> Any:
    programs, of_step = np.unique(
        matrix[:, [NUM_ROWS, NUM_BLOCKS]], axis=0, return_inverse=True
    )
    entries = []
    for index, (rows, blocks) in enumerate(programs.tolist()):
        own = error[of_step.ravel() == index]
        median = float(np.median(own))
        text = f"{median:.1%} of {own.size}"
        entries.append({"rows": rows, "blocks": blocks, "error": median, "text": text})
    base = alt.Chart(alt.InlineData(values=entries)).encode(
        alt.X("blocks:O", title="prefill blocks", axis=alt.Axis(labelAngle=0)),
        alt.Y("rows:O", title="decode rows", sort="descending"),
    )
    scale = alt.Scale(scheme="blues", domain=(0, 0.3), clamp=True)
    squares = base.mark_rect().encode(alt.Color("error:Q", scale=scale, legend=None))
    ink = alt.condition("datum.error > 0.18", alt.value("white"), alt.value("#222"))
    text = base.mark_text(fontSize=9).encode(text="text:N", color=ink)
    return alt.layer(squares, text).properties(
        title="mlp: median error in each program, of held-out steps",
        width=500,
        height=300,
    )


def _calibration(predictions: Mapping[str, Any], scenario: np.ndarray) -> Any:
    """Shows the share of measurements below the median and each quantile around it."""
    mlp_s = predictions["predicted_s"]["mlp"]
    to_upper = np.maximum(np.log(predictions["upper_s"]["mlp"] / mlp_s), 1e-9)
    place = np.log(predictions["duration_s"] / mlp_s) / to_upper  # [R, N]
    below = [
        {"at": at, "share": float((place[:, scenario == name] <= at).mean())}
        | {"scenario": name}
        for name in np.unique(scenario).tolist()
        for at in np.linspace(-2.0, 3.0, 101).tolist()
    ]
    title = "log time: 0 is the predicted median, 1 the predicted p95"
    x = alt.X("at:Q", title=title)
    y = alt.Y("share:Q", title="measurements below", axis=alt.Axis(format="%"))
    lines = alt.Chart(alt.InlineData(values=below)).mark_line(strokeWidth=1.4)
    wanted = [{"at": 0.0, "share": 0.5}, {"at": 1.0, "share": 0.95}]
    crosses = alt.Chart(alt.InlineData(values=wanted)).mark_point(
        shape="cross", color="black", size=80
    )
    return alt.layer(
        lines.encode(x, y, alt.Color("scenario:N", scale=_COLOURS)),
        crosses.encode(x, y),
    ).properties(
        title="mlp: measurements below its quantiles (crosses: ideal)",
        width=330,
        height=300,
    )
