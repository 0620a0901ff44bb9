"""How well predictors do on steps they never saw.

The one idea: a step is compared twice. With the *median* of its repeats, which is what
a perfect predictor says; and with each *single* measurement, which is what a server
meets and where even a perfect predictor is off by the repeats' spread. The ratio of the
two errors says how much is left to learn.

`N` is the number of held-out steps, `R` the rounds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jserve_sched.buckets import BucketTable
from jserve_sched.features import SCENARIOS, scenarios
from jserve_sched.predictor import StepSample
from jserve_sched.table_predictor import TablePredictor
from jserve_tools.samples import TRAIN, Samples
from jserve_tools.step_timer import repeat_spread
from jserve_tools.tables import render

_NORMAL_975 = 1.959964  # two-sided 95 % of a normal distribution
ALL = "all"


def wilson_interval(num_hits: int, num_trials: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share.

    Source: Wilson, *Probable inference, the law of succession, and statistical
    inference* (1927).
    """
    z2 = _NORMAL_975**2
    share = num_hits / num_trials
    middle = (share + z2 / (2 * num_trials)) / (1 + z2 / num_trials)
    half = (
        _NORMAL_975
        / (1 + z2 / num_trials)
        * math.sqrt(share * (1 - share) / num_trials + z2 / (4 * num_trials**2))
    )
    return max(middle - half, 0.0), min(middle + half, 1.0)


def errors(predicted_s: np.ndarray, measured_s: np.ndarray) -> dict[str, float]:
    """Returns how far predictions are from measurements of any equal shape, in s.

    R^2 is left out where the measurements do not differ.
    """
    error_s = predicted_s - measured_s
    relative = np.abs(error_s) / measured_s
    found = {
        "mae_ms": float(np.abs(error_s).mean()) * 1e3,
        "rmse_ms": float(np.sqrt(np.square(error_s).mean())) * 1e3,
        "mape": float(relative.mean()),
        "median_ape": float(np.median(relative)),
        "p95_ape": float(np.quantile(relative, 0.95)),
    }
    total = float(np.square(measured_s - measured_s.mean()).sum())
    if total > 0:
        found["r2"] = 1.0 - float(np.square(error_s).sum()) / total
    return found


def coverage(upper_s: np.ndarray, measured_s: np.ndarray) -> dict[str, Any]:
    """Returns the share of measurements `[R, N]` at most `upper_s` `[N]`."""
    hits = measured_s <= upper_s
    return {
        "share": float(hits.mean()),
        "ci95": wilson_interval(int(hits.sum()), hits.size),
        "num_samples": hits.size,
    }


def learned_table(
    samples: Samples, table: BucketTable, *, max_pages_per_row: int
) -> TablePredictor:
    """Returns a server's table predictor that has seen the training steps.

    It knows the timed pass of a server's start, and learned online from all rounds of
    the training steps.
    """
    predictor = TablePredictor(table, max_pages_per_row=max_pages_per_row)
    predictor.fit(
        StepSample(row, duration_s)
        for row, duration_s in zip(
            samples.timed_features, samples.timed_s.tolist(), strict=True
        )
    )
    steps = samples.steps_in(TRAIN)
    for durations_s in samples.duration_s[:, steps]:
        for row, duration_s in zip(
            samples.features[steps], durations_s.tolist(), strict=True
        ):
            predictor.update(StepSample(row, duration_s))
    return predictor


def evaluate(
    predicted_s: Mapping[str, np.ndarray],
    upper_s: Mapping[str, np.ndarray],
    *,
    matrix: np.ndarray,
    duration_s: np.ndarray,
) -> dict[str, Any]:
    """Returns the errors on held-out steps, for each scenario and for all.

    Args:
      predicted_s: `[N]` seconds, by predictor.
      upper_s: 95th percentiles `[N]`, by predictor, for those that give one.
      matrix: features of the steps, `[N, F]`.
      duration_s: their measurements, `[R, N]` seconds.
    """
    scenario = scenarios(matrix)
    spread = repeat_spread(duration_s)
    groups = {ALL: np.ones(len(matrix), bool)}
    groups |= {name: scenario == index for index, name in enumerate(SCENARIOS)}
    report: dict[str, Any] = {}
    for group, chosen in groups.items():
        if not chosen.any():
            continue
        single_s = duration_s[:, chosen]
        median_s = np.median(single_s, axis=0)
        entry: dict[str, Any] = {
            "num_steps": int(chosen.sum()),
            "num_samples": single_s.size,
            "mean_step_ms": float(median_s.mean()) * 1e3,
            "repeat_spread": float(np.median(spread[chosen])),
            "predictors": {},
        }
        for name, values_s in predicted_s.items():
            one = values_s[chosen]
            found: dict[str, Any] = {
                "against_median": errors(one, median_s),
                "against_single": errors(
                    np.broadcast_to(one, single_s.shape), single_s
                ),
            }
            if name in upper_s:
                found["p95_coverage"] = coverage(upper_s[name][chosen], single_s)
            entry["predictors"][name] = found
        report[group] = entry
    return report


def verdicts(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the network is held to on all held-out steps, and whether it did.

    Errors are those against medians, but coverage, which counts single measurements.
    """
    entry = report[ALL]
    mlp, linear = entry["predictors"]["mlp"], entry["predictors"]["linear"]
    median = mlp["against_median"]
    spread = entry["repeat_spread"]
    share = mlp["p95_coverage"]["share"]
    lower = 1.0 - median["mae_ms"] / linear["against_median"]["mae_ms"]
    r2 = median.get("r2", -math.inf)
    values = {
        "r2": (r2, r2 >= 0.99, ">= 0.99"),
        "median_ape_over_spread": (
            median["median_ape"] / spread if spread > 0 else math.inf,
            median["median_ape"] <= 1.5 * spread,
            "<= 1.5",
        ),
        "mae_below_linear": (lower, lower >= 0.3, ">= 0.3"),
        "p95_coverage": (share, 0.93 <= share <= 0.97, "0.93 to 0.97"),
        "num_samples": (entry["num_samples"], entry["num_samples"] >= 2000, ">= 2000"),
    }
    return {
        name: {"value": value, "target": target, "is_met": bool(is_met)}
        for name, (value, is_met, target) in values.items()
        if math.isfinite(value)
    }


def errors_table(report: Mapping[str, Any]) -> str:
    """Returns the errors as a table for people."""
    rows: list[Sequence[str]] = [
        (
            *("held-out steps", "predictor", "MAE", "RMSE", "R2"),
            *("median APE", "p95 APE", "single: median APE", "p95 covers"),
        )
    ]
    for group, entry in report.items():
        for name, found in entry["predictors"].items():
            median, single = found["against_median"], found["against_single"]
            covered = "-"
            if "p95_coverage" in found:
                low, high = found["p95_coverage"]["ci95"]
                share = found["p95_coverage"]["share"]
                covered = f"{share:.1%} ({low:.1%} to {high:.1%})"
            rows.append(
                (
                    f"{group} ({entry['num_steps']})",
                    name,
                    f"{median['mae_ms']:.3f}ms",
                    f"{median['rmse_ms']:.3f}ms",
                    f"{median['r2']:.4f}" if "r2" in median else "-",
                    f"{median['median_ape']:.1%}",
                    f"{median['p95_ape']:.1%}",
                    f"{single['median_ape']:.1%}",
                    covered,
                )
            )
    return render(rows)


def verdicts_table(found: Mapping[str, Any]) -> str:
    """Returns targets and whether they are met as a table for people."""
    rows = [["target", "found", "wanted", "met"]]
    for name, one in found.items():
        rows.append(
            [
                name,
                f"{one['value']:.4g}",
                one["target"],
                "yes" if one["is_met"] else "no",
            ]
        )
    return render(rows)
