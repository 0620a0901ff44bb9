"""From draws to numbers: attainment, mean latency, G, and what a policy gains.

The one idea: a draw is a set of requests that every policy meets, so gains are paired
by draw, and their intervals come from drawing draws anew (a percentile bootstrap with
a fixed seed).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jserve_sched.report import Outcome, wilson_interval

Draw = Mapping[str, Any]
Entry = dict[str, Any]

_NUM_RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)
# A gain of fewer met requests in a hundred is no gain to share out.
_LEAST_GAIN = 0.01


def summarise(outcomes: Sequence[Outcome]) -> Entry:
    """Returns what the requests of one draw experienced, in counts and seconds.

    Raises:
      RuntimeError: if one did not run to its end.
    """
    total_e2e_s = 0.0
    for one in outcomes:
        if one.e2e_s is None:
            raise RuntimeError(f"a request did not end: {one.failure}")
        total_e2e_s += one.e2e_s
    chat = [one for one in outcomes if one.slo.ttlt_s is None]
    return {
        "num_requests": len(outcomes),
        "num_met": sum(one.is_met for one in outcomes),
        "num_met_mean_tpot": sum(one.is_met_mean_tpot for one in outcomes),
        "num_chat": len(chat),
        "num_met_chat": sum(one.is_met for one in chat),
        "total_e2e_s": total_e2e_s,
        "max_e2e_s": max(one.e2e_s or 0.0 for one in outcomes),
    }


def _column(draws: Sequence[Draw], name: str) -> np.ndarray:
    return np.array([one[name] for one in draws], np.float64)


def pool(draws: Sequence[Draw]) -> Entry:
    """Returns the draws of one policy as one entry.

    `attainment` is by token deadlines, `attainment_mean_tpot` by the mean TPOT, the
    paper's; `goal_per_s` is G = requests met / sum of all latencies, the mean over
    the draws.
    """
    num_requests = int(np.sum(_column(draws, "num_requests")))
    num_met = int(np.sum(_column(draws, "num_met")))
    num_chat = int(np.sum(_column(draws, "num_chat")))
    num_met_chat = int(np.sum(_column(draws, "num_met_chat")))
    goals = _column(draws, "num_met") / _column(draws, "total_e2e_s")
    return {
        "num_draws": len(draws),
        "attainment": num_met / num_requests,
        "attainment_ci95": list(wilson_interval(num_met, num_requests)),
        "attainment_mean_tpot": float(np.sum(_column(draws, "num_met_mean_tpot")))
        / num_requests,
        "attainment_code": (num_met - num_met_chat) / (num_requests - num_chat),
        "attainment_chat": num_met_chat / num_chat,
        "mean_e2e_s": float(np.sum(_column(draws, "total_e2e_s"))) / num_requests,
        "max_e2e_s": float(np.max(_column(draws, "max_e2e_s"))),
        "goal_per_s": float(np.mean(goals)),
    }


def compare(draws: Sequence[Draw], base: Sequence[Draw]) -> Entry:
    """Returns a policy's gain over another on the same draws, with 95 % intervals.

    `attainment_ratio` is None where the other met nothing (in a resample: left out).
    """
    picks = np.random.default_rng(0).integers(
        0, len(draws), (_NUM_RESAMPLES, len(draws))
    )
    gains: Entry = {}
    for name, column, is_change in (
        ("attainment_ratio", "num_met", False),
        ("latency_change", "total_e2e_s", True),
    ):
        ours, theirs = _column(draws, column), _column(base, column)
        sums = np.sum(theirs[picks], axis=1)
        spread = np.sum(ours[picks], axis=1)[sums > 0] / sums[sums > 0] - is_change
        total = float(np.sum(theirs))
        ratio = float(np.sum(ours)) / total - is_change if total else None
        gains[name] = ratio
        gains[f"{name}_ci95"] = (
            None if ratio is None else np.percentile(spread, _PERCENTILES).tolist()
        )
    return gains


def share_of_gain(
    entry: Mapping[str, Any], base: Mapping[str, Any], best: Mapping[str, Any]
) -> Entry:
    """Returns which share of `best`'s gain over `base` a simpler policy has already.

    None where `best` gains less than one request in a hundred, or 1 % of the latency.
    """
    met = best["attainment"] - base["attainment"]
    saved_s = base["mean_e2e_s"] - best["mean_e2e_s"]
    return {
        "share_of_attainment": (entry["attainment"] - base["attainment"]) / met
        if met >= _LEAST_GAIN
        else None,
        "share_of_latency": (base["mean_e2e_s"] - entry["mean_e2e_s"]) / saved_s
        if saved_s >= 0.01 * base["mean_e2e_s"]
        else None,
    }


def middle_and_best(
    entries: Sequence[Mapping[str, Any]], name: str, *, is_high_best: bool
) -> Entry:
    """Returns the median and the best of a gain over cells that have one."""
    known = [one for one in entries if one.get(name) is not None]
    if not known:
        return {"median": None, "best": None, "best_cell": None}
    pick = max if is_high_best else min
    best = pick(known, key=lambda one: float(one[name]))
    return {
        "median": float(np.median([one[name] for one in known])),
        "best": best[name],
        "best_cell": {key: best[key] for key in ("num_requests", "max_num_seqs")},
    }
