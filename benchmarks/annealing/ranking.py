"""Policies by the promises they keep: runs pooled, ranked, in a table."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jserve_sched.report import wilson_interval
from jserve_tools.marked_pages import markdown


def pool_runs(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns each policy's runs as one entry, the best attainment first."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["policy"], []).append(run)
    entries = []
    for policy, group in groups.items():
        num_requests = sum(run["num_requests"] for run in group)
        num_met = num_requests - sum(run["num_violations"] for run in group)
        entries.append(
            {
                "policy": policy,
                "num_requests": num_requests,
                "attainment": num_met / num_requests,
                "attainment_ci95": list(wilson_interval(num_met, num_requests)),
                "turns": [run["attainment"] for run in group],
                "mean_e2e_s": statistics.fmean(run["e2e_s"]["mean"] for run in group),
            }
        )
    return sorted(entries, key=lambda one: -one["attainment"])


def ranking_table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Returns who kept how many promises, on the engine and in the simulator."""
    rows = []
    for place, entries in found.items():
        for rank, one in enumerate(entries, 1):
            low, high = one["attainment_ci95"]
            rows.append(
                [
                    f"{place}: {one['policy']}",
                    str(rank),
                    f"{100 * one['attainment']:.1f} "
                    f"({100 * low:.1f} to {100 * high:.1f})",
                    ", ".join(f"{100 * turn:.1f}" for turn in one["turns"]),
                    f"{one['mean_e2e_s']:.2f}",
                ]
            )
    header = ["", "rank", "attainment, % (95 %)", "turns", "mean latency, s"]
    return markdown(header, rows)
