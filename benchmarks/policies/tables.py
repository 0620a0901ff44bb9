"""The tables of the study of policies, from its finished cells.

Shares are in %, over all counted requests of the seeds. Differences are paired, since
all policies had the same requests: their 95 % interval is Student's, of the means of
`_BLOCK` consecutive requests of each seed, because neighbours share a queue.
"""

import collections
import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats
from scipy.optimize import isotonic_regression

from benchmarks.marked_pages import markdown
from benchmarks.policies.cells import (
    ADMISSION_LOADS,
    BURST,
    BURST_LOAD,
    CONDITIONS,
    FEW,
    FITTED,
    GOODPUT_LOADS,
    LENGTHS,
    LOADS,
    MORE,
    POLICIES,
    REFUSE,
    TUNED,
    TURNS,
    WITH_TTLT,
    Cell,
)

_BLOCK = 20
_OURS, _BEHIND = "ontime", "sliding"
_LEAST_GOODPUT = {
    **{"chat": 77, "documents": 80, "heavy_tail": 92},
    **{"bursts": 34, "reasoning_code": 87, "tight": 87},
}
_MOST_EXACT = {"reasoning_code": 6.0, "chat": 15.0, "documents": 5.5}
_MOST_BEHIND = 1.5
_COMMITTED = "returned_committed_share"
_FORECAST = ("median_error", "share_under_p50", "share_under_p90")

Runs = list[dict[str, Any]]
"""Results of one configuration, one of each seed."""


class Found:
    """Finished cells, looked up without their seed."""

    def __init__(self, done: Iterable[tuple[Cell, dict[str, Any]]]):
        self._runs = collections.defaultdict[Cell, Runs](list)
        for cell, run in done:
            if "table" not in run:
                cell = dataclasses.replace(cell, seed=0, num_requests=0, buckets="")
                self._runs[cell].append(run)
        self._num_seeds = max(map(len, self._runs.values()), default=0)

    def __call__(
        self, policy: str, kind: str, condition: str, load: float, **more: Any
    ) -> Runs:
        """Returns the results of all seeds; none if one is missing."""
        cell = Cell(policy=policy, kind=kind, condition=condition, load=load, **more)
        runs = self._runs.get(cell, [])
        return runs if len(runs) == self._num_seeds else []

    def at_all_loads(self, policy: str, kind: str, condition: str) -> Runs:
        """Returns the results of all loads that are finished."""
        some = [self(policy, kind, condition, load) for load in LOADS]
        return list(itertools.chain.from_iterable(some))


def _mean(runs: Runs, *path: str) -> float:
    """Returns the mean over seeds of a number, found by keys; NaN without results."""
    found: list[Any] = runs
    for key in path:
        found = [one[key] for one in found]
    return statistics.fmean(found) if found else math.nan


def _late(runs: Runs, *path: str) -> float:
    """Returns violations in %, by default of all requests."""
    return 100 * (1 - _mean(runs, *(path or ("attainment",))))


def paired(ours: Runs, other: Runs) -> tuple[float, float, float]:
    """Returns by how many points we violate more, and the 95 % interval."""
    blocks: list[float] = []
    for mine, theirs in zip(ours, other, strict=True):
        pair = [np.array(list(run["attained"])) == "0" for run in (mine, theirs)]
        more = 100.0 * (pair[0].astype(float) - pair[1])
        cuts = range(_BLOCK, len(more) - _BLOCK + 1, _BLOCK)
        blocks += [float(block.mean()) for block in np.split(more, cuts)]
    mean = statistics.fmean(blocks)
    if max(blocks) == min(blocks):
        return mean, mean, mean
    low, high = stats.ttest_1samp(blocks, 0.0).confidence_interval(0.95)
    return mean, float(low), float(high)


def _difference(ours: Runs, other: Runs) -> str:
    if not (ours and other):
        return "-"
    mean, low, high = paired(ours, other)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _least_bold(values: Sequence[float], digits: int = 1) -> list[str]:
    """Returns numbers as text; a missing one is NaN."""
    known = [round(one, digits) for one in values if not math.isnan(one)]
    texts = ["-" if math.isnan(one) else f"{one:.{digits}f}" for one in values]
    least = f"{min(known):.{digits}f}" if known else ""
    return [f"**{text}**" if text == least else text for text in texts]


def _common(some: Sequence[Runs], key: str) -> list[str]:
    """Returns the names that all results have under a key; none if one is missing."""
    if not all(some):
        return []
    names = [set(run[key]) for runs in some for run in runs]
    return sorted(set.intersection(*names))


def _forecast_errors(runs: Runs, name: str) -> list[float]:
    """Returns what a class's TTFT forecasts were off by, and their calibration, %."""
    return [
        100 * _mean(runs, "by_class", name, "ttft_forecast", key) for key in _FORECAST
    ]


def _row(
    found: Found, name: str, policies: Sequence[str], *what: Any, **more: Any
) -> list[str]:
    """Returns a row of violations in %; `what` are kind, condition and load."""
    late = [_late(found(policy, *what, **more)) for policy in policies]
    return [name, *_least_bold(late)]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown(["", *(f"`{name}`" for name in names)], rows)


def _best_tuned(found: Found, kind: str, condition: str, load: float) -> Runs:
    """Returns the runs of the step limit of qoserve with the fewest violations."""
    some = [found(one, kind, condition, load) for one in TUNED]
    return min(some, key=_late) if all(some) else []


def _violations(found: Found, condition: str, kinds: Sequence[str]) -> str:
    policies = FITTED if condition == "fitted" else tuple(POLICIES)
    rows = []
    for kind, load in itertools.product(kinds, sorted(LOADS)):
        what = kind, condition, load
        others = found(_BEHIND, *what), _best_tuned(found, *what)
        differences = [_difference(found(_OURS, *what), one) for one in others]
        rows.append([*_row(found, f"{kind} {load:g}", policies, *what), *differences])
    return _table([*policies, f"{_OURS} - {_BEHIND}", f"{_OURS} - tuned"], rows)


def _behind(found: Found, kinds: Sequence[str]) -> str:
    """Returns where another policy has fewer violations, beyond the interval."""
    rows = []
    for what in itertools.product(kinds, CONDITIONS, sorted(LOADS)):
        ours = found(_OURS, *what)
        for policy in POLICIES:
            other = found(policy, *what)
            if ours and other and paired(ours, other)[1] > 0:
                name = "{}, {} {:g}".format(*what)
                rows.append([name, f"`{policy}`", _difference(ours, other)])
    return markdown(["", "policy", "points"], rows)


def goodput(found: Found, policy: str, kind: str, most: float) -> float:
    """Returns up to which load the share of violations stays at most `most`.

    Of the shares, pooled over seeds, the isotonic fit is taken, from none without load,
    and linear between two loads. NaN if a load is missing.
    """
    late = [_late(found(policy, kind, "exact", load)) / 100 for load in GOODPUT_LOADS]
    if np.isnan(late).any():
        return math.nan
    fitted = isotonic_regression([0.0, *late]).x
    return float(np.interp(most, fitted, [0.0, *GOODPUT_LOADS]))


def _goodputs(found: Found, kinds: Sequence[str]) -> str:
    columns = list(itertools.product((0.01, 0.05), FEW[:3]))
    rows = []
    for kind in kinds:
        shares = [goodput(found, one, kind, at) for at, one in columns]
        rows.append(
            [kind, *("-" if math.isnan(one) else f"{one:.2f}" for one in shares)]
        )
    return _table([f"{policy}, {at:.0%}" for at, policy in columns], rows)


def _lengths(found: Found) -> str:
    policies = (*MORE, "annealing")
    what = WITH_TTLT, "real", LOADS[0]
    rows = [_row(found, one, policies, *what, lengths=one) for one in LENGTHS]
    return _table(policies, rows)


def _forecast(found: Found, kinds: Sequence[str]) -> str:
    """Returns errors of TTFT as forecast on arrival, and their calibration, in %."""
    rows = []
    for kind in kinds:
        some = [found(_OURS, kind, one, LOADS[0]) for one in ("real", "exact")]
        for name in _common(some, "by_class"):
            values = [one for runs in some for one in _forecast_errors(runs, name)]
            rows.append([f"{kind}: {name}", *(f"{one:.0f}" for one in values)])
    columns = ("median error", "below P50", "below P90")
    return markdown(["", *columns, *(f"{one}, exact" for one in columns)], rows)


def _overload(found: Found, kinds: Sequence[str]) -> str:
    rows = [_row(found, kind, MORE, kind, "real", 3.0) for kind in kinds]
    return _table(MORE, rows)


def _requests(found: Found, kinds: Sequence[str]) -> str:
    """Returns violations by class, of the longest prompts, and TTFT, in overload."""
    rows = []
    for kind in kinds:
        some = [found(policy, kind, "real", LOADS[0]) for policy in MORE]
        for name in _common(some, "by_class"):
            late = [_late(runs, "by_class", name, "attainment") for runs in some]
            rows.append([f"{kind}: {name}, %", *_least_bold(late)])
        late = [_late(runs, "longest") for runs in some]
        rows.append([f"{kind}: longest tenth of prompts, %", *_least_bold(late)])
        for at in ("mean", "p99"):
            times_s = [_mean(runs, "ttft_s", at) for runs in some]
            rows.append([f"{kind}: TTFT {at}, s", *_least_bold(times_s, 2)])
    return _table(MORE, rows)


def _turns(found: Found) -> str:
    rows = []
    for on, name in ((True, "with"), (False, "without")):
        settings = (("enable_prefix_caching", on),)
        for kind in TURNS:
            what = kind, "real", LOADS[0]
            name = f"{kind} {name} prefix cache"
            rows.append(_row(found, name, MORE, *what, settings=settings))
    return _table(MORE, rows)


def _admitted(
    found: Found, kind: str, condition: str, load: float
) -> tuple[int, int, int]:
    """Returns requests attained, admitted and all, where others are refused."""
    runs = found(_OURS, kind, condition, load, settings=REFUSE)
    num_all = sum(run["num_requests"] for run in runs)
    num_attained = num_all - sum(run["num_violations"] for run in runs)
    num_refused = sum(run["violations_by_cause"].get("rejected", 0) for run in runs)
    return num_attained, num_all - num_refused, num_all


def _admission(found: Found, kinds: Sequence[str]) -> str:
    """Returns attained requests in %, without and with refusing."""
    rows = []
    for what in itertools.product(kinds, ("real", "exact"), ADMISSION_LOADS):
        num_attained, num_admitted, num_all = _admitted(found, *what)
        if num_all:
            without = [100 - _late(found(one, *what)) for one in (_OURS, _BEHIND)]
            shares = [num_attained / num_all, 1 - num_admitted / num_all]
            shares.append(num_attained / max(num_admitted, 1))
            values = [*without, *(100 * one for one in shares)]
            name = "{}, {} {:g}".format(*what)
            rows.append([name, *(f"{one:.1f}" for one in values)])
    columns = [f"`{_OURS}`", f"`{_BEHIND}`", f"`{_OURS}`, refusing"]
    return markdown(["", *columns, "refused", "attained of those admitted"], rows)


def _burst(found: Found, kinds: Sequence[str]) -> str:
    """Returns how many refused clients came back, and the share admitted then, %."""
    rows = []
    for what in itertools.product(kinds, ("exact", "real")):
        runs = found(_OURS, *what, BURST_LOAD, settings=BURST)
        come = [one for one in runs if "num_returned" in one]
        if total := sum(one["num_returned"] for one in come):
            shares = [one["num_returned"] * one[_COMMITTED] for one in come]
            rows.append(
                [", ".join(what), f"{total}", f"{100 * sum(shares) / total:.0f}"]
            )
    return markdown(["", "came back", "admitted, %"], rows)


def _targets(found: Found, kinds: Sequence[str]) -> str:
    """Returns each target, what was measured and whether it is met."""
    rows: list[list[str]] = []

    def row(target: str, measured: str, is_met: bool) -> None:
        is_known = "nan" not in measured
        rows.append([target, measured if is_known else "-"])
        rows[-1].append("-" if not is_known else "yes" if is_met else "**no**")

    # Exact predictions and lengths.
    for kind, least in _LEAST_GOODPUT.items():
        share = 100 * goodput(found, _OURS, kind, 0.01)
        row(f"goodput at 1 %, {kind}: {least} %", f"{share:.0f}", share >= least)
    for kind, most in _MOST_EXACT.items():
        late = _late(found(_OURS, kind, "exact", 1.3))
        row(f"violations at 1.3x, {kind}: {most:g} %", f"{late:.1f}", late <= most)
    for others, most in (((_BEHIND, *TUNED), _MOST_BEHIND), (("fcfs",), 0.0)):
        gaps_at = [
            (
                _late(found(_OURS, kind, "exact", load))
                - min(_late(found(one, kind, "exact", load)) for one in others),
                f"{kind} {load:g}",
            )
            for kind, load in itertools.product(kinds, LOADS)
        ]
        known = [one for one in gaps_at if not math.isnan(one[0])]
        gap, at = max(known, default=(math.nan, "-"))
        names = ", ".join(f"`{one}`" for one in others)
        row(f"exact: behind {names}: {most:g}", f"{gap:+.1f} at {at}", gap <= most)

    # Admission, the worst kind and load.
    for condition, needed in (("exact", 98.0), ("real", 97.0)):
        kept = [
            (100 * num_attained / max(num_admitted, 1), f"{kind} {load:g}")
            for kind, load in itertools.product(kinds, ADMISSION_LOADS)
            for num_attained, num_admitted, num_all in [
                _admitted(found, kind, condition, load)
            ]
            if num_all
        ]
        share, at = min(kept, default=(math.nan, "-"))
        name = f"{condition}: attained of those admitted: {needed:g} %"
        row(name, f"{share:.1f} at {at}", share >= needed)

    # Forecasts of the first token, by class.
    for condition in ("real", "exact"):
        errors, gaps = list[tuple[float, str]](), list[tuple[float, str]]()
        for kind in kinds:
            runs = found(_OURS, kind, condition, LOADS[0])
            for name in _common([runs], "by_class"):
                error, p50, p90 = _forecast_errors(runs, name)
                at = f"{kind}: {name}"
                gaps.append((max(abs(p50 - 50), abs(p90 - 90)), at))
                if kind != "bursts":
                    errors.append((error, at))
        for name, some, most in (
            ("median error of a forecast, but bursts: 12 %", errors, 12.0),
            ("P50 and P90 off by: 5 points", gaps, 5.0),
        ):
            worst, at = max(some, default=(math.nan, "-"))
            row(f"{condition}: {name}", f"{worst:.0f} at {at}", worst <= most)

    # Real conditions: all finished loads of a kind together.
    for condition in list(CONDITIONS)[1:]:
        behind, ahead = [], 0
        for kind in kinds:
            ours, sliding, *tuned = (
                found.at_all_loads(one, kind, condition)
                for one in (_OURS, _BEHIND, *TUNED)
            )
            if not all((ours, sliding, *tuned)):
                behind.append(f"{kind} is missing")
                continue
            best = min(tuned, key=_late)
            if max(paired(ours, one)[1] for one in (sliding, best)) > 0:
                behind.append(kind)
            ahead += _late(ours) <= 0.75 * min(_late(sliding), _late(best))
        row(
            f"{condition}: kinds behind `sliding` or tuned `qoserve`: none",
            ", ".join(behind) or "none",
            not behind,
        )
        row(
            f"{condition}: kinds with a quarter fewer violations than both: half",
            f"{ahead} of {len(kinds)}",
            2 * ahead >= len(kinds),
        )
    return markdown(["target", "measured", "met"], rows)


def all_tables(found: Found, kinds: Sequence[str]) -> dict[str, str]:
    """Returns the tables by the names of the page's places."""
    return {
        **{one: _violations(found, one, kinds) for one in CONDITIONS},
        "behind": _behind(found, kinds),
        "goodput": _goodputs(found, kinds),
        "lengths": _lengths(found),
        "forecast": _forecast(found, kinds),
        "overload": _overload(found, kinds),
        "requests": _requests(found, kinds),
        "turns": _turns(found),
        "admission": _admission(found, kinds),
        "burst": _burst(found, kinds),
        "targets": _targets(found, kinds),
    }
