"""Where a step's time goes: the host's work against XLA's, medians per step.

XLA's time can be told only where the host does nothing meanwhile. Without overlap it is
what the host spends on launching a step and waiting for it; everything else is
Python's. With overlap the device works while the host plans the next step, so a step's
wait is no more than a lower bound, and no device time is given.
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
    "bookkeeping": lambda step: (
        step.host_s - step.plan_s - step.transfer_s - step.launch_s - step.apply_s
    ),
}
_FEW_STEPS = 10  # fewer of a kind have no median worth reporting


def _kinds(steps: Sequence[StepRecord]) -> dict[str, list[StepRecord]]:
    most_rows = max(step.used_rows for step in steps)
    decodes = [step for step in steps if not step.num_blocks]
    kinds = {
        "all steps": list(steps),
        "with prefill": [step for step in steps if step.num_blocks],
        "decode only": decodes,
        f"decode only, {most_rows} rows": [
            step for step in decodes if step.used_rows == most_rows
        ],
    }
    return {
        name: group
        for name, group in kinds.items()
        if len(group) >= min(_FEW_STEPS, len(steps))
    }


def break_down(
    steps: Sequence[StepRecord], *, detokenise_s: float | None, has_overlap: bool
) -> list[dict[str, Any]]:
    """Returns the median of each part for each kind of step, in milliseconds.

    `host_ms` is the host's time but launching, bookkeeping and text included;
    `device_ms`, launching and waiting, and `host_to_device`, their ratio, are
    there only without overlap.

    Args:
      steps: A run's steps.
      detokenise_s: Median time to turn a step's tokens into text, where it is known.
      has_overlap: Whether steps were planned while others ran.
    """
    if not steps:
        return []
    found = []
    for name, group in _kinds(steps).items():

        def median_ms(
            read: Callable[[StepRecord], float],
            group: Sequence[StepRecord] = group,
        ) -> float:
            return statistics.median(map(read, group)) * 1e3

        parts = {part: median_ms(read) for part, read in _PARTS.items()}
        host_ms = median_ms(lambda step: step.host_s - step.launch_s)
        if detokenise_s is not None:
            parts["detokenise"] = detokenise_s * 1e3
            host_ms += parts["detokenise"]
        entry: dict[str, Any] = {
            "steps": name,
            "num_steps": len(group),
            "overlap": has_overlap,
            "median_ms": parts,
            "host_ms": host_ms,
        }
        if not has_overlap:
            device_ms = median_ms(lambda step: step.launch_s + step.wait_s)
            entry["device_ms"] = device_ms
            entry["host_to_device"] = host_ms / max(device_ms, 1e-9)
        found.append(entry)
    return found
