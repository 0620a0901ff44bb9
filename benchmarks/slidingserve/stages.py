"""The paper's experiments as lists of cells, and what their results come to.

The one idea: each stage makes its cells from settings and earlier results, has them
finished, and pools the seeds into entries: plain dictionaries for the report, the
tables and the pictures alike.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paper
from cell_store import CellTask, Workers
from cells import (
    CURVE_BIN_S,
    Cell,
    GoodputCell,
    LoadCell,
    TransientCell,
    paper_start_qps,
)
from rows import (
    ABLATION_ROWS,
    EDGES,
    GOODPUT_ROWS,
    LINEAR,
    MAIN_ROWS,
    PUBLISHED,
    SLIDING,
    TERNARY,
    Row,
)
from settings import Settings

from jserve_sched.goodput import SeedGoodput, pool
from jserve_sched.report import distribution, wilson_interval

Entry = dict[str, Any]

# Which rows are divided by which.
RATIOS = (
    ("sliding", "qoserve"),
    ("sliding", "edf"),
    ("qoserve", "edf"),
    ("sliding", PUBLISHED.name),
    (PUBLISHED.name, "qoserve"),
    ("sliding", TERNARY.name),
    (EDGES.name, TERNARY.name),
    (LINEAR.name, "sliding"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is reproduced, and how carefully.

    Attributes:
      shapes: continuous, buckets or both.
      workloads: names.
      seeds: that judge; none of them tunes.
      num_requests: in a probe or a run.
      resolution: relative distance of the rates tried for goodput.
      transient_period_s: how long each level of the transient load lasts.
      transient_duration_s: when its requests stop coming.
    """

    shapes: Sequence[str]
    workloads: Sequence[str]
    seeds: Sequence[int]
    num_requests: int
    resolution: float
    transient_period_s: float = paper.TRANSIENT_PERIOD_S
    transient_duration_s: float = paper.TRANSIENT_DURATION_S


class Reproduction:
    """Runs the stages of one plan; keeps every cell it saw."""

    def __init__(self, plan: Plan, settings: Settings, workers: Workers):
        self._plan = plan
        self._settings = settings
        self._workers = workers
        self._goodputs: dict[tuple[str, str, str], Entry] = {}
        self.cells: list[Entry] = []

    def _finish(self, cells: Sequence[Cell], label: str) -> list[Entry]:
        entries = self._workers.finish([CellTask(cell=one) for one in cells], label)
        self.cells += entries
        return [entry["result"] for entry in entries]

    def _cases(self, rows: Sequence[Row]) -> list[tuple[str, str, Row]]:
        return [
            (shape, workload, row)
            for shape in self._plan.shapes
            for workload in self._plan.workloads
            for row in rows
            if shape in row.shapes and workload in row.workloads
        ]

    def _need_goodputs(self, cases: Sequence[tuple[str, str, Row]]) -> list[Entry]:
        """Returns the goodput of each case, found now or before."""
        missing = [
            case
            for case in cases
            if (case[0], case[1], case[2].name) not in self._goodputs
        ]
        seeds = self._plan.seeds
        results = self._finish(
            [
                GoodputCell(
                    workload=workload,
                    setup=self._settings.setup(shape, workload, row),
                    seed=seed,
                    num_requests=self._plan.num_requests,
                    start_qps=self._settings.start_qps(shape, workload, row)
                    or paper_start_qps(workload),
                    resolution=self._plan.resolution,
                )
                for shape, workload, row in missing
                for seed in seeds
            ],
            "goodput",
        )
        for index, (shape, workload, row) in enumerate(missing):
            own = results[index * len(seeds) : (index + 1) * len(seeds)]
            self._goodputs[shape, workload, row.name] = {
                "shape": shape,
                "workload": workload,
                "row": row.name,
                **dataclasses.asdict(pool([SeedGoodput(**one) for one in own])),
            }
        return [self._goodputs[shape, load, row.name] for shape, load, row in cases]

    def _sliding_qps(self, shape: str, workload: str) -> float:
        (found,) = self._need_goodputs([(shape, workload, SLIDING)])
        return float(found["qps"])

    def goodput(self) -> list[Entry]:
        """Returns the goodput of each row, shape and workload (Fig. 4)."""
        return self._need_goodputs(self._cases(GOODPUT_ROWS))

    def overload(self) -> list[Entry]:
        """Returns violations and TTFT above goodput (Fig. 5).

        Raises:
          ValueError: if `sliding` has no goodput to scale the loads to.
        """
        self._need_goodputs(self._cases([SLIDING]))
        todo = []
        for shape, workload, row in self._cases(MAIN_ROWS):
            scale = paper.load_scale(workload, self._sliding_qps(shape, workload))
            for index, load_qps in enumerate(paper.OVERLOAD_QPS[workload]):
                facts = {
                    "shape": shape,
                    "workload": workload,
                    "row": row.name,
                    "paper_qps": load_qps,
                    "qps": _rounded(load_qps * scale),
                    "load": load_qps / paper.goodput_qps(workload, "sliding"),
                    "paper_percent": paper.OVERLOAD_PERCENT[workload][row.name][index],
                }
                todo.append((row, facts))
        return self._run_loads(todo, "overload")

    def ablation(self) -> list[Entry]:
        """Returns the goodput of each step from `edf` to `sliding` (Table 4).

        And violations at the paper's load of 3 a second, scaled to our machine.

        Raises:
          ValueError: if `sliding` has no goodput to scale the load to.
        """
        workload = paper.ABLATION_WORKLOAD
        if workload not in self._plan.workloads:
            return []
        cases = [
            (shape, workload, row)
            for shape in self._plan.shapes
            for row in ABLATION_ROWS
        ]
        goodputs = self._need_goodputs(cases)
        todo = []
        for index, (shape, _, row) in enumerate(cases):
            place = index % len(ABLATION_ROWS)
            scale = paper.load_scale(workload, self._sliding_qps(shape, workload))
            facts = {
                "shape": shape,
                "workload": workload,
                "row": row.name,
                "goodput_qps": goodputs[index]["qps"],
                "goodput_seeds_qps": [one["qps"] for one in goodputs[index]["seeds"]],
                "qps": _rounded(paper.ABLATION_LOAD_QPS * scale),
            }
            if place < len(paper.ABLATION_QPS):  # the rest is not the paper's
                facts["paper_goodput_qps"] = paper.ABLATION_QPS[place]
                facts["paper_percent"] = paper.ABLATION_PERCENT[place]
            todo.append((row, facts))
        return self._run_loads(todo, "ablation")

    def _run_loads(self, todo: Sequence[tuple[Row, Entry]], label: str) -> list[Entry]:
        """Runs a rate `qps` with every seed for each of some entries to be."""
        seeds = self._plan.seeds
        results = self._finish(
            [
                LoadCell(
                    workload=facts["workload"],
                    setup=self._settings.setup(facts["shape"], facts["workload"], row),
                    seed=seed,
                    num_requests=self._plan.num_requests,
                    qps=facts["qps"],
                )
                for row, facts in todo
                for seed in seeds
            ],
            label,
        )
        return [
            facts | pooled(results[index * len(seeds) : (index + 1) * len(seeds)])
            for index, (_, facts) in enumerate(todo)
        ]

    def transient(self) -> list[Entry]:
        """Returns violations under a load that alternates (Fig. 6).

        Raises:
          ValueError: if `sliding` has no goodput to scale the levels to.
        """
        workload = paper.TRANSIENT_WORKLOAD
        if workload not in self._plan.workloads:
            return []
        plan, seeds = self._plan, self._plan.seeds
        cases = [(shape, row) for shape in plan.shapes for row in MAIN_ROWS]
        levels = {}
        for shape in plan.shapes:
            scale = paper.load_scale(workload, self._sliding_qps(shape, workload))
            levels[shape] = tuple(
                _rounded(level * scale) for level in paper.TRANSIENT_LEVELS_QPS
            )
        results = self._finish(
            [
                TransientCell(
                    workload=workload,
                    setup=self._settings.setup(shape, workload, row),
                    seed=seed,
                    levels_qps=levels[shape],
                    period_s=plan.transient_period_s,
                    duration_s=plan.transient_duration_s,
                )
                for shape, row in cases
                for seed in seeds
            ],
            "transient",
        )
        entries = []
        for index, (shape, row) in enumerate(cases):
            own = results[index * len(seeds) : (index + 1) * len(seeds)]
            entries.append(
                {
                    "shape": shape,
                    "workload": workload,
                    "row": row.name,
                    "levels_qps": list(levels[shape]),
                    "period_s": plan.transient_period_s,
                    "duration_s": plan.transient_duration_s,
                    "paper_percent": paper.TRANSIENT_PERCENT[row.name],
                    "bin_s": CURVE_BIN_S,
                    "curve": _mean_curve([one["violations_by_bin"] for one in own]),
                    **pooled(own),
                }
            )
        return entries


def _rounded(qps: float) -> float:
    return float(f"{qps:.4g}")


def pooled(results: Sequence[Mapping[str, Any]]) -> Entry:
    """Returns violations and TTFT over the seeds of one load.

    Args:
      results: one of a `LoadCell` or `TransientCell` for each seed.
    """
    num_requests = sum(one["num_requests"] for one in results)
    num_violations = sum(one["num_violations"] for one in results)
    late_s = [time_s for one in results for time_s in one["late_ttft_s"]]
    on_time_s = [time_s for one in results for time_s in one["on_time_ttft_s"]]
    low, high = wilson_interval(num_violations, num_requests)
    return {
        "num_requests": num_requests,
        "num_violations": num_violations,
        "num_unserved": sum(one["num_unserved"] for one in results),
        "num_served_late": len(late_s),
        "percent": 100 * num_violations / num_requests,
        "percent_ci95": [100 * low, 100 * high],
        "seeds_percent": [
            100 * one["num_violations"] / one["num_requests"] for one in results
        ],
        "ttft_s": distribution([*on_time_s, *late_s]),
        "late_ttft_s": distribution(late_s),
    }


def _mean_curve(counts: Sequence[Sequence[int]]) -> list[float]:
    """Returns violations up to the end of each bin, the mean over seeds."""
    curve = np.zeros((len(counts), max(map(len, counts))))
    for index, one in enumerate(counts):
        curve[index, : len(one)] = one
    mean: list[float] = curve.cumsum(axis=1).mean(axis=0).tolist()
    return mean


def ratios(goodputs: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """Returns the ratios of goodput, paired by seed, beside the paper's.

    Where a seed of the lower row has no goodput there is no ratio.
    """
    by_case = {(one["shape"], one["workload"], one["row"]): one for one in goodputs}
    entries = []
    for (shape, workload, name), one in by_case.items():
        for upper, lower in RATIOS:
            base = by_case.get((shape, workload, lower))
            if name != upper or base is None:
                continue
            pairs = list(zip(one["seeds"], base["seeds"], strict=True))
            if min(below["qps"] for _, below in pairs) <= 0:
                continue
            found = [above["qps"] / below["qps"] for above, below in pairs]
            entry = {
                "shape": shape,
                "workload": workload,
                "row": upper,
                "base": lower,
                "ratio": statistics.fmean(found),
                "lowest": min(found),
                "highest": max(found),
            }
            if {upper, lower} <= set(paper.POLICIES):
                entry["paper"] = {
                    model: paper.goodput_ratio(workload, upper, lower, model)
                    for model in (paper.QWEN, paper.LLAMA)
                }
            entries.append(entry)
    return entries
