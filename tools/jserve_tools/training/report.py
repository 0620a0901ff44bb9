"""Errors of predictors on held-out steps, computed in the same way for each.

A prediction is compared with the *median* of a step's repeats, which a perfect
predictor would give, and with each *single* measurement, from which even that differs
by the repeats' spread. `N` is the number of held-out steps, `R` the rounds.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from jserve_sched.buckets.table import table_from_json
from jserve_sched.outcomes import wilson_interval
from jserve_sched.steps.features import PREFILL_WORK, SCENARIOS, scenarios
from jserve_sched.timing.linear import fit_linear
from jserve_sched.timing.mlp import MlpPredictor, MlpWeights
from jserve_sched.timing.table import TablePredictor
from jserve_tools.reporting.tables import render
from jserve_tools.training.samples import TEST, TRAIN, Samples, repeat_spread


def errors(predicted_s: np.ndarray, measured_s: np.ndarray) -> dict[str, float]:
    """Returns the errors of predictions, in s, against measurements of equal shape.

    R^2 is left out if the measurements do not differ.
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


def judge(
    predicted_s: Mapping[str, np.ndarray],
    upper_s: Mapping[str, np.ndarray],
    *,
    matrix: np.ndarray,
    duration_s: np.ndarray,
) -> dict[str, Any]:
    """Returns the errors on held-out steps, for all and for each scenario.

    Args:
      predicted_s: `[N]` seconds, by predictor.
      upper_s: 95th percentiles `[N]`, by predictor, of those that predict one.
      matrix: Features of the steps, `[N, F]`.
      duration_s: Measurements of the steps, `[R, N]` seconds.
    """
    scenario = scenarios(matrix)
    groups = {"all": np.ones(len(matrix), bool)}
    groups |= {name: scenario == index for index, name in enumerate(SCENARIOS)}
    report: dict[str, Any] = {}
    for group, chosen in groups.items():
        if not chosen.any():
            continue
        single_s = duration_s[:, chosen]
        median_s = np.median(single_s, axis=0)
        predictors: dict[str, Any] = {}
        for name, values_s in predicted_s.items():
            predictors[name] = {
                "against_median": errors(values_s[chosen], median_s),
                "against_single": errors(values_s[chosen], single_s),
            }
            if name in upper_s:
                num_below = int((single_s <= upper_s[name][chosen]).sum())
                predictors[name]["p95_coverage"] = {
                    "share": num_below / single_s.size,
                    "ci95": wilson_interval(num_below, single_s.size),
                }
        report[group] = {
            "num_steps": int(chosen.sum()),
            "num_samples": single_s.size,
            "mean_step_ms": float(median_s.mean()) * 1e3,
            "repeat_spread": float(np.median(repeat_spread(single_s))),
            "predictors": predictors,
        }
    return report


def held_out_predictions(samples: Samples, weights: MlpWeights) -> dict[str, Any]:
    """Returns the arguments of `judge`, for all predictors on the test steps.

    The table is fitted to the timed pass and the training steps.

    Raises:
      ValueError: If there are no test steps.
    """
    facts, steps = samples.facts, samples.steps_in(TEST)
    if not steps.size:
        raise ValueError("the samples hold no test steps")
    table = table_from_json(json.dumps(facts["buckets"]))
    train = samples.steps_in(TRAIN)
    matrix, network = samples.features[steps], MlpPredictor(weights)
    learned = TablePredictor(table)
    learned.fit(samples.steps(train))
    median_s, upper_s = network.quantiles(matrix)
    predicted_s = {"mlp": median_s, "table": learned.predict(matrix)}
    if samples.features[:, PREFILL_WORK].any():  # step logs do not have it
        linear = fit_linear(
            samples.features[train],
            samples.median_s[train],
            min_expert_samples=30,
        )
        predicted_s = {"linear": linear.predict(matrix)} | predicted_s
    return {
        "predicted_s": predicted_s,
        "upper_s": {"mlp": upper_s},
        "matrix": matrix,
        "duration_s": samples.duration_s[:, steps],
    }


def errors_table(report: Mapping[str, Any]) -> str:
    """Returns the errors as a text table."""
    header = ["held-out steps", "predictor", "MAE", "RMSE", "R2"]
    header += ["median APE", "p95 APE", "single: median APE", "p95 covers"]
    rows = [header]
    for group, entry in report.items():
        for name, found in entry["predictors"].items():
            median, single = found["against_median"], found["against_single"]
            row = [f"{group} ({entry['num_steps']})", name]
            row += [f"{median['mae_ms']:.3f}ms", f"{median['rmse_ms']:.3f}ms"]
            row.append(f"{median['r2']:.4f}" if "r2" in median else "-")
            row += [f"{median['median_ape']:.1%}", f"{median['p95_ape']:.1%}"]
            row.append(f"{single['median_ape']:.1%}")
            covered = found.get("p95_coverage")
            row.append(
                "{:.1%} ({:.1%} to {:.1%})".format(covered["share"], *covered["ci95"])
                if covered
                else "-"
            )
            rows.append(row)
    return render(rows)
