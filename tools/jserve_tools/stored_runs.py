"""A finished benchmark run as JSON, and back: the report's entry and what is drawn.

The one idea: everything a report or a picture reads of a run is in its file, so a run
that was resumed looks like one that was just made.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jserve.events import StepRecord
from jserve_sched.report import Failure, Outcome
from jserve_sched.slo import Slo
from jserve_tools.documents import plain
from jserve_tools.plots import PlottedRun

_STEP_FIELDS = tuple(field.name for field in dataclasses.fields(StepRecord))


def run_to_json(run: PlottedRun) -> dict[str, Any]:
    """Returns a run as JSON can hold it; steps by column, without repeated names."""
    steps = run.steps
    return {
        "summary": plain(run.summary),
        "outcomes": [
            {
                **dataclasses.asdict(one),
                "failure": None if one.failure is None else one.failure.value,
            }
            for one in run.outcomes
        ],
        "steps": None
        if steps is None
        else {name: [getattr(step, name) for step in steps] for name in _STEP_FIELDS},
        "block_tokens": run.block_tokens,
    }


def run_from_json(row: Mapping[str, Any]) -> PlottedRun:
    """Returns the run that `run_to_json` wrote."""
    return PlottedRun(
        summary=row["summary"],
        outcomes=[_outcome(one) for one in row["outcomes"]],
        steps=None if row["steps"] is None else _steps(row["steps"]),
        block_tokens=row["block_tokens"],
    )


def _outcome(row: Mapping[str, Any]) -> Outcome:
    failure = row["failure"]
    return Outcome(
        **{
            **row,
            "slo": Slo(**row["slo"]),
            "failure": None if failure is None else Failure(failure),
        }
    )


def _steps(columns: Mapping[str, Sequence[Any]]) -> list[StepRecord]:
    rows = zip(*(columns[name] for name in _STEP_FIELDS), strict=True)
    return [StepRecord(**dict(zip(_STEP_FIELDS, row, strict=True))) for row in rows]
