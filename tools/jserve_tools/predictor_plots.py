"""Charts of a trained predictor, declared with Altair (extra `report`).

All show steps that no model has seen: each step's prediction over its measured median,
the network's error in each program, and how often each quantile of the network holds.

`N` is the number of held-out steps, `R` the rounds.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from jserve_sched.features import NUM_BLOCKS, NUM_ROWS, SCENARIOS, scenarios

_SIZE = {"width": 330, "height": 300}
# Okabe and Ito's palette: told apart by colour-blind readers too.
_SCENARIO = alt.Color(
    "scenario:N",
    scale=alt.Scale(domain=SCENARIOS, range=["#0072B2", "#D55E00", "#009E73"]),
)


def _chart(**columns: Sequence[object] | np.ndarray) -> alt.Chart:
    """Returns a chart without marks over columns of equal length."""
    rows = zip(*(np.asarray(one).tolist() for one in columns.values()), strict=True)
    values = [dict(zip(columns, row, strict=True)) for row in rows]
    return alt.Chart(alt.InlineData(values=values))


def predictor_png(
    predicted_s: Mapping[str, np.ndarray],
    upper_s: Mapping[str, np.ndarray],
    *,
    matrix: np.ndarray,
    duration_s: np.ndarray,
    title: str,
) -> bytes:
    """Returns all charts as one PNG.

    Args:
      predicted_s: `[N]` seconds, by predictor, the network ("mlp") among them.
      upper_s: 95th percentiles `[N]` in seconds, that of the network among them.
      matrix: Features of the steps, `[N, F]`.
      duration_s: Measurements of the steps, `[R, N]` seconds.
      title: One line above all charts.
    """
    scenario = np.array(SCENARIOS)[scenarios(matrix)]
    median_s, mlp_s = np.median(duration_s, axis=0), predicted_s["mlp"]
    to_upper = np.maximum(np.log(upper_s["mlp"] / mlp_s), 1e-9)
    charts = alt.vconcat(
        _predicted_over_measured(predicted_s, median_s, scenario),
        alt.hconcat(
            _error_by_program(matrix, np.abs(mlp_s / median_s - 1.0)),
            _calibration(np.log(duration_s / mlp_s) / to_upper, scenario),
        ),
        title=title,
    ).resolve_scale(color="independent")
    picture = io.BytesIO()
    charts.save(picture, format="png")
    return picture.getvalue()


def _predicted_over_measured(
    predicted_s: Mapping[str, np.ndarray], median_s: np.ndarray, scenario: np.ndarray
) -> Any:
    all_ms = 1e3 * np.concatenate((median_s, *predicted_s.values()))
    ends_ms = np.array([all_ms.min() * 0.8, all_ms.max() * 1.25])
    scale = alt.Scale(type="log", domain=ends_ms.tolist(), nice=False)
    x = alt.X("measured:Q", title="measured, median, ms", scale=scale)
    y = alt.Y("predicted:Q", title="predicted, ms", scale=scale)
    lines = [
        _chart(measured=ends_ms, predicted=factor * ends_ms)
        .mark_line(color="#666666", strokeWidth=0.8, clip=True)
        .encode(x, y)
        for factor in (0.8, 1.0, 1.25)
    ]
    panels = []
    for name, values_s in predicted_s.items():
        error_s = np.abs(values_s - median_s)
        heading = f"{name}: MAE {1e3 * error_s.mean():.2f} ms, median error "
        heading += f"{np.median(error_s / median_s):.1%} (lines: 0.8, 1, 1.25 times)"
        points = (
            _chart(measured=1e3 * median_s, predicted=1e3 * values_s, scenario=scenario)
            .mark_circle(size=14, opacity=0.6)
            .encode(x, y, _SCENARIO)
        )
        panels.append(alt.layer(*lines, points).properties(title=heading, **_SIZE))
    return alt.hconcat(*panels)


def _error_by_program(matrix: np.ndarray, error: np.ndarray) -> Any:
    programs = matrix[:, [NUM_ROWS, NUM_BLOCKS]]
    found, of_step = np.unique(programs, axis=0, return_inverse=True)
    of_program = [error[of_step.ravel() == index] for index in range(len(found))]
    medians = [float(np.median(one)) for one in of_program]
    base = _chart(
        rows=found[:, 0],
        blocks=found[:, 1],
        error=medians,
        text=[
            f"{median:.1%} of {one.size}"
            for median, one in zip(medians, of_program, strict=True)
        ],
    ).encode(
        alt.X("blocks:O", title="prefill blocks", axis=alt.Axis(labelAngle=0)),
        alt.Y("rows:O", title="decode rows", sort="descending"),
    )
    scale = alt.Scale(scheme="blues", domain=(0, 0.3), clamp=True)
    squares = base.mark_rect().encode(alt.Color("error:Q", scale=scale, legend=None))
    ink = alt.condition("datum.error > 0.18", alt.value("white"), alt.value("#222"))
    text = base.mark_text(fontSize=9).encode(text="text:N", color=ink)
    return alt.layer(squares, text).properties(
        title="mlp: median error in each program, of held-out steps",
        **{**_SIZE, "width": 500},
    )


def _calibration(place: np.ndarray, scenario: np.ndarray) -> Any:
    """Shows how many measurements lie below each multiple of the step to the p95.

    Args:
      place: `[R, N]` log time, 0 at the predicted median and 1 at the predicted p95.
      scenario: `[N]` name of each step's scenario.
    """
    at = np.linspace(-2.0, 3.0, 101)
    x = alt.X("at:Q", title="log time: 0 is the predicted median, 1 the predicted p95")
    y = alt.Y("share:Q", title="measurements below", axis=alt.Axis(format="%"))
    lines = [
        _chart(
            at=at,
            share=(place[:, scenario == name, None] <= at).mean(axis=(0, 1)),
            scenario=[name] * at.size,
        )
        .mark_line(strokeWidth=1.4)
        .encode(x, y, _SCENARIO)
        for name in np.unique(scenario).tolist()
    ]
    wanted = _chart(
        at=[0.0, 1.0],
        share=[0.5, 0.95],
        text=[
            f"{(place <= 0).mean():.1%} below, 50% wanted",
            f"{(place <= 1).mean():.1%} below, 95% wanted",
        ],
    ).encode(x, y)
    crosses = wanted.mark_point(shape="cross", color="black", size=80)
    text = wanted.mark_text(align="left", dx=8, dy=14).encode(text="text:N")
    return alt.layer(*lines, crosses, text).properties(
        title="mlp: single measurements below its quantiles", **_SIZE
    )
