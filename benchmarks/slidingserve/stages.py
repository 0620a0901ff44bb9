"""The paper's experiments as lists of cells, and entries made of their results.

Each stage makes cells from settings and earlier results, runs them, and pools the seeds
into entries: plain dictionaries for the report, the tables and the pictures.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.slidingserve import paper
from benchmarks.slidingserve.cells import CURVE_BIN_S, Cell
from benchmarks.slidingserve.config import Config
from benchmarks.slidingserve.rows import (
    ABLATION_ROWS,
    GOODPUT_ROWS,
    LINEAR,
    MAIN_ROWS,
    PUBLISHED,
    SLIDING,
    Row,
)
from benchmarks.slidingserve.tuning import Settings
from jserve_sched.outcomes import distribution, wilson_interval
from jserve_sched.simulation.goodput import SeedGoodput, pool

Entry = dict[str, Any]
Case = tuple[str, str, Row]  # shape, workload, row

# Pairs of rows of which ratios are reported.
RATIOS = (
    ("sliding", "qoserve"),
    ("sliding", "edf"),
    ("qoserve", "edf"),
    ("sliding", PUBLISHED.name),
    (PUBLISHED.name, "qoserve"),
    (LINEAR.name, "sliding"),
)


class Reproduction:
    """Runs the stages of one configuration."""

    def __init__(
        self,
        config: Config,
        settings: Settings,
        finish: Callable[[Sequence[Cell]], list[dict[str, Any]]],
    ):
        """Makes a reproduction; runs nothing.

        Args:
          settings: Tuned settings of each row.
          finish: Function that runs cells and returns their results, in order.
        """
        self._config = config
        self._settings = settings
        self._finish = finish
        self._goodputs: dict[tuple[str, str, str], Entry] = {}

    def _cases(self, rows: Sequence[Row], workload: str = "") -> list[Case]:
        return [
            (shape, name, row)
            for shape in self._config.shapes
            for name in self._config.workloads
            for row in rows
            if shape in row.shapes and name in row.workloads
            if not workload or name == workload
        ]

    def _by_case(self, todo: Sequence[tuple[Case, Mapping[str, Any]]]) -> list[Any]:
        """Runs a cell for each case and seed; returns a list of results by case.

        `todo` has the cases with the fields of their cells.
        """
        seeds = self._config.seeds
        cells = [
            Cell(
                workload=workload,
                seed=seed,
                num_requests=self._config.probe_requests,
                **self._settings.server(shape, workload, row),
                **fields,
            )
            for (shape, workload, row), fields in todo
            for seed in seeds
        ]
        results = self._finish(cells)
        starts = range(0, len(results), len(seeds))
        return [results[start : start + len(seeds)] for start in starts]

    def goodputs(self, cases: Sequence[Case]) -> list[Entry]:
        """Returns the goodput of each case, searched now or before."""

        def key(case: Case) -> tuple[str, str, str]:
            return case[0], case[1], case[2].name

        missing = [case for case in cases if key(case) not in self._goodputs]
        search = {"kind": "goodput", "resolution": self._config.resolution}
        found = self._by_case(
            [
                (case, search | {"qps": self._settings.start_qps(*case)})
                for case in missing
            ]
        )
        for case, results in zip(missing, found, strict=True):
            pooled_seeds = pool([SeedGoodput(**one) for one in results])
            self._goodputs[key(case)] = _labels(case) | dataclasses.asdict(pooled_seeds)
        return [self._goodputs[key(case)] for case in cases]

    def _scale(self, shape: str, workload: str) -> float:
        """Returns the factor on the paper's loads.

        Raises:
          ValueError: If the goodput of `sliding` is 0.
        """
        (found,) = self.goodputs([(shape, workload, SLIDING)])
        return paper.load_scale(workload, float(found["qps"]))

    def goodput(self) -> list[Entry]:
        """Returns the goodput of each row, shape and workload (Fig. 4)."""
        return self.goodputs(self._cases(GOODPUT_ROWS))

    def overload(self) -> list[Entry]:
        """Returns violations and TTFT above goodput (Fig. 5)."""
        self.goodputs(self._cases([SLIDING]))
        todo = []
        for case in self._cases(MAIN_ROWS):
            shape, workload, row = case
            percents = paper.OVERLOAD_PERCENT[workload][row.name]
            for load_qps, percent in zip(
                paper.OVERLOAD_QPS[workload], percents, strict=True
            ):
                facts = {
                    "paper_qps": load_qps,
                    "qps": _rounded(load_qps * self._scale(shape, workload)),
                    "load": load_qps / paper.goodput_qps(workload, "sliding"),
                    "paper_percent": percent,
                }
                todo.append((case, facts))
        return self._run_loads(todo)

    def ablation(self) -> list[Entry]:
        """Returns the goodput of each step from `edf` to `sliding` (Table 4).

        Entries also have violations at the paper's load of 3 requests a second, scaled
        to the simulated machine.
        """
        cases = self._cases(ABLATION_ROWS, paper.ABLATION_WORKLOAD)
        todo = []
        for case, found in zip(cases, self.goodputs(cases), strict=True):
            shape, workload, row = case
            facts = {
                "goodput_qps": found["qps"],
                "goodput_seeds_qps": [one["qps"] for one in found["seeds"]],
                "qps": _rounded(paper.ABLATION_LOAD_QPS * self._scale(shape, workload)),
            }
            place = ABLATION_ROWS.index(row)
            if place < len(paper.ABLATION_QPS):  # later rows are not in the paper
                facts["paper_goodput_qps"] = paper.ABLATION_QPS[place]
                facts["paper_percent"] = paper.ABLATION_PERCENT[place]
            todo.append((case, facts))
        return self._run_loads(todo)

    def _run_loads(self, todo: Sequence[tuple[Case, Entry]]) -> list[Entry]:
        """Runs each case at its rate `qps`, with every seed; returns entries."""
        found = self._by_case(
            [(case, {"kind": "load", "qps": facts["qps"]}) for case, facts in todo]
        )
        return [
            _labels(case) | facts | pooled(results)
            for (case, facts), results in zip(todo, found, strict=True)
        ]

    def transient(self) -> list[Entry]:
        """Returns violations under a load that alternates (Fig. 6)."""
        todo: list[tuple[Case, Entry]] = []
        for case in self._cases(MAIN_ROWS, paper.TRANSIENT_WORKLOAD):
            scale = self._scale(case[0], case[1])
            fields = {
                "kind": "transient",
                "levels_qps": tuple(
                    _rounded(level * scale) for level in paper.TRANSIENT_LEVELS_QPS
                ),
                "period_s": paper.TRANSIENT_PERIOD_S,
                "duration_s": self._config.transient_s,
            }
            todo.append((case, fields))
        return [
            _labels(case)
            | {name: value for name, value in fields.items() if name != "kind"}
            | {
                "paper_percent": paper.TRANSIENT_PERCENT[case[2].name],
                "bin_s": CURVE_BIN_S,
                "curve": _mean_curve([one["violations_by_bin"] for one in results]),
            }
            | pooled(results)
            for (case, fields), results in zip(todo, self._by_case(todo), strict=True)
        ]


def _labels(case: Case) -> Entry:
    return {"shape": case[0], "workload": case[1], "row": case[2].name}


def _rounded(qps: float) -> float:
    return float(f"{qps:.4g}")


def pooled(results: Sequence[Mapping[str, Any]]) -> Entry:
    """Returns violations and TTFT over the seeds of one load.

    Args:
      results: Result of a load or transient cell for each seed.
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
    """Returns cumulated violations at the end of each bin, mean over seeds."""
    rows = itertools.zip_longest(*counts, fillvalue=0)
    mean: list[float] = np.cumsum([statistics.fmean(row) for row in rows]).tolist()
    return mean


def ratios(goodputs: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """Returns the ratios of goodput, paired by seed, beside the paper's.

    A ratio is left out if the goodput of a seed of the lower row is 0.
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
