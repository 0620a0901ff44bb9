"""What the plots of a report show, as plain data.

The one idea: a plot is drawn from its data and from nothing else, and the same data
stands beside it in the page, so a reader can check a bar against its number. A plot
without data is not there.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jserve_tools.html_plot import Plot, plot_name
from jserve_tools.html_step_plots import programs, staircase, step_tokens
from jserve_tools.report_cells import START_KINDS, Cell, cells, distinct


def plots(report: Mapping[str, Any]) -> list[Plot]:
    """Returns the plots for which a report has data, in reading order.

    Raises:
      ValueError: if the report is of a schema that cannot be read.
    """
    known = cells(report)
    loads = distinct([cell.load for cell in known])
    found: list[Plot] = []
    found += _goodput(known)
    for load in loads:
        here = [cell for cell in known if cell.load == load]
        where = f" at {load}" if len(loads) > 1 else ""
        if not here[0].is_goodput:
            found += _attainment(here, where)
            found += _classes(here, where)
        found += _pads(here, where)
    found += _start_up(known)
    found += staircase(report, known)
    for load in loads:
        where = f" at {load}" if len(loads) > 1 else ""
        for policy in distinct([cell.policy for cell in known]):
            here = [
                cell for cell in known if (cell.load, cell.policy) == (load, policy)
            ]
            found += step_tokens(here, where)
            found += programs(here, where)
    return _with_own_names(found)


def _with_own_names(found: Sequence[Plot]) -> list[Plot]:
    """Returns plots renamed so that no two have one name."""
    taken: set[str] = set()
    renamed = []
    for plot in found:
        name, number = plot.name, 1
        while name in taken:
            number += 1
            name = f"{plot.name}-{number}"
        taken.add(name)
        renamed.append(dataclasses.replace(plot, name=name))
    return renamed


def _map(
    here: Sequence[Cell], values: Iterable[tuple[float, Sequence[float] | None] | None]
) -> dict[str, Any]:
    return {
        "policies": distinct([cell.policy for cell in here]),
        "strategies": distinct([cell.bucket_strategy for cell in here]),
        "cells": [
            {
                "policy": cell.policy,
                "strategy": cell.bucket_strategy,
                "value": value[0],
                "ci95": None if value[1] is None else list(value[1]),
            }
            for cell, value in zip(here, values, strict=True)
            if value is not None
        ],
    }


def _goodput(known: Sequence[Cell]) -> list[Plot]:
    here = [cell for cell in known if cell.is_goodput]
    if not here:
        return []
    values = [
        (cell.mean("goodput_qps") or 0.0, cell.first("goodput_ci95_qps"))
        for cell in here
    ]
    return [
        Plot(
            name="goodput",
            kind="map",
            title="Goodput",
            caption="Requests per second at which promises are still kept, with its "
            "95 % interval over seeds where there are several. Darker is better.",
            data=_map(here, values) | {"unit": "requests/s"},
        )
    ]


def _attainment(here: Sequence[Cell], where: str) -> list[Plot]:
    shares = [cell.share() for cell in here]
    if not any(shares):
        return []
    values = [
        None if one is None else (100 * one.value, [100 * end for end in one.ci95])
        for one in shares
    ]
    return [
        Plot(
            name=plot_name("attainment", where),
            kind="map",
            title=f"Requests that met every objective{where}",
            caption="Share of requests in per cent, with its 95 % Wilson interval. "
            "Darker is better.",
            data=_map(here, values) | {"unit": "%"},
        )
    ]


def _classes(here: Sequence[Cell], where: str) -> list[Plot]:
    names = sorted(
        {name for cell in here for run in cell.runs for name in run.get("by_class", {})}
    )
    points = []
    for cell in here:
        for name in names:
            share = cell.share(name)
            if share is not None:
                points.append(
                    {
                        "class": name,
                        "policy": cell.policy,
                        "strategy": cell.bucket_strategy,
                        "percent": 100 * share.value,
                        "ci95": [100 * end for end in share.ci95],
                    }
                )
    if not points:
        return []
    return [
        Plot(
            name=plot_name("classes", where),
            kind="classes",
            title=f"Promises kept, by class{where}",
            caption="Share of a class's requests that met every objective; the bars "
            "are 95 % Wilson intervals.",
            data={
                "classes": names,
                "policies": distinct([cell.policy for cell in here]),
                "strategies": distinct([cell.bucket_strategy for cell in here]),
                "points": points,
            },
        )
    ]


def _pads(here: Sequence[Cell], where: str) -> list[Plot]:
    keys = {
        "tokens": "pad_share_tokens",
        "bucket": "pad_share_bucket",
        "block": "pad_share_block",
        "time": "pad_share_time",
    }
    bars: list[dict[str, Any]] = []
    for cell in here:
        shares = {name: cell.mean(key) for name, key in keys.items()}
        percents = {
            name: 100 * share for name, share in shares.items() if share is not None
        }
        if percents:
            who = {"policy": cell.policy, "strategy": cell.bucket_strategy}
            bars.append(who | percents)
    if not bars:
        return []
    return [
        Plot(
            name=plot_name("padding", where),
            kind="pads",
            title=f"Padding{where}",
            caption="Left bar: share of computed token positions that held no token, "
            "rows and blocks that nobody used apart from the empty ends of used "
            "blocks. Right bar: share of predicted step time spent on padding. "
            "Lower is better.",
            data={
                "policies": distinct([bar["policy"] for bar in bars]),
                "strategies": distinct([bar["strategy"] for bar in bars]),
                "bars": bars,
            },
        )
    ]


def _start_up(known: Sequence[Cell]) -> list[Plot]:
    bars = []
    for strategy in distinct([cell.bucket_strategy for cell in known]):
        runs = tuple(
            run
            for cell in known
            if cell.bucket_strategy == strategy
            for run in cell.runs
        )
        whole = Cell(policy="", bucket_strategy=strategy, load="", runs=runs)
        numbers = {
            f"{kind}_{key}": whole.start_mean(kind, key)
            for kind in START_KINDS
            for key in ("ready_s", "warm_s")
        }
        bar = {key: value for key, value in numbers.items() if value is not None}
        if bar:
            num_programs = whole.mean("num_programs")
            if num_programs is not None:
                bar["num_programs"] = num_programs
            bars.append({"strategy": strategy} | bar)
    if not bars:
        return []
    return [
        Plot(
            name="start-up",
            kind="start_up",
            title="Start-up",
            caption="Seconds from the start until the server answers (dark) and until "
            "every program is there (light). Starts with an empty cache of compiled "
            "programs and with a full one stand apart where they are known.",
            data={"bars": bars},
        )
    ]
