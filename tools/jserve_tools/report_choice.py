"""Which policy and bucket strategy to choose at which load, and how sure that is."""

import math
from collections.abc import Sequence

from jserve_tools.report_cells import Cell, Estimate, difference, distinct
from jserve_tools.report_rows import Row, where

_TIED = "within noise of the best"


def judged_by(known: Sequence[Cell]) -> tuple[str, str]:
    """Returns the number by which settings are chosen, and its unit.

    Goodput if it was searched; tokens a second where clients only wait for each
    other, and no objective tells settings apart; else attainment.
    """
    if any(cell.is_goodput for cell in known):
        return "goodput", "requests/s"
    is_closed = all("num_clients" in run for cell in known for run in cell.runs)
    if is_closed and all(cell.service_classes == ["best_effort"] for cell in known):
        return "throughput", "tokens/s"
    return "attainment", "%"


def _judged(cell: Cell, by: str) -> Estimate | None:
    if by == "goodput":
        return cell.goodput_qps()
    if by == "attainment":
        found = cell.attainment()
        return None if found is None else Estimate(*(100 * one for one in found))
    value = cell.mean("output_tokens_per_s")
    return None if value is None else Estimate(value, math.nan, math.nan)


def _standing(behind: Estimate) -> str:
    """Returns where a setting stands that is so far behind the best."""
    if math.isnan(behind.low):
        return ""
    return "behind" if behind.low > 0 else _TIED


def choice(known: Sequence[Cell]) -> list[Row]:
    """Returns a row for each cell: how good it is, and where it stands at its load.

    `standing` is "best", "within noise of the best" if the interval of the difference
    includes zero, "behind", or "" without intervals.
    """
    by, unit = judged_by(known)
    found = [(cell, _judged(cell, by)) for cell in known]
    rows = []
    for load in distinct([cell.load for cell in known]):
        here = [(cell, one) for cell, one in found if cell.load == load and one]
        if not here:
            continue
        best = max((one for _, one in here), key=lambda one: one.value)
        for cell, one in here:
            standing = "best" if one is best else _standing(difference(one, best))
            form = ".1f" if one.value >= 10 else ".2f"
            sign = {"best": "★ ", _TIED: "≈ "}.get(standing, "")
            label, interval = f"{sign}{one.value:{form}}", ""
            if not math.isnan(one.low):
                interval = f"{one.low:{form}} to {one.high:{form}}"
            rows.append(
                where(cell)
                | {"value": one.value, "unit": unit, "interval": interval}
                | {"standing": standing, "label": f"{label}\n{interval}"}
                | {"requests": sum(run.get("num_requests", 0) for run in cell.runs)}
            )
    if not rows:
        return []
    values = [row["value"] for row in rows]
    least, span = min(values), max(values) - min(values)
    return [
        row | {"shade": (row["value"] - least) / span if span else 0.5} for row in rows
    ]


def verdict(known: Sequence[Cell]) -> str:
    """Returns which setting is best at each load, and which ones may be as good."""
    rows = choice(known)
    sentences = []
    for load in distinct([row["load"] for row in rows]):
        here = [row for row in rows if row["load"] == load]
        best = next(row for row in here if row["standing"] == "best")
        tied = [row["setting"] for row in here if row["standing"] == _TIED]
        verb, ending = " is best", ", ahead of all others by more than noise"
        if len(here) == 1:
            verb, ending = "", ""
        elif len(tied) == len(here) - 1:
            verb, ending = " leads by no more than noise", ""
        elif tied:
            more = f" and {len(tied) - 3} more" if len(tied) > 3 else ""
            ending = f"; within noise of it: {', '.join(tied[:3])}{more}"
        elif not best["interval"]:
            ending = ", from too few runs for an interval"
        value = f"{best['value']:.3g} {best['unit']}"
        if best["unit"] == "%":
            value = f"{best['value']:.1f} % attained"
        at = "" if load == "goodput" else f"At {load} "
        interval = f" ({best['interval']})" if best["interval"] else ""
        sentences.append(f"{at}{best['setting']}{verb}: {value}{interval}{ending}")
    return ". ".join(sentences)
