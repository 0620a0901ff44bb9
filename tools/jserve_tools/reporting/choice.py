"""Which policy and bucket strategy to choose at which load, and how sure that is."""

import math
from collections.abc import Sequence

from jserve_tools.reporting.cells import Cell, Row, difference, distinct
from jserve_tools.reporting.metrics import ATTAINED, GOODPUT, Metric

BEST, TIED = "best", "within noise of the best"
_SIGNS = {BEST: "★ ", TIED: "≈ "}


def judged_by(known: Sequence[Cell]) -> Metric:
    """Returns the number by which settings are chosen.

    It is goodput if that was searched, else attainment.
    """
    return GOODPUT if any(cell.is_goodput for cell in known) else ATTAINED


def choice(known: Sequence[Cell]) -> list[Row]:
    """Returns a row for each cell: its value, and its standing at its load.

    `standing` is "best", "within noise of the best" if the interval of the difference
    includes zero, "behind", or "" without intervals.
    """
    metric = judged_by(known)
    found = [(cell, one) for cell in known if (one := metric.estimate(cell))]
    rows = []
    for cell, one in found:
        at = cell.labels["load"]
        best = max(other for here, other in found if here.labels["load"] == at)
        behind = difference(one, best)
        standing = BEST if one == best else "behind" if behind.low > 0 else TIED
        if math.isnan(behind.low) and standing != BEST:
            standing = ""
        label = f"{_SIGNS.get(standing, '')}{metric.text(one.value)}"
        rows.append(
            cell.labels
            | {"value": one.value, "label": f"{label}\n{metric.interval(one)}"}
            | {metric.name: metric.with_interval(one), "standing": standing}
            | {"requests": sum(run.get("num_requests", 0) for run in cell.runs)}
        )
    return rows


def verdict(known: Sequence[Cell]) -> str:
    """Returns sentences: the best setting at each load, and which may be as good."""
    rows, name = choice(known), judged_by(known).name
    sentences = []
    for load in distinct([row["load"] for row in rows]):
        here = [row for row in rows if row["load"] == load]
        best = next(row for row in here if row["standing"] == BEST)
        others = [row for row in here if row is not best]
        tied = [row["setting"] for row in others if row["standing"] in (BEST, TIED)]
        ending = ", ahead of all others by more than noise"
        if not others:
            ending = ""
        elif any(row["standing"] == "" for row in others):
            ending = ", from too few runs for an interval"
        elif tied:
            more = f" and {len(tied) - 3} more" if len(tied) > 3 else ""
            ending = f"; within noise of it: {', '.join(tied[:3])}{more}"
        at = "" if load == "goodput" else f"At {load} "
        verb = " is best" if others else ""
        sentences.append(f"{at}{best['setting']}{verb}: {name} {best[name]}{ending}")
    return ". ".join(sentences)
