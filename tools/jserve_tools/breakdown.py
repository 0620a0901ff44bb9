"""Where a step's time goes: host parts against the device, medians per step.

The one idea: with overlap the host works while the device does, so the parts do
not add up to the step. What is compared is Python's work (plan, transfer,
launch, apply, detokenise) with the device's; waiting is neither.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from jserve.events import StepRecord

_PARTS: dict[str, Callable[[StepRecord], float]] = {
    "plan": lambda step: step.plan_s,
    "transfer": lambda step: step.transfer_s,
    "launch": lambda step: step.launch_s,
    "wait": lambda step: step.wait_s,
    "apply": lambda step: step.apply_s,
    "device": lambda step: step.duration_s,
}
_FEW_STEPS = 10  # fewer of a kind have no median worth telling
_HOST_PARTS = ("plan", "transfer", "launch", "apply", "detokenise")


def _kinds(steps: Sequence[StepRecord]) -> dict[str, list[StepRecord]]:
    most_rows = max(step.used_rows for step in steps)
    kinds = {
        "all steps": list(steps),
        "with prefill": [step for step in steps if step.num_blocks],
        "decode only": [step for step in steps if not step.num_blocks],
        f"decode only, {most_rows} rows": [
            step
            for step in steps
            if not step.num_blocks and step.used_rows == most_rows
        ],
    }
    return {
        name: group
        for name, group in kinds.items()
        if len(group) >= min(_FEW_STEPS, len(steps))
    }


def break_down(
    steps: Sequence[StepRecord], detokenise_s: Sequence[float] | None
) -> list[dict[str, Any]]:
    """Returns the median of each part for each kind of step, in milliseconds.

    Args:
      steps: a run's steps.
      detokenise_s: time to turn each step's tokens into text, where it was taken;
        over all steps, since only their number says what it costs.
    """
    if not steps:
        return []
    found = []
    text_ms = statistics.median(detokenise_s) * 1e3 if detokenise_s else None
    for name, group in _kinds(steps).items():
        parts = {
            part: statistics.median(map(read, group)) * 1e3
            for part, read in _PARTS.items()
        }
        if text_ms is not None:
            parts["detokenise"] = text_ms
        host_ms = sum(parts.get(part, 0.0) for part in _HOST_PARTS)
        found.append(
            {
                "steps": name,
                "num_steps": len(group),
                "median_ms": parts,
                "host_ms": host_ms,
                "device_ms": parts["device"],
                "host_share": host_ms / max(host_ms + parts["device"], 1e-12),
            }
        )
    return found
