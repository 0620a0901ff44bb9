"""What the plots of steps show, as plain data: stairs, tokens, programs.

The one idea: a bucket is judged by the steps that fell into it, so edges stand beside
what was really computed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jserve_tools.html_plot import Plot, plot_name
from jserve_tools.report_cells import Cell, distinct


def _tables(known: Sequence[Cell]) -> list[dict[str, Any]]:
    """Returns each different bucket table once, named by who used it."""
    users: dict[str, list[tuple[Cell, Mapping[str, Any]]]] = {}
    for cell in known:
        for buckets in cell.values("buckets")[:1]:
            users.setdefault(cell.bucket_strategy, []).append((cell, buckets))
    found = []
    for strategy, pairs in users.items():
        groups: dict[str, list[tuple[Cell, Mapping[str, Any]]]] = {}
        for cell, buckets in pairs:
            groups.setdefault(repr(sorted(buckets.items())), []).append((cell, buckets))
        for group in groups.values():
            policies = ", ".join(distinct([cell.policy for cell, _ in group]))
            found.append(
                {
                    "label": strategy + (f" for {policies}" if len(groups) > 1 else ""),
                    "buckets": group[0][1],
                    "num_programs": group[0][0].first("num_programs"),
                }
            )
    return found


def staircase(report: Mapping[str, Any], known: Sequence[Cell]) -> list[Plot]:
    """Returns the curve of step times with every table's edges, if both are there."""
    curve = report.get("staircase")
    if not curve or not curve.get("tokens"):
        return []
    tokens = np.asarray(curve["tokens"], np.float64)
    seconds = np.asarray(curve["seconds"], np.float64)
    is_discrete = bool(curve.get("is_discrete"))
    tables = []
    for table in _tables(known):
        edges = np.asarray(table["buckets"]["block_edges"], np.float64)
        num_edges = edges.size
        edges = curve["num_rows"] + edges * table["buckets"]["block_tokens"]
        edges = edges[edges <= tokens[-1]]
        if is_discrete:
            edges = edges[np.isin(edges, tokens)]
        if not edges.size:
            continue
        tables.append(
            {
                "label": table["label"],
                "num_programs": table["num_programs"],
                "num_edges": num_edges,
                "edges_tokens": edges.tolist(),
                "edges_s": np.interp(edges, tokens, seconds).tolist(),
            }
        )
    if not tables:
        return []
    title, caption = _staircase_words(curve["num_rows"], is_discrete=is_discrete)
    return [
        Plot(
            name="staircase",
            kind="staircase",
            title=title,
            caption=caption,
            data={
                "is_discrete": is_discrete,
                "num_rows": curve["num_rows"],
                "tokens": tokens.tolist(),
                "seconds": seconds.tolist(),
                "tables": tables,
            },
        )
    ]


def _staircase_words(num_rows: int, *, is_discrete: bool) -> tuple[str, str]:
    """Returns title and caption."""
    if is_discrete:
        return (
            "What a step in each bucket takes",
            f"The engine's predicted time of a step with {num_rows} decode rows, at "
            "each number of blocks that ran; the line only joins them. A table's edges "
            "at which nothing ran have no time and no mark.",
        )
    return (
        "What rounding up to a bucket costs",
        f"The line is the predicted step time without buckets, with {num_rows} decode "
        "rows. A step pays for the edge above its tokens; the shaded area is what "
        "padding adds.",
    )


def _program_steps(cell: Cell) -> dict[tuple[int, int], int]:
    """Returns the steps of each program that ran, by rows and blocks."""
    steps: dict[tuple[int, int], int] = {}
    for entry in cell.values("steps_by_program"):
        for one in entry:
            key = (one["num_rows"], one["num_blocks"])
            steps[key] = steps.get(key, 0) + one["num_steps"]
    return {key: steps[key] for key in sorted(steps) if steps[key]}


def _mean_positions(cell: Cell) -> list[float]:
    """Returns the token positions of the mean step with each number of blocks."""
    block_tokens = cell.first("buckets", "block_tokens")
    if block_tokens is None:
        return []
    groups: dict[int, list[tuple[int, int]]] = {}
    for (rows, blocks), count in _program_steps(cell).items():
        groups.setdefault(blocks, []).append((rows, count))
    return [
        blocks * block_tokens
        + sum(rows * count for rows, count in group) / sum(count for _, count in group)
        for blocks, group in sorted(groups.items())
    ]


def _pooled_bins(cell: Cell) -> list[list[float]]:
    """Returns low end, high end and steps of each bin; none without a step.

    Each run's bins are alike, and begin at 0; those of several runs are put together
    in bins as wide as the widest.
    """
    known = [one for one in cell.values("step_tokens") if any(one["counts"])]
    width = max((one["edges"][1] - one["edges"][0] for one in known), default=0)
    counts: dict[int, int] = {}
    for one in known:
        for low, count in zip(one["edges"][:-1], one["counts"], strict=True):
            counts[low // width] = counts.get(low // width, 0) + count
    return [
        [place * width, (place + 1) * width, count]
        for place, count in sorted(counts.items())
    ]


def step_tokens(here: Sequence[Cell], where: str) -> list[Plot]:
    """Returns how many tokens the steps of one policy held, for each strategy."""
    panels = []
    for cell in here:
        bins = _pooled_bins(cell)
        if bins:
            panels.append(
                {
                    "label": cell.bucket_strategy,
                    "bins": bins,
                    "edges_tokens": _mean_positions(cell),
                }
            )
    if not panels:
        return []
    return [
        Plot(
            name=plot_name("step-tokens", here[0].policy, where),
            kind="step_tokens",
            title=f"Where steps' tokens fell: {here[0].policy}{where}",
            caption="Steps by the real tokens they computed. A line stands at the "
            "token positions of the buckets that ran: one for each number of blocks, "
            "with the mean of their rows.",
            data={"panels": panels},
        )
    ]


def programs(here: Sequence[Cell], where: str) -> list[Plot]:
    """Returns how often each program ran for one policy, for each strategy."""
    panels = []
    for cell in here:
        steps = _program_steps(cell)
        total = sum(steps.values())
        if not total:
            continue
        buckets = cell.first("buckets") or {}
        panels.append(
            {
                "label": cell.bucket_strategy,
                "row_edges": sorted(
                    {rows for rows, _ in steps} | set(buckets.get("row_edges", ()))
                ),
                "block_edges": sorted(
                    {blocks for _, blocks in steps}
                    | set(buckets.get("block_edges", ()))
                ),
                "programs": [
                    {
                        "num_rows": rows,
                        "num_blocks": blocks,
                        "num_steps": count,
                        "percent": 100 * count / total,
                    }
                    for (rows, blocks), count in steps.items()
                ],
            }
        )
    if not panels:
        return []
    return [
        Plot(
            name=plot_name("programs", here[0].policy, where),
            kind="programs",
            title=f"Steps per program: {here[0].policy}{where}",
            caption="Each square is a program, decode rows by prefill blocks; darker "
            "ran more often (per cent of the steps, log scale), white never.",
            data={"panels": panels},
        )
    ]
