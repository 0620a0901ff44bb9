"""Bucket strategies side by side, on the steps edges were fitted to and on later ones.

The one idea: edges fitted to some steps look good on those steps. So they are judged
on steps that came later as well, and against every other strategy with as many
programs as that one takes.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from jserve_sched.bucket_costs import BucketCosts, costs_of
from jserve_sched.bucket_fitting import fit_buckets
from jserve_sched.buckets import BucketTable
from jserve_sched.step_demand import StepDemand, StepTimes
from jserve_tools.bucket_fits import (
    FitHistory,
    known_tables,
    with_prior,
)
from jserve_tools.tables import render

MOST_FITTED = 200  # programs of another strategy that edges are fitted with as well


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a table makes of some steps.

    Attributes:
      expected_s: mean padded step time, seconds.
      pad_share_time: share of the time of the steps that round up that is padding.
    """

    expected_s: float
    pad_share_time: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class StrategyRow:
    """One strategy.

    Attributes:
      bucket_strategy: its name.
      num_programs: programs of its table.
      earlier: on the steps that edges were fitted to.
      later: on the steps after them.
    """

    bucket_strategy: str
    num_programs: int
    earlier: Judgement
    later: Judgement


def compare_strategies(
    earlier: StepDemand,
    later: StepDemand,
    step_s: StepTimes,
    *,
    limits: Mapping[str, int],
    page_size: int,
    max_programs: int,
    prior_share: float,
) -> list[StrategyRow]:
    """Returns each strategy, and edges fitted with as many programs after it.

    None are fitted after a strategy of more than `MOST_FITTED`: that takes long, and
    nobody compiles so many.

    Args:
      earlier: what to fit to.
      later: what to judge by as well.
      step_s: how long steps take.
      limits: `max_num_seqs`, `max_num_batched_tokens` and `block_tokens`.
      page_size: tokens in one KV page.
      max_programs: a number of programs to fit with, beside the strategies' own.
      prior_share: see `with_prior`.
    """
    known = known_tables(**limits)
    any_table = next(iter(known.values()))
    costs = [
        costs_of(demand, step_s, any_table, page_size=page_size)
        for demand in (earlier, later)
    ]
    expected = with_prior(earlier, any_table, prior_share)
    tables: list[tuple[str, BucketTable]] = []
    fitted: set[int] = set()

    def add_fitted(num_programs: int) -> None:
        if num_programs in fitted:
            return
        fitted.add(num_programs)
        table = fit_buckets(
            expected,
            step_s,
            **limits,
            page_size=page_size,
            max_programs=num_programs,
            starts=(),
        )
        tables.append(("fitted", table))

    for name, table in known.items():
        tables.append((name, table))
        if table.num_programs <= MOST_FITTED:
            add_fitted(table.num_programs)
    add_fitted(max_programs)
    return [
        StrategyRow(
            bucket_strategy=name,
            num_programs=table.num_programs,
            earlier=_judge(costs[0], table),
            later=_judge(costs[1], table),
        )
        for name, table in tables
    ]


def _judge(costs: BucketCosts, table: BucketTable) -> Judgement:
    return Judgement(
        expected_s=costs.expected_s(table), pad_share_time=costs.pad_share(table)
    )


def strategies_table(rows: Sequence[StrategyRow]) -> str:
    """Returns the rows as a table for people, with what was left out below."""
    header = ["strategy", "programs"]
    for half in ("earlier", "later"):
        header += [f"step ms, {half}", f"padding %, {half}"]
    lines = [header]
    for row in rows:
        line = [row.bucket_strategy, str(row.num_programs)]
        for one in (row.earlier, row.later):
            line += [f"{one.expected_s * 1e3:.3f}", f"{100 * one.pad_share_time:.2f}"]
        lines.append(line)
    notes = [
        f"no edges are fitted with {row.bucket_strategy}'s {row.num_programs:,} "
        f"programs, which are over {MOST_FITTED}"
        for row in rows
        if row.bucket_strategy != "fitted" and row.num_programs > MOST_FITTED
    ]
    return "\n".join([render(lines), *notes])


def history_table(history: FitHistory) -> str:
    """Returns the turns of a simulated fit as a table for people."""
    lines = [["turn", "steps", "programs", "step ms", "change %", "padding %"]]
    for number, one in enumerate(history.iterations, 1):
        change = "-" if one.change is None else f"{100 * one.change:+.2f}"
        lines.append(
            [
                str(number),
                str(one.num_steps),
                str(one.table.num_programs),
                f"{one.expected_s * 1e3:.3f}",
                change,
                f"{100 * one.pad_share_time:.2f}",
            ]
        )
    end = "no change is left" if history.is_converged else "the turns are used up"
    return f"{render(lines)}\n{end}"
